//! The ICMP header (RFC 792): queries, and errors with the packet that they quote.

use super::ipv4::u16_at;

/// Header length of queries and errors alike, in bytes; an error's quoted packet follows.
pub const HEADER: usize = 8;
/// Offset of the checksum.
pub const CHECKSUM: usize = 2;
/// Offset of the query identifier.
pub const IDENTIFIER: usize = 4;
/// Offset of the next hop's MTU in Fragmentation Needed (RFC 1191 §4).
pub const NEXT_HOP_MTU: usize = 6;

/// Echo Reply.
pub const ECHO_REPLY: u8 = 0;
/// Destination Unreachable.
pub const UNREACHABLE: u8 = 3;
/// Echo.
pub const ECHO: u8 = 8;
/// Time Exceeded.
pub const TIME_EXCEEDED: u8 = 11;

/// Code of [`UNREACHABLE`]: host unreachable.
pub const CODE_HOST: u8 = 1;
/// Code of [`UNREACHABLE`]: port unreachable.
pub const CODE_PORT: u8 = 3;
/// Code of [`UNREACHABLE`]: fragmentation needed and DF set.
pub const CODE_FRAGMENTATION_NEEDED: u8 = 4;
/// Code of [`UNREACHABLE`]: communication administratively prohibited (RFC 1812 §5.2.7.1).
pub const CODE_PROHIBITED: u8 = 13;

/// What an ICMP message is to a NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A query or its answer, with its identifier.
    Query {
        /// True for the query, false for the answer.
        request: bool,
        /// Identifier, chosen by the one who asks.
        identifier: u16,
    },
    /// An error that quotes a packet.
    Error,
    /// Anything else.
    Other,
}

/// Reads the type at the front of an IP payload; `None` when it is cut short.
pub fn parse(payload: &[u8]) -> Option<Kind> {
    let header = payload.first_chunk::<HEADER>()?;
    let identifier = u16_at(header, IDENTIFIER);
    Some(match header[0] {
        // Echo and Timestamp (RFC 792), the queries that are still in use (RFC 6918 deprecates the rest).
        ECHO | 13 => Kind::Query { request: true, identifier },
        ECHO_REPLY | 14 => Kind::Query { request: false, identifier },
        // Destination Unreachable, Source Quench, Time Exceeded, Parameter Problem.
        UNREACHABLE | 4 | TIME_EXCEEDED | 12 => Kind::Error,
        _ => Kind::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_told_apart() {
        let with = |kind: u8| parse(&[kind, 0, 0, 0, 0x12, 0x34, 0, 0]);
        assert_eq!(with(ECHO), Some(Kind::Query { request: true, identifier: 0x1234 }));
        assert_eq!(with(ECHO_REPLY), Some(Kind::Query { request: false, identifier: 0x1234 }));
        assert_eq!(with(TIME_EXCEEDED), Some(Kind::Error));
        assert_eq!(with(5), Some(Kind::Other), "a redirect is for one link only");
        assert_eq!(parse(&[8; 7]), None);
    }
}
