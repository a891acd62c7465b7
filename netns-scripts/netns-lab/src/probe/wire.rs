//! What probes and reflector say to each other: messages of one fixed size, the same in a UDP datagram and on a TCP
//! stream.
//!
//! ```text
//! 0      4     5          13         17                                    36
//! | NLP1 | kind | token    | arguments | family, port, address (or zeros) |
//! ```

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::endpoints::{Outcome, Source};

/// Bytes of every message.
pub(super) const SIZE: usize = 36;

const MAGIC: &[u8; 4] = b"NLP1";
const KIND: usize = 4;
const TOKEN: usize = 5;
const ARGS: usize = 13;
const FAMILY: usize = 17;
const PORT: usize = 18;
const ADDR: usize = 20;

/// Marks an unused place in [`Message::Ask`].
const NOBODY: u8 = 0xff;

/// One message. Tokens tie answers to questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// Answer me from these, in this order.
    Ask { token: u64, answers: [Option<Source>; 4] },
    /// I, who am `source` of the endpoint that you asked, saw you as `mapped`.
    Answer { token: u64, source: Source, mapped: SocketAddr },
    /// Connect to my mapped endpoint from there and tell me how it went.
    ConnectBack { token: u64, from: Source, timeout_ms: u16 },
    /// So it went.
    ConnectedBack { token: u64, outcome: Outcome, mapped: SocketAddr },
    /// Between clients, and on a connection back: echo it if you are who I mean.
    Hello { token: u64 },
}

impl Message {
    pub(super) fn encode(&self) -> [u8; SIZE] {
        let mut out = [0; SIZE];
        out[..KIND].copy_from_slice(MAGIC);
        let (kind, token, args, addr) = match *self {
            Self::Ask { token, answers } => (1, token, answers.map(|s| s.map_or(NOBODY, |s| s as u8)), None),
            Self::Answer { token, source, mapped } => (2, token, [source as u8, 0, 0, 0], Some(mapped)),
            Self::ConnectBack { token, from, timeout_ms } => {
                let [high, low] = timeout_ms.to_be_bytes();
                (3, token, [from as u8, 0, high, low], None)
            }
            Self::ConnectedBack { token, outcome, mapped } => {
                (4, token, [outcome as u8, 0, 0, 0], Some(mapped))
            }
            Self::Hello { token } => (5, token, [0; 4], None),
        };
        out[KIND] = kind;
        out[TOKEN..ARGS].copy_from_slice(&token.to_be_bytes());
        out[ARGS..FAMILY].copy_from_slice(&args);
        if let Some(addr) = addr {
            put_addr(&mut out, addr);
        }
        out
    }

    /// `None` for anything that is not exactly one message.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; SIZE] = bytes.try_into().ok()?;
        if &bytes[..KIND] != MAGIC {
            return None;
        }
        let token = u64::from_be_bytes(bytes[TOKEN..ARGS].try_into().ok()?);
        let args: [u8; 4] = bytes[ARGS..FAMILY].try_into().ok()?;
        Some(match bytes[KIND] {
            1 => {
                let mut answers = [None; 4];
                for (answer, value) in answers.iter_mut().zip(args) {
                    *answer = if value == NOBODY { None } else { Some(Source::from_value(value)?) };
                }
                Self::Ask { token, answers }
            }
            2 => Self::Answer { token, source: Source::from_value(args[0])?, mapped: get_addr(bytes)? },
            3 => {
                let timeout_ms = u16::from_be_bytes([args[2], args[3]]);
                Self::ConnectBack { token, from: Source::from_value(args[0])?, timeout_ms }
            }
            4 => Self::ConnectedBack {
                token,
                outcome: Outcome::from_value(args[0])?,
                mapped: get_addr(bytes)?,
            },
            5 => Self::Hello { token },
            _ => return None,
        })
    }
}

/// A token that no other question of this process has, and hardly one of another process.
pub(super) fn fresh_token() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static BASE: OnceLock<u64> = OnceLock::new();
    let base = *BASE.get_or_init(|| RandomState::new().build_hasher().finish());
    base.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))
}

fn put_addr(out: &mut [u8; SIZE], addr: SocketAddr) {
    out[PORT..ADDR].copy_from_slice(&addr.port().to_be_bytes());
    match addr.ip() {
        IpAddr::V4(ip) => {
            out[FAMILY] = 4;
            out[ADDR..ADDR + 4].copy_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out[FAMILY] = 6;
            out[ADDR..].copy_from_slice(&ip.octets());
        }
    }
}

fn get_addr(bytes: &[u8; SIZE]) -> Option<SocketAddr> {
    let ip = match bytes[FAMILY] {
        4 => IpAddr::from(<[u8; 4]>::try_from(&bytes[ADDR..ADDR + 4]).ok()?),
        6 => IpAddr::from(<[u8; 16]>::try_from(&bytes[ADDR..]).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes([bytes[PORT], bytes[PORT + 1]])))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn source() -> impl Strategy<Value = Source> {
        proptest::sample::select(Source::ALL.to_vec())
    }

    fn addr() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), any::<u16>()).prop_map(SocketAddr::from)
    }

    fn message() -> impl Strategy<Value = Message> {
        let outcome = (0..5u8).prop_map(|v| Outcome::from_value(v).unwrap());
        prop_oneof![
            (any::<u64>(), proptest::array::uniform4(proptest::option::of(source())))
                .prop_map(|(token, answers)| Message::Ask { token, answers }),
            (any::<u64>(), source(), addr()).prop_map(|(token, source, mapped)| Message::Answer {
                token,
                source,
                mapped
            }),
            (any::<u64>(), source(), any::<u16>())
                .prop_map(|(token, from, timeout_ms)| Message::ConnectBack { token, from, timeout_ms }),
            (any::<u64>(), outcome, addr()).prop_map(|(token, outcome, mapped)| Message::ConnectedBack {
                token,
                outcome,
                mapped
            }),
            any::<u64>().prop_map(|token| Message::Hello { token }),
        ]
    }

    proptest! {
        #[test]
        fn decode_is_the_inverse_of_encode(message in message()) {
            prop_assert_eq!(Message::decode(&message.encode()), Some(message));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Message::decode(&bytes);
        }

        #[test]
        fn arbitrary_bytes_behind_the_magic_never_panic(tail in any::<[u8; SIZE - 4]>(), kind in 0..8u8) {
            let mut bytes = [0; SIZE];
            bytes[..4].copy_from_slice(MAGIC);
            bytes[4..].copy_from_slice(&tail);
            bytes[KIND] = kind;
            let _ = Message::decode(&bytes);
        }
    }

    #[test]
    fn tokens_differ() {
        assert_ne!(fresh_token(), fresh_token());
    }
}
