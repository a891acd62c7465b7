//! The kernel's UDP socket, in batches: several datagrams a system call (recvmmsg, GRO, GSO) where the system can.

use std::{
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    task::{Context, Poll},
};

use quinn_udp::UdpSocketState;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use traversal_proto::address::canonical;

use crate::{
    RecvMeta, Transmit,
    readiness::Readiness,
    socket::{DatagramSocket, Sent, Sink},
};
#[cfg(target_os = "linux")]
use crate::{mmsg, socket::datagrams};

pub use crate::batch::RecvBatch;
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
    io: Arc<UdpSocket>,
    state: UdpSocketState,
    readiness: Readiness,
    local: SocketAddr,
    v6: bool,
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
    pub fn from_std(socket: UdpSocket) -> io::Result<KernelSocket> {
        socket.set_nonblocking(true)?;
        let io = Arc::new(socket);
        let state = UdpSocketState::new((&*io).into())?;
        let local = io.local_addr()?;
        let readiness = Readiness::new(&io)?;
        Ok(KernelSocket { io, state, readiness, local: canonical(local), v6: local.is_ipv6() })
    }

    /// What is there, without waiting: for a thread that receives by itself.
    ///
    /// # Errors
    /// `WouldBlock`: nothing. The system's.
    pub(crate) fn try_recv(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> io::Result<usize> {
        loop {
            match self.state.recv((&*self.io).into(), buffers, metas) {
                Ok(count) => {
                    for meta in &mut metas[..count] {
                        meta.addr = canonical(meta.addr);
                        meta.dst_ip = meta.dst_ip.map(|ip| ip.to_canonical());
                    }
                    return Ok(count);
                }
                // Windows reports here what happened to a datagram sent earlier.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
                    ) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn send_once(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let result = self.state.try_send((&*self.io).into(), transmit);
        if matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            self.readiness.is_full();
        }
        result
    }

    /// As the kernel wants it: addresses of the socket's own family, and a segment size only where there are segments.
    fn prepared<'a>(&self, transmit: &Transmit<'a>) -> Transmit<'a> {
        let mut transmit = transmit.clone();
        if self.v6 {
            transmit.destination = mapped(transmit.destination);
            transmit.src_ip = transmit.src_ip.map(|ip| mapped(SocketAddr::new(ip, 0)).ip());
        }
        transmit.segment_size =
            transmit.segment_size.filter(|size| *size > 0 && *size < transmit.contents.len());
        transmit
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
        let transmit = self.prepared(transmit);
        if let Some(size) = transmit.segment_size
            && transmit.contents.len().div_ceil(size) > self.state.max_gso_segments()
        {
            return self.send_separately(&transmit, size);
        }
        match (self.send_once(&transmit), transmit.segment_size) {
            (Err(error), _) if too_big(&error) => Ok(()),
            // The device cannot do it after all; quinn-udp has noticed, and says one segment from now on.
            (Err(error), Some(size)) if error.kind() != io::ErrorKind::WouldBlock => {
                self.send_separately(&transmit, size)
            }
            (result, _) => result,
        }
    }

    #[cfg(target_os = "linux")]
    fn try_send_many(&self, transmits: &[Transmit<'_>]) -> Sent {
        let mut sent = Sent::default();
        let most = self.state.max_gso_segments() as u64;
        let mut rest = transmits;
        while let Some(first) = rest.first() {
            let simple = rest.iter().take_while(|transmit| datagrams(transmit) <= most);
            // Whatever is not as simple as that is found out, or made good, for one alone.
            let taken =
                mmsg::send_many(&self.io, simple.map(|transmit| self.prepared(transmit))).unwrap_or(0);
            if taken == 0 {
                if !sent.one(first, self.try_send(first)) {
                    sent.blocked += rest[1..].iter().map(datagrams).sum::<u64>();
                    break;
                }
            } else {
                sent.calls += 1;
                sent.packets += rest[..taken].iter().map(datagrams).sum::<u64>();
            }
            rest = &rest[taken.max(1)..];
        }
        sent
    }

    #[cfg(target_os = "linux")]
    fn try_send_near(&self, transmit: &Transmit<'_>, hops: u8) -> io::Result<()> {
        mmsg::send_near(&self.io, self.prepared(transmit), hops)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.readiness.poll_writable(cx)
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
        self.readiness.poll_read(cx, || self.try_recv(buffers, metas))
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

    fn kernel(&self) -> Option<&KernelSocket> {
        cfg!(unix).then_some(self)
    }
}

#[cfg(unix)]
impl std::os::fd::AsFd for KernelSocket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.io.as_fd()
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
