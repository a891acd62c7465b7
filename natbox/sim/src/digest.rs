//! A running fingerprint of everything that happened: two runs with the same fingerprint were the same.

/// Multiplier of the fold: the golden ratio in 64 bits, odd.
const KEY: u64 = 0x9e37_79b9_7f4a_7c15;

/// A sequence of words and bytes, folded to 64 bits. Not secret, not for tables.
#[derive(Clone, Copy)]
pub(crate) struct Digest(u64);

impl Digest {
    pub(crate) fn new() -> Digest {
        Digest(KEY)
    }

    pub(crate) fn word(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * u128::from(KEY);
        // The rotation keeps a word of zeros from standing still.
        self.0 = (product as u64 ^ (product >> 64) as u64).rotate_left(23).wrapping_add(KEY);
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.word(u64::from_le_bytes([
                word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7],
            ]));
        }
        let rest = words.remainder();
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.word(u64::from_le_bytes(last));
        }
    }

    pub(crate) fn value(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parts: &[&[u8]]) -> u64 {
        let mut digest = Digest::new();
        parts.iter().for_each(|part| digest.bytes(part));
        digest.value()
    }

    #[test]
    fn order_length_and_content_count() {
        let all =
            [of(&[b"a", b"bc"]), of(&[b"ab", b"c"]), of(&[b"bc", b"a"]), of(&[b"a", b"bc", b""]), of(&[])];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b), "{all:x?}");
        }
        assert_eq!(of(&[b"123456789"]), of(&[b"123456789"]));
        assert_ne!(of(&[&[0; 8]]), of(&[&[0; 16]]));
    }
}
