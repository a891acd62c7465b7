//! The IPv4 header (RFC 791), checked once and rewritten in place.

use std::net::Ipv4Addr;

use super::checksum::{self, Delta};

/// Shortest header, in bytes.
pub const MIN_HEADER: usize = 20;

/// The TTL of a packet that begins its way here (RFC 1700).
pub const FRESH_TTL: u8 = 64;

/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;

pub(crate) const TOTAL_LEN: usize = 2;
const IDENTIFICATION: usize = 4;
pub(super) const FRAGMENT: usize = 6;
const TTL: usize = 8;
pub(crate) const PROTOCOL: usize = 9;
pub(crate) const CHECKSUM: usize = 10;
/// Offset of the source address.
pub const SOURCE: usize = 12;
/// Offset of the destination address.
pub const DESTINATION: usize = 16;

const DONT_FRAGMENT: u16 = 0x4000;
pub(super) const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;

/// Why bytes are not an IPv4 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// Too short, or its lengths contradict each other.
    Malformed,
    /// The header checksum is wrong.
    BadChecksum,
    /// Version 6.
    Ipv6,
}

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Header length in bytes, options included.
    pub header_len: usize,
    /// Length of the whole packet in bytes.
    pub total_len: usize,
    /// Hops left.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// The DF bit.
    pub dont_fragment: bool,
    /// The MF bit, or a fragment offset: not a whole packet.
    pub is_fragment: bool,
    /// Offset of this fragment in bytes.
    pub fragment_offset: usize,
}

/// Reads and checks the header of a packet.
#[inline(always)]
pub fn parse(bytes: &[u8]) -> Result<Header, Invalid> {
    let header = read(bytes)?;
    if header.total_len > bytes.len() {
        return Err(Invalid::Malformed);
    }
    let sum = match bytes.first_chunk::<MIN_HEADER>() {
        // Nearly every header has no options, and a sum that needs no loop.
        Some(fixed) if header.header_len == MIN_HEADER => !checksum::of_header(fixed),
        _ => checksum::checksum(&bytes[..header.header_len]),
    };
    if sum != 0 {
        return Err(Invalid::BadChecksum);
    }
    Ok(header)
}

/// Reads a header whose packet may be cut short, as in an ICMP error: the header itself is all there.
#[inline(always)]
pub fn read(bytes: &[u8]) -> Result<Header, Invalid> {
    if bytes.first().is_some_and(|first| first >> 4 == 6) {
        return Err(Invalid::Ipv6);
    }
    let Some(fixed) = bytes.first_chunk::<MIN_HEADER>() else { return Err(Invalid::Malformed) };
    let header_len = usize::from(fixed[0] & 0x0f) * 4;
    let total_len = usize::from(u16_at(fixed, TOTAL_LEN));
    if fixed[0] >> 4 != 4 || header_len < MIN_HEADER || header_len > bytes.len() || total_len < header_len {
        return Err(Invalid::Malformed);
    }
    let fragment = u16_at(fixed, FRAGMENT);
    Ok(Header {
        header_len,
        total_len,
        ttl: fixed[TTL],
        protocol: fixed[PROTOCOL],
        source: addr_at(fixed, SOURCE),
        destination: addr_at(fixed, DESTINATION),
        dont_fragment: fragment & DONT_FRAGMENT != 0,
        is_fragment: fragment & (MORE_FRAGMENTS | OFFSET_MASK) != 0,
        fragment_offset: usize::from(fragment & OFFSET_MASK) * 8,
    })
}

/// Whether a header has no options and a right checksum, and its packet is whole and has a hop left to go.
#[inline(always)]
pub(crate) fn is_plain(header: &[u8; MIN_HEADER]) -> bool {
    let fragment = u16_at(header, FRAGMENT) & (MORE_FRAGMENTS | OFFSET_MASK);
    header[0] == 0x45 && fragment == 0 && header[TTL] > 1 && checksum::of_header(header) == !0
}

/// Whether one host can have this address: not unspecified (0/8), loopback, multicast or reserved (RFC 1122 §3.2.1.3).
#[inline(always)]
pub fn is_host(addr: Ipv4Addr) -> bool {
    let [first, ..] = addr.octets();
    first != 0 && first != 127 && first < 224
}

/// Replaces the address at `offset` ([`SOURCE`] or [`DESTINATION`]) and mends the header checksum.
///
/// `bytes` begins with a header that [`parse`] or [`read`] accepted.
pub fn set_addr(bytes: &mut [u8], offset: usize, new: Ipv4Addr) {
    let delta = Delta::default().addr(addr_at(bytes, offset), new);
    bytes[offset..offset + 4].copy_from_slice(&new.octets());
    let field = delta.update(u16_at(bytes, CHECKSUM));
    put_u16(bytes, CHECKSUM, field);
}

/// Replaces the address at `offset` as [`set_addr`] does and takes one hop off the TTL, which must not be 0: one update of
/// the checksum for both. Returns the change of the address, for the transport's checksum.
#[inline(always)]
pub(crate) fn forward(bytes: &mut [u8; MIN_HEADER], offset: usize, new: Ipv4Addr) -> Delta {
    let (old, hops) = (addr_at(bytes, offset), u16_at(bytes, TTL));
    let addresses = Delta::default().addr(old, new);
    // The TTL is the upper byte of its word.
    let field = addresses.word(hops, hops.wrapping_sub(0x0100)).update(u16_at(bytes, CHECKSUM));
    bytes[offset..offset + 4].copy_from_slice(&new.octets());
    put_u16(bytes, TTL, hops.wrapping_sub(0x0100));
    put_u16(bytes, CHECKSUM, field);
    addresses
}

/// What tells the fragments of one datagram from those of another.
pub(crate) fn identification(bytes: &[u8]) -> u16 {
    u16_at(bytes, IDENTIFICATION)
}

/// Replaces the identification and mends the header checksum.
pub(crate) fn set_identification(bytes: &mut [u8], new: u16) {
    let field = Delta::default().word(identification(bytes), new).update(u16_at(bytes, CHECKSUM));
    put_u16(bytes, IDENTIFICATION, new);
    put_u16(bytes, CHECKSUM, field);
}

/// Whether a packet is no fragment and never becomes any, so that its identification means nothing (RFC 6864 §4).
#[inline(always)]
pub(crate) fn is_atomic(bytes: &[u8]) -> bool {
    bytes.get(FRAGMENT..FRAGMENT + 2).is_some_and(|field| field[0] & 0x7f == 0x40 && field[1] == 0)
}

/// Takes one hop off the TTL, which must not be 0, and mends the header checksum.
pub fn decrement_ttl(bytes: &mut [u8]) {
    set_ttl(bytes, bytes[TTL].wrapping_sub(1));
}

/// Replaces the TTL and mends the header checksum.
pub fn set_ttl(bytes: &mut [u8], ttl: u8) {
    let old = u16_at(bytes, TTL);
    let new = u16::from_be_bytes([ttl, bytes[PROTOCOL]]);
    put_u16(bytes, TTL, new);
    let field = Delta::default().word(old, new).update(u16_at(bytes, CHECKSUM));
    put_u16(bytes, CHECKSUM, field);
}

/// The big-endian word at `offset`, which must lie inside `bytes`.
#[inline(always)]
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_be_bytes([bytes[offset], bytes[offset + 1]])
}

#[inline(always)]
pub(crate) fn put_u16(bytes: &mut [u8], offset: usize, value: u16) {
    bytes[offset..offset + 2].copy_from_slice(&value.to_be_bytes());
}

#[inline(always)]
pub(crate) fn addr_at(bytes: &[u8], offset: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[offset], bytes[offset + 1], bytes[offset + 2], bytes[offset + 3])
}

#[cfg(test)]
mod tests {
    use etherparse::{Ipv4HeaderSlice, PacketBuilder};
    use proptest::prelude::*;

    use super::*;

    fn packet(ttl: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 2], [203, 0, 113, 9], ttl)
            .udp(4242, 53)
            .write(&mut bytes, b"query")
            .unwrap();
        bytes
    }

    #[test]
    fn reads_what_etherparse_wrote() {
        let bytes = packet(7);
        let header = parse(&bytes).unwrap();
        assert_eq!((header.header_len, header.total_len, header.ttl, header.protocol), (20, 33, 7, UDP));
        assert_eq!(header.source, Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(header.destination, Ipv4Addr::new(203, 0, 113, 9));
        assert!(!header.is_fragment);
    }

    #[test]
    fn refuses_what_is_cut_short_or_damaged() {
        let bytes = packet(7);
        for len in 0..bytes.len() {
            assert_eq!(parse(&bytes[..len]), Err(Invalid::Malformed), "{len} bytes");
        }
        let mut damaged = bytes.clone();
        damaged[12] ^= 1;
        assert_eq!(parse(&damaged), Err(Invalid::BadChecksum));
        assert_eq!(parse(&[0x60; 40]), Err(Invalid::Ipv6));
    }

    proptest! {
        #[test]
        fn rewrites_keep_the_checksum_right(ttl in 1u8.., new in any::<[u8; 4]>()) {
            let mut bytes = packet(ttl);
            set_addr(&mut bytes, SOURCE, new.into());
            decrement_ttl(&mut bytes);
            let slice = Ipv4HeaderSlice::from_slice(&bytes).unwrap();
            prop_assert_eq!(slice.header_checksum(), slice.to_header().calc_header_checksum());
            prop_assert_eq!(slice.source(), new);
            prop_assert_eq!(slice.ttl(), ttl - 1);
            let mut at_once = packet(ttl);
            forward(at_once.first_chunk_mut().unwrap(), SOURCE, new.into());
            prop_assert_eq!(at_once, bytes);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(&bytes);
            let _ = read(&bytes);
        }
    }
}
