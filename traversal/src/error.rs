//! What can go wrong, and what helps. Every error has a stable code, for logs and for other languages.

use std::{fmt, io, time::Duration};

use traversal_proto::{
    path::NatProfile,
    wire::{PeerId, message::Code},
};

use crate::explain;

/// How far an attempt to connect had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// Reaching a supernode and registering there.
    Supernode,
    /// Asking it for a channel to the peer.
    Channel,
    /// The handshake with the peer, over the relay.
    Handshake,
    /// Looking for a direct path.
    Direct,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Supernode => "registering at a supernode",
            Step::Channel => "asking the supernode for a channel",
            Step::Handshake => "the handshake with the peer over the relay",
            Step::Direct => "looking for a direct path",
        })
    }
}

/// A node cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// No supernode was named.
    #[error("no supernode is configured: name at least one, as ADDRESS:PORT or ID@ADDRESS:PORT")]
    NoSupernode,
    /// A supernode's address cannot be read.
    #[error(transparent)]
    Address(#[from] crate::SupernodeAddressError),
    /// A socket cannot be opened.
    #[error("cannot open a UDP socket at {address}")]
    Bind {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// QUIC cannot be set up.
    #[error("cannot set up QUIC")]
    Quic(#[from] traversal_net::quic::QuicError),
    /// The operating system has no randomness.
    #[error("the operating system gives no randomness: {0}")]
    Randomness(String),
    /// No supernode answered in time.
    #[error(
        "no supernode answered within {} s; tried {tried}: {last}. Is the address right, is UDP or TCP to it allowed?",
        .after.as_secs()
    )]
    Unreachable {
        /// Which were tried.
        tried: String,
        /// What the last one had against it.
        last: String,
        /// For how long.
        after: Duration,
    },
}

impl StartError {
    /// A name that never changes.
    pub const fn code(&self) -> &'static str {
        match self {
            StartError::NoSupernode => "start.no-supernode",
            StartError::Address(_) => "start.address",
            StartError::Bind { .. } => "start.bind",
            StartError::Quic(_) => "start.quic",
            StartError::Randomness(_) => "start.randomness",
            StartError::Unreachable { .. } => "start.unreachable",
        }
    }
}

/// A peer cannot be connected to.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// A peer cannot connect to itself.
    #[error("this is our own id: connect to another peer")]
    Myself,
    /// The supernodes that answered do not know the peer.
    #[error("{peer} is not registered at our supernode: is it running, and does it use the same supernode?")]
    PeerOffline {
        /// Who.
        peer: PeerId,
    },
    /// The peer is there and takes no connections.
    #[error("{peer} is registered, but does not accept connections")]
    NotAccepting {
        /// Who.
        peer: PeerId,
    },
    /// The peer is there and does not take ours.
    #[error("{peer} does not admit us: it must allow our id")]
    NotAdmitted {
        /// Who.
        peer: PeerId,
    },
    /// The supernode has something else against it.
    #[error("the supernode refuses a channel to {peer}: {code}")]
    Refused {
        /// To whom.
        peer: PeerId,
        /// Why.
        code: Code,
    },
    /// Somebody else answered: the supernode, or somebody on the way, is not honest.
    #[error("{found} answered in place of {expected}: the connection was not made")]
    WrongKey {
        /// Who was asked for.
        expected: PeerId,
        /// Whose key was shown.
        found: PeerId,
    },
    /// The time is over.
    #[error("no connection to {peer} within {} s; it was stuck at: {step}{detail}", .after.as_secs())]
    Timeout {
        /// To whom.
        peer: PeerId,
        /// What was waited for.
        step: Step,
        /// How long.
        after: Duration,
        /// What is known besides, or nothing.
        detail: String,
    },
    /// The handshake failed.
    #[error("the handshake with {peer} failed: {reason}")]
    Handshake {
        /// With whom.
        peer: PeerId,
        /// Why.
        reason: String,
    },
    /// A hole is not punched: too many are.
    #[error("no hole is punched to {peer}: {reason}")]
    TooManyPunches {
        /// To whom.
        peer: PeerId,
        /// Which limit is met, and where.
        reason: String,
    },
    /// There is no direct path, and nothing else was wanted.
    #[error(transparent)]
    NotDirect(#[from] NotDirect),
    /// The node is closed.
    #[error("this node is closed")]
    Closed,
}

impl ConnectError {
    /// A name that never changes.
    pub const fn code(&self) -> &'static str {
        match self {
            ConnectError::Myself => "connect.myself",
            ConnectError::PeerOffline { .. } => "connect.peer-offline",
            ConnectError::NotAccepting { .. } => "connect.not-accepting",
            ConnectError::NotAdmitted { .. } => "connect.not-admitted",
            ConnectError::Refused { .. } => "connect.refused",
            ConnectError::WrongKey { .. } => "connect.wrong-key",
            ConnectError::Timeout { .. } => "connect.timeout",
            ConnectError::Handshake { .. } => "connect.handshake",
            ConnectError::TooManyPunches { .. } => "connect.too-many-punches",
            ConnectError::NotDirect(_) => "connect.not-direct",
            ConnectError::Closed => "connect.closed",
        }
    }

    pub(crate) fn refused(peer: PeerId, code: Code) -> ConnectError {
        match code {
            Code::UnknownPeer | Code::Elsewhere | Code::PeerGone => ConnectError::PeerOffline { peer },
            Code::NotAccepting => ConnectError::NotAccepting { peer },
            Code::SelfConnect => ConnectError::Myself,
            code => ConnectError::Refused { peer, code },
        }
    }
}

/// There is no direct path to a peer. The connection goes on over the relay, unless its policy forbids that.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("no direct path to {peer}: {}", explain::pair(.ours, .theirs.as_ref(), *.same_nat))]
pub struct NotDirect {
    /// To whom.
    pub peer: PeerId,
    /// This node's NAT, as far as it is known.
    pub ours: NatProfile,
    /// The peer's NAT; `None`: it has not told, or the connection is closed.
    pub theirs: Option<NatProfile>,
    /// Both are seen at the same address: the two NATs are one.
    pub same_nat: bool,
    /// How long was waited.
    pub after: Duration,
}

impl NotDirect {
    /// A name that never changes.
    pub const fn code(&self) -> &'static str {
        "path.not-direct"
    }
}

/// A datagram cannot be sent.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DatagramError {
    /// Too long for the path. The limit changes with the path.
    #[error("a datagram of {len} bytes is too long for this path: {max} fit")]
    TooLong {
        /// Its length.
        len: usize,
        /// What fits now.
        max: usize,
    },
    /// The connection is closed.
    #[error("the connection is closed: {0}")]
    Closed(CloseReason),
}

impl DatagramError {
    /// A name that never changes.
    pub const fn code(&self) -> &'static str {
        match self {
            DatagramError::TooLong { .. } => "datagram.too-long",
            DatagramError::Closed(_) => "connection.closed",
        }
    }
}

/// Why a connection is over.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// This side closed it.
    #[error("closed by this side")]
    Here,
    /// The peer closed it.
    #[error("closed by the peer with code {code}: {}", String::from_utf8_lossy(.reason))]
    Peer {
        /// The peer's code.
        code: u64,
        /// The peer's words.
        reason: Vec<u8>,
    },
    /// Nothing came for too long.
    #[error("nothing came from the peer for {} s", crate::IDLE_TIMEOUT.as_secs())]
    TimedOut,
    /// The peer has lost the connection's state: it was restarted.
    #[error("the peer was restarted")]
    Reset,
    /// The peer, or this side, broke the protocol.
    #[error("{0}")]
    Protocol(String),
}

impl CloseReason {
    /// A name that never changes.
    pub const fn code(&self) -> &'static str {
        match self {
            CloseReason::Here => "closed.here",
            CloseReason::Peer { .. } => "closed.peer",
            CloseReason::TimedOut => "closed.timed-out",
            CloseReason::Reset => "closed.reset",
            CloseReason::Protocol(_) => "closed.protocol",
        }
    }
}

impl From<quinn::ConnectionError> for CloseReason {
    fn from(error: quinn::ConnectionError) -> CloseReason {
        match error {
            quinn::ConnectionError::LocallyClosed => CloseReason::Here,
            quinn::ConnectionError::ApplicationClosed(close) => {
                CloseReason::Peer { code: close.error_code.into_inner(), reason: close.reason.to_vec() }
            }
            quinn::ConnectionError::TimedOut => CloseReason::TimedOut,
            quinn::ConnectionError::Reset => CloseReason::Reset,
            other => CloseReason::Protocol(other.to_string()),
        }
    }
}

/// [`Node::doctor`](crate::Node::doctor) found nothing out.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DoctorError {
    /// No supernode has told its reflectors.
    #[error("no supernode is connected: there is nobody to ask")]
    NoSupernode,
    /// One examination at a time.
    #[error("another examination is under way")]
    Busy,
    /// The node is closed.
    #[error("this node is closed")]
    Closed,
}

impl DoctorError {
    /// A name that never changes.
    pub const fn code(&self) -> &'static str {
        match self {
            DoctorError::NoSupernode => "doctor.no-supernode",
            DoctorError::Busy => "doctor.busy",
            DoctorError::Closed => "doctor.closed",
        }
    }
}
