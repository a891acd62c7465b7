//! The UDP header (RFC 768).

use super::ipv4::u16_at;

/// Header length in bytes.
pub const HEADER: usize = 8;
/// Offset of the source port.
pub const SOURCE_PORT: usize = 0;
/// Offset of the destination port.
pub const DESTINATION_PORT: usize = 2;
/// Offset of the checksum; 0 there means that there is none.
pub const CHECKSUM: usize = 6;

pub(crate) const LENGTH: usize = 4;

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
}

/// Reads the header at the front of an IP payload; `None` when it is cut short or its length is wrong.
#[inline]
pub fn parse(payload: &[u8]) -> Option<Header> {
    let header = payload.first_chunk::<HEADER>()?;
    let length = usize::from(u16_at(header, LENGTH));
    if length < HEADER || length > payload.len() {
        return None;
    }
    Some(Header { source: u16_at(header, SOURCE_PORT), destination: u16_at(header, DESTINATION_PORT) })
}

/// The same at the front of a first fragment, whose datagram goes on behind it.
pub(crate) fn parse_first(payload: &[u8]) -> Option<Header> {
    let header = payload.first_chunk::<HEADER>()?;
    let is_whole = usize::from(u16_at(header, LENGTH)) >= HEADER;
    is_whole.then(|| Header {
        source: u16_at(header, SOURCE_PORT),
        destination: u16_at(header, DESTINATION_PORT),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_checked() {
        let good = [0x10, 0x92, 0, 53, 0, 9, 0, 0, 1];
        assert_eq!(parse(&good), Some(Header { source: 4242, destination: 53 }));
        assert_eq!(parse(&good[..8]), None, "the length says 9");
        assert_eq!(parse(&[0, 1, 0, 2, 0, 7, 0, 0]), None, "shorter than its own header");
        assert_eq!(parse(&good[..7]), None);
    }
}
