//! What an agent says and what it decides.

use std::{net::SocketAddr, time::Duration};

use crate::{SocketId, path::NatProfile};

/// The caller's number for a peer; free to be used again once the peer is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey(pub u32);

/// Who opened the peers' QUIC connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// This node: it decides when both look for a path again.
    Initiator,
    /// The other.
    Acceptor,
}

/// Which paths may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Direct where it works, else the relay.
    #[default]
    PreferDirect,
    /// The relay, whatever else would work: the other peer learns no address.
    RelayOnly,
    /// No application data over the relay. The route is the relay as long as there is no direct path, because the peers'
    /// own signalling goes there: the caller holds data back until [`PathUp`](Event::PathUp).
    DirectOnly,
}

/// One way to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hop {
    /// By the supernode.
    Relay,
    /// From this socket to this address.
    Direct {
        /// From which socket.
        socket: SocketId,
        /// To where.
        to: SocketAddr,
    },
}

/// Where a peer's packets go now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// Every packet.
    pub primary: Hop,
    /// Every packet once more, while it is not certain that the first hop works.
    pub also: Option<Hop>,
    /// Another number whenever `primary` has changed: what was measured of the path (window, RTT, MTU) is void then.
    pub epoch: u32,
}

/// Why packets take another path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// A direct path was found.
    FoundDirect,
    /// A better path than the one in use.
    Better,
    /// The path in use does not answer.
    Dead,
    /// The peer is seen at another address.
    Moved,
    /// The socket is gone, or the network has changed.
    NetworkChanged,
    /// The relay came back, or went.
    Relay,
}

/// What happened to a peer's paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A direct path works.
    PathUp {
        /// To whom.
        peer: PeerKey,
        /// The path.
        hop: Hop,
        /// Its round-trip time.
        rtt: Duration,
    },
    /// Packets take another path.
    Switched {
        /// To whom.
        peer: PeerKey,
        /// The old path; `None`: there was none.
        from: Option<Hop>,
        /// The new path; `None`: there is none.
        to: Option<Hop>,
        /// Why.
        why: Why,
        /// The new path's round-trip time, if known.
        rtt: Option<Duration>,
    },
    /// A path that worked does not any more. One that is merely not kept ready, since there are better ones, is let go
    /// without this.
    PathLost {
        /// To whom.
        peer: PeerKey,
        /// The path.
        hop: Hop,
    },
    /// The other peer has told its candidates.
    Candidates {
        /// Who.
        peer: PeerKey,
        /// How many it told.
        told: usize,
        /// How many of them may be probed.
        usable: usize,
    },
    /// A round of checks has found no direct path.
    GaveUp {
        /// To whom.
        peer: PeerKey,
        /// This node's NAT.
        ours: NatProfile,
        /// The other's.
        theirs: NatProfile,
        /// Both are seen at the same address from outside.
        same_nat: bool,
        /// When the next round begins.
        retry_in: Duration,
    },
    /// The NAT in front of this node is known, or better known.
    Profile(NatProfile),
}

/// A direct path that has worked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The path.
    pub hop: Hop,
    /// It answers; otherwise it did within the last 30 s.
    pub works: bool,
    /// Packets go by it.
    pub is_selected: bool,
    /// Its round-trip time, smoothed.
    pub rtt: Duration,
}
