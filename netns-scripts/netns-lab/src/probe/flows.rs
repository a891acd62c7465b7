//! Many UDP flows at once: opened through the NAT, kept, and asked again when all are open.
//!
//! Each flow has a socket and a local port of its own, so that it is a mapping of its own under every mapping behaviour.
//! Fifty thousand sockets are more than most processes may open. The limit counts by file table, so the sockets are
//! spread over threads that have one each; nothing of the process itself is changed.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::endpoints::{Endpoints, Source};
use super::wire::{Message, SIZE, fresh_token};
use super::{ProbeError, failed};

/// Sockets of one file table: somewhat below 1024, the usual limit.
const SHARD: usize = 960;

/// Requests in flight at a time; their answers fit into any default socket buffer and device queue on the way.
const WINDOW: usize = 64;

/// Waits for the answers of a window. A flow that misses all of them counts as unanswered.
const WAITS: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
];

/// After this many windows in a row without any answer the rest of a shard is not asked: the path is gone.
const SILENT_WINDOWS: usize = 2;

/// One wait in the kernel for one flow, much shorter than the shortest of [`WAITS`].
const POLL: Duration = Duration::from_millis(5);

/// Local ports that flows use, in this order.
const LOCAL_PORTS: Range<u16> = 1024..u16::MAX;

/// Open UDP flows, each from a local port of its own. They close when this is dropped.
#[derive(Debug)]
pub struct Flows {
    shards: Vec<Shard>,
}

/// One flow and how the reflector saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FlowSeen {
    /// The client's endpoint.
    pub local: SocketAddr,
    /// The reflector's endpoint.
    pub remote: SocketAddr,
    /// The external endpoint when the flow was opened; `None` if no answer came.
    pub opened_as: Option<SocketAddr>,
    /// The external endpoint when it was asked again; `None` if no answer came.
    pub again_as: Option<SocketAddr>,
}

/// How many flows there were and what became of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowReport {
    /// Flows that were answered when they were opened.
    pub opened: usize,
    /// Flows that were answered again when all were open.
    pub answered_again: usize,
    /// Of the flows that were answered both times, those with another external endpoint the second time.
    pub moved: usize,
    /// Each flow, in the order of opening.
    pub flows: Vec<FlowSeen>,
}

impl std::fmt::Display for FlowReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { opened, answered_again, moved, flows } = self;
        write!(f, "{} flows: {opened} opened, {answered_again} answered again, {moved} moved", flows.len())
    }
}

/// Opens `count` flows and asks each one again when all are open. [`Flows::open`] is the version that keeps them.
///
/// # Errors
/// As [`Flows::open`].
pub fn flows(reflector: Endpoints, local: IpAddr, count: usize) -> Result<FlowReport, ProbeError> {
    Flows::open(reflector, local, count)?.check()
}

impl Flows {
    /// Opens `count` flows from address `local` in the calling thread's network namespace, in turn towards the four
    /// endpoints of the reflector, and waits for an answer on each.
    ///
    /// Blocks: 50,000 flows take some seconds. A flow that gets no answer is counted, not an error.
    ///
    /// # Errors
    /// [`ProbeError::TooFewPorts`] when `local` has fewer free ports than that (64,511 at most),
    /// [`ProbeError::Socket`] when the kernel refuses.
    pub fn open(reflector: Endpoints, local: IpAddr, count: usize) -> Result<Self, ProbeError> {
        let too_few = |have| ProbeError::TooFewPorts { local, wanted: count, have };
        if count > LOCAL_PORTS.len() {
            return Err(too_few(LOCAL_PORTS.len()));
        }
        let mut shards: Vec<Shard> = Vec::new();
        let mut ports = LOCAL_PORTS;
        let mut missing = count;
        while missing > 0 {
            let shard = Shard::start(reflector, local, ports, missing.min(SHARD))?;
            let Some(last) = shard.seen.last() else { return Err(too_few(count - missing)) };
            ports = last.local.port() + 1..LOCAL_PORTS.end;
            missing -= shard.seen.len();
            shards.push(shard);
        }
        let mut flows = Self { shards };
        flows.ask(|flow, answer| flow.opened_as = answer)?;
        Ok(flows)
    }

    /// Asks each flow again and says how all of them fared. Can be called any number of times.
    ///
    /// # Errors
    /// [`ProbeError::Socket`] when the kernel refuses to send or receive.
    pub fn check(&mut self) -> Result<FlowReport, ProbeError> {
        self.ask(|flow, answer| flow.again_as = answer)?;
        let flows: Vec<_> = self.shards.iter().flat_map(|shard| &shard.seen).copied().collect();
        let count = |which: fn(&FlowSeen) -> bool| flows.iter().filter(|flow| which(flow)).count();
        Ok(FlowReport {
            opened: count(|flow| flow.opened_as.is_some()),
            answered_again: count(|flow| flow.again_as.is_some()),
            moved: count(|flow| flow.opened_as.zip(flow.again_as).is_some_and(|(then, now)| then != now)),
            flows,
        })
    }

    /// One shard after the other: the window bounds what is in flight in all.
    fn ask(&mut self, note: fn(&mut FlowSeen, Option<SocketAddr>)) -> Result<(), ProbeError> {
        for shard in &mut self.shards {
            // A thread that is gone answers nothing, which `reply` finds out.
            let _ = shard.orders.as_ref().map(|orders| orders.send(()));
            let Reply::Answers(answers) = shard.reply()? else { continue };
            for (flow, answer) in shard.seen.iter_mut().zip(answers) {
                note(flow, answer);
            }
        }
        Ok(())
    }
}

/// The near side of a thread that owns some of the sockets.
#[derive(Debug)]
struct Shard {
    seen: Vec<FlowSeen>,
    /// Each order is one round of questions; closing it ends the thread.
    orders: Option<Sender<()>>,
    replies: Receiver<Result<Reply, ProbeError>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Reply {
    Bound(Vec<SocketAddr>),
    Answers(Vec<Option<SocketAddr>>),
}

impl Shard {
    /// Binds up to `count` of `ports`, skipping those that somebody else has.
    fn start(
        reflector: Endpoints,
        local: IpAddr,
        ports: Range<u16>,
        count: usize,
    ) -> Result<Self, ProbeError> {
        let (orders, to_do) = channel();
        let (done, replies) = channel();
        let thread = std::thread::Builder::new()
            .name("flows".into())
            .spawn(move || serve(reflector, local, ports, count, &to_do, &done))
            .map_err(ProbeError::Thread)?;
        let mut shard = Self { seen: Vec::new(), orders: Some(orders), replies, thread: Some(thread) };
        if let Reply::Bound(locals) = shard.reply()? {
            let flows = locals.into_iter().enumerate();
            shard.seen = flows
                .map(|(index, local)| FlowSeen {
                    local,
                    remote: remote(reflector, index),
                    opened_as: None,
                    again_as: None,
                })
                .collect();
        }
        Ok(shard)
    }

    fn reply(&self) -> Result<Reply, ProbeError> {
        let gone = || ProbeError::Thread(io::Error::other("a thread of the flows ended unexpectedly"));
        self.replies.recv().map_err(|_| gone())?
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed by its own thread, and was reported as a missing reply.
            let _ = thread.join();
        }
    }
}

fn remote(reflector: Endpoints, index: usize) -> SocketAddr {
    reflector.at(Source::ALL[index % Source::ALL.len()])
}

/// A shard's thread: binds, then asks as often as it is told to.
fn serve(
    reflector: Endpoints,
    local: IpAddr,
    ports: Range<u16>,
    count: usize,
    orders: &Receiver<()>,
    replies: &Sender<Result<Reply, ProbeError>>,
) {
    let bound = own_file_table().map_err(ProbeError::Thread).and_then(|()| bind(local, ports, count));
    let sockets = match bound {
        Ok(sockets) => sockets,
        Err(error) => return drop(replies.send(Err(error))),
    };
    let (locals, sockets): (Vec<_>, Vec<_>) = sockets.into_iter().unzip();
    // A receiver that is gone has closed the orders, too.
    let _ = replies.send(Ok(Reply::Bound(locals)));
    while orders.recv().is_ok() {
        let round = Round::new(reflector, &sockets).run();
        let _ = replies.send(round.map(Reply::Answers));
    }
}

/// Gives the calling thread a file table of its own, with nothing in it but standard input, output and error.
fn own_file_table() -> io::Result<()> {
    // SAFETY: the call touches no memory. It closes files for this thread only, which is new: whatever it owns so far
    // (two channels, addresses) holds no descriptor, and every other thread keeps its table as it is.
    match unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_UNSHARE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn bind(local: IpAddr, ports: Range<u16>, count: usize) -> Result<Vec<(SocketAddr, UdpSocket)>, ProbeError> {
    let mut sockets = Vec::with_capacity(count);
    for port in ports {
        if sockets.len() == count {
            break;
        }
        let at = SocketAddr::new(local, port);
        match UdpSocket::bind(at) {
            Ok(socket) => {
                socket.set_read_timeout(Some(POLL)).map_err(failed("set the read timeout of", at))?;
                sockets.push((at, socket));
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(failed("bind a UDP socket to", at)(error)),
        }
    }
    Ok(sockets)
}

/// One question on every flow of a shard.
struct Round<'a> {
    reflector: Endpoints,
    sockets: &'a [UdpSocket],
    tokens: Vec<u64>,
    answers: Vec<Option<SocketAddr>>,
}

impl<'a> Round<'a> {
    fn new(reflector: Endpoints, sockets: &'a [UdpSocket]) -> Self {
        let tokens = sockets.iter().map(|_| fresh_token()).collect();
        Self { reflector, sockets, tokens, answers: vec![None; sockets.len()] }
    }

    fn run(mut self) -> Result<Vec<Option<SocketAddr>>, ProbeError> {
        let mut silent = 0;
        for start in (0..self.sockets.len()).step_by(WINDOW) {
            let window = start..(start + WINDOW).min(self.sockets.len());
            for wait in WAITS {
                self.send(window.clone())?;
                if self.receive(window.clone(), Instant::now() + wait)? {
                    break;
                }
            }
            let answered = self.answers[window].iter().any(Option::is_some);
            silent = if answered { 0 } else { silent + 1 };
            if silent == SILENT_WINDOWS {
                break;
            }
        }
        Ok(self.answers)
    }

    /// Asks on those flows of the window that have not been answered.
    fn send(&self, window: Range<usize>) -> Result<(), ProbeError> {
        for index in window.filter(|&index| self.answers[index].is_none()) {
            let ask =
                Message::Ask { token: self.tokens[index], answers: [Some(Source::Same), None, None, None] };
            let to = remote(self.reflector, index);
            match self.sockets[index].send_to(&ask.encode(), to) {
                // A full queue on the way is a lost packet.
                Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => {
                    return Err(failed("send UDP to", to)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes the window's answers; true when all are there. What has arrived is taken even after the deadline.
    fn receive(&mut self, window: Range<usize>, until: Instant) -> Result<bool, ProbeError> {
        let mut complete = true;
        for index in window {
            while self.answers[index].is_none() {
                if !self.receive_one(index)? && Instant::now() >= until {
                    complete = false;
                    break;
                }
            }
        }
        Ok(complete)
    }

    /// Takes one datagram of a flow. False if there is none.
    fn receive_one(&mut self, index: usize) -> Result<bool, ProbeError> {
        let remote = remote(self.reflector, index);
        let mut buf = [0; SIZE + 1];
        let (len, from) = match self.sockets[index].recv_from(&mut buf) {
            Ok(received) => received,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(false);
            }
            Err(error) => return Err(failed("receive the answer of", remote)(error)),
        };
        match Message::decode(&buf[..len]) {
            Some(Message::Answer { token, mapped, .. }) if token == self.tokens[index] && from == remote => {
                self.answers[index] = Some(mapped);
            }
            _ => {}
        }
        Ok(true)
    }
}
