//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use std::net::Ipv4Addr;

/// Adds `bytes` to a running one's complement sum, as 16-bit big-endian words; an odd last byte is padded with zero.
#[inline]
pub fn add(sum: u32, bytes: &[u8]) -> u32 {
    let mut total = u64::from(sum);
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        total += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        total += u64::from(u32::from_be_bytes(last));
    }
    total = (total & 0xffff_ffff) + (total >> 32);
    total = (total & 0xffff) + ((total >> 16) & 0xffff) + (total >> 32);
    total as u32
}

/// Folds a running sum to 16 bits, uncomplemented.
#[inline(always)]
pub fn fold(mut sum: u32) -> u16 {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Folds a sum of words of up to 32 bits, of which there are fewer than 2¹⁶.
#[inline(always)]
fn fold_wide(sum: u64) -> u16 {
    let (halves, carry) = (sum as u32).overflowing_add((sum >> 32) as u32);
    let halves = halves + u32::from(carry);
    // Both halves in both places: the lower sum's carry is the end-around carry of the upper one.
    (halves.wrapping_add(halves.rotate_left(16)) >> 16) as u16
}

/// The checksum of `bytes`: 0 when they contain a right one.
#[inline]
pub fn checksum(bytes: &[u8]) -> u16 {
    !fold(add(0, bytes))
}

/// The sum of the pseudo-header that TCP and UDP checksums begin with (RFC 9293 §3.1, RFC 768).
pub fn pseudo_header(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, length: u16) -> u32 {
    let sum = add(add(0, &source.octets()), &destination.octets());
    sum + u32::from(protocol) + u32::from(length)
}

/// The folded sum of an IPv4 header without options.
#[inline(always)]
pub(super) fn of_header(header: &[u8; 20]) -> u16 {
    let word = |at: usize| {
        u64::from(u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]))
    };
    // The sum of words in the machine's order has its bytes in the machine's order (RFC 1071 §2B).
    u16::from_be(fold_wide(word(0) + word(4) + word(8) + word(12) + word(16)))
}

/// What a rewrite changes in a one's complement sum: the sum of ~old + new over all replaced words (RFC 1624 eqn. 3).
/// Words of 32 bits count as their two halves, since 2¹⁶ is 1 in one's complement.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delta(u64);

impl Delta {
    /// One 16-bit word was replaced.
    #[inline(always)]
    pub fn word(self, old: u16, new: u16) -> Delta {
        Delta(self.0 + u64::from(!old) + u64::from(new))
    }

    /// One IPv4 address was replaced.
    #[inline(always)]
    pub fn addr(self, old: Ipv4Addr, new: Ipv4Addr) -> Delta {
        Delta(self.0 + u64::from(!old.to_bits()) + u64::from(new.to_bits()))
    }

    /// `bytes`, of even length and at an even offset, were replaced by as many others.
    pub fn bytes(self, old: &[u8], new: &[u8]) -> Delta {
        self.word(fold(add(0, old)), fold(add(0, new)))
    }

    /// Updates a checksum field (the complement of a sum).
    #[inline(always)]
    pub fn update(self, field: u16) -> u16 {
        !self.update_partial(!field)
    }

    /// Updates a field that holds an uncomplemented sum, as a partial checksum does.
    #[inline(always)]
    pub fn update_partial(self, field: u16) -> u16 {
        fold_wide(u64::from(field) + self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(!checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }

    proptest! {
        #[test]
        fn same_as_word_by_word(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(checksum(&bytes), slow(&bytes));
            if let Some(header) = bytes.first_chunk() {
                prop_assert_eq!(!of_header(header), slow(&bytes[..20]));
            }
        }

        /// An update gives a checksum that verifies, for every value of the words.
        #[test]
        fn updates_verify(mut bytes in proptest::collection::vec(any::<u8>(), 20..40), new in any::<[u8; 4]>()) {
            bytes.truncate(bytes.len() & !1);
            bytes[0] |= 1; // an all-zero packet does not exist: its sum would have two forms
            let new = [new[0], new[1], new[2] | 1, new[3]];
            bytes[10..12].fill(0);
            let field = checksum(&bytes);
            bytes[10..12].copy_from_slice(&field.to_be_bytes());
            let old: [u8; 4] = bytes[12..16].try_into().unwrap();
            bytes[12..16].copy_from_slice(&new);
            for delta in [Delta::default().addr(old.into(), new.into()), Delta::default().bytes(&old, &new)] {
                bytes[10..12].copy_from_slice(&delta.update(field).to_be_bytes());
                prop_assert_eq!(fold(add(0, &bytes)), 0xffff);
            }
        }

        /// A sender's kernel completes a partial checksum after our update and gets the right one.
        #[test]
        fn partial_updates_complete(source in any::<[u8; 4]>(), new in any::<[u8; 4]>(), payload in proptest::collection::vec(any::<u8>(), 8..60)) {
            let (source, new, to) = (Ipv4Addr::from(source), Ipv4Addr::from(new), Ipv4Addr::new(192, 0, 2, 1));
            let length = payload.len() as u16;
            let partial = fold(pseudo_header(source, to, 17, length));
            let updated = Delta::default().addr(source, new).update_partial(partial);
            let right = fold(pseudo_header(new, to, 17, length));
            prop_assert_eq!(fold(add(updated.into(), &payload)), fold(add(right.into(), &payload)));
        }
    }
}
