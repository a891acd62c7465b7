//! The kernel's UDP socket, in batches: several datagrams a system call (recvmmsg, GRO, GSO) where the system can.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll, ready},
};

use quinn_udp::UdpSocketState;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::{io::Interest, net::UdpSocket};
use traversal_proto::address::canonical;

use crate::{
    RecvMeta, Transmit, Wakers,
    socket::{DatagramSocket, Sink},
};

pub use quinn_udp::BATCH_SIZE;

/// How a socket is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Where; port 0: the kernel chooses. An IPv6 address without [`only_v6`](Self::only_v6) takes IPv4 as well.
    pub address: SocketAddr,
    /// An IPv6 socket that leaves IPv4 to another one on the same port.
    pub only_v6: bool,
    /// Bytes that the kernel may hold for us, each way; it may give less.
    pub buffer: usize,
}

impl Bind {
    /// Four megabytes each way: 30 ms at a gigabit. Less is given silently where the system's limit is lower.
    pub const BUFFER: usize = 4 << 20;

    /// A dual-stack socket at `address`.
    pub fn new(address: SocketAddr) -> Bind {
        Bind { address, only_v6: false, buffer: Bind::BUFFER }
    }
}

/// A UDP socket of the kernel.
#[derive(Debug)]
pub struct KernelSocket {
    io: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
    v6: bool,
    writers: Arc<Wakers>,
}

impl KernelSocket {
    /// Opens a socket, in the running tokio runtime.
    ///
    /// # Errors
    /// The system's: `AddrInUse`, `AddrNotAvailable`, `PermissionDenied` for ports below 1024.
    pub fn bind(bind: Bind) -> io::Result<KernelSocket> {
        KernelSocket::from_std(open(bind, false)?.into())
    }

    /// Opens `count` sockets on one address, between which the kernel divides what comes by its source and destination:
    /// one for each task that receives. Where the system cannot do that (anywhere but on Linux) it is one socket.
    ///
    /// # Errors
    /// As for [`bind`](Self::bind). An address that somebody else holds is in use, whatever they share it with.
    pub fn bind_shards(bind: Bind, count: usize) -> io::Result<Vec<KernelSocket>> {
        // The first claims the address alone, and only then lets others in: ours.
        let first = open(bind, false)?;
        #[cfg(target_os = "linux")]
        let others = {
            first.set_reuse_port(true)?;
            let address = first.local_addr()?.as_socket().unwrap_or(bind.address);
            (1..count).map(|_| open(Bind { address, ..bind }, true)).collect::<io::Result<Vec<_>>>()?
        };
        #[cfg(not(target_os = "linux"))]
        let others = {
            let _ = count;
            Vec::new()
        };
        let sockets = std::iter::once(first).chain(others);
        sockets.map(|socket| KernelSocket::from_std(socket.into())).collect()
    }

    /// Takes over a bound socket, in the running tokio runtime.
    pub fn from_std(socket: std::net::UdpSocket) -> io::Result<KernelSocket> {
        socket.set_nonblocking(true)?;
        let io = UdpSocket::from_std(socket)?;
        let state = UdpSocketState::new((&io).into())?;
        let local = io.local_addr()?;
        Ok(KernelSocket { io, state, local: canonical(local), v6: local.is_ipv6(), writers: Arc::default() })
    }

    /// Asks the kernel before tokio: tokio believes a new socket to be blocked until its reactor has looked at it, and
    /// a caller that drops what blocks would lose its first datagrams. tokio is told only of a real block.
    fn send_once(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let send = || self.state.try_send((&self.io).into(), transmit);
        match send() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.io.try_io(Interest::WRITABLE, send)
            }
            result => result,
        }
    }

    /// One by one. Blocked after the first, the rest is lost: the caller would send the first again.
    fn send_separately(&self, transmit: &Transmit<'_>, size: usize) -> io::Result<()> {
        for (at, contents) in transmit.contents.chunks(size).enumerate() {
            match self.send_once(&Transmit { contents, segment_size: None, ..transmit.clone() }) {
                Err(error) if at == 0 && !too_big(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Sink for KernelSocket {
    /// A datagram that is too long for the way is lost without an error: QUIC searches for the MTU like this.
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut transmit = transmit.clone();
        if self.v6 {
            transmit.destination = mapped(transmit.destination);
            transmit.src_ip = transmit.src_ip.map(|ip| mapped(SocketAddr::new(ip, 0)).ip());
        }
        let size = transmit.segment_size.filter(|size| *size > 0 && *size < transmit.contents.len());
        transmit.segment_size = size;
        let segments = size.map_or(1, |size| transmit.contents.len().div_ceil(size));
        if let Some(size) = size
            && segments > self.state.max_gso_segments()
        {
            return self.send_separately(&transmit, size);
        }
        match (self.send_once(&transmit), size) {
            (Err(error), _) if too_big(&error) => Ok(()),
            // The device cannot do it after all; quinn-udp has noticed, and says one segment from now on.
            (Err(error), Some(size)) if error.kind() != io::ErrorKind::WouldBlock => {
                self.send_separately(&transmit, size)
            }
            (result, _) => result,
        }
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writers.register(cx.waker());
        let ready = self.io.poll_send_ready(&mut Context::from_waker(&self.writers.shared()));
        if ready.is_ready() {
            self.writers.wake_all();
        }
        ready
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }
}

impl DatagramSocket for KernelSocket {
    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.io.poll_recv_ready(cx))?;
            let received =
                self.io.try_io(Interest::READABLE, || self.state.recv((&self.io).into(), buffers, metas));
            match received {
                Ok(count) => {
                    for meta in &mut metas[..count] {
                        meta.addr = canonical(meta.addr);
                        meta.dst_ip = meta.dst_ip.map(|ip| ip.to_canonical());
                    }
                    return Poll::Ready(Ok(count));
                }
                // Windows reports here what happened to a datagram sent earlier.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::ConnectionReset
                            | io::ErrorKind::ConnectionRefused
                    ) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

fn open(bind: Bind, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(bind.address), Type::DGRAM, Some(Protocol::UDP))?;
    if bind.address.is_ipv6() {
        socket.set_only_v6(bind.only_v6)?;
    }
    #[cfg(target_os = "linux")]
    socket.set_reuse_port(shared)?;
    #[cfg(not(target_os = "linux"))]
    let _ = shared;
    // A smaller buffer than asked for is a matter of speed, not of function.
    let _ = socket.set_recv_buffer_size(bind.buffer);
    let _ = socket.set_send_buffer_size(bind.buffer);
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(bind.address))?;
    Ok(socket)
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        v6 => v6,
    }
}

#[cfg(unix)]
fn too_big(error: &io::Error) -> bool {
    /// EMSGSIZE: 90 on Linux, 40 on the BSDs.
    const TOO_BIG: i32 = if cfg!(any(target_os = "linux", target_os = "android")) { 90 } else { 40 };
    error.raw_os_error() == Some(TOO_BIG)
}

#[cfg(not(unix))]
fn too_big(error: &io::Error) -> bool {
    /// WSAEMSGSIZE.
    const TOO_BIG: i32 = 10040;
    error.raw_os_error() == Some(TOO_BIG)
}

/// Buffers for a whole batch, used again and again.
#[derive(Debug)]
pub struct RecvBatch {
    buffers: Vec<Box<[u8]>>,
    metas: Vec<RecvMeta>,
}

impl RecvBatch {
    /// `count` buffers (more than [`BATCH_SIZE`] are of no use) for `socket`: 64 KiB each where it joins datagrams,
    /// `datagram` bytes each where it does not.
    pub fn new(socket: &dyn DatagramSocket, count: usize, datagram: usize) -> RecvBatch {
        let bytes = if socket.max_receive_segments() > 1 { 1 << 16 } else { datagram };
        let count = count.clamp(1, BATCH_SIZE);
        RecvBatch {
            buffers: (0..count).map(|_| vec![0; bytes].into_boxed_slice()).collect(),
            metas: vec![RecvMeta::default(); count],
        }
    }

    /// Receives once; the count is of buffers.
    pub fn poll_recv(
        &mut self,
        socket: &dyn DatagramSocket,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        for (slice, buffer) in slices.iter_mut().zip(&mut self.buffers) {
            *slice = IoSliceMut::new(buffer);
        }
        socket.poll_recv(cx, &mut slices[..self.metas.len()], &mut self.metas)
    }

    /// What the buffer with this number holds: `stride` bytes each datagram, the last may be shorter. Empty if there is
    /// no such buffer.
    pub fn train(&mut self, at: usize) -> (RecvMeta, &mut [u8]) {
        let (Some(meta), Some(buffer)) = (self.metas.get(at), self.buffers.get_mut(at)) else {
            return (RecvMeta::default(), &mut []);
        };
        let length = meta.len.min(buffer.len());
        (*meta, &mut buffer[..length])
    }

    /// The same, to be read.
    pub fn bytes(&self, at: usize) -> &[u8] {
        match (self.metas.get(at), self.buffers.get(at)) {
            (Some(meta), Some(buffer)) => &buffer[..meta.len.min(buffer.len())],
            _ => &[],
        }
    }

    /// The trains in the first `count` buffers: `stride` bytes each datagram, the last may be shorter.
    pub fn trains(&mut self, count: usize) -> impl Iterator<Item = (RecvMeta, &mut [u8])> {
        let filled = self.metas.iter().zip(&mut self.buffers).take(count);
        filled.map(|(meta, buffer)| {
            let length = meta.len.min(buffer.len());
            (*meta, &mut buffer[..length])
        })
    }
}
