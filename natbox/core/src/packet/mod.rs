//! A packet in its buffer, with what the kernel told us about it, and checked in-place views of its headers.
//!
//! Nothing here copies a packet. A [`Packet`] borrows the buffer that the datapath received into; the engine rewrites
//! header fields in place and keeps every checksum right by RFC 1624 updates. A packet may be a super-frame of up to
//! 64 KB that the kernel will cut later ([`Gso`]), with a checksum that the kernel will finish later
//! ([`Checksum::Partial`]): one call translates it whole.

pub mod checksum;
pub mod fragment;
pub mod icmp;
pub mod ipv4;
pub mod tcp;
pub mod udp;

/// Free bytes that a datapath leaves in front of every IP packet: room for link headers, the virtio-net header, and
/// for an IPv4 header that grows into an IPv6 one.
pub const HEADROOM: usize = 64;

/// What is known about the transport checksum of a packet (virtio-net's flags).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// The packet carries a full checksum that nobody has verified.
    #[default]
    Unverified,
    /// The packet carries a full checksum, and the kernel or the device has verified it (`DATA_VALID`).
    Verified,
    /// The checksum field holds the uncomplemented sum of the pseudo-header; whoever sends the packet completes it
    /// (`NEEDS_CSUM`).
    Partial {
        /// Offset from the start of the IP header at which the sum begins, in bytes.
        start: u16,
        /// Offset of the checksum field from `start`, in bytes.
        offset: u16,
    },
}

/// Which transport a super-frame will be cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP datagrams of one size (USO, `UDP_SEGMENT`).
    Udp,
}

/// Segmentation that the kernel still owes a super-frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// What the frame is cut into.
    pub kind: GsoKind,
    /// Payload bytes of each segment but the last.
    pub segment: u16,
    /// Bytes of IP and transport header at the front of the packet (a hint; 0 when unknown).
    pub header_len: u16,
    /// The TCP flow uses ECN (`VIRTIO_NET_HDR_GSO_ECN`).
    pub ecn: bool,
}

/// Offload metadata of a packet: what its sender left for others to finish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// State of the transport checksum.
    pub checksum: Checksum,
    /// Present on a super-frame.
    pub gso: Option<Gso>,
}

/// One IP packet inside a buffer: `buffer[head..tail]`, with free headroom before it.
#[derive(Debug)]
pub struct Packet<'a> {
    buffer: &'a mut [u8],
    head: usize,
    tail: usize,
    /// What the sender left for others to finish.
    pub offload: Offload,
}

impl<'a> Packet<'a> {
    /// The IP packet that starts at `buffer[head]` and fills the rest of the buffer. A `head` past the end gives an
    /// empty packet.
    #[inline]
    pub fn new(buffer: &'a mut [u8], head: usize, offload: Offload) -> Self {
        let tail = buffer.len();
        Packet { buffer, head: head.min(tail), tail, offload }
    }

    /// A packet that fills its buffer and carries no offload metadata.
    #[inline]
    pub fn plain(bytes: &'a mut [u8]) -> Self {
        Packet::new(bytes, 0, Offload::default())
    }

    /// The IP packet.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.head..self.tail]
    }

    /// The IP packet, writable.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.head..self.tail]
    }

    /// Length of the IP packet in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.tail - self.head
    }

    /// True when there is no packet at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets what lies behind the first `len` bytes (link-layer padding).
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        self.tail = self.tail.min(self.head + len);
    }
}
