//! What two peers tell each other about the ways between them, inside the QUIC connection that they have already.
//!
//! Encoded as [`message`](super::message) is: postcard, variants by number, bounded lists. On the wire each message
//! stands in a frame of [`stream`](super::stream), on one bidirectional stream that the initiator opens.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{List, message::DecodeError, stream::MAX_FRAME};

/// The application protocol of a connection between two peers (ALPN). A change to any message here that an old
/// implementation could not read gets a new number.
pub const PEER_ALPN: &[u8] = b"traversal/1";

/// The application protocol of a connection in which one socket of each side is punched for the application (ALPN).
pub const PUNCH_ALPN: &[u8] = b"traversal-punch/1";

/// Under this label both ends of a connection export the 32 bytes that their checks are signed with (RFC 8446 §7.5), with
/// an empty context.
pub const CHECK_LABEL: &[u8] = b"EXPORTER-traversal-check-1";
/// The same for the checks of a socket that is punched.
pub const PUNCH_CHECK_LABEL: &[u8] = b"EXPORTER-traversal-punch-check-1";
/// And for the 32 bytes that the application gets with such a socket.
pub const PUNCH_SECRET_LABEL: &[u8] = b"EXPORTER-traversal-punch-secret-1";

/// How many candidates one peer may name: several sockets on several interfaces, each with its server-reflexive twin.
pub const MAX_CANDIDATES: usize = 32;

/// From one peer to the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// Where the sender might be reached; takes the place of all it has said before.
    Candidates(Candidates),
    /// Check again, now: the receiver begins at once, the sender half a round trip after it has sent this.
    Start {
        /// Counts the sender's rounds; only for logs.
        round: u32,
    },
}

/// Everything that one peer needs to know to look for a path to the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidates {
    /// Counts the sender's announcements from 1: an older one than the last is ignored.
    pub generation: u32,
    /// The last of the receiver's announcements that the sender has seen; 0: none. Who reads of its own latest here
    /// begins to check at once; who does not answers with its own, and begins half a round trip later. So both begin at
    /// about the same time, without a message more.
    pub seen: u32,
    /// What the receiver is to write into the transaction ids of its checks.
    pub tag: u32,
    /// The sender's NAT, as far as it knows.
    pub profile: NatProfile,
    /// Best first.
    pub list: List<Candidate, MAX_CANDIDATES>,
}

/// An address at which a peer might be reached (RFC 8445 §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Candidate {
    /// How it is known.
    pub kind: CandidateKind,
    /// What is spoken there.
    pub transport: Transport,
    /// The address.
    pub address: SocketAddr,
    /// Candidates with one number belong to one socket of the sender's (RFC 8445's foundation, roughly).
    pub foundation: u16,
}

/// How a candidate is known; better ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CandidateKind {
    /// An address of an interface.
    Host,
    /// As the other peer saw it on a check.
    PeerReflexive,
    /// As a reflector or supernode saw it.
    ServerReflexive,
    /// Asked of the NAT itself (PCP, NAT-PMP, UPnP-IGD).
    PortMapped,
    /// At a relay.
    Relayed,
}

/// What carries a candidate's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Transport {
    /// UDP.
    #[default]
    Udp,
    /// TCP, opened by both at once (RFC 6544).
    Tcp,
}

/// What is known of the NAT, or NATs, in front of a node (RFC 4787); `None`: not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NatProfile {
    /// Whether there is a NAT at all: whether the reflector saw another address than the socket has.
    pub translated: Option<bool>,
    /// Which external endpoint a socket gets towards several destinations.
    pub mapping: Option<Mapping>,
    /// Who may send to a mapping.
    pub filtering: Option<Filtering>,
    /// Which port a new mapping gets.
    pub ports: Option<PortAssignment>,
    /// Whether two hosts behind it reach each other by their external endpoints.
    pub hairpin: Option<bool>,
}

/// Mapping behaviour (RFC 4787 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Mapping {
    /// One external endpoint towards everybody.
    EndpointIndependent,
    /// Another one for each destination address.
    AddressDependent,
    /// Another one for each destination address and port.
    AddressAndPortDependent,
}

/// Filtering behaviour (RFC 4787 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Filtering {
    /// Everybody.
    EndpointIndependent,
    /// Addresses that the mapping has sent to.
    AddressDependent,
    /// Addresses and ports that the mapping has sent to.
    AddressAndPortDependent,
}

/// How external ports are chosen (RFC 4787 §4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PortAssignment {
    /// The socket's own port.
    Preserve,
    /// Each this many above the last.
    Sequential(i16),
    /// Without a pattern.
    Random,
}

impl PeerMessage {
    /// Reads one message: the body of one frame.
    pub fn decode(bytes: &[u8]) -> Result<PeerMessage, DecodeError> {
        if bytes.len() > MAX_FRAME {
            return Err(DecodeError::TooLong(bytes.len()));
        }
        let (message, rest) = postcard::take_from_bytes(bytes).map_err(DecodeError::Invalid)?;
        if rest.is_empty() { Ok(message) } else { Err(DecodeError::LeftOver(rest.len())) }
    }

    /// The message's bytes: the body of one frame.
    pub fn encode(&self) -> Vec<u8> {
        match postcard::to_allocvec(self) {
            Ok(bytes) => bytes,
            Err(_) => unreachable!("every list has a length, so every message can be written"),
        }
    }
}
