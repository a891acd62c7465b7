//! Flows and connections from ports that were never used before, so that each is a mapping of its own.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, bind, connect, recv, socket,
};

use super::meter::Meter;
use super::{Ends, Load, LoadError, PATIENCE, Plan, Report, SMALL, TICK, failed};

/// The client's ports: below those that the kernel gives out by itself, and no more than a NAT with one external address
/// that leaves the host's own range alone can hold at once.
const PORTS: RangeInclusive<u16> = 10_000..=32_000;

/// Flows in flight at a time: enough to keep both processors of a small machine at work, and less than any queue holds.
const WINDOW: usize = 32;

/// How long one of them may take: longer than the first retransmission of a SYN.
const WAIT: Duration = Duration::from_secs(2);

/// New UDP flows, each answered once.
pub(super) fn udp(ends: &Ends, plan: &Plan) -> Result<Report, LoadError> {
    let (server, address) = ends.udp_server()?;
    server.set_read_timeout(Some(TICK)).map_err(failed("can't set a timeout"))?;
    let open = |port| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
        socket.send_to(&[0; SMALL], address)?;
        Ok(OwnedFd::from(socket))
    };
    run(Load::NewFlows, ends, plan, SMALL, open, |stop| answer_all(&server, stop))
}

/// TCP connections that the server closes at once, and the client when it sees that.
pub(super) fn tcp(ends: &Ends, plan: &Plan) -> Result<Report, LoadError> {
    let listening = ends.server.run(|| {
        let listener = TcpListener::bind((ends.address, 0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        Ok((listener, SocketAddrV4::new(ends.address, port)))
    })?;
    let (listener, address) =
        listening.map_err(failed(format!("can't listen on {} in {}", ends.address, ends.server.netns)))?;
    let open = |port| {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?;
        match connect(socket.as_raw_fd(), &SockaddrIn::from(address)) {
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
            Err(error) => Err(error.into()),
        }
    };
    run(Load::Connections, ends, plan, 0, open, |stop| close_all(&listener, stop))
}

/// Runs `serve` at the server, and at the client opens flows by `open`; a flow is done when `answer` bytes have come.
fn run(
    load: Load,
    ends: &Ends,
    plan: &Plan,
    answer: usize,
    open: impl Fn(u16) -> io::Result<OwnedFd> + Send,
    serve: impl FnOnce(&AtomicBool) + Send,
) -> Result<Report, LoadError> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| serve(&stop));
        let measured = ends.client.run(|| {
            let mut client = Client { ports: PORTS, answer, open };
            let what = || failed(format!("{load}: no flow from {} gets through", ends.client.netns));
            client.warm_up().map_err(what())?;
            let meter = Meter::start(plan.nat)?;
            let (done, lost) = client.open_all(plan.window).map_err(what())?;
            let bytes = done * answer as u64;
            Report { bytes, count: done, lost, ..Report::new(load, &meter.stop()?) }.unless_empty()
        });
        stop.store(true, Ordering::Relaxed);
        measured?
    })
}

struct Client<F> {
    ports: RangeInclusive<u16>,
    answer: usize,
    open: F,
}

impl<F: Fn(u16) -> io::Result<OwnedFd>> Client<F> {
    /// One flow that gets through, after which the neighbours on the way know each other.
    fn warm_up(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let Some(flow) = self.next_flow()? else { break };
            if self.is_answered(&flow, TICK)? {
                return Ok(());
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("nothing within {PATIENCE:?}")))
    }

    /// How many flows were answered, and how many weren't.
    fn open_all(&mut self, time: Duration) -> io::Result<(u64, u64)> {
        let (mut done, mut lost) = (0, 0);
        let mut in_flight = Vec::with_capacity(WINDOW);
        let started = Instant::now();
        while started.elapsed() < time {
            while in_flight.len() < WINDOW
                && let Some(flow) = self.next_flow()?
            {
                in_flight.push(flow);
            }
            if in_flight.is_empty() {
                break;
            }
            for flow in in_flight.drain(..) {
                let counter = if self.is_answered(&flow, WAIT)? { &mut done } else { &mut lost };
                *counter += 1;
            }
        }
        Ok((done, lost))
    }

    /// A flow from the next port that is free; `None` when all were used.
    fn next_flow(&mut self) -> io::Result<Option<OwnedFd>> {
        for port in &mut self.ports {
            match (self.open)(port) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                flow => return flow.map(Some),
            }
        }
        Ok(None)
    }

    fn is_answered(&self, flow: &OwnedFd, wait: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + wait;
        let mut packet = [0; SMALL];
        loop {
            match recv(flow.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => return Ok(length == self.answer),
                Err(Errno::EAGAIN) => {}
                // Refused or reset: this flow failed, the next may not.
                Err(_) => return Ok(false),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            poll(&mut [PollFd::new(flow.as_fd(), PollFlags::POLLIN)], timeout)?;
        }
    }
}

fn answer_all(socket: &UdpSocket, stop: &AtomicBool) {
    let mut packet = [0; SMALL];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, peer)) = socket.recv_from(&mut packet) {
            // What can't be sent is a flow without an answer, which the client counts.
            let _ = socket.send_to(&packet[..length], peer);
        }
    }
}

fn close_all(listener: &TcpListener, stop: &AtomicBool) {
    let tick = PollTimeout::try_from(TICK).unwrap_or(PollTimeout::ZERO);
    while !stop.load(Ordering::Relaxed) {
        // Errors are of single connections; those that are never closed are counted by the client.
        while listener.accept().is_ok() {}
        let _ = poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], tick);
    }
}
