//! Fragments (RFC 791 §3.2): a fragment's place in its datagram, and cutting a packet into fragments.

use super::{
    checksum::checksum,
    ipv4::{self, Header, put_u16, u16_at},
};

/// Options that every fragment carries have this bit in their type (RFC 791 §3.1).
const COPIED: u8 = 0x80;
/// The two options without a length.
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;

/// A fragment's place in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// What the fragments of a datagram have in common.
    pub identification: u16,
    /// Where in the datagram's payload this one's begins, in bytes; a multiple of 8.
    pub offset: u16,
    /// Length of this one's payload, in bytes.
    pub len: u16,
    /// Whether others come behind it.
    pub more: bool,
}

impl Piece {
    /// The place of the packet in `bytes`, whose header has been read; `None` for a whole datagram.
    pub fn of(bytes: &[u8], header: &Header) -> Option<Piece> {
        header.is_fragment.then(|| Piece {
            identification: ipv4::identification(bytes),
            offset: header.fragment_offset as u16,
            len: (header.total_len - header.header_len) as u16,
            more: u16_at(bytes, ipv4::FRAGMENT) & ipv4::MORE_FRAGMENTS != 0,
        })
    }

    /// Where its payload ends in the datagram's; beyond 65,535 in a forged one.
    pub(crate) fn end(&self) -> u32 {
        u32::from(self.offset) + u32::from(self.len)
    }

    /// Whether it can be a part of a datagram: not empty, not beyond the longest one, and only the last may have a length
    /// that is not a multiple of 8.
    pub(crate) fn is_possible(&self, header_len: usize) -> bool {
        self.len > 0
            && self.end() + header_len as u32 <= u32::from(u16::MAX)
            && (!self.more || self.len.is_multiple_of(8))
    }
}

/// Cuts a packet, or a fragment of one, that is longer than `mtu` bytes: the first part stays in `bytes`, and its length is
/// returned with the others, in order. All checksums of IP headers are in place. `mtu` has room for a header of any length.
pub(crate) fn cut(bytes: &mut [u8], header_len: usize, mtu: usize) -> (usize, Vec<Box<[u8]>>) {
    let room = (mtu - header_len) & !7;
    let field = u16_at(bytes, ipv4::FRAGMENT);
    let (header, payload) = bytes.split_at_mut(header_len);
    let mut later = header.to_vec();
    leave_copied_options(&mut later[ipv4::MIN_HEADER..]);
    let last = payload.len().div_ceil(room) - 1;
    let others = payload.chunks(room).enumerate().skip(1).map(|(i, part)| {
        let mut fragment = [&later[..], part].concat();
        let more = if i == last { field & ipv4::MORE_FRAGMENTS } else { ipv4::MORE_FRAGMENTS };
        write_place(&mut fragment, header_len, field + (i * room / 8) as u16, more);
        fragment.into_boxed_slice()
    });
    let others = others.collect();
    let len = header_len + room;
    write_place(&mut bytes[..len], header_len, field, ipv4::MORE_FRAGMENTS);
    (len, others)
}

fn write_place(fragment: &mut [u8], header_len: usize, field: u16, more: u16) {
    put_u16(fragment, ipv4::TOTAL_LEN, fragment.len() as u16);
    put_u16(fragment, ipv4::FRAGMENT, field & !ipv4::MORE_FRAGMENTS | more);
    put_u16(fragment, ipv4::CHECKSUM, 0);
    let sum = checksum(&fragment[..header_len]);
    put_u16(fragment, ipv4::CHECKSUM, sum);
}

/// Overwrites options that only the first fragment carries; what cannot be read is left as it is.
fn leave_copied_options(mut options: &mut [u8]) {
    while let [kind, rest @ ..] = options {
        let len = match (*kind, rest.first()) {
            (END_OF_OPTIONS, _) => return,
            (NO_OPERATION, _) => 1,
            (_, Some(len)) if (2..=rest.len() + 1).contains(&usize::from(*len)) => usize::from(*len),
            _ => return,
        };
        if options[0] & COPIED == 0 {
            options[..len].fill(NO_OPERATION);
        }
        options = &mut options[len..];
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn packet(len: usize, options: &[u8]) -> Vec<u8> {
        let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let mut bytes = Vec::new();
        let ip = etherparse::Ipv4Header {
            options: options.try_into().unwrap(),
            dont_fragment: false,
            identification: 77,
            ..etherparse::Ipv4Header::new(0, 64, etherparse::IpNumber::UDP, [10, 0, 0, 2], [192, 0, 2, 1])
                .unwrap()
        };
        PacketBuilder::ip(etherparse::IpHeaders::Ipv4(ip, Default::default()))
            .udp(1, 2)
            .write(&mut bytes, &payload)
            .unwrap();
        bytes
    }

    fn parts(bytes: &[u8], mtu: usize) -> Vec<Vec<u8>> {
        let mut first = bytes.to_vec();
        let header_len = ipv4::parse(bytes).unwrap().header_len;
        let (len, others) = cut(&mut first, header_len, mtu);
        first.truncate(len);
        [first].into_iter().chain(others.into_iter().map(Vec::from)).collect()
    }

    #[test]
    fn parts_fit_and_make_the_whole() {
        let bytes = packet(4000, &[]);
        for mtu in [68, 576, 1400, 1500, 4027] {
            let mut at = 0;
            let parts = parts(&bytes, mtu);
            for (i, part) in parts.iter().enumerate() {
                let header = ipv4::parse(part).unwrap();
                let piece = Piece::of(part, &header).unwrap();
                assert!(part.len() <= mtu && piece.is_possible(20) && header.total_len == part.len());
                assert_eq!((piece.offset, piece.more, piece.identification), (at, i + 1 < parts.len(), 77));
                assert_eq!(part[20..], bytes[20 + usize::from(at)..][..piece.len.into()]);
                at += piece.len;
            }
            assert_eq!(usize::from(at) + 20, bytes.len());
        }
    }

    #[test]
    fn a_fragment_is_cut_further() {
        let fragments = parts(&packet(4000, &[]), 1500);
        for (i, fragment) in fragments.iter().enumerate() {
            let whole = Piece::of(fragment, &ipv4::parse(fragment).unwrap()).unwrap();
            let pieces: Vec<_> = parts(fragment, 600)
                .iter()
                .map(|part| Piece::of(part, &ipv4::parse(part).unwrap()).unwrap())
                .collect();
            assert_eq!(pieces[0].offset, whole.offset);
            assert!(pieces.windows(2).all(|pair| pair[0].more && pair[0].end() == pair[1].offset.into()));
            let last = pieces.last().unwrap();
            assert_eq!((last.end(), last.more), (whole.end(), i < 2), "the last says what the whole said");
        }
    }

    #[test]
    fn options_that_are_not_copied_stay_in_the_first() {
        // Record route (not copied), router alert (copied).
        let options = [7, 7, 4, 0, 0, 0, 0, 0x94, 4, 0, 0, 0];
        let parts = parts(&packet(900, &options), 500);
        assert_eq!(parts[0][20..32], options);
        assert_eq!(parts[1][20..32], [1, 1, 1, 1, 1, 1, 1, 0x94, 4, 0, 0, 0]);
        for mut broken in [vec![7, 0, 0, 0], vec![7, 9, 0, 0], vec![7], vec![0, 7, 3, 1]] {
            let before = broken.clone();
            leave_copied_options(&mut broken);
            assert_eq!(broken, before);
        }
    }
}
