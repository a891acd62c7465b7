//! What a peer and its supernode say to each other on the control connection.
//!
//! Messages are [postcard](https://postcard.jamesmunns.com/wire-format) encodings of the two enums here: a variant is its
//! number in order, integers are varints, a [`List`] is its length and its items, keys and signatures are plain bytes.
//! The order of variants and fields is the protocol; what is added goes to the end of an enum, and anything else gets a
//! new [`ALPN`](super::ALPN).

use std::{fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::{
    List, PeerId, RelayToken, SignedRecord,
    frame::{ChannelId, SessionId},
    stream::MAX_FRAME,
};
use crate::UnixTime;

/// How many peers one Watch or Unwatch may name.
pub const MAX_WATCH: usize = 64;
/// How many other supernodes one message may name, and how many addresses each of them may have.
pub const MAX_NAMED: usize = 8;

/// Chosen by the peer; the answer carries it back.
pub type RequestId = u32;

/// From a peer to its supernode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSupernode {
    /// Be found here. Answered by Registered or by Refused with request 0. Sent again before the record expires.
    Register {
        /// By this peer, for this supernode.
        record: SignedRecord,
        /// Whether others may find this peer and connect to it; if not, it is registered for connecting only.
        accepting: bool,
        /// This is the process that registered last, on a new connection: its channels live on. If not, they are closed.
        resume: bool,
    },
    /// Be found no more; channels are closed. The connection stays.
    Unregister,
    /// Where is this peer? Answered by Found or Refused.
    Lookup {
        /// For the answer.
        request: RequestId,
        /// Who is sought.
        peer: PeerId,
        /// Supernodes crossed so far: 0 from a peer.
        hops: u8,
    },
    /// Open a relay channel to this peer, or name the one that is open. Answered by Opened or Refused.
    Connect {
        /// For the answer.
        request: RequestId,
        /// To whom.
        peer: PeerId,
        /// Supernodes crossed so far: 0 from a peer.
        hops: u8,
    },
    /// This channel is no longer needed, or not wanted.
    Close {
        /// The sender's end.
        channel: ChannelId,
    },
    /// Tell now and from now on whether these peers are here. Answered by one Presence for each.
    Watch {
        /// Whom; in addition to those watched already.
        peers: List<PeerId, MAX_WATCH>,
    },
    /// Tell no more.
    Unwatch {
        /// About whom.
        peers: List<PeerId, MAX_WATCH>,
    },
    /// Answered by Pong at once: liveness and round-trip time where the transport tells neither.
    Ping {
        /// Comes back.
        nonce: u64,
    },
    /// Send and take this session's relay frames on this connection: for a network that blocks UDP. Answered by
    /// Attached; the next Bind with a higher sequence number takes them back to UDP.
    Attach,
}

/// From a supernode to a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromSupernode {
    /// The first message on every connection.
    Hello(Hello),
    /// The registration holds.
    Registered {
        /// For Bind frames.
        session: SessionId,
        /// For their proofs. A new one whenever the connection is a new one.
        token: RelayToken,
        /// For how many seconds.
        lifetime: u32,
        /// How much of this peer's traffic is relayed.
        relay: RelayMode,
    },
    /// A lookup's answer.
    Found {
        /// From the Lookup.
        request: RequestId,
        /// Signed by the peer that was sought.
        record: SignedRecord,
        /// Where to go, if it is registered elsewhere.
        elsewhere: Option<Supernode>,
    },
    /// A channel is open: the answer to Connect, or news of somebody else's.
    Opened {
        /// From the Connect; `None` where the other peer asked.
        request: Option<RequestId>,
        /// At the other end, as authenticated by the supernode. What counts is the peers' own handshake.
        peer: PeerId,
        /// This end.
        channel: ChannelId,
        /// How much will be carried.
        relay: RelayMode,
    },
    /// A request was not met.
    Refused {
        /// Which; 0 for Register.
        request: RequestId,
        /// Why.
        code: Code,
        /// With [`Code::StaleSequence`] the last sequence number seen, otherwise 0.
        detail: u64,
        /// With [`Code::Elsewhere`] and [`Code::Full`] where to ask instead.
        elsewhere: Option<Supernode>,
    },
    /// A channel is gone.
    Closed {
        /// The receiver's end.
        channel: ChannelId,
        /// Why.
        code: Code,
    },
    /// A watched peer came or went.
    Presence {
        /// Who.
        peer: PeerId,
        /// Registered here, and accepting.
        online: bool,
    },
    /// This peer's quota is nearly used up (`used` < `limit`), used up, or traffic is dropped for its rate.
    Quota {
        /// Which.
        resource: Resource,
        /// In the resource's unit.
        used: u64,
        /// In the resource's unit.
        limit: u64,
        /// Seconds until it starts afresh; 0 for rates.
        resets_in: u32,
    },
    /// Move to another supernode, but not at once.
    Drain {
        /// After so many milliseconds, each peer another number: so nobody is run over by all of them together.
        leave_in: u32,
        /// Where to.
        alternatives: List<Supernode, MAX_NAMED>,
    },
    /// No room here; the connection ends after this.
    Redirect {
        /// Where to.
        alternatives: List<Supernode, MAX_NAMED>,
    },
    /// The answer to Ping.
    Pong {
        /// From the Ping.
        nonce: u64,
    },
    /// Something went wrong that no request stands for. The connection may end after this.
    Error {
        /// What.
        code: Code,
    },
    /// The session's relay frames go by this connection now.
    Attached,
}

/// How a supernode introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The supernode's wall clock, for peers that have none.
    pub time: UnixTime,
    /// The peer's address as the supernode sees it: where the connection runs over the peer's only UDP socket, this is
    /// its server-reflexive candidate.
    pub observed: SocketAddr,
    /// The reflector's addresses: the first is the one to ask first, the others differ from it in address or port.
    pub reflectors: List<SocketAddr, MAX_NAMED>,
    /// The longest lifetime of a registration, in seconds.
    pub max_lifetime: u32,
    /// How many channels one registration may have.
    pub max_channels: u32,
    /// How many peers one registration may watch.
    pub max_watches: u32,
}

/// Another supernode.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Supernode {
    /// Its key.
    pub id: PeerId,
    /// Where it listens, best first.
    pub addresses: List<SocketAddr, MAX_NAMED>,
}

/// How much a supernode carries for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RelayMode {
    /// As much as the quotas allow.
    Full,
    /// Enough for a handshake and for finding a direct path, and no more.
    SignallingOnly {
        /// Bytes that may be sent at once.
        burst: u32,
        /// Bytes per second after that.
        rate: u32,
    },
}

/// What a quota is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resource {
    /// Bytes in the current period.
    Volume,
    /// Bytes per second.
    Bytes,
    /// Packets per second.
    Packets,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal),+ $(,)?) => {
        /// Why something was refused or ended. The numbers never change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(from = "u16", into = "u16")]
        #[non_exhaustive]
        pub enum Code {
            $($(#[doc = $doc])+ $variant,)+
            /// A code newer than this implementation.
            Other(u16),
        }

        impl Code {
            /// Every code that has a name.
            pub const ALL: &'static [Code] = &[$(Code::$variant),+];

            /// A sentence for people.
            pub const fn explanation(self) -> &'static str {
                match self {
                    $(Code::$variant => concat!($($doc),+),)+
                    Code::Other(_) => " A reason that this version does not know.",
                }
            }
        }

        impl From<u16> for Code {
            fn from(number: u16) -> Code {
                match number { $($number => Code::$variant,)+ other => Code::Other(other) }
            }
        }

        impl From<Code> for u16 {
            fn from(code: Code) -> u16 {
                match code { $(Code::$variant => $number,)+ Code::Other(other) => other }
            }
        }
    };
}

codes! {
    /// The bytes are no message of this protocol.
    Malformed = 1,
    /// Register first.
    NotRegistered = 2,
    /// The record's signature is not the peer's.
    BadSignature = 3,
    /// The record belongs to another peer than this connection.
    WrongPeer = 4,
    /// The record was made for another supernode.
    WrongSupernode = 5,
    /// The record is not newer than the last one.
    StaleSequence = 6,
    /// The record has expired, or expires later than the supernode allows: compare the clocks.
    BadExpiry = 7,
    /// This supernode does not serve this peer.
    NotAdmitted = 8,
    /// The supernode is full.
    Full = 9,
    /// Too many requests in a short time.
    TooFast = 10,
    /// Nobody knows this peer.
    UnknownPeer = 11,
    /// The peer does not take connections.
    NotAccepting = 12,
    /// The peer is registered at another supernode.
    Elsewhere = 13,
    /// The request has crossed too many supernodes.
    HopLimit = 14,
    /// The same peer registered again on another connection.
    Replaced = 15,
    /// The other peer is gone.
    PeerGone = 16,
    /// The other peer closed the channel.
    ClosedByPeer = 17,
    /// There is no such channel.
    NoChannel = 18,
    /// The supernode is going away.
    Draining = 19,
    /// The answer did not come in time.
    Timeout = 20,
    /// A peer cannot connect to itself.
    SelfConnect = 21,
    /// This peer has as many channels as it may.
    TooManyChannels = 22,
    /// This peer watches as many as it may, or too many watch the one it wants to.
    TooManyWatches = 23,
    /// The other peer gets too many connection requests at the moment.
    PeerBusy = 24,
    /// Too many connections from this network.
    TooManyFromNetwork = 25,
    /// The registration was not renewed in time.
    Expired = 26,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Code::Other(number) => write!(f, "code {number}, unknown to this version"),
            code => f.write_str(code.explanation().trim_start().trim_end_matches('.')),
        }
    }
}

/// Bytes that are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Longer than any message.
    #[error("{0} bytes are too many for a message: {MAX_FRAME} are allowed")]
    TooLong(usize),
    /// No message begins like this, or it is cut short, or a value is out of range.
    #[error("not a message of this protocol: {0}")]
    Invalid(postcard::Error),
    /// A message, and then something else.
    #[error("{0} bytes are left over after the message")]
    LeftOver(usize),
}

macro_rules! codec {
    ($message:ty) => {
        impl $message {
            /// Reads one message: the body of one frame of a control stream.
            pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
                if bytes.len() > MAX_FRAME {
                    return Err(DecodeError::TooLong(bytes.len()));
                }
                let (message, rest) = postcard::take_from_bytes(bytes).map_err(DecodeError::Invalid)?;
                if rest.is_empty() { Ok(message) } else { Err(DecodeError::LeftOver(rest.len())) }
            }

            /// The message's bytes: the body of one frame of a control stream.
            pub fn encode(&self) -> Vec<u8> {
                match postcard::to_allocvec(self) {
                    Ok(bytes) => bytes,
                    Err(_) => unreachable!("every list has a length, so every message can be written"),
                }
            }
        }
    };
}

codec!(ToSupernode);
codec!(FromSupernode);
