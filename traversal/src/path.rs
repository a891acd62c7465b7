//! Paths as the application sees them.

use std::{fmt, net::SocketAddr, time::Duration};

use serde::{Serialize, Serializer};
use traversal_proto::{path::NatProfile, peer};

/// Which paths a connection may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Over the relay at once, direct as soon as possible, back to the relay when that fails.
    #[default]
    PreferDirect,
    /// Over the relay only: the other peer learns no address of ours.
    RelayOnly,
    /// The application's data never goes over the relay: connecting fails if there is no direct path after this time, and
    /// the connection is closed if its direct path is lost for as long. What others who share the connection send before
    /// there is a direct path does go over the relay.
    DirectOnly(Duration),
}

impl Policy {
    pub(crate) fn engine(self) -> peer::Policy {
        match self {
            Policy::PreferDirect => peer::Policy::PreferDirect,
            Policy::RelayOnly => peer::Policy::RelayOnly,
            Policy::DirectOnly(_) => peer::Policy::DirectOnly,
        }
    }
}

/// What carries a connection's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PathKind {
    /// A supernode, as ciphertext.
    Relay,
    /// Nobody in between.
    Direct,
    /// Nothing at the moment: packets are lost until a path is found.
    None,
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PathKind::Relay => "relay",
            PathKind::Direct => "direct",
            PathKind::None => "none",
        })
    }
}

/// The path that a connection takes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Path {
    /// What carries the packets.
    pub kind: PathKind,
    /// The peer's address on a direct path, the supernode's on a relayed one; `None` while there is no path, and where
    /// the relay is reached by TLS.
    pub remote: Option<SocketAddr>,
    /// The round-trip time as measured on this path; `None`: not yet. In milliseconds where it is serialized.
    #[serde(rename = "rtt_ms", serialize_with = "millis")]
    pub rtt: Option<Duration>,
}

impl Path {
    pub(crate) const NONE: Path = Path { kind: PathKind::None, remote: None, rtt: None };
}

fn millis<S: Serializer>(time: &(impl Into<Option<Duration>> + Copy), to: S) -> Result<S::Ok, S::Error> {
    // To the microsecond: what is finer is noise.
    let time: Option<Duration> = (*time).into();
    time.map(|time| (time.as_secs_f64() * 1e6).round() / 1e3).serialize(to)
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(remote) = self.remote {
            write!(f, " {remote}")?;
        }
        match self.rtt {
            Some(rtt) => write!(f, " {:.1} ms", rtt.as_secs_f64() * 1000.0),
            None => Ok(()),
        }
    }
}

/// Why packets take another path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SwitchReason {
    /// A direct path was found.
    FoundDirect,
    /// It is better than the one before.
    Better,
    /// The one before does not answer any more.
    Dead,
    /// The peer is seen at another address.
    Moved,
    /// A socket is gone, or the network has changed.
    NetworkChanged,
    /// The relay came, or went.
    Relay,
}

impl From<peer::Why> for SwitchReason {
    fn from(why: peer::Why) -> SwitchReason {
        match why {
            peer::Why::FoundDirect => SwitchReason::FoundDirect,
            peer::Why::Better => SwitchReason::Better,
            peer::Why::Dead => SwitchReason::Dead,
            peer::Why::Moved => SwitchReason::Moved,
            peer::Why::NetworkChanged => SwitchReason::NetworkChanged,
            peer::Why::Relay => SwitchReason::Relay,
        }
    }
}

/// What happened to a connection's paths.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum PathEvent {
    /// A direct path works; [`Switched`](Self::Switched) follows if it is taken.
    PathUp {
        /// The path.
        path: Path,
    },
    /// Packets take another path now.
    Switched {
        /// The one before.
        from: Path,
        /// The one now.
        to: Path,
        /// Why.
        why: SwitchReason,
    },
    /// A path that worked does not any more.
    PathLost {
        /// The path.
        path: Path,
    },
    /// A round of checks has found no direct path; another one follows.
    NoDirectPath {
        /// This node's NAT.
        ours: NatProfile,
        /// The peer's.
        theirs: NatProfile,
        /// Both are seen at the same address: the two NATs are one.
        same_nat: bool,
        /// When the next round begins. In milliseconds where it is serialized.
        #[serde(rename = "retry_in_ms", serialize_with = "millis")]
        retry_in: Duration,
    },
    /// Events were lost because nobody took them.
    Missed(u64),
}
