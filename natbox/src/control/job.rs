//! What the loop is asked, and its answers.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::mpsc::SyncSender,
};

use natbox_core::{
    Behavior, Counters, External, MappingInfo, MappingRequest, Nat, Protocol, Selection, SessionInfo, Time,
};
use serde::{Deserialize, Serialize};

use super::{inbox::Subscription, subscriber::Holdings};

/// What the loop can be asked.
#[derive(Clone, Debug)]
pub enum Ask {
    /// A copy of the parts of the state that are named.
    Show(Show),
    /// Remove mappings.
    Flush(Selection),
    /// Change the behaviour: start from this one when there is one, then set axes by name.
    Set {
        /// What to start from; the present behaviour when absent.
        base: Option<Box<Behavior>>,
        /// Axes and their values.
        axes: BTreeMap<String, String>,
    },
    /// Remove every mapping but the static forwards and go on with these external addresses; none given: the present.
    Rebind(Vec<Ipv4Addr>),
    /// Make a static forward.
    AddForward(MappingRequest),
    /// Remove the static forward of this external port.
    RemoveForward(Protocol, u16),
    /// Be told what happens to mappings and port blocks.
    Subscribe {
        /// To port blocks alone.
        blocks: bool,
    },
}

/// Which parts of the state to copy; behaviour and counters always are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Show {
    /// The mappings that are selected.
    pub mappings: bool,
    /// Their sessions.
    pub sessions: bool,
    /// What the datapath's ports have counted.
    pub ports: bool,
    /// What each subscriber holds.
    pub subscribers: bool,
    /// Only these mappings and sessions (static forwards included).
    pub selection: Selection,
}

/// The loop's answer.
#[derive(Debug)]
pub enum Reply {
    /// To [`Ask::Show`].
    Shown(Box<Snapshot>),
    /// To [`Ask::Flush`]: how many mappings were removed.
    Flushed(usize),
    /// To [`Ask::Set`]: the behaviour from now on.
    Set(Box<Behavior>),
    /// To [`Ask::Rebind`]: how many mappings were removed.
    Rebound(usize),
    /// To [`Ask::AddForward`]: the external endpoint.
    Forwarded(External),
    /// To [`Ask::RemoveForward`].
    Removed,
    /// To [`Ask::Subscribe`].
    Subscribed(Subscription),
    /// It could not be done; why.
    Refused(String),
}

/// A copy of the NAT's state at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The loop's clock at that moment.
    pub now: Time,
    /// The behaviour.
    pub behavior: Behavior,
    /// What was counted so far.
    pub counters: Counters,
    /// The external addresses, sorted.
    pub external: Vec<IpAddr>,
    /// How many mappings there are, selected or not.
    pub mapping_count: usize,
    /// How many sessions there are, selected or not.
    pub session_count: usize,
    /// How many subscribers are counted.
    pub subscriber_count: usize,
    /// How many port blocks they have.
    pub block_count: usize,
    /// How many external ports rest.
    pub resting_count: usize,
    /// The mappings asked for.
    pub mappings: Vec<MappingInfo>,
    /// The sessions asked for.
    pub sessions: Vec<SessionInfo>,
    /// The ports' counters, if asked for.
    pub ports: Vec<PortStats>,
    /// What programs in the kernel move, where they do.
    pub fast_path: Option<FastPath>,
    /// What subscribers hold, if asked for.
    pub holdings: Option<Holdings>,
}

/// What programs in the kernel move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FastPath {
    /// Flows that they move now.
    pub flows: u64,
    /// Flows that they were given so far.
    pub given: u64,
    /// Flows that they were not, for want of room.
    pub refused: u64,
    /// Packets that they have moved, both ways; a super-frame is one. Among those that the NAT counts.
    pub packets: u64,
    /// Their bytes from the IP header on.
    pub bytes: u64,
}

/// What the loop knows beside the engine.
#[derive(Clone, Debug, Default)]
pub struct Datapath {
    /// What its ports have counted.
    pub ports: Vec<PortStats>,
    /// What programs in the kernel move, where they do.
    pub fast_path: Option<FastPath>,
}

/// What one port of the datapath has counted since the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortStats {
    /// The port's interface.
    pub name: String,
    /// Names and values, over all workers.
    pub counters: Vec<(&'static str, u64)>,
    /// Frames that each worker has received and sent; empty when there is only one.
    pub workers: Vec<WorkerStats>,
}

/// What one worker has moved at one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct WorkerStats {
    /// Frames received; a super-frame is one.
    pub received_packets: u64,
    /// Frames sent; a super-frame is one.
    pub sent_packets: u64,
}

/// One question to the loop, to be answered on its thread.
#[derive(Debug)]
pub struct Job {
    pub(super) ask: Ask,
    pub(super) reply: SyncSender<Reply>,
}

impl Job {
    /// Answers the question. Returns the new external addresses when they have changed: from now on the caller answers
    /// ARP for these, and guards these.
    #[must_use = "new external addresses need ARP and the guard"]
    pub fn answer(self, nat: &mut Nat, datapath: &Datapath, now: Time) -> Option<Vec<Ipv4Addr>> {
        let mut external = None;
        let reply = match self.ask {
            Ask::Show(show) => Reply::Shown(Box::new(snapshot(show, nat, datapath, now))),
            Ask::Flush(selection) => Reply::Flushed(nat.flush(&selection, now)),
            Ask::Set { base, axes } => set(nat, base, &axes),
            Ask::Rebind(addresses) => match rebind(nat, &addresses, now) {
                Ok(removed) => {
                    external = (!addresses.is_empty()).then_some(addresses);
                    Reply::Rebound(removed)
                }
                Err(refused) => Reply::Refused(refused),
            },
            Ask::AddForward(request) => {
                nat.add_mapping(request, now).map_or_else(|e| Reply::Refused(e.to_string()), Reply::Forwarded)
            }
            Ask::RemoveForward(protocol, port) => remove_forward(nat, protocol, port, now),
            // The inbox answers this one itself.
            Ask::Subscribe { .. } => Reply::Refused("events are not to be had here".to_owned()),
        };
        // An asker that has given up needs no answer.
        let _ = self.reply.try_send(reply);
        external
    }
}

fn snapshot(show: Show, nat: &Nat, datapath: &Datapath, now: Time) -> Snapshot {
    let selection = Selection { statics: true, ..show.selection };
    let all = selection == Selection { statics: true, ..Selection::default() };
    let mut mappings = Vec::new();
    if show.mappings {
        mappings.reserve_exact(if all { nat.mapping_count() } else { 0 });
        // The engine's own clock stands still while no packet comes.
        let live = nat.mappings().filter(|mapping| mapping.expires > now);
        mappings.extend(live.filter(|mapping| all || selection.selects(mapping)));
    }
    let mut sessions = Vec::new();
    if show.sessions {
        sessions.reserve_exact(if all { nat.session_count() } else { 0 });
        let live = nat.sessions().filter(|session| session.expires > now);
        sessions.extend(live.filter(|session| all || selects(&selection, session)));
    }
    Snapshot {
        now,
        behavior: nat.behavior().clone(),
        counters: nat.counters().clone(),
        external: nat.external().collect(),
        mapping_count: nat.mapping_count(),
        session_count: nat.session_count(),
        subscriber_count: nat.subscriber_count(),
        block_count: nat.block_count(),
        resting_count: nat.resting_count(),
        mappings,
        sessions,
        ports: if show.ports { datapath.ports.clone() } else { Vec::new() },
        fast_path: datapath.fast_path,
        holdings: show.subscribers.then(|| Holdings::new(nat, show.selection.host, now)),
    }
}

fn selects(selection: &Selection, session: &SessionInfo) -> bool {
    selection.protocol.is_none_or(|protocol| protocol == session.protocol)
        && selection.host.is_none_or(|host| host == session.inside.endpoint.addr)
        && selection.external_port.is_none_or(|port| port == session.external.0.port)
}

fn set(nat: &mut Nat, base: Option<Box<Behavior>>, axes: &BTreeMap<String, String>) -> Reply {
    let mut behavior = base.unwrap_or_else(|| Box::new(nat.behavior().clone()));
    for (axis, value) in axes {
        if let Err(error) = behavior.set(axis, value) {
            return Reply::Refused(error.to_string());
        }
    }
    let (wanted, usable) = (behavior.port_range, nat.ports());
    if wanted.intersect(usable).is_none() {
        return Reply::Refused(format!(
            "no port of {wanted} can be had: on the address that it shares with the host natbox keeps to {usable}"
        ));
    }
    nat.set_behavior((*behavior).clone());
    Reply::Set(behavior)
}

fn rebind(nat: &mut Nat, addresses: &[Ipv4Addr], now: Time) -> Result<usize, String> {
    let before = nat.mapping_count();
    if !addresses.is_empty() {
        let addresses = addresses.iter().copied().map(IpAddr::V4).collect();
        nat.set_external(addresses, now).map_err(|error| error.to_string())?;
    }
    nat.flush(&Selection::default(), now);
    Ok(before.saturating_sub(nat.mapping_count()))
}

fn remove_forward(nat: &mut Nat, protocol: Protocol, port: u16, now: Time) -> Reply {
    let forward = |mapping: MappingInfo| {
        mapping.is_static && mapping.protocol == protocol && mapping.external.0.port == port
    };
    if !nat.mappings().any(forward) {
        return Reply::Refused(format!("there is no forward of {protocol} port {port}"));
    }
    let selection = Selection {
        protocol: Some(protocol),
        external_port: Some(port),
        statics: true,
        ..Selection::default()
    };
    nat.flush(&selection, now);
    Reply::Removed
}
