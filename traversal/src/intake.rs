//! Where QUIC receives from. What comes to the main socket from a known peer goes straight into QUIC's buffers, under the
//! peer's virtual address; all else goes to the driver, which finds out what it is and passes on what is QUIC's.

use std::{
    collections::HashMap,
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use traversal_net::{
    RecvMeta, Transmit, Wakers,
    socket::{DatagramSocket, Inbound, Sink},
};
use traversal_proto::{
    peer::PeerKey,
    wire::{Kind, demultiplex, frame::DATA_HEADER},
};

use crate::routes::{Routes, virtual_address};

/// Bytes that QUIC, or the driver, has not taken yet; each as much as the kernel's own socket buffer.
const QUEUE: usize = 4 << 20;
/// Reads in a row that bring nothing for QUIC, before other tasks get their turn.
const READS: usize = 8;

/// By what packets on the main socket are known as a peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// They come from where the peer has proved to be.
    Direct(SocketAddr),
    /// They come from a supernode in Data frames of the peer's channel.
    Relay(SocketAddr, [u8; DATA_HEADER]),
}

struct Known {
    peer: PeerKey,
    /// Something came, and the driver does not know yet.
    is_heard: AtomicBool,
}

/// The socket beneath QUIC: it receives here, and sends by the [`Routes`].
pub(crate) struct Intake {
    local: SocketAddr,
    main: Arc<dyn DatagramSocket>,
    routes: Arc<Routes>,
    /// From the driver.
    inbound: Inbound,
    /// To the driver.
    strays: Inbound,
    known: RwLock<HashMap<Source, Known>>,
    heard: Mutex<Vec<(Source, PeerKey)>>,
    driver: Wakers,
}

impl Intake {
    /// `local` means nothing but what QUIC takes for its own address.
    pub(crate) fn new(local: SocketAddr, main: Arc<dyn DatagramSocket>, routes: Arc<Routes>) -> Intake {
        Intake {
            local,
            main,
            routes,
            inbound: Inbound::new(QUEUE),
            strays: Inbound::new(QUEUE),
            known: RwLock::default(),
            heard: Mutex::default(),
            driver: Wakers::default(),
        }
    }

    // ---- The driver's side ----

    /// What QUIC receives besides.
    pub(crate) fn inbound(&self) -> &Inbound {
        &self.inbound
    }

    /// What came to the main socket and is not known as a peer's.
    pub(crate) fn strays(&self) -> &Inbound {
        &self.strays
    }

    /// From now on packets by this source are the peer's, until [`forget`](Self::forget).
    pub(crate) fn learn(&self, source: Source, peer: PeerKey) {
        let known = Known { peer, is_heard: AtomicBool::new(false) };
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(source, known);
    }

    /// Who is where has changed: every source has to be learned again.
    pub(crate) fn forget(&self) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// By which sources something has come since this was asked last, each once; the task is woken when something does.
    pub(crate) fn take_heard(&self, cx: &mut Context<'_>) -> Vec<(Source, PeerKey)> {
        self.driver.register(cx.waker());
        let heard = std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner));
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        for known in heard.iter().filter_map(|(source, _)| known.get(source)) {
            known.is_heard.store(false, Ordering::Relaxed);
        }
        heard
    }

    // ---- QUIC's side ----

    /// Keeps at the front what known peers have sent, as QUIC is to see it, and gives the rest to the driver. How many
    /// buffers are kept.
    fn sort(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> usize {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut kept = 0;
        for at in 0..metas.len() {
            let length = metas[at].len.min(buffers[at].len());
            let bytes = &mut buffers[at][..length];
            let found = source_of(&metas[at], bytes).and_then(|source| known.get_key_value(&source));
            let Some((&source, known)) = found else {
                self.strays.push_train(metas[at], Bytes::copy_from_slice(bytes));
                continue;
            };
            metas[at] = as_peers(known.peer, source, &metas[at], bytes);
            if !known.is_heard.swap(true, Ordering::Relaxed) {
                self.heard.lock().unwrap_or_else(PoisonError::into_inner).push((source, known.peer));
                self.driver.wake_all();
            }
            buffers.swap(kept, at);
            metas.swap(kept, at);
            kept += 1;
        }
        kept
    }
}

/// What a train of datagrams may be known by; `None`: they are not alike, or neither QUIC nor relayed.
pub(crate) fn source_of(meta: &RecvMeta, bytes: &[u8]) -> Option<Source> {
    let mut datagrams = bytes.chunks(meta.stride.max(1));
    match demultiplex(*bytes.first()?) {
        Kind::Quic => {
            let is_quic = |datagram: &[u8]| demultiplex(datagram[0]) == Kind::Quic;
            datagrams.all(is_quic).then_some(Source::Direct(meta.addr))
        }
        Kind::Relay => {
            let header = bytes.first_chunk::<DATA_HEADER>()?;
            let is_alike = |frame: &[u8]| frame.len() > DATA_HEADER && frame.starts_with(header);
            datagrams.all(is_alike).then_some(Source::Relay(meta.addr, *header))
        }
        Kind::Stun | Kind::Unknown => None,
    }
}

/// A train as QUIC is to see it: from the peer's virtual address, without the headers of Data frames. Which of our
/// addresses it came to says nothing about the next packet: the path may be another by then.
pub(crate) fn as_peers(peer: PeerKey, source: Source, meta: &RecvMeta, bytes: &mut [u8]) -> RecvMeta {
    let (mut len, mut stride) = (bytes.len(), meta.stride.max(1));
    if let Source::Relay(..) = source {
        let (train, step) = (len, stride);
        len = 0;
        for start in (0..train).step_by(step) {
            let payload = start + DATA_HEADER..(start + step).min(train);
            let length = payload.len();
            bytes.copy_within(payload, len);
            len += length;
        }
        stride -= DATA_HEADER;
    }
    RecvMeta { addr: virtual_address(peer), len, stride, ecn: meta.ecn, dst_ip: None }
}

impl Sink for Intake {
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.routes.try_send(transmit)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.routes.poll_writable(cx)
    }

    fn max_transmit_segments(&self) -> usize {
        self.routes.max_transmit_segments()
    }
}

impl DatagramSocket for Intake {
    /// Fails only once the driver has ended it: nothing that the main socket reports is a reason to end connections.
    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut filled = match self.inbound.poll_recv(cx, buffers, metas) {
            Poll::Ready(received) => received?,
            Poll::Pending => 0,
        };
        for _ in 0..READS {
            let (buffers, metas) = (&mut buffers[filled..], &mut metas[filled..]);
            if buffers.is_empty() {
                break;
            }
            match self.main.poll_recv(cx, buffers, metas) {
                Poll::Ready(Ok(count)) => filled += self.sort(&mut buffers[..count], &mut metas[..count]),
                Poll::Ready(Err(error)) => tracing::debug!(%error, "the main socket cannot be read"),
                Poll::Pending if filled == 0 => return Poll::Pending,
                Poll::Pending => break,
            }
            if filled > 0 {
                break;
            }
        }
        if filled == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(filled))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn max_receive_segments(&self) -> usize {
        self.main.max_receive_segments()
    }
}

impl fmt::Debug for Intake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intake").field("main", &self.main).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use traversal_net::{memory::MemoryNet, socket::VirtualSocket};

    use super::*;

    const PEER: PeerKey = PeerKey(7);
    const HEADER: [u8; DATA_HEADER] = [0x80, 0, 0, 0, 9];

    struct World {
        intake: Intake,
        there: VirtualSocket,
        from: SocketAddr,
        here: SocketAddr,
    }

    impl World {
        fn new() -> World {
            let net = MemoryNet::default();
            let [here, from] = ["192.0.2.1:1", "192.0.2.2:2"].map(|text| text.parse().unwrap());
            let main: Arc<dyn DatagramSocket> = Arc::new(net.socket(here));
            let routes = Arc::new(Routes::new(Arc::clone(&main), Arc::default()));
            World { intake: Intake::new(here, main, routes), there: net.socket(from), from, here }
        }

        fn send(&self, contents: &[u8], segment_size: Option<usize>) {
            let transmit =
                Transmit { destination: self.here, ecn: None, contents, segment_size, src_ip: None };
            self.there.try_send(&transmit).unwrap();
        }

        /// What QUIC receives.
        fn receive(&self) -> Vec<(SocketAddr, usize, Vec<u8>)> {
            let mut memory = [[0; 100]; 4];
            let mut buffers = memory.each_mut().map(|buffer| IoSliceMut::new(buffer));
            let mut metas = [RecvMeta::default(); 4];
            let mut cx = Context::from_waker(Waker::noop());
            let Poll::Ready(count) = self.intake.poll_recv(&mut cx, &mut buffers, &mut metas) else {
                return Vec::new();
            };
            let filled = metas.iter().zip(&buffers).take(count.unwrap());
            filled.map(|(meta, bytes)| (meta.addr, meta.stride, bytes[..meta.len].to_vec())).collect()
        }

        /// What the driver receives.
        fn stray(&self) -> Option<Vec<u8>> {
            match self.intake.strays().poll_take(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready((meta, bytes)) => {
                    assert_eq!((meta.addr, meta.len), (self.from, bytes.len()));
                    Some(bytes.to_vec())
                }
                Poll::Pending => None,
            }
        }

        fn heard(&self) -> Vec<(Source, PeerKey)> {
            self.intake.take_heard(&mut Context::from_waker(Waker::noop()))
        }
    }

    #[test]
    fn packets_of_known_peers_go_to_quic_and_all_others_to_the_driver() {
        let world = World::new();
        let source = Source::Direct(world.from);
        world.send(&[0x41; 30], Some(10));
        assert_eq!((world.receive(), world.stray()), (vec![], Some(vec![0x41; 30])));
        world.intake.learn(source, PEER);
        // A check in between changes nothing.
        world.send(&[0; 20], None);
        world.send(&[0x41; 30], Some(10));
        world.send(&[0x41; 30], Some(15));
        let received = |stride| (virtual_address(PEER), stride, vec![0x41; 30]);
        assert_eq!(world.receive(), [received(10), received(15)]);
        assert_eq!((world.stray(), world.stray()), (Some(vec![0; 20]), None));
        assert_eq!((world.heard(), world.heard()), (vec![(source, PEER)], vec![]));
        // A train of both kinds is for the driver to take apart.
        let mixed = [[0x41; 10], [0; 10]].concat();
        world.send(&mixed, Some(10));
        assert_eq!((world.receive(), world.stray(), world.heard()), (vec![], Some(mixed), vec![]));
        world.intake.forget();
        world.send(&[0x41; 30], None);
        assert_eq!((world.receive(), world.stray()), (vec![], Some(vec![0x41; 30])));
    }

    #[test]
    fn relayed_packets_lose_their_headers() {
        let world = World::new();
        let source = Source::Relay(world.from, HEADER);
        world.intake.learn(source, PEER);
        let frame = |payload: &[u8]| [&HEADER, payload].concat();
        world.send(&[frame(b"first"), frame(b"other"), frame(b"end")].concat(), Some(10));
        assert_eq!(world.receive(), [(virtual_address(PEER), 5, b"firstotherend".to_vec())]);
        assert_eq!(world.heard(), [(source, PEER)]);
        // Another channel, an empty frame, and what only begins alike.
        let mut other = HEADER;
        other[4] = 8;
        for stray in [[&other[..], b"first"].concat(), HEADER.to_vec(), HEADER[..4].to_vec()] {
            world.send(&stray, None);
            assert_eq!((world.receive(), world.stray()), (vec![], Some(stray)));
        }
    }

    #[test]
    fn what_the_driver_passes_on_comes_as_well_and_its_end_is_the_end() {
        let world = World::new();
        world.intake.learn(Source::Direct(world.from), PEER);
        world.intake.inbound().push_slice(world.here, &[1, 2, 3]);
        world.send(&[0x41; 30], None);
        let received = world.receive();
        assert_eq!(received, [(world.here, 3, vec![1, 2, 3]), (virtual_address(PEER), 30, vec![0x41; 30])]);
        world.intake.inbound().close();
        let mut cx = Context::from_waker(Waker::noop());
        let mut metas = [RecvMeta::default()];
        let ended = world.intake.poll_recv(&mut cx, &mut [IoSliceMut::new(&mut [0; 10])], &mut metas);
        assert!(matches!(ended, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe));
    }
}
