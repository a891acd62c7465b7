//! Everything that travels: codecs without state.
//!
//! | where | what | module |
//! |---|---|---|
//! | UDP, first byte 0–3 | STUN: connectivity checks between peers, the reflector | [`stun`] |
//! | UDP, first byte 128–191 | relay frames | [`frame`] |
//! | UDP, first byte 64–127 and 192–255 | QUIC | not ours to read |
//! | QUIC stream or TLS | messages between a peer and a supernode | [`message`], framed by [`stream`] |
//!
//! All of them share one UDP socket; [`demultiplex`] tells them apart by the first byte (RFC 9443, with greasing of the
//! QUIC bit switched off). On a control stream the same rule separates relay frames from messages.
//!
//! Every decoder is total: any bytes give a message or an error, nothing panics, and what is allocated is bounded by the
//! length of the input, which is bounded itself.

pub mod frame;
mod identity;
mod list;
pub mod message;
pub mod peer;
mod peer_id;
mod proof;
mod record;
pub mod stream;
pub mod stun;

pub use identity::Identity;
pub use list::{List, TooLong};
pub use peer_id::{PeerId, PeerIdError};
pub use proof::{Proof, RelayToken};
pub(crate) use proof::{keyed, same, truncated};
pub use record::{Record, RecordError, SignedRecord};

/// The application protocol of a control connection (ALPN). A change to any message that an old implementation could
/// not read gets a new number.
pub const ALPN: &[u8] = b"traversal-supernode/1";

/// How many supernodes a signal or a relayed packet may cross: the peer's own and the other peer's.
pub const MAX_HOPS: u8 = 2;

/// What a datagram is, as told by its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// STUN (RFC 8489): 0–3.
    Stun,
    /// A relay frame: 128–191.
    Relay,
    /// QUIC, its long and short headers (RFC 9000): 64–127, 192–255. From an address where one holds a TURN allocation,
    /// 64–79 is ChannelData instead: the caller knows its allocations.
    Quic,
    /// Nothing that is spoken here: 4–63.
    Unknown,
}

/// Tells by its first byte what a datagram is.
pub const fn demultiplex(first: u8) -> Kind {
    match first {
        0..=3 => Kind::Stun,
        128..=191 => Kind::Relay,
        64..=127 | 192..=255 => Kind::Quic,
        4..=63 => Kind::Unknown,
    }
}
