//! The TCP header (RFC 9293), as much of it as a NAT looks at.

use super::ipv4::u16_at;

/// Shortest header, in bytes.
pub const MIN_HEADER: usize = 20;
/// Offset of the source port.
pub const SOURCE_PORT: usize = 0;
/// Offset of the destination port.
pub const DESTINATION_PORT: usize = 2;
/// Offset of the checksum.
pub const CHECKSUM: usize = 16;

const DATA_OFFSET: usize = 12;
const FLAGS: usize = 13;

/// The control bits that decide a connection's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgement field is valid.
    pub const ACK: u8 = 0x10;

    /// Ends one direction.
    #[inline]
    pub fn fin(self) -> bool {
        self.0 & Flags::FIN != 0
    }

    /// Acknowledges, and neither opens nor closes nor resets.
    pub fn is_in_the_middle(self) -> bool {
        self.ack() && !self.syn() && !self.fin() && !self.rst()
    }

    /// Opens one direction.
    #[inline]
    pub fn syn(self) -> bool {
        self.0 & Flags::SYN != 0
    }

    /// Ends the connection.
    #[inline]
    pub fn rst(self) -> bool {
        self.0 & Flags::RST != 0
    }

    /// Acknowledges something.
    #[inline]
    pub fn ack(self) -> bool {
        self.0 & Flags::ACK != 0
    }

    /// A SYN that opens a connection: neither an answer nor a reset.
    #[inline]
    pub fn opens(self) -> bool {
        self.syn() && !self.ack() && !self.rst()
    }
}

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Header length in bytes, options included.
    pub header_len: usize,
    /// The control bits.
    pub flags: Flags,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number, valid with ACK.
    pub acknowledgement: u32,
}

/// Reads the header at the front of an IP payload; `None` when it is cut short.
#[inline]
pub fn parse(payload: &[u8]) -> Option<Header> {
    let header = payload.first_chunk::<MIN_HEADER>()?;
    let (header_len, flags) = shape(header);
    if header_len < MIN_HEADER || header_len > payload.len() {
        return None;
    }
    Some(Header {
        source: u16_at(header, SOURCE_PORT),
        destination: u16_at(header, DESTINATION_PORT),
        header_len,
        flags,
        sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        acknowledgement: u32::from_be_bytes([header[8], header[9], header[10], header[11]]),
    })
}

/// What a header says of its own length, in bytes, which may be wrong, and its control bits.
#[inline(always)]
pub(crate) fn shape(header: &[u8; MIN_HEADER]) -> (usize, Flags) {
    (usize::from(header[DATA_OFFSET] >> 4) * 4, Flags(header[FLAGS]))
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    #[test]
    fn reads_what_etherparse_wrote() {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4([1; 4], [2; 4], 9)
            .tcp(1000, 80, 77, 512)
            .syn()
            .options(&[etherparse::TcpOptionElement::MaximumSegmentSize(1400)])
            .unwrap()
            .write(&mut bytes, &[])
            .unwrap();
        let header = parse(&bytes[20..]).unwrap();
        assert_eq!(
            (header.source, header.destination, header.sequence, header.header_len),
            (1000, 80, 77, 24)
        );
        assert!(header.flags.opens());
        for len in 0..24 {
            assert_eq!(parse(&bytes[20..20 + len]), None, "{len} bytes");
        }
    }
}
