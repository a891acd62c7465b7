//! Load for a NAT, and what came through it.
//!
//! # Theory of operation
//!
//! One process plays both ends. Its sockets are opened inside the client's and the server's namespace and work from any
//! thread ([`Host::run`]), so sender and receiver share counters, and one clock says when a window opens and closes: a
//! figure is what the *receiver* got between two instants, and the processor time of the machine between the same two.
//! Nothing is agreed over the wire that is being measured, but for a first packet in each direction, which opens the
//! mapping and resolves neighbours before anything counts.
//!
//! | load | what runs | what counts |
//! |---|---|---|
//! | `tcp-up-4`, `tcp-down-1` | so many connections, each with a writer and a reader | bytes read |
//! | `udp-64-up`, `udp-1400-down` | one socket sends datagrams of that size as fast as it can, by `sendmmsg` | datagrams received |
//! | `udp-gso-up`, `udp-gso-down` | the same with 45 × 1400 B a send (`UDP_SEGMENT`), received with `UDP_GRO` | datagrams received |
//! | `latency` | one request of 64 B at a time, answered | each round trip |
//! | `new-flows` | UDP flows, each from a port never used before, 32 in flight | flows that were answered |
//! | `connections` | TCP connect, the server's close, the client's close; each from a fresh port, 32 in flight | connections closed by both |
//! | `idle` | nothing | how busy the machine is with other things |
//!
//! Up is from the client behind the NAT to the server. Senders don't pace themselves: what a full queue drops is lost,
//! and reported. `new-flows` and `connections` use each source port once, so they end when the ports are used up, if the
//! time isn't over before; start them on a NAT with an empty table.

mod bulk;
mod error;
mod figure;
mod flood;
mod fresh;
mod latency;
mod meter;
mod mmsg;
mod name;
pub mod offload;
pub mod summary;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::Host;
pub use error::LoadError;
use error::failed;
pub use name::{Direction, Load};

/// How long a first packet, or a connection, may take to cross the NAT.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a blocked thread looks whether it should end, and a lost first packet is sent again.
const TICK: Duration = Duration::from_millis(100);

/// Payload of small packets, in bytes.
const SMALL: usize = 64;

/// The two ends of the path that is measured.
#[derive(Debug, Clone)]
pub struct Ends {
    client: Host,
    server: Host,
    address: Ipv4Addr,
}

impl Ends {
    /// The client's and the server's namespace, as `ip netns` shows them, and the server's address.
    pub fn new(client_netns: &str, server_netns: &str, address: Ipv4Addr) -> Self {
        let host = |name: &str, addresses| Host { name: name.to_owned(), netns: name.to_owned(), addresses };
        Self { client: host(client_netns, Vec::new()), server: host(server_netns, vec![address]), address }
    }

    /// A UDP socket of the server's, on a port that the kernel chooses.
    fn udp_server(&self) -> Result<(UdpSocket, SocketAddr), LoadError> {
        let bound = self.server.run(|| {
            let socket = UdpSocket::bind((self.address, 0))?;
            let address = socket.local_addr()?;
            Ok((socket, address))
        })?;
        bound.map_err(failed(format!("can't bind a UDP socket to {} in {}", self.address, self.server.netns)))
    }

    /// A UDP flow that is open in both directions: the client's socket and the server's, each connected to what it sees
    /// of the other.
    fn udp_flow(&self) -> Result<(UdpSocket, UdpSocket), LoadError> {
        let (server, address) = self.udp_server()?;
        let client = self.client.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(address)?;
            Ok(socket)
        })?;
        let client =
            client.map_err(failed(format!("no UDP flow from {} to {address}", self.client.netns)))?;
        (|| {
            client.set_read_timeout(Some(TICK))?;
            server.set_read_timeout(Some(TICK))?;
            let peer = repeat(|| {
                client.send(&[0; SMALL])?;
                server.recv_from(&mut [0; SMALL]).map(|(_, peer)| peer)
            })?;
            server.connect(peer)?;
            repeat(|| {
                server.send(&[0; SMALL])?;
                client.recv(&mut [0; SMALL])
            })?;
            Ok((client, server))
        })()
        .map_err(failed(format!("no UDP packet crosses between {} and {address}", self.client.netns)))
    }
}

/// Tries until it works, or fails with something else than a timeout, or [`PATIENCE`] is over.
fn repeat<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Err(error) if is_timeout(&error) && Instant::now() < deadline => {}
            Err(error) if is_timeout(&error) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("nothing within {PATIENCE:?}")));
            }
            outcome => return outcome,
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// How long a load runs, and whose processor time is counted besides the machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// How long the window is open.
    pub window: Duration,
    /// How long the load runs before the window opens.
    pub warm_up: Duration,
    /// The NAT's process, if it has one.
    pub nat: Option<u32>,
}

/// What came through while the window was open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The load.
    pub load: Load,
    /// How long the window was open, in seconds.
    pub seconds: f64,
    /// Payload that reached the receiver, in bytes.
    pub bytes: u64,
    /// Datagrams received, round trips, flows answered or connections closed; 0 for TCP streams.
    pub count: u64,
    /// Of those that were tried, how many failed. For a flood: what was sent and not received, give or take what was on
    /// its way when the window opened and closed.
    pub lost: u64,
    /// The median round trip, in microseconds.
    pub p50_us: Option<f64>,
    /// The round trip that one in a hundred exceeds, in microseconds.
    pub p99_us: Option<f64>,
    /// Processor time of the whole machine, in seconds: user, nice, system, irq and softirq.
    pub machine_cpu: f64,
    /// Processor time of the NAT's own process, in seconds, if [`Plan::nat`] named one.
    pub nat_cpu: Option<f64>,
}

impl Report {
    fn new(load: Load, window: &meter::Window) -> Self {
        let &meter::Window { seconds, machine_cpu, nat_cpu } = window;
        let (p50_us, p99_us) = (None, None);
        Self { load, seconds, bytes: 0, count: 0, lost: 0, p50_us, p99_us, machine_cpu, nat_cpu }
    }

    /// Itself, unless nothing came through: then there is nothing to measure.
    fn unless_empty(self) -> Result<Self, LoadError> {
        if self.bytes == 0 && self.count == 0 {
            Err(LoadError::Nothing { load: self.load })
        } else {
            Ok(self)
        }
    }
}

/// Runs one load; blocks for its warm-up and its window.
///
/// # Errors
/// [`LoadError`] when the load can't run, when nothing comes through, or when the NAT's process ends on the way.
pub fn run(load: Load, ends: &Ends, plan: &Plan) -> Result<Report, LoadError> {
    match load {
        Load::Tcp { direction, flows } => bulk::run(load, ends, plan, direction, flows),
        Load::Udp { direction, size } => {
            flood::run(load, ends, plan, direction, flood::Kind::Single(usize::from(size)))
        }
        Load::Gso { direction } => flood::run(load, ends, plan, direction, flood::Kind::Gso),
        Load::Latency => latency::run(ends, plan),
        Load::NewFlows => fresh::udp(ends, plan),
        Load::Connections => fresh::tcp(ends, plan),
        Load::Idle => {
            let window = meter::Meter::start(plan.nat)?;
            std::thread::sleep(plan.window);
            Ok(Report::new(load, &window.stop()?))
        }
    }
}
