//! What a client tells its caller.

use std::{net::SocketAddr, time::Duration};

use crate::{
    SocketId,
    wire::{
        PeerId,
        frame::ChannelId,
        message::{Code, Hello, RelayMode, Resource, Supernode},
    },
};

/// What the control connection runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// QUIC from this socket to this address: relayed packets go the same way.
    Datagrams {
        /// Ours.
        socket: SocketId,
        /// The supernode's.
        to: SocketAddr,
    },
    /// TLS over TCP: relayed packets go by it, until UDP is found to work.
    Stream {
        /// From where and to where UDP is tried, if it is to be tried at all.
        udp: Option<(SocketId, SocketAddr)>,
    },
}

/// How Data frames go to the supernode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// As datagrams.
    Datagram {
        /// From this socket of ours.
        socket: SocketId,
        /// To the supernode.
        to: SocketAddr,
    },
    /// As frames on the control connection.
    Stream,
}

/// Why a connection is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The supernode does not answer.
    Unresponsive,
    /// The supernode says that it ends.
    Code(Code),
}

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Make a control connection; `handle_connected` or `handle_disconnected` tells what became of it.
    Dial,
    /// Close the control connection. The client does not count on it any more, and asks for another in time.
    Lost(Lost),
    /// The supernode has introduced itself.
    Hello(Hello),
    /// The node is registered, for the first time on this connection.
    Registered {
        /// As before: channels, watches and the bound address are still there.
        resumed: bool,
        /// How much of our traffic is relayed.
        relay: RelayMode,
    },
    /// The supernode does not register us; it is asked again later.
    NotRegistered {
        /// Why.
        code: Code,
        /// Where there is room.
        elsewhere: Option<Supernode>,
    },
    /// Relayed packets go this way from now on, or again: every connection tells once.
    Bound(Route),
    /// Relayed packets go nowhere at the moment.
    BindLost,
    /// A channel is open.
    Opened {
        /// To whom.
        peer: PeerId,
        /// Our end.
        channel: ChannelId,
        /// How much it carries.
        relay: RelayMode,
        /// The other peer asked for it, not we.
        incoming: bool,
    },
    /// There is no channel to this peer, or the peer was not found.
    Refused {
        /// To whom.
        peer: PeerId,
        /// Why.
        code: Code,
        /// With [`Code::Elsewhere`] where to ask instead.
        elsewhere: Option<Supernode>,
    },
    /// A channel is gone.
    Closed {
        /// To whom.
        peer: PeerId,
        /// Why.
        code: Code,
        /// It is asked for again; another [`Event::Opened`] may come.
        retrying: bool,
    },
    /// Where a peer is: its record was good.
    Found {
        /// Who.
        peer: PeerId,
        /// Where, if it is not here.
        elsewhere: Option<Supernode>,
    },
    /// A watched peer came or went.
    Presence {
        /// Who.
        peer: PeerId,
        /// Registered, and accepting.
        online: bool,
    },
    /// Our quota is nearly used up, used up, or exceeded for the moment.
    Quota {
        /// Which.
        resource: Resource,
        /// In the resource's unit.
        used: u64,
        /// In the resource's unit.
        limit: u64,
        /// Until it starts afresh; zero for rates.
        resets_in: Duration,
    },
    /// Move to another supernode.
    Drain {
        /// After so long.
        leave_in: Duration,
        /// Where to.
        alternatives: Vec<Supernode>,
    },
    /// There is no room here.
    Redirect {
        /// Where to.
        alternatives: Vec<Supernode>,
    },
}
