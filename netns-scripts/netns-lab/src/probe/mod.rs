//! Classifying a NAT from outside, with real packets.
//!
//! A [`Reflector`] listens on two addresses × two ports beyond the NAT. A probe behind the NAT asks it questions and
//! judges the answers in the words of RFC 4787 and RFC 5382:
//!
//! - **mapping**: one local port talks to all four endpoints of the reflector; which external endpoints did they see?
//! - **filtering**: one local port talks to one endpoint only; which of the other three can send to its mapping?
//! - **ports**: several local ports talk to one endpoint; how do their external ports follow each other?
//! - **hairpin**: two local ports behind the same NAT send to each other's external endpoint.
//!
//! Three rules keep the answers honest.
//!
//! 1. *Every question has sockets of its own.* A socket that has talked to all four endpoints has opened the filter
//!    towards all four; a filtering question on it would always see endpoint-independent filtering.
//! 2. *A negative needs a positive.* "Nothing arrived" counts only after a packet that must arrive has arrived on the
//!    same path, and it was sent after the one that did not: the reflector sends the answer in question first and an
//!    allowed one behind it. Then a grace of some round trips, then the question is asked again on a fresh socket.
//! 3. *Nobody else's word counts.* Tokens tie answers to questions, an answer must come from the endpoint that the
//!    reflector sent it from, and a TCP connect back counts as accepted only when the client itself echoed a greeting.
//!
//! What is classified is behaviour, not intent: a NAT that makes a mapping for each destination but keeps the local
//! port for all of them cannot be told from an endpoint-independent one, and is reported as that.
//!
//! The functions block, work on a thread of their own (also when called inside an async runtime), and open their
//! sockets in the network namespace of the calling thread.
//!
//! ```no_run
//! # fn main() -> Result<(), netns_lab::probe::ProbeError> {
//! use netns_lab::probe::{self, Reflector};
//! // In the server's namespace:
//! let reflector = Reflector::start(["203.0.113.1".parse().unwrap(), "203.0.113.2".parse().unwrap()], [3478, 3479])?;
//! let endpoints = reflector.endpoints();
//! // On a thread in the client's namespace:
//! println!("{}", probe::udp(endpoints, "10.0.0.2".parse().unwrap())?);
//! # Ok(())
//! # }
//! ```

mod class;
mod endpoints;
mod flows;
mod hairpin;
mod judge;
mod reflector;
mod tap;
mod tcp;
mod tcp_open;
mod udp;
mod wire;

use std::collections::HashSet;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Mutex;
use std::time::Duration;

pub use class::{
    Classification, Evidence, Filtering, Hairpin, Mapping, PortAssignment, Protocol, UnknownName,
};
pub use endpoints::{Endpoints, Outcome, Source};
pub use flows::{FlowReport, FlowSeen, Flows, flows};
pub use reflector::Reflector;
pub use tcp_open::{TcpMapping, tcp_mapping, tcp_simultaneous_open};

/// Why a probe has no result.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The two addresses or two ports of a reflector are not two, or not of one address family.
    #[error("a reflector needs two different addresses of one family and two different ports, got {0}")]
    Endpoints(Endpoints),
    /// The kernel refused a socket operation.
    #[error("cannot {doing} {at}: {source}")]
    Socket {
        /// What was tried, as in "bind a UDP socket to".
        doing: &'static str,
        /// The address it was tried with.
        at: SocketAddr,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A thread or its event loop could not be started.
    #[error("cannot start the probe's own thread: {0}")]
    Thread(io::Error),
    /// The positive control failed: even an answer that every NAT lets in did not arrive.
    #[error(
        "no {protocol} answer from the reflector at {at} within {within:?}: is it running, routed and allowed?"
    )]
    NoAnswer {
        /// The protocol of the question.
        protocol: Protocol,
        /// The endpoint that was asked.
        at: SocketAddr,
        /// How long the probe waited in all.
        within: Duration,
    },
    /// An answer arrived from another endpoint than it was sent from.
    #[error(
        "what {sent_from} sent to {local} arrived from {seen}: the remote endpoint was rewritten on the way"
    )]
    RemoteRewritten {
        /// Where it was sent from.
        sent_from: SocketAddr,
        /// Where the client saw it come from.
        seen: SocketAddr,
        /// The client's local endpoint.
        local: SocketAddr,
    },
    /// The reflector could not connect back for a reason of its own.
    #[error(
        "the reflector could not try to connect to {to} from {from}: the port pair is taken or has no route"
    )]
    ConnectBack {
        /// The source it should have used.
        from: SocketAddr,
        /// The client's mapped endpoint.
        to: SocketAddr,
    },
    /// What was seen fits no class of RFC 4787.
    #[error("the {protocol} {what} fits no class of RFC 4787: {seen}")]
    Inconsistent {
        /// The protocol of the question.
        protocol: Protocol,
        /// "mapping", "filtering" or "hairpin".
        what: &'static str,
        /// The observations.
        seen: String,
    },
    /// A TCP connection could not be opened by both sides at once.
    #[error(
        "no TCP connection from {local} to {remote} by simultaneous open within {within:?}; last attempt: {last}"
    )]
    NotOpened {
        /// The local endpoint.
        local: SocketAddr,
        /// The other side's external endpoint.
        remote: SocketAddr,
        /// How long it was tried.
        within: Duration,
        /// How the last attempt ended.
        last: String,
    },
    /// More flows were asked for than there are free local ports.
    #[error("{wanted} flows need as many UDP ports of {local}, {have} are free: ask for fewer or free some")]
    TooFewPorts {
        /// The client's address.
        local: IpAddr,
        /// Flows asked for.
        wanted: usize,
        /// How many there can be.
        have: usize,
    },
}

/// How long a probe waits. The defaults suit links with up to half a second of round-trip time: every wait that ends
/// in a negative grows with the round trip measured on the same path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Deadline for an answer that must come, resends included.
    pub answer: Duration,
    /// An unanswered UDP request is sent again after this long.
    pub resend: Duration,
    /// Wait for a UDP packet in question after the control has arrived; two round trips are added.
    pub grace: Duration,
    /// Deadline of a TCP connect that may be dropped silently; four round trips are added.
    pub connect_back: Duration,
    /// A negative is concluded after this many rounds, each on fresh sockets. At least one.
    pub rounds: u32,
    /// Mappings made to see how external ports follow each other. At least two.
    pub samples: usize,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(4),
            resend: Duration::from_millis(200),
            grace: Duration::from_millis(30),
            connect_back: Duration::from_millis(200),
            rounds: 3,
            samples: 8,
        }
    }
}

/// Classifies the NAT between this namespace and the reflector for UDP. `local` is this host's address on that path.
///
/// Blocks for about a second, for at most some tens of [`Timing::answer`].
///
/// # Errors
/// [`ProbeError`] when the reflector does not answer or the observations fit no class.
pub fn udp(reflector: Endpoints, local: IpAddr) -> Result<Classification, ProbeError> {
    udp_with(reflector, local, Timing::default())
}

/// [`udp`] with waits of one's own.
///
/// # Errors
/// As [`udp`].
pub fn udp_with(reflector: Endpoints, local: IpAddr, timing: Timing) -> Result<Classification, ProbeError> {
    on_own_thread(async move || udp::classify(&Prober::new(reflector, local, timing)).await)
}

/// Classifies the NAT between this namespace and the reflector for TCP. `local` is this host's address on that path.
///
/// Blocks for some seconds, for at most some tens of [`Timing::answer`].
///
/// # Errors
/// [`ProbeError`] when the reflector does not answer or the observations fit no class.
pub fn tcp(reflector: Endpoints, local: IpAddr) -> Result<Classification, ProbeError> {
    tcp_with(reflector, local, Timing::default())
}

/// [`tcp`] with waits of one's own.
///
/// # Errors
/// As [`tcp`].
pub fn tcp_with(reflector: Endpoints, local: IpAddr, timing: Timing) -> Result<Classification, ProbeError> {
    on_own_thread(async move || tcp::classify(&Prober::new(reflector, local, timing)).await)
}

/// The external endpoint that the reflector's endpoint `at` sees for `socket`, which may be of another namespace than
/// the calling thread's.
///
/// # Errors
/// [`ProbeError::NoAnswer`] when none came within [`Timing::answer`] of the default timing.
pub fn udp_mapping(reflector: Endpoints, socket: &UdpSocket, at: Source) -> Result<SocketAddr, ProbeError> {
    let socket = socket.try_clone().map_err(ProbeError::Thread)?;
    on_own_thread(async move || udp::mapping_of(reflector, socket, at).await)
}

/// Whether and how the NAT lets `a` reach the external endpoint of `b`. The sockets are bound to specific addresses
/// and may belong to two namespaces (two hosts behind one NAT), and neither has been used before.
///
/// Both sides open their filters towards each other, so that any filtering lets hairpinned packets in as long as the
/// mapping is endpoint-independent. The result is [`Hairpin::Unobservable`] when there is no NAT. With other mappings
/// [`Hairpin::Off`] may only mean that the filter dropped the packet.
///
/// # Errors
/// [`ProbeError`] when the reflector does not answer either socket.
pub fn udp_hairpin(reflector: Endpoints, a: &UdpSocket, b: &UdpSocket) -> Result<Hairpin, ProbeError> {
    let (a, b) = (a.try_clone().map_err(ProbeError::Thread)?, b.try_clone().map_err(ProbeError::Thread)?);
    on_own_thread(async move || hairpin::udp_between(reflector, a, b).await)
}

/// What every question needs: whom to ask, from which address, how long to wait, and which local ports were used.
struct Prober {
    reflector: Endpoints,
    local: IpAddr,
    timing: Timing,
    used: Mutex<HashSet<u16>>,
}

impl Prober {
    fn new(reflector: Endpoints, local: IpAddr, timing: Timing) -> Self {
        Self { reflector, local, timing, used: Mutex::new(HashSet::new()) }
    }

    /// True the first time it sees a port: the kernel may hand out a closed socket's port again, and its mapping with
    /// all the filter state of an earlier question may still be there.
    fn first_use(&self, port: u16) -> bool {
        self.used.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(port)
    }
}

/// Runs a probe's future to its end on a new thread, which inherits the caller's network namespace. A thread of its
/// own because the caller's may be inside a runtime, where a second one cannot block.
fn on_own_thread<T, F, Fut>(future: F) -> Result<T, ProbeError>
where
    T: Send,
    F: FnOnce() -> Fut + Send,
    Fut: Future<Output = Result<T, ProbeError>>,
{
    std::thread::scope(|scope| {
        let worker = std::thread::Builder::new().name("probe".into()).spawn_scoped(scope, || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(ProbeError::Thread)?;
            runtime.block_on(future())
        });
        match worker.map_err(ProbeError::Thread)?.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Puts the operation and its address beside the kernel's reason.
fn failed(doing: &'static str, at: SocketAddr) -> impl FnOnce(io::Error) -> ProbeError {
    move |source| ProbeError::Socket { doing, at, source }
}
