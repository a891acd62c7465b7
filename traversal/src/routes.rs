//! Beneath QUIC: a peer's virtual address becomes a relay frame, or a datagram to where the peer is.
//!
//! QUIC's own tasks send through here, without the driver: it only puts in which way a peer's packets go.

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use tokio::sync::mpsc;
use traversal_net::{
    Transmit, Wakers,
    socket::{DatagramSocket, Sink},
};
use traversal_proto::{
    address::canonical,
    peer::PeerKey,
    wire::{frame::DATA_HEADER, stream::MAX_FRAME},
};

use crate::{control::ROOM_FOR_MESSAGES, counters::Counts, last_words::LastWords};

/// Virtual addresses lie in the discard-only prefix (RFC 6666): nothing real is ever there.
const PREFIX: [u16; 4] = [0x100, 0, 0, 0];

/// The address by which QUIC knows a peer, whatever path its packets take.
pub(crate) fn virtual_address(peer: PeerKey) -> SocketAddr {
    let [a, b, c, d] = PREFIX;
    let ip = Ipv6Addr::new(a, b, c, d, 0, 0, (peer.0 >> 16) as u16, (peer.0 & 0xffff) as u16);
    SocketAddr::new(ip.into(), 1)
}

/// A real address as QUIC knows it: its socket is an IPv6 one, whatever the real one is.
pub(crate) fn as_v6(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        v6 => v6,
    }
}

/// Whose virtual address this is.
pub(crate) fn peer_at(address: SocketAddr) -> Option<PeerKey> {
    let IpAddr::V6(ip) = address.ip() else { return None };
    let [a, b, c, d, 0, 0, high, low] = ip.segments() else { return None };
    ([a, b, c, d] == PREFIX).then_some(PeerKey(u32::from(high) << 16 | u32::from(low)))
}

/// One way to a peer.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// None: packets are lost.
    Nowhere,
    /// To where the peer is.
    Direct { socket: Arc<dyn DatagramSocket>, to: SocketAddr },
    /// To the supernode, in Data frames.
    Relay { socket: Arc<dyn DatagramSocket>, to: SocketAddr, header: [u8; DATA_HEADER] },
    /// To the supernode, in Data frames on the control connection.
    Stream { frames: mpsc::Sender<Vec<u8>>, header: [u8; DATA_HEADER] },
}

/// Which ways a peer's packets go.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) primary: Way,
    /// Every packet once more, while the first way is not certain.
    pub(crate) also: Option<Way>,
    /// Something was sent since the peer was quiet.
    sent: AtomicBool,
}

impl Entry {
    pub(crate) fn new(primary: Way, also: Option<Way>) -> Entry {
        Entry { primary, also, sent: AtomicBool::new(false) }
    }

    /// Whether something was sent since the peer was quiet.
    pub(crate) fn is_sent(&self) -> bool {
        self.sent.load(Ordering::Relaxed)
    }

    /// The next packet is news again.
    pub(crate) fn rearm(&self) {
        self.sent.store(false, Ordering::Relaxed);
    }
}

/// The ways to all peers; also the socket on which QUIC sends.
pub(crate) struct Routes {
    main: Arc<dyn DatagramSocket>,
    counts: Arc<Counts>,
    entries: RwLock<HashMap<u32, Arc<Entry>>>,
    /// Quiet peers that are sent to again, and the driver does not know yet: each once.
    woken: Mutex<Vec<PeerKey>>,
    driver: Wakers,
    last_words: LastWords,
}

impl Routes {
    pub(crate) fn new(main: Arc<dyn DatagramSocket>, counts: Arc<Counts>) -> Routes {
        Routes {
            main,
            counts,
            entries: RwLock::default(),
            woken: Mutex::default(),
            driver: Wakers::default(),
            last_words: LastWords::default(),
        }
    }

    pub(crate) fn set(&self, peer: PeerKey, entry: Arc<Entry>) {
        self.entries.write().unwrap_or_else(PoisonError::into_inner).insert(peer.0, entry);
    }

    pub(crate) fn remove(&self, peer: PeerKey) {
        self.entries.write().unwrap_or_else(PoisonError::into_inner).remove(&peer.0);
        self.last_words.end(peer);
    }

    /// What was said last to peers that are being parted from.
    pub(crate) fn last_words(&self) -> &LastWords {
        &self.last_words
    }

    /// Says once more what was said last to a peer that is being parted from.
    pub(crate) fn repeat(&self, peer: PeerKey) {
        if let Some(contents) = self.last_words.of(peer) {
            let destination = virtual_address(peer);
            // What is lost now is said again, or was for the last time.
            let _ = self.try_send(&Transmit {
                destination,
                ecn: None,
                contents: &contents,
                segment_size: None,
                src_ip: None,
            });
        }
    }

    /// The quiet peers that were sent to since this was asked last; the task is woken when one is.
    pub(crate) fn take_woken(&self, cx: &mut Context<'_>) -> Vec<PeerKey> {
        self.driver.register(cx.waker());
        std::mem::take(&mut *self.woken.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn get(&self, peer: PeerKey) -> Option<Arc<Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).get(&peer.0).cloned()
    }
}

impl Sink for Routes {
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(peer) = peer_at(transmit.destination) else {
            let destination = canonical(transmit.destination);
            let result = self.main.try_send(&Transmit { destination, ..transmit.clone() });
            if result.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) {
                self.counts.add(|counts| &counts.send_errors);
            }
            return result;
        };
        let Some(entry) = self.get(peer) else { return Ok(()) };
        self.last_words.note(peer, transmit);
        match entry.primary.send(transmit, &self.counts) {
            // QUIC waits for the main socket; what another one does not take, or what has no route, is lost: the agent
            // finds out, and the second copy may arrive.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && entry.primary.is_by(&self.main) => {
                return Err(error);
            }
            Err(error) => {
                self.counts.add(|counts| &counts.send_errors);
                tracing::trace!(to = %transmit.destination, %error, "a packet is lost");
            }
            Ok(()) => {}
        }
        if let Some(also) = &entry.also {
            // A second copy: that it is lost is no reason to send the first again.
            let _ = also.send(transmit, &self.counts);
        }
        if !entry.is_sent() && !entry.sent.swap(true, Ordering::Relaxed) {
            self.woken.lock().unwrap_or_else(PoisonError::into_inner).push(peer);
            self.driver.wake_all();
        }
        Ok(())
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.main.poll_writable(cx)
    }

    fn max_transmit_segments(&self) -> usize {
        self.main.max_transmit_segments()
    }
}

impl Way {
    fn is_by(&self, main: &Arc<dyn DatagramSocket>) -> bool {
        match self {
            Way::Direct { socket, .. } | Way::Relay { socket, .. } => Arc::ptr_eq(socket, main),
            Way::Nowhere | Way::Stream { .. } => false,
        }
    }

    /// Whether packets go the same way by both.
    pub(crate) fn is_same(&self, other: &Way) -> bool {
        match (self, other) {
            (Way::Nowhere, Way::Nowhere) => true,
            (Way::Direct { socket: a, to: x }, Way::Direct { socket: b, to: y }) => {
                x == y && Arc::ptr_eq(a, b)
            }
            (Way::Relay { socket: a, to: x, header: g }, Way::Relay { socket: b, to: y, header: h }) => {
                x == y && g == h && Arc::ptr_eq(a, b)
            }
            (Way::Stream { frames: a, header: g }, Way::Stream { frames: b, header: h }) => {
                g == h && a.same_channel(b)
            }
            _ => false,
        }
    }

    fn send(&self, transmit: &Transmit<'_>, counts: &Counts) -> io::Result<()> {
        match self {
            Way::Nowhere => Ok(()),
            Way::Direct { socket, to } => socket.try_send(&Transmit { destination: *to, ..transmit.clone() }),
            Way::Relay { socket, to, header } => {
                let (contents, segment_size) = framed(transmit, header);
                let framed =
                    Transmit { destination: *to, contents: &contents, segment_size, ..transmit.clone() };
                socket.try_send(&framed)
            }
            Way::Stream { frames, header } => {
                let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
                for packet in transmit.contents.chunks(size) {
                    let frame = [&header[..], packet].concat();
                    let fits = frame.len() <= MAX_FRAME && frames.capacity() > ROOM_FOR_MESSAGES;
                    // What the stream does not take is dropped, as a network would: QUIC slows down.
                    if !fits || frames.try_send(frame).is_err() {
                        counts.add(|counts| &counts.relay_frames_dropped);
                    }
                }
                Ok(())
            }
        }
    }
}

/// Every segment with the header in front: as many segments as before, each longer by as much.
fn framed(transmit: &Transmit<'_>, header: &[u8; DATA_HEADER]) -> (Vec<u8>, Option<usize>) {
    let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
    let segments = transmit.contents.len().div_ceil(size);
    let mut contents = Vec::with_capacity(transmit.contents.len() + segments * DATA_HEADER);
    for packet in transmit.contents.chunks(size) {
        contents.extend_from_slice(header);
        contents.extend_from_slice(packet);
    }
    (contents, transmit.segment_size.map(|size| size + DATA_HEADER))
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routes").field("main", &self.main).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_addresses_are_told_from_real_ones() {
        for key in [0, 1, 0xffff, 0x1_0000, u32::MAX] {
            assert_eq!(peer_at(virtual_address(PeerKey(key))), Some(PeerKey(key)));
        }
        for real in ["192.0.2.1:1", "[2001:db8::1]:1", "[100:0:0:1::1]:1", "[::1]:1"] {
            assert_eq!(peer_at(real.parse().unwrap()), None);
        }
    }

    /// However much is sent, the node's own messages find room.
    #[test]
    fn relayed_packets_leave_room_for_messages() {
        let (frames, mut queue) = mpsc::channel(crate::control::MAX_WAITING);
        let way = Way::Stream { frames: frames.clone(), header: [0x80, 0, 0, 0, 9] };
        let counts = Counts::default();
        let contents = [7; 3000];
        let destination = virtual_address(PeerKey(1));
        let transmit =
            Transmit { destination, ecn: None, contents: &contents, segment_size: Some(10), src_ip: None };
        way.send(&transmit, &counts).unwrap();
        assert_eq!(frames.capacity(), ROOM_FOR_MESSAGES);
        assert_eq!(counts.read().relay_frames_dropped, 300 - 224);
        frames.try_send(b"a message".to_vec()).unwrap();
        assert_eq!(queue.try_recv().unwrap().len(), 15);
        way.send(&transmit, &counts).unwrap();
        assert_eq!(frames.capacity(), ROOM_FOR_MESSAGES);
    }

    #[test]
    fn every_segment_is_framed() {
        let contents = [7; 25];
        let destination = virtual_address(PeerKey(1));
        let transmit =
            Transmit { destination, ecn: None, contents: &contents, segment_size: Some(10), src_ip: None };
        let (bytes, size) = framed(&transmit, &[0x80, 0, 0, 0, 9]);
        assert_eq!((bytes.len(), size), (25 + 3 * 5, Some(15)));
        assert!(bytes.chunks(15).all(|frame| frame.starts_with(&[0x80, 0, 0, 0, 9])));
    }
}
