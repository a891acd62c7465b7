//! Relay frames: what goes by UDP between a peer and its supernode, beside STUN and QUIC.
//!
//! ```text
//!  Bind      0x81 | session 4 | sequence 4 | cookie 16 | proof 16              41 bytes
//!  Challenge 0x82 | session 4 | sequence 4 | cookie 16                         25 bytes
//!  Bound     0x83 | session 4 | sequence 4 | lifetime 2 | proof 16             27 bytes
//!  Error     0x84 | code 1 | id 4                                               6 bytes
//!  Data      0x80 | channel 4 | payload                                  5 bytes + payload
//!  Forward   0x90 | hops 1 | channel 4 | payload                         6 bytes + payload
//! ```
//!
//! Integers are big-endian. A frame that answers an address which has proved nothing is never longer than the frame that
//! it answers: a Challenge is shorter than a Bind, and an Error is sent only to what is at least as long.

use serde::{Deserialize, Serialize};

/// Bytes before the payload of a Data frame.
pub const DATA_HEADER: usize = 5;
/// Length of a Bind frame.
pub const BIND_LEN: usize = 41;
/// Length of a Challenge frame.
pub const CHALLENGE_LEN: usize = 25;
/// Length of a Bound frame.
pub const BOUND_LEN: usize = 27;
/// Length of an Error frame.
pub const ERROR_LEN: usize = 6;

pub(crate) const DATA: u8 = 0x80;
const BIND: u8 = 0x81;
const CHALLENGE: u8 = 0x82;
const BOUND: u8 = 0x83;
const ERROR: u8 = 0x84;
const FORWARD: u8 = 0x90;

/// The number of a registration at a supernode; it may be reused for another one later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub u32);

/// One end of a relay channel: what a peer writes into its Data frames. The two ends have different numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChannelId(pub u32);

/// What stands for a source address: only its holder can have seen it. All zeros: none yet.
pub type Cookie = [u8; 16];

/// A relay frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// To or from the peer at the other end of a channel.
    Data {
        /// The receiver's, or when sent by a peer the sender's, end of the channel.
        channel: ChannelId,
        /// Opaque: the peers' own ciphertext.
        payload: &'a [u8],
    },
    /// A peer wants its session's packets at the address that this comes from. Also its keepalive.
    Bind(Bind),
    /// The supernode wants to see `cookie` in the next Bind.
    Challenge {
        /// From the Bind.
        session: SessionId,
        /// From the Bind.
        sequence: u32,
        /// To be sent back.
        cookie: Cookie,
    },
    /// The address is bound.
    Bound {
        /// From the Bind.
        session: SessionId,
        /// From the Bind.
        sequence: u32,
        /// For how many seconds, unless another Bind comes.
        lifetime: u16,
        /// [`RelayToken::bound`](super::RelayToken::bound).
        proof: [u8; 16],
    },
    /// A frame could not be used.
    Error {
        /// Why.
        code: FrameError,
        /// The session or channel that the frame named.
        id: u32,
    },
    /// Data between two supernodes.
    Forward {
        /// How many supernodes it has crossed; see [`MAX_HOPS`](super::MAX_HOPS).
        hops: u8,
        /// The receiving supernode's end of the channel.
        channel: ChannelId,
        /// Opaque.
        payload: &'a [u8],
    },
}

/// The fields of a Bind frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Which registration.
    pub session: SessionId,
    /// Higher than in every Bind from another address of this session; the same again is a keepalive.
    pub sequence: u32,
    /// From the Challenge; zeros in the first Bind.
    pub cookie: Cookie,
    /// [`RelayToken::bind`](super::RelayToken::bind).
    pub proof: [u8; 16],
}

/// Why a relay frame could not be used. The numbers never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// Bind again: the channel's session is not bound to the address that the frame came from.
    NotBound,
    /// There is no such channel: connect again.
    NoChannel,
    /// There is no such session: register again.
    NoSession,
    /// Something newer.
    Other(u8),
}

impl FrameError {
    /// The number on the wire.
    pub const fn to_byte(self) -> u8 {
        match self {
            FrameError::NotBound => 1,
            FrameError::NoChannel => 2,
            FrameError::NoSession => 3,
            FrameError::Other(byte) => byte,
        }
    }

    /// The reason with this number.
    pub const fn from_byte(byte: u8) -> FrameError {
        match byte {
            1 => FrameError::NotBound,
            2 => FrameError::NoChannel,
            3 => FrameError::NoSession,
            other => FrameError::Other(other),
        }
    }
}

/// Bytes that are no relay frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAFrame {
    /// A type that nobody has defined.
    #[error("0x{0:02x} is not a type of relay frame")]
    Type(u8),
    /// Cut short, or with bytes left over.
    #[error("a relay frame of type 0x{0:02x} cannot have {1} bytes")]
    Length(u8, usize),
    /// Nothing at all.
    #[error("an empty relay frame")]
    Empty,
}

impl<'a> Frame<'a> {
    /// Reads one frame; total, without allocation.
    pub fn decode(bytes: &'a [u8]) -> Result<Frame<'a>, NotAFrame> {
        let (kind, body) = bytes.split_first().ok_or(NotAFrame::Empty)?;
        let length = NotAFrame::Length(*kind, bytes.len());
        let mut fields = Fields(body);
        let frame = match *kind {
            DATA => {
                return Ok(Frame::Data {
                    channel: ChannelId(fields.u32().ok_or(length)?),
                    payload: fields.0,
                });
            }
            FORWARD => {
                let [hops] = fields.take().ok_or(length)?;
                return Ok(Frame::Forward {
                    hops,
                    channel: ChannelId(fields.u32().ok_or(length)?),
                    payload: fields.0,
                });
            }
            BIND => fields.bind().map(Frame::Bind),
            CHALLENGE => fields.challenge(),
            BOUND => fields.bound(),
            ERROR => fields.error(),
            other => return Err(NotAFrame::Type(other)),
        };
        frame.filter(|_| fields.0.is_empty()).ok_or(length)
    }

    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Frame::Data { channel, payload } => {
                out.extend_from_slice(&data_header(*channel));
                out.extend_from_slice(payload);
            }
            Frame::Forward { hops, channel, payload } => {
                out.extend_from_slice(&[FORWARD, *hops]);
                out.extend_from_slice(&channel.0.to_be_bytes());
                out.extend_from_slice(payload);
            }
            Frame::Bind(bind) => {
                head(out, BIND, bind.session, bind.sequence);
                out.extend_from_slice(&bind.cookie);
                out.extend_from_slice(&bind.proof);
            }
            Frame::Challenge { session, sequence, cookie } => {
                head(out, CHALLENGE, *session, *sequence);
                out.extend_from_slice(cookie);
            }
            Frame::Bound { session, sequence, lifetime, proof } => {
                head(out, BOUND, *session, *sequence);
                out.extend_from_slice(&lifetime.to_be_bytes());
                out.extend_from_slice(proof);
            }
            Frame::Error { code, id } => {
                out.extend_from_slice(&[ERROR, code.to_byte()]);
                out.extend_from_slice(&id.to_be_bytes());
            }
        }
    }

    /// The frame in a buffer of its own.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BIND_LEN);
        self.encode(&mut out);
        out
    }
}

/// What stands before the payload of a Data frame.
pub const fn data_header(channel: ChannelId) -> [u8; DATA_HEADER] {
    let [a, b, c, d] = channel.0.to_be_bytes();
    [DATA, a, b, c, d]
}

fn head(out: &mut Vec<u8>, kind: u8, session: SessionId, sequence: u32) {
    out.push(kind);
    out.extend_from_slice(&session.0.to_be_bytes());
    out.extend_from_slice(&sequence.to_be_bytes());
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn bind(&mut self) -> Option<Bind> {
        let (session, sequence) = (SessionId(self.u32()?), self.u32()?);
        Some(Bind { session, sequence, cookie: self.take()?, proof: self.take()? })
    }

    fn challenge(&mut self) -> Option<Frame<'a>> {
        let (session, sequence) = (SessionId(self.u32()?), self.u32()?);
        Some(Frame::Challenge { session, sequence, cookie: self.take()? })
    }

    fn bound(&mut self) -> Option<Frame<'a>> {
        let (session, sequence) = (SessionId(self.u32()?), self.u32()?);
        let lifetime = u16::from_be_bytes(self.take()?);
        Some(Frame::Bound { session, sequence, lifetime, proof: self.take()? })
    }

    fn error(&mut self) -> Option<Frame<'a>> {
        let [code] = self.take()?;
        Some(Frame::Error { code: FrameError::from_byte(code), id: self.u32()? })
    }
}
