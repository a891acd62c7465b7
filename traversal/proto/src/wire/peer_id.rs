//! Who somebody is.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// RFC 4648 §6, in lower case; decoding takes either case.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A peer or a supernode: its Ed25519 public key, 32 bytes.
///
/// As text it is base32 in lower case without padding, 52 characters. Any 32 bytes are a `PeerId`; bytes that are no
/// point of the curve simply never verify anything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId([u8; 32]);

/// Text that is not a [`PeerId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerIdError {
    /// Not 52 characters.
    #[error("a peer id has 52 characters, this has {0}: copy it whole")]
    Length(usize),
    /// A character outside a–z and 2–7.
    #[error("{0:?} cannot be part of a peer id: it is made of a–z and 2–7")]
    Character(char),
    /// The last character carries bits that no key has.
    #[error("the last character of this peer id is mistyped")]
    Trailing,
}

impl PeerId {
    /// Length of the text form in characters.
    pub const TEXT_LEN: usize = 52;

    /// The peer with this public key.
    pub const fn from_bytes(bytes: [u8; 32]) -> PeerId {
        PeerId(bytes)
    }

    /// The public key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn text(&self) -> [u8; Self::TEXT_LEN] {
        let mut text = [0; Self::TEXT_LEN];
        let (mut bits, mut count, mut at) = (0u32, 0, 0);
        for byte in self.0 {
            bits = bits << 8 | u32::from(byte);
            count += 8;
            while count >= 5 {
                count -= 5;
                text[at] = ALPHABET[(bits >> count) as usize & 31];
                at += 1;
            }
        }
        text[at] = ALPHABET[(bits << (5 - count)) as usize & 31];
        text
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text().iter().try_for_each(|c| fmt::Write::write_char(f, char::from(*c)))
    }
}

/// The first ten characters: enough to tell peers apart in a log.
impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text()[..10].iter().try_for_each(|c| fmt::Write::write_char(f, char::from(*c)))?;
        f.write_str("…")
    }
}

impl FromStr for PeerId {
    type Err = PeerIdError;

    fn from_str(text: &str) -> Result<PeerId, PeerIdError> {
        let len = text.chars().count();
        if len != Self::TEXT_LEN {
            return Err(PeerIdError::Length(len));
        }
        let mut bytes = [0; 32];
        let (mut bits, mut count, mut at) = (0u32, 0, 0);
        for c in text.chars() {
            let value = match c {
                'a'..='z' => c as u32 - 'a' as u32,
                'A'..='Z' => c as u32 - 'A' as u32,
                '2'..='7' => c as u32 - '2' as u32 + 26,
                other => return Err(PeerIdError::Character(other)),
            };
            bits = (bits << 5 | value) & 0xfff;
            count += 5;
            if count >= 8 {
                count -= 8;
                bytes[at] = (bits >> count) as u8;
                at += 1;
            }
        }
        if bits & ((1 << count) - 1) != 0 {
            return Err(PeerIdError::Trailing);
        }
        Ok(PeerId(bytes))
    }
}

/// Raw bytes on the wire, text where people read it.
impl Serialize for PeerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for PeerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PeerId, D::Error> {
        if deserializer.is_human_readable() {
            return String::deserialize(deserializer)?.parse().map_err(de::Error::custom);
        }
        Ok(PeerId(Deserialize::deserialize(deserializer)?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn text_round_trips(bytes: [u8; 32]) {
            let id = PeerId::from_bytes(bytes);
            let text = id.to_string();
            prop_assert_eq!(text.len(), PeerId::TEXT_LEN);
            prop_assert_eq!(text.parse(), Ok(id));
            prop_assert_eq!(text.to_uppercase().parse(), Ok(id));
        }

        #[test]
        fn any_text_is_an_id_or_an_error(text in "\\PC{0,60}") {
            let _ = text.parse::<PeerId>();
        }
    }

    #[test]
    fn mistakes_are_named() {
        let good = PeerId::from_bytes([0; 32]).to_string();
        assert_eq!(good, "a".repeat(52));
        assert_eq!(good[1..].parse::<PeerId>(), Err(PeerIdError::Length(51)));
        assert_eq!(format!("1{}", &good[1..]).parse::<PeerId>(), Err(PeerIdError::Character('1')));
        assert_eq!(format!("{}b", &good[1..]).parse::<PeerId>(), Err(PeerIdError::Trailing));
    }
}
