//! STUN (RFC 8489) as it is spoken here: connectivity checks between peers, and the reflector of a supernode with
//! behaviour discovery (RFC 5780).
//!
//! A **check** is a Binding request under a key that only the two peers share, and its response. It carries no USERNAME:
//! the first four bytes of the transaction id are a tag that the receiver gave out together with its candidates, so the
//! receiver finds the key by one lookup and refuses what is not its own before computing anything. Eight bytes of
//! the id are random. A check is signed with MESSAGE-INTEGRITY-SHA256 and ends with a FINGERPRINT.
//!
//! **Reflector** requests are plain Binding requests with RFC 5780's CHANGE-REQUEST, RESPONSE-PORT and PADDING, so other
//! people's clients and servers work with it.
//!
//! Encoding and decoding is stun-rs's. Every message is walked before stun-rs sees it, and only the attributes that the
//! message in hand may have are let through. The parsers of attributes that nothing here uses stay out of reach.

mod check;
mod codec;
mod reflect;
mod scan;

pub use check::{Check, CheckKey};
pub use reflect::{Change, Reflection, ReflectorReply, ReflectorRequest};
pub use scan::{Class, Header, peek};

/// Largest STUN message that is read: what fits one Ethernet frame.
pub const MAX_STUN: usize = 1472;
/// Length of the STUN header: the smallest message.
pub const HEADER_LEN: usize = 20;

/// The 96 bits that tie a response to its request (RFC 8489 §5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId(pub [u8; 12]);

impl TransactionId {
    /// The id of a check: the receiver's tag, then eight bytes that nobody can guess.
    pub fn tagged(tag: u32, random: u64) -> TransactionId {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&tag.to_be_bytes());
        bytes[4..].copy_from_slice(&random.to_be_bytes());
        TransactionId(bytes)
    }

    /// The tag, if this is the id of a check.
    pub const fn tag(&self) -> u32 {
        let [a, b, c, d, ..] = self.0;
        u32::from_be_bytes([a, b, c, d])
    }
}

impl std::fmt::Debug for TransactionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Bytes that are no STUN message of the kind that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StunError {
    /// Not STUN at all, cut short, or longer than its header says.
    #[error("{0} bytes that are no STUN message")]
    NotStun(usize),
    /// A method other than Binding, or a class that was not expected.
    #[error("a STUN message of type 0x{0:04x} was not expected")]
    Type(u16),
    /// Attributes that have to be understood and are not (RFC 8489 §14); a request is answered with error 420.
    #[error("STUN attributes not understood: {0:04x?}")]
    UnknownAttributes(Vec<u16>),
    /// An attribute's value cannot be read, or one that has to be there is missing.
    #[error("a STUN message with a bad or missing attribute")]
    BadAttribute,
    /// Not made with the shared key, or changed on the way.
    #[error("a STUN message whose integrity or fingerprint does not hold")]
    BadIntegrity,
}
