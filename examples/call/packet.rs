//! What a datagram of the call looks like.
//!
//! ```text
//!   0               1               2               3
//!   0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7 0 1 2 3 4 5 6 7
//!  +-------+-----+-+-------------------------------+---------------
//!  |version|  0  |L|        sequence number        |   timestamp
//!  +-------+-----+-+-------------------------------+---------------
//!   timestamp (continued)          | Opus packet, one frame of 20 ms
//!  --------------------------------+-------------------------------
//! ```
//!
//! All numbers are big-endian. The version is 1. `L`: the speaker hangs up; the frame is still to be played. The sequence
//! number grows by one with each frame, the timestamp by 960: its unit is 1/48000 s whatever the sample rate (RFC 7587
//! §4.1). Both begin anywhere, and wrap. Nothing here is encrypted or authenticated: the connection does that.

/// Bytes before the Opus packet.
const HEADER: usize = 7;
const VERSION: u8 = 1 << 4;
const LAST: u8 = 1;
/// An Opus frame is never longer (RFC 6716 §3.2.1); 20 ms of speech have some 60 bytes.
const MAX_PAYLOAD: usize = 1275;

/// One frame on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    /// Grows by one with each frame.
    pub(crate) sequence: u16,
    /// When the frame begins to sound, in 1/48000 s since an arbitrary moment.
    pub(crate) timestamp: u32,
    /// The speaker hangs up.
    pub(crate) last: bool,
    /// An Opus packet.
    pub(crate) payload: Vec<u8>,
}

/// Why a datagram is no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PacketError {
    #[error("{0} bytes are no packet of a call")]
    Length(usize),
    #[error("a packet of version {}, where 1 is spoken", .0 >> 4)]
    Version(u8),
    #[error("flags {0:#04x} mean nothing")]
    Flags(u8),
}

impl Packet {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.payload.len());
        bytes.push(VERSION | if self.last { LAST } else { 0 });
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.timestamp.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Packet, PacketError> {
        let length = PacketError::Length(bytes.len());
        let (&[first, s0, s1, t0, t1, t2, t3], payload) =
            bytes.split_first_chunk::<HEADER>().ok_or(length)?;
        if payload.is_empty() || payload.len() > MAX_PAYLOAD {
            return Err(length);
        }
        if first & 0xf0 != VERSION {
            return Err(PacketError::Version(first));
        }
        if first & 0x0f & !LAST != 0 {
            return Err(PacketError::Flags(first));
        }
        Ok(Packet {
            sequence: u16::from_be_bytes([s0, s1]),
            timestamp: u32::from_be_bytes([t0, t1, t2, t3]),
            last: first & LAST != 0,
            payload: payload.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_drawing_is_right() {
        let packet = Packet { sequence: 0x0102, timestamp: 0x0304_0506, last: true, payload: vec![9, 9] };
        assert_eq!(packet.encode(), [0x11, 1, 2, 3, 4, 5, 6, 9, 9]);
    }

    #[test]
    fn what_is_no_packet_is_refused() {
        let good = Packet { sequence: 1, timestamp: 2, last: false, payload: vec![0; 3] }.encode();
        assert!(Packet::decode(&good).is_ok());
        assert_eq!(Packet::decode(&good[..HEADER]), Err(PacketError::Length(7)));
        let mut long = good.clone();
        long.resize(HEADER + MAX_PAYLOAD + 1, 0);
        assert_eq!(Packet::decode(&long), Err(PacketError::Length(1283)));
        let mut newer = good.clone();
        newer[0] = 0x20;
        assert_eq!(Packet::decode(&newer), Err(PacketError::Version(0x20)));
        let mut odd = good;
        odd[0] = 0x12;
        assert_eq!(Packet::decode(&odd), Err(PacketError::Flags(0x12)));
    }

    proptest! {
        #[test]
        fn packets_come_back(
            sequence: u16, timestamp: u32, last: bool, payload in prop::collection::vec(any::<u8>(), 1..=MAX_PAYLOAD),
        ) {
            let packet = Packet { sequence, timestamp, last, payload };
            prop_assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
        }

        #[test]
        fn any_bytes_give_a_packet_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(packet) = Packet::decode(&bytes) {
                prop_assert_eq!(packet.encode(), bytes);
            }
        }
    }
}
