//! The first look at a STUN message: its frame and its attribute types, by nothing but lengths.

use super::{HEADER_LEN, MAX_STUN, StunError, TransactionId};

const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const BINDING: u16 = 0x0001;
const CLASS_BITS: u16 = 0x0110;
/// Attributes below this number have to be understood.
const OPTIONAL: u16 = 0x8000;
/// No message here has more; each attribute costs the reader something.
const MAX_ATTRIBUTES: usize = 16;
/// How many types an error names: the answer must stay small.
const MAX_NAMED: usize = 8;

pub(super) const CHANGE_REQUEST: u16 = 0x0003;
pub(super) const ERROR_CODE: u16 = 0x0009;
pub(super) const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
pub(super) const INTEGRITY_SHA256: u16 = 0x001c;
pub(super) const XOR_MAPPED_ADDRESS: u16 = 0x0020;
pub(super) const USE_CANDIDATE: u16 = 0x0025;
pub(super) const PADDING: u16 = 0x0026;
pub(super) const RESPONSE_PORT: u16 = 0x0027;
pub(super) const FINGERPRINT: u16 = 0x8028;
pub(super) const RESPONSE_ORIGIN: u16 = 0x802b;
pub(super) const OTHER_ADDRESS: u16 = 0x802c;
const MAPPED_ADDRESS: u16 = 0x0001;

/// The class of a message (RFC 8489 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Wants an answer.
    Request,
    /// Wants none.
    Indication,
    /// An answer.
    Success,
    /// An answer that says no.
    Error,
}

/// What the header of a Binding message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Request or response.
    pub class: Class,
    /// Which transaction; in a check, its tag tells which key to try.
    pub id: TransactionId,
}

/// Reads the header of a Binding message. What it says is not proved by anything.
pub fn peek(bytes: &[u8]) -> Result<Header, StunError> {
    let not_stun = StunError::NotStun(bytes.len());
    if bytes.len() > MAX_STUN {
        return Err(not_stun);
    }
    let Some(header) = bytes.first_chunk::<HEADER_LEN>() else { return Err(not_stun) };
    let kind = u16::from_be_bytes([header[0], header[1]]);
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if kind & 0xc000 != 0
        || header[4..8] != MAGIC_COOKIE
        || length % 4 != 0
        || HEADER_LEN + length != bytes.len()
    {
        return Err(not_stun);
    }
    if kind & !CLASS_BITS != BINDING {
        return Err(StunError::Type(kind));
    }
    let class = match (kind & 0x0100 != 0, kind & 0x0010 != 0) {
        (false, false) => Class::Request,
        (false, true) => Class::Indication,
        (true, false) => Class::Success,
        (true, true) => Class::Error,
    };
    let mut id = [0; 12];
    id.copy_from_slice(&header[8..]);
    Ok(Header { class, id: TransactionId(id) })
}

/// Checks that the attributes fill the message and that each is one of `expected`, optional, or a MAPPED-ADDRESS, which
/// old servers add. Whatever comes after an integrity attribute must be the fingerprint, and nothing follows that.
pub(super) fn scan(bytes: &[u8], expected: &[u16]) -> Result<Header, StunError> {
    let header = peek(bytes)?;
    let mut rest = &bytes[HEADER_LEN..];
    let (mut count, mut integrity, mut fingerprint) = (0, false, false);
    let mut unknown = Vec::new();
    while let Some((head, tail)) = rest.split_first_chunk::<4>() {
        let kind = u16::from_be_bytes([head[0], head[1]]);
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        rest = tail.get(length.next_multiple_of(4)..).ok_or(StunError::BadAttribute)?;
        count += 1;
        if count > MAX_ATTRIBUTES || fingerprint || (integrity && kind != FINGERPRINT) {
            return Err(StunError::BadAttribute);
        }
        integrity |= kind == INTEGRITY_SHA256;
        fingerprint |= kind == FINGERPRINT;
        if kind < OPTIONAL && kind != MAPPED_ADDRESS && !expected.contains(&kind) && unknown.len() < MAX_NAMED
        {
            unknown.push(kind);
        }
    }
    if unknown.is_empty() { Ok(header) } else { Err(StunError::UnknownAttributes(unknown)) }
}
