//! The seam between shells and datagrams: what a UDP socket is here, and one that exists in memory only.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;

use crate::{RecvMeta, Transmit, udp::KernelSocket};

/// Where datagrams can be sent to.
pub trait Sink: fmt::Debug + Send + Sync + 'static {
    /// Sends one datagram, or several of `segment_size` bytes each (the last may be shorter), without waiting.
    ///
    /// # Errors
    /// `WouldBlock`: nothing was sent; see [`poll_writable`](Self::poll_writable). Anything else is about this datagram
    /// (no route, not permitted), which is then lost.
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()>;

    /// Sends what an engine wants sent.
    ///
    /// # Errors
    /// Those of [`try_send`](Self::try_send) and [`try_send_near`](Self::try_send_near).
    fn try_send_for(&self, wanted: &traversal_proto::Transmit) -> io::Result<()> {
        let transmit = Transmit {
            destination: wanted.to,
            ecn: None,
            contents: &wanted.bytes,
            segment_size: None,
            src_ip: None,
        };
        match wanted.hops {
            None => self.try_send(&transmit),
            Some(hops) => self.try_send_near(&transmit, hops),
        }
    }

    /// Sends each as [`try_send`](Self::try_send) does, in as few system calls as can be. The first that would block ends
    /// it; what cannot be sent otherwise is lost alone.
    fn try_send_many(&self, transmits: &[Transmit<'_>]) -> Sent {
        let mut sent = Sent::default();
        for (at, transmit) in transmits.iter().enumerate() {
            if !sent.one(transmit, self.try_send(transmit)) {
                sent.blocked += transmits[at + 1..].iter().map(datagrams).sum::<u64>();
                break;
            }
        }
        sent
    }

    /// Sends one datagram that at most `hops` routers see, as [`try_send`](Self::try_send) does.
    ///
    /// # Errors
    /// As for `try_send`; `Unsupported` where there is no such thing: nothing was sent.
    fn try_send_near(&self, transmit: &Transmit<'_>, hops: u8) -> io::Result<()> {
        let _ = (transmit, hops);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Ready when another try may succeed. Any number of tasks may wait at the same time, and all of them are woken.
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// How many segments one [`Transmit`] may have.
    fn max_transmit_segments(&self) -> usize {
        1
    }
}

/// What became of several [`Transmit`]s, in datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Handed to the kernel.
    pub packets: u64,
    /// System calls that did it.
    pub calls: u64,
    /// Not sent: the kernel's buffer is full.
    pub blocked: u64,
    /// Lost: no route, not permitted.
    pub refused: u64,
}

impl Sent {
    /// Counts one. False: it would have blocked.
    pub(crate) fn one(&mut self, transmit: &Transmit<'_>, result: io::Result<()>) -> bool {
        let blocked = matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        let count = match result {
            Ok(()) => &mut self.packets,
            Err(_) if blocked => &mut self.blocked,
            Err(_) => &mut self.refused,
        };
        *count += datagrams(transmit);
        self.calls += 1;
        !blocked
    }
}

/// How many datagrams this is.
pub(crate) fn datagrams(transmit: &Transmit<'_>) -> u64 {
    let size = transmit.segment_size.filter(|size| *size > 0).unwrap_or(usize::MAX);
    transmit.contents.len().div_ceil(size).max(1) as u64
}

/// A UDP socket: the kernel's, or one in memory. One task receives, any number may send.
///
/// Addresses are canonical on both sides: an IPv4 address is never in its IPv6-mapped form.
pub trait DatagramSocket: Sink {
    /// Receives into as many buffers as there are datagrams (or trains of datagrams of one source and size, `stride`
    /// bytes each), and returns how many buffers were filled. One task at a time is woken.
    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>>;

    /// Where this socket is reached, as far as it knows.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// How many datagrams may come in one buffer.
    fn max_receive_segments(&self) -> usize {
        1
    }

    /// Whether datagrams may get fragmented on the way; if not, QUIC may search for the path's MTU.
    fn may_fragment(&self) -> bool {
        false
    }

    /// The kernel's socket, if it is one and can be received from on a thread that waits for it.
    fn kernel(&self) -> Option<&KernelSocket> {
        None
    }
}

/// Datagrams for a [`VirtualSocket`], or for any socket of one's own: pushed in here, received there. Clones are the
/// same queue.
#[derive(Clone)]
pub struct Inbound(Arc<Mutex<Queue>>);

struct Queue {
    items: VecDeque<Item>,
    bytes: usize,
    limit: usize,
    dropped: u64,
    closed: bool,
    reader: Option<Waker>,
}

struct Item {
    /// Its length is that of `bytes`; its stride is at least 1, or the item would never end.
    meta: RecvMeta,
    bytes: Bytes,
}

/// What every queued item is charged besides its bytes, so that a flood of empty datagrams is bounded as well.
const OVERHEAD: usize = 128;

/// The most bytes that one buffer is filled with by joining datagrams: as many as a UDP datagram may have.
const TRAIN: usize = 65_535;

impl Inbound {
    /// A queue that holds `limit` bytes (each datagram counts 128 more) and drops what comes when it is full, as a
    /// kernel's socket buffer does.
    pub fn new(limit: usize) -> Inbound {
        let queue =
            Queue { items: VecDeque::new(), bytes: 0, limit, dropped: 0, closed: false, reader: None };
        Inbound(Arc::new(Mutex::new(queue)))
    }

    /// Puts in one datagram, without copying it. False: the queue was full, and it was dropped.
    pub fn push(&self, from: SocketAddr, datagram: Bytes) -> bool {
        let (len, stride) = (datagram.len(), datagram.len());
        self.push_train(RecvMeta { addr: from, len, stride, ecn: None, dst_ip: None }, datagram)
    }

    /// Puts in a copy of one datagram.
    pub fn push_slice(&self, from: SocketAddr, datagram: &[u8]) -> bool {
        self.push(from, Bytes::copy_from_slice(datagram))
    }

    /// Puts in one datagram, or several of `stride` bytes each of which the last may be shorter, with everything that is
    /// known about them.
    pub fn push_train(&self, meta: RecvMeta, bytes: Bytes) -> bool {
        let mut queue = self.lock();
        let cost = bytes.len() + OVERHEAD;
        if queue.closed || queue.bytes + cost > queue.limit {
            queue.dropped += 1;
            return false;
        }
        queue.bytes += cost;
        queue.items.push_back(Item { meta: RecvMeta { stride: meta.stride.max(1), ..meta }, bytes });
        let reader = queue.reader.take();
        drop(queue);
        if let Some(reader) = reader {
            reader.wake();
        }
        true
    }

    /// Ends it: what is in it is still received, then receiving fails with `BrokenPipe`.
    pub fn close(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        let reader = queue.reader.take();
        drop(queue);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// How many datagrams (or trains) were dropped because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Receives, as [`DatagramSocket::poll_recv`] does. Consecutive datagrams of one source and size are joined as long
    /// as a buffer has room for them.
    pub fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut queue = self.lock();
        let mut filled = 0;
        for (buffer, meta) in buffers.iter_mut().zip(metas) {
            let Some(received) = queue.fill(buffer) else { break };
            *meta = received;
            filled += 1;
        }
        if filled > 0 {
            return Poll::Ready(Ok(filled));
        }
        if queue.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        queue.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Takes out one datagram (or train), without copying it.
    pub fn poll_take(&self, cx: &mut Context<'_>) -> Poll<(RecvMeta, Bytes)> {
        let mut queue = self.lock();
        let Some(Item { meta, bytes }) = queue.items.pop_front() else {
            queue.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        queue.bytes -= bytes.len() + OVERHEAD;
        Poll::Ready((RecvMeta { len: bytes.len(), ..meta }, bytes))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn fill(&mut self, buffer: &mut [u8]) -> Option<RecvMeta> {
        let room = buffer.len().min(TRAIN);
        let mut train = RecvMeta { len: 0, ..self.items.front()?.meta };
        while let Some(next) = self.items.front_mut() {
            let left = room - train.len;
            if train.len > 0 && !joins(&train, next, left) {
                break;
            }
            let length = next.bytes.len();
            let take = if length <= left { length } else { left - left % train.stride };
            // A datagram that is longer than the whole buffer is cut off, as a kernel does.
            let cut = take == 0 && length > 0;
            let take = if cut { left } else { take };
            buffer[train.len..train.len + take].copy_from_slice(&next.bytes[..take]);
            train.len += take;
            if take < length && !cut {
                let _ = next.bytes.split_to(take);
                self.bytes -= take;
                break;
            }
            self.bytes -= length + OVERHEAD;
            self.items.pop_front();
            if cut || take == 0 {
                break;
            }
        }
        Some(train)
    }
}

/// Whether the next item continues a train for which `left` bytes of room are left. A datagram shorter than the others
/// ends a train: it must be alone in its item, and nothing follows it.
fn joins(train: &RecvMeta, next: &Item, left: usize) -> bool {
    let (meta, length) = (&next.meta, next.bytes.len());
    let same_way = meta.addr == train.addr && meta.dst_ip == train.dst_ip && meta.ecn == train.ecn;
    let continues = meta.stride == train.stride || (meta.stride < train.stride && length <= meta.stride);
    let complete = train.len.is_multiple_of(train.stride);
    same_way && continues && complete && length > 0 && length.min(train.stride) <= left
}

impl fmt::Debug for Inbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.lock();
        f.debug_struct("Inbound").field("bytes", &queue.bytes).field("dropped", &queue.dropped).finish()
    }
}

/// A UDP socket that exists in memory: what is pushed into its [`Inbound`] is received, what is sent goes to a [`Sink`].
#[derive(Clone, Debug)]
pub struct VirtualSocket {
    local: SocketAddr,
    inbound: Inbound,
    sink: Arc<dyn Sink>,
    receive_segments: usize,
}

impl VirtualSocket {
    /// A socket at `local`, which means nothing but what [`local_addr`](DatagramSocket::local_addr) says.
    pub fn new(local: SocketAddr, inbound: Inbound, sink: Arc<dyn Sink>) -> VirtualSocket {
        VirtualSocket { local, inbound, sink, receive_segments: 1 }
    }

    /// Lets up to `segments` datagrams of one source and size be received in one buffer: fewer calls, larger buffers.
    pub fn with_receive_segments(self, segments: usize) -> VirtualSocket {
        VirtualSocket { receive_segments: segments.max(1), ..self }
    }
}

impl Sink for VirtualSocket {
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.sink.try_send(transmit)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sink.poll_writable(cx)
    }

    fn max_transmit_segments(&self) -> usize {
        self.sink.max_transmit_segments()
    }
}

impl DatagramSocket for VirtualSocket {
    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inbound.poll_recv(cx, buffers, metas)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn max_receive_segments(&self) -> usize {
        self.receive_segments
    }
}
