//! TCP sockets that share a local port, and connections opened by both sides at once.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::endpoints::Endpoints;
use super::wire::{Message, SIZE, fresh_token};
use super::{ProbeError, Prober, Timing, failed, on_own_thread, tcp};

/// One attempt of a simultaneous open. Shorter than the kernel's first SYN retransmission (1 s): a SYN that came too
/// early at the other side's NAT is repeated soon.
const ATTEMPT: Duration = Duration::from_millis(400);

/// Pause after an attempt that failed, doubled each time up to the longest. That one is shorter than an attempt: while
/// one side pauses, the other one's attempt goes on, so that the two meet. After a refusal the pause is the shortest
/// one: a reset ends an attempt at once, on both sides, and the two meet only if they try often.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(320);

/// Deadline for a greeting on an open connection: time for a lost segment or two to be sent again.
pub(super) const GREETING_WITHIN: Duration = Duration::from_secs(2);

/// What each side says first. It carries no secret: it shows that both sides hold the same connection.
const GREETING: Message = Message::Hello { token: 0 };

/// A TCP mapping that a connection to the reflector's primary endpoint holds open while this lives.
#[derive(Debug)]
pub struct TcpMapping {
    /// The local endpoint; other sockets can be bound to it with `SO_REUSEADDR` and `SO_REUSEPORT`.
    pub local: SocketAddr,
    /// The external endpoint that the reflector saw.
    pub external: SocketAddr,
    _held_by: std::net::TcpStream,
}

/// Opens a mapping from a fresh local port of address `local` and learns its external endpoint.
///
/// # Errors
/// [`ProbeError`] when the reflector does not answer.
pub fn tcp_mapping(reflector: Endpoints, local: IpAddr) -> Result<TcpMapping, ProbeError> {
    on_own_thread(async move || {
        let prober = Prober::new(reflector, local, Timing::default());
        let line = tcp::Line::open(&prober).await?;
        let (local, external) = (line.local, line.seen.mapped);
        let held_by = line.stream.into_std().map_err(failed("keep the connection of", local))?;
        Ok(TcpMapping { local, external, _held_by: held_by })
    })
}

/// Connects from `local` to the other host's external endpoint `remote` while the other host does the same with the
/// roles exchanged (RFC 5382 §4.2: neither side listens). Tries again and again, since the first SYN may be dropped or
/// refused by the other side's NAT. The stream is blocking, and both sides have heard each other on it.
///
/// It cannot work through a NAT whose own stack takes the stray SYN before its host has called (the kernel's masquerade
/// without an input filter): the refused call occupies the pair of endpoints, and the host gets another external port.
///
/// # Errors
/// [`ProbeError::NotOpened`] after `within`; [`ProbeError::Socket`] when `local` cannot be bound.
pub fn tcp_simultaneous_open(
    local: SocketAddr,
    remote: SocketAddr,
    within: Duration,
) -> Result<std::net::TcpStream, ProbeError> {
    on_own_thread(async move || {
        let until = Instant::now() + within;
        let mut last = String::from("none");
        let mut pause = SHORTEST_PAUSE;
        while Instant::now() < until {
            let socket = bound(local)?;
            match attempt(socket, remote, until).await {
                Ok(stream) => {
                    return stream
                        .into_std()
                        .and_then(|s| s.set_nonblocking(false).map(|()| s))
                        .map_err(failed("hand over the connection of", local));
                }
                Err(error) => {
                    if error.kind() == io::ErrorKind::ConnectionRefused {
                        pause = SHORTEST_PAUSE;
                    }
                    last = error.to_string();
                }
            }
            sleep_until(until.min(Instant::now() + pause)).await;
            pause = LONGEST_PAUSE.min(2 * pause);
        }
        Err(ProbeError::NotOpened { local, remote, within, last })
    })
}

async fn attempt(socket: TcpSocket, remote: SocketAddr, until: Instant) -> io::Result<TcpStream> {
    // Should it fail, half open or open, the pair of endpoints is wanted again at once: a reset leaves nothing behind.
    socket.set_zero_linger()?;
    let mut stream = timeout(ATTEMPT, socket.connect(remote)).await??;
    // From here on the other side may be sure of this connection already: only an error ends it, or the deadline.
    timeout_at(until, greet(&mut stream, GREETING)).await??;
    SockRef::from(&stream).set_linger(None)?;
    Ok(stream)
}

/// Says `hello` and hears it from the other side.
pub(super) async fn greet(stream: &mut TcpStream, hello: Message) -> io::Result<()> {
    stream.write_all(&hello.encode()).await?;
    match read_message(stream).await? {
        heard if heard == hello => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "somebody else answered")),
    }
}

/// A socket bound to `at` beside others that are: the same port serves a listener and several connections.
pub(super) fn bound(at: SocketAddr) -> Result<TcpSocket, ProbeError> {
    let socket = new_socket(at)?;
    share(&socket, at)?;
    socket.bind(at).map_err(failed("bind a TCP socket to", at))?;
    Ok(socket)
}

/// A socket on a port that no other socket has, open for sharing from now on. (Bound with sharing allowed, the kernel
/// might choose a port that another socket shares already.)
pub(super) fn fresh(prober: &Prober) -> Result<(TcpSocket, SocketAddr), ProbeError> {
    let any = SocketAddr::new(prober.local, 0);
    loop {
        let socket = new_socket(any)?;
        socket.bind(any).map_err(failed("bind a TCP socket to", any))?;
        let local = socket.local_addr().map_err(failed("bind a TCP socket to", any))?;
        if prober.first_use(local.port()) {
            share(&socket, local)?;
            return Ok((socket, local));
        }
    }
}

fn new_socket(at: SocketAddr) -> Result<TcpSocket, ProbeError> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    socket.map_err(failed("open a TCP socket for", at))
}

fn share(socket: &TcpSocket, at: SocketAddr) -> Result<(), ProbeError> {
    socket
        .set_reuseaddr(true)
        .and_then(|()| socket.set_reuseport(true))
        .map_err(failed("share the port of", at))
}

/// Reads one message; anything else is an error.
pub(super) async fn read_message(stream: &mut TcpStream) -> io::Result<Message> {
    let mut bytes = [0; SIZE];
    stream.read_exact(&mut bytes).await?;
    Message::decode(&bytes)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a message of the probe"))
}

/// A greeting for one question.
pub(super) fn fresh_greeting() -> Message {
    Message::Hello { token: fresh_token() }
}
