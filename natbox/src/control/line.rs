//! What a client reads from the control socket.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use natbox_core::{
    Behavior, Counters, DropReason, Ended, Event, MappingInfo, PortBlock, SessionInfo, Time, behavior::AXES,
};
use serde::{Deserialize, Serialize};

use super::{
    inbox::Stamped,
    job::{FastPath, PortStats, WorkerStats},
    subscriber::Subscriber,
};

/// What a client reads: one JSON object a line. Every request but [`Request::Events`](super::Request::Events) is answered with any number of
/// lines and then with one [`Line::Done`] or [`Line::Error`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Line {
    /// What runs.
    Status(Status),
    /// One mapping.
    Mapping(Mapping),
    /// One session.
    Session(Session),
    /// One subscriber; they come in the order of their use, the one with most mappings first.
    Subscriber(Subscriber),
    /// The NAT's counters.
    Counters(Counted),
    /// A port's counters.
    Port(Port),
    /// Something happened.
    Event(Happened),
    /// The request was carried out.
    Done(Done),
    /// The request was not carried out, and nothing has changed.
    Error {
        /// Why, in one line.
        message: String,
    },
}

/// What runs, and how it behaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of this protocol.
    pub natbox: u32,
    /// Version of the program.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Since when it runs, in milliseconds.
    pub uptime_ms: u64,
    /// The outside interface.
    pub outside: String,
    /// The inside interfaces, in the order of their numbers.
    pub inside: Vec<String>,
    /// The external addresses, sorted.
    pub external: Vec<IpAddr>,
    /// The external address is the host's as well.
    pub shared: bool,
    /// What keeps the host's stack quiet: `tcx`, `nftables` or `off`.
    pub guard: String,
    /// The preset that the behaviour started from.
    pub preset: Option<String>,
    /// The behaviour, axis by axis.
    pub behavior: BTreeMap<String, String>,
    /// How many mappings there are.
    pub mappings: u64,
    /// How many sessions there are.
    pub sessions: u64,
    /// How many subscribers are counted; 0 while no axis limits them.
    #[serde(default)]
    pub subscribers: u64,
    /// How many port blocks they have.
    #[serde(default)]
    pub port_blocks: u64,
    /// How many external ports rest before another mapping may have them.
    #[serde(default)]
    pub resting_ports: u64,
    /// What programs in the kernel move, where they do.
    #[serde(default)]
    pub fast_path: Option<FastPath>,
}

/// Every axis of `behavior` in writing.
pub fn written(behavior: &Behavior) -> BTreeMap<String, String> {
    AXES.iter().map(|axis| (axis.name.to_owned(), axis.get(behavior))).collect()
}

/// A mapping. For ICMP queries the port of an endpoint is the identifier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// `udp`, `tcp` or `icmp`.
    pub protocol: String,
    /// The private endpoint.
    pub inside: SocketAddr,
    /// Which inside interface the host is behind, by its number.
    pub inside_port: u16,
    /// The public endpoint.
    pub external: SocketAddr,
    /// The destination that the mapping is for, where it is for one; port 0 stands for every port.
    pub remote: Option<SocketAddr>,
    /// A static forward.
    pub forward: bool,
    /// How many sessions it has.
    pub sessions: u32,
    /// Since when it exists, in milliseconds.
    pub age_ms: u64,
    /// When it ends if nothing more happens, in milliseconds from now; never when absent.
    pub expires_in_ms: Option<u64>,
}

impl Mapping {
    /// `mapping` as seen at `now`.
    pub fn new(mapping: &MappingInfo, now: Time) -> Mapping {
        Mapping {
            protocol: mapping.protocol.to_string(),
            inside: mapping.inside.endpoint.into(),
            inside_port: mapping.inside.port.0,
            external: mapping.external.0.into(),
            remote: mapping.remote.map(|remote| remote.0.into()),
            forward: mapping.is_static,
            sessions: mapping.sessions,
            age_ms: millis(now.since(mapping.created)),
            expires_in_ms: expires(mapping.expires, now),
        }
    }
}

/// A session: an inside host and one remote endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// `udp`, `tcp` or `icmp`.
    pub protocol: String,
    /// The private endpoint.
    pub inside: SocketAddr,
    /// Which inside interface the host is behind, by its number.
    pub inside_port: u16,
    /// The public endpoint.
    pub external: SocketAddr,
    /// The far end.
    pub remote: SocketAddr,
    /// `new`, `replied`, or the state of the TCP connection.
    pub state: String,
    /// When it ends if nothing more happens, in milliseconds from now; never when absent.
    pub expires_in_ms: Option<u64>,
}

impl Session {
    /// `session` as seen at `now`.
    pub fn new(session: &SessionInfo, now: Time) -> Session {
        Session {
            protocol: session.protocol.to_string(),
            inside: session.inside.endpoint.into(),
            inside_port: session.inside.port.0,
            external: session.external.0.into(),
            remote: session.remote.0.into(),
            state: session.state.to_owned(),
            expires_in_ms: expires(session.expires, now),
        }
    }
}

fn expires(at: Time, now: Time) -> Option<u64> {
    (at != Time::NEVER).then(|| millis(at.since(now)))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What the NAT has counted since the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Every counter by its name.
    pub counters: BTreeMap<String, u64>,
    /// Packets dropped, by reason; every reason, also those that have not occurred.
    pub drops: BTreeMap<String, u64>,
}

impl Counted {
    /// These counters.
    pub fn new(counters: &Counters) -> Counted {
        Counted {
            counters: counters.named().map(|(name, value)| (name.replace('_', "-"), value)).collect(),
            drops: counters.drops().map(|(reason, count)| (reason.word().to_owned(), count)).collect(),
        }
    }

    /// The counter of this name; 0 when there is none.
    pub fn get(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }

    /// Packets dropped for whatever reason.
    pub fn dropped(&self) -> u64 {
        self.drops.values().sum()
    }
}

/// What is meant by this reason for a drop.
pub fn explanation(reason: &str) -> &'static str {
    DropReason::ALL.iter().find(|known| known.word() == reason).map_or("", |known| known.explanation().trim())
}

/// What a port of the datapath has counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its interface.
    pub name: String,
    /// Every counter by its name.
    pub counters: BTreeMap<String, u64>,
    /// What each worker has moved, if there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workers: Vec<WorkerStats>,
}

impl From<PortStats> for Port {
    fn from(port: PortStats) -> Port {
        let counters =
            port.counters.into_iter().map(|(name, value)| (name.replace('_', "-"), value)).collect();
        Port { name: port.name, counters, workers: port.workers }
    }
}

/// Something that happened to a mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Happened {
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// `created`, `ended` or `refused`; of a port block `assigned` or `released`; `lost` when the client was too slow for
    /// some.
    pub event: String,
    /// `udp`, `tcp` or `icmp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The private endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inside: Option<SocketAddr>,
    /// The public endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external: Option<SocketAddr>,
    /// Whom a refused mapping was to reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<SocketAddr>,
    /// Why a mapping ended (`expired`, `removed`) or was refused (a reason for a drop).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Of a port block: the subscriber, `ADDR/LEN`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscriber: Option<String>,
    /// Of a port block: which inside interface the subscriber is behind, by its number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside_port: Option<u16>,
    /// Of a port block: the external address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Of a port block: `FIRST-LAST`, of every protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<String>,
    /// How many events were lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

impl Happened {
    fn bare(at: SystemTime, event: &str) -> Happened {
        Happened {
            at: at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, millis),
            event: event.to_owned(),
            protocol: None,
            inside: None,
            external: None,
            remote: None,
            why: None,
            subscriber: None,
            inside_port: None,
            address: None,
            ports: None,
            count: None,
        }
    }

    /// A port block was given to a subscriber, or is nobody's any more.
    fn block(at: SystemTime, event: &str, block: PortBlock) -> Happened {
        Happened {
            subscriber: Some(format!("{}/{}", block.subscriber, block.prefix_len)),
            inside_port: Some(block.inside.0),
            address: Some(block.address),
            ports: Some(block.ports.to_string()),
            ..Happened::bare(at, event)
        }
    }

    /// `count` events were lost just now.
    pub fn lost(count: u64) -> Happened {
        Happened { count: Some(count), ..Happened::bare(SystemTime::now(), "lost") }
    }

    /// This event.
    pub fn new(Stamped { at, event }: Stamped) -> Happened {
        let (kind, protocol, inside, external, remote, why) = match event {
            Event::MappingCreated { protocol, inside, external } => {
                ("created", protocol, inside, Some(external), None, None)
            }
            Event::MappingEnded { protocol, inside, external, why } => {
                let why = match why {
                    Ended::Expired => "expired",
                    Ended::Removed => "removed",
                    Ended::Displaced => "displaced",
                };
                ("ended", protocol, inside, Some(external), None, Some(why))
            }
            Event::MappingRefused { protocol, inside, remote, why } => {
                ("refused", protocol, inside, None, Some(remote), Some(why.word()))
            }
            Event::BlockAssigned(block) => return Happened::block(at, "assigned", block),
            Event::BlockReleased(block) => return Happened::block(at, "released", block),
        };
        Happened {
            protocol: Some(protocol.to_string()),
            inside: Some(inside.endpoint.into()),
            external: external.map(|external| external.0.into()),
            remote: remote.map(|remote| remote.0.into()),
            why: why.map(str::to_owned),
            ..Happened::bare(at, kind)
        }
    }
}

/// The request was carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// How many mappings were removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub removed: Option<u64>,
    /// The external endpoint of a new forward.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external: Option<SocketAddr>,
    /// The preset that the behaviour started from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// The behaviour from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behavior: Option<BTreeMap<String, String>>,
}
