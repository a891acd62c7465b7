//! The virtio-net header: how the kernel and we tell each other what is owed to a frame.
//!
//! Its offsets count from the start of the frame: the IP header on a TUN, the Ethernet header on a packet socket.
//! [`Offload`] always counts from the IP header, so offsets shift by 14 between the two.
//!
//! | 0 | 1 | 2 | 4 | 6 | 8 |
//! |---|---|---|---|---|---|
//! | flags | GSO type | header length | segment size | checksum start | checksum offset |

use natbox_core::packet::{Checksum, Gso, GsoKind, Offload};

/// Length of the header in bytes (the legacy one, without the number of merged buffers).
pub const LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// A header that no frame of ours can have: an unknown kind of segmentation, or an offset outside the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadHeader;

/// What `header` says about a frame whose IP header stands `link` bytes behind its start.
pub fn parse(header: [u8; LEN], link: usize) -> Result<Offload, BadHeader> {
    let field = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let link = link as u16;
    let checksum = if header[0] & NEEDS_CSUM != 0 {
        Checksum::Partial { start: field(6).checked_sub(link).ok_or(BadHeader)?, offset: field(8) }
    } else if header[0] & DATA_VALID != 0 {
        Checksum::Verified
    } else {
        Checksum::Unverified
    };
    let kind = match header[1] & !GSO_ECN {
        GSO_NONE => return Ok(Offload { checksum, gso: None }),
        GSO_TCPV4 => GsoKind::TcpV4,
        GSO_TCPV6 => GsoKind::TcpV6,
        GSO_UDP_L4 => GsoKind::Udp,
        _ => return Err(BadHeader),
    };
    let gso = Gso {
        kind,
        segment: field(4),
        header_len: field(2).saturating_sub(link),
        ecn: header[1] & GSO_ECN != 0,
    };
    if gso.segment == 0 { Err(BadHeader) } else { Ok(Offload { checksum, gso: Some(gso) }) }
}

/// The header for a frame whose IP header stands `link` bytes behind its start and whose packet has `len` bytes.
pub fn header(offload: &Offload, link: usize, len: usize) -> [u8; LEN] {
    let mut header = [0; LEN];
    let mut put = |at: usize, value: u16| header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    let link = link as u16;
    let mut flags = 0;
    if let Checksum::Partial { start, offset } = offload.checksum {
        flags = NEEDS_CSUM;
        put(6, start.saturating_add(link));
        put(8, offset);
    }
    if let Some(gso) = offload.gso {
        // The kernel refuses a header longer than the frame, and puts this much of the frame into the linear part of
        // its buffer; the hint may date from before somebody shortened the packet.
        put(2, gso.header_len.min(u16::try_from(len).unwrap_or(u16::MAX)).saturating_add(link));
        put(4, gso.segment);
        header[1] = match gso.kind {
            GsoKind::TcpV4 => GSO_TCPV4,
            GsoKind::TcpV6 => GSO_TCPV6,
            GsoKind::Udp => GSO_UDP_L4,
        } | if gso.ecn { GSO_ECN } else { 0 };
    }
    header[0] = flags;
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(kind: GsoKind, ecn: bool) -> Offload {
        Offload {
            checksum: Checksum::Partial { start: 20, offset: 16 },
            gso: Some(Gso { kind, segment: 1448, header_len: 52, ecn }),
        }
    }

    #[test]
    fn what_is_written_is_read_back_with_and_without_a_link_header() {
        for kind in [GsoKind::TcpV4, GsoKind::TcpV6, GsoKind::Udp] {
            for link in [0, 14] {
                for ecn in [false, true] {
                    let offload = sample(kind, ecn);
                    assert_eq!(parse(header(&offload, link, 9000), link), Ok(offload));
                }
            }
        }
        assert_eq!(parse([0; LEN], 14), Ok(Offload::default()));
    }

    #[test]
    fn offsets_shift_by_the_link_header() {
        let wire = header(&sample(GsoKind::TcpV4, false), 14, 9000);
        assert_eq!(u16::from_ne_bytes([wire[2], wire[3]]), 66);
        assert_eq!(u16::from_ne_bytes([wire[6], wire[7]]), 34);
        assert_eq!(u16::from_ne_bytes([wire[8], wire[9]]), 16);
    }

    #[test]
    fn the_header_length_never_exceeds_the_packet() {
        let wire = header(&sample(GsoKind::TcpV4, false), 0, 40);
        assert_eq!(u16::from_ne_bytes([wire[2], wire[3]]), 40);
    }

    #[test]
    fn a_verified_checksum_is_known_as_such_and_not_claimed_to_the_kernel() {
        let offload = parse([DATA_VALID, 0, 0, 0, 0, 0, 0, 0, 0, 0], 14).unwrap();
        assert_eq!(offload.checksum, Checksum::Verified);
        assert_eq!(header(&offload, 14, 100), [0; LEN]);
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(parse([0, 3, 0, 0, 100, 100, 0, 0, 0, 0], 0), Err(BadHeader), "UFO is not asked for");
        assert_eq!(parse([0, 1, 0, 0, 0, 0, 0, 0, 0, 0], 0), Err(BadHeader), "segments of no bytes");
        let mut inside_link = [NEEDS_CSUM, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        inside_link[6..8].copy_from_slice(&10u16.to_ne_bytes());
        assert_eq!(parse(inside_link, 14), Err(BadHeader), "a checksum in the Ethernet header");
    }
}
