//! The public side of every question: sees mapped endpoints, answers from where it is told, connects back.
//!
//! One thread, one event loop. It believes nobody and remembers nothing: a UDP request has all that its answers need,
//! and whatever belongs to a TCP connection ends with it.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

use super::endpoints::{Endpoints, Outcome, Source};
use super::tcp_open::{GREETING_WITHIN, bound, read_message};
use super::wire::{Message, SIZE};
use super::{ProbeError, failed};

/// Connections at a time for each listener; far below the usual 1024 open files of a process, far above what probes use.
const MAX_LINES: usize = 200;

/// A connection that says nothing for this long is closed. Tests keep one open to hold a mapping.
const IDLE: Duration = Duration::from_secs(600);

/// Datagrams answered before the other endpoints get their turn.
const BATCH: usize = 64;

/// Answers probes on two addresses × two ports, UDP and TCP, until it is dropped.
///
/// UDP: a request names the endpoints that shall answer it, in order; each answer tells the mapped endpoint that was
/// seen. TCP: a connection is told its mapped endpoint, and may ask for a connect to it from another endpoint of the
/// reflector and for how that went.
#[derive(Debug)]
pub struct Reflector {
    endpoints: Endpoints,
    /// Closing it stops the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Reflector {
    /// Listens on all four endpoints, in the network namespace of the calling thread, on a thread of its own.
    ///
    /// # Errors
    /// [`ProbeError::Endpoints`] unless there are two of each, [`ProbeError::Socket`] when one of the endpoints cannot
    /// be bound (an address that this namespace does not have, a port in use).
    pub fn start(addrs: [IpAddr; 2], ports: [u16; 2]) -> Result<Self, ProbeError> {
        let endpoints = Endpoints::new(addrs, ports)?;
        let (stop, stopped) = UnixStream::pair().map_err(ProbeError::Thread)?;
        let (ready, started) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("reflector".into())
            .spawn(move || run(endpoints, stopped, &ready))
            .map_err(ProbeError::Thread)?;
        let reflector = Self { endpoints, stop: Some(stop), thread: Some(thread) };
        match started.recv() {
            Ok(Ok(())) => Ok(reflector),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(ProbeError::Thread(io::Error::other("the reflector's thread ended at its start"))),
        }
    }

    /// What probes need to know.
    pub fn endpoints(&self) -> Endpoints {
        self.endpoints
    }
}

impl Drop for Reflector {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed by its own thread; a second one here would hide the test's failure.
            let _ = thread.join();
        }
    }
}

fn run(endpoints: Endpoints, stopped: UnixStream, ready: &mpsc::Sender<Result<(), ProbeError>>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(ProbeError::Thread(error)))),
    };
    LocalSet::new().block_on(&runtime, async {
        let stopped = stopped.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(stopped));
        let bound = match stopped {
            Ok(stopped) => bind_all(endpoints).await.map(|sockets| (stopped, sockets)),
            Err(error) => Err(ProbeError::Thread(error)),
        };
        let (mut stopped, (udp, tcp)) = match bound {
            Ok(bound) => bound,
            Err(error) => return drop(ready.send(Err(error))),
        };
        let udp: Rc<[UdpSocket]> = udp.into();
        for place in Source::ALL {
            spawn_local(answer_datagrams(Rc::clone(&udp), place));
        }
        for (place, listener) in Source::ALL.into_iter().zip(tcp) {
            spawn_local(accept_lines(endpoints, listener, place));
        }
        if ready.send(Ok(())).is_ok() {
            // Nothing is ever written: the read returns when the other end is closed.
            let _ = stopped.read(&mut [0]).await;
        }
    });
}

async fn bind_all(endpoints: Endpoints) -> Result<(Vec<UdpSocket>, Vec<TcpListener>), ProbeError> {
    let (mut udp, mut tcp) = (Vec::new(), Vec::new());
    for place in Source::ALL {
        let at = endpoints.at(place);
        udp.push(UdpSocket::bind(at).await.map_err(failed("bind a UDP socket to", at))?);
        tcp.push(bound(at)?.listen(128).map_err(failed("listen for TCP on", at))?);
    }
    Ok((udp, tcp))
}

async fn answer_datagrams(sockets: Rc<[UdpSocket]>, place: Source) {
    let mut buf = [0; SIZE + 1];
    loop {
        // An unconnected socket gets no errors from the network, so an error here is of this moment (no memory).
        if sockets[place as usize].readable().await.is_err() {
            return;
        }
        for _ in 0..BATCH {
            match sockets[place as usize].try_recv_from(&mut buf) {
                Ok((len, from)) => answer(&sockets, place, &buf[..len], from),
                Err(_) => break,
            }
        }
        tokio::task::yield_now().await;
    }
}

/// An answer that cannot be sent (buffer full, no route) is a lost packet, and the client deals with those.
fn answer(sockets: &[UdpSocket], place: Source, request: &[u8], from: SocketAddr) {
    let Some(Message::Ask { token, answers }) = Message::decode(request) else { return };
    for source in answers.into_iter().flatten() {
        let answer = Message::Answer { token, source, mapped: from }.encode();
        let _ = sockets[place.then(source) as usize].try_send_to(&answer, from);
    }
}

async fn accept_lines(endpoints: Endpoints, listener: TcpListener, place: Source) {
    let open = Rc::new(());
    loop {
        match listener.accept().await {
            Ok((stream, mapped)) if Rc::strong_count(&open) <= MAX_LINES => {
                let counted = Rc::clone(&open);
                spawn_local(async move {
                    // The line's end is all that its error says; the client has its own view of it.
                    let _ = serve_line(endpoints, place, stream, mapped).await;
                    drop(counted);
                });
            }
            Ok((surplus, _)) => drop(surplus),
            // Out of files or memory: let the open ones end.
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve_line(
    endpoints: Endpoints,
    place: Source,
    mut stream: TcpStream,
    mapped: SocketAddr,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let reply = match timeout(IDLE, read_message(&mut stream)).await?? {
            Message::Ask { token, .. } => Message::Answer { token, source: Source::Same, mapped },
            Message::ConnectBack { token, from, timeout_ms } => {
                let from = endpoints.at(place.then(from));
                let outcome =
                    connect_back(from, mapped, Duration::from_millis(timeout_ms.into()), token).await;
                Message::ConnectedBack { token, outcome, mapped }
            }
            _ => return Ok(()),
        };
        stream.write_all(&reply.encode()).await?;
    }
}

/// Connects from one of the reflector's own listening endpoints, as a peer would that the client has not spoken to.
async fn connect_back(from: SocketAddr, to: SocketAddr, within: Duration, token: u64) -> Outcome {
    // Without lingering the connection ends by RST: no TIME_WAIT here that would block this pair of endpoints.
    let Ok(socket) =
        bound(from).and_then(|s| s.set_zero_linger().map(|()| s).map_err(failed("set linger on", from)))
    else {
        return Outcome::Untried;
    };
    let mut stream = match timeout(within, socket.connect(to)).await {
        Err(_) => return Outcome::Dropped,
        Ok(Err(error)) => return outcome_of(&error),
        Ok(Ok(stream)) => stream,
    };
    let hello = Message::Hello { token };
    let greeting = async {
        stream.write_all(&hello.encode()).await?;
        read_message(&mut stream).await
    };
    match timeout(GREETING_WITHIN, greeting).await {
        Ok(Ok(echo)) if echo == hello => Outcome::Accepted,
        _ => Outcome::Intercepted,
    }
}

fn outcome_of(error: &io::Error) -> Outcome {
    match error.kind() {
        ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable => Outcome::Untried,
        ErrorKind::TimedOut => Outcome::Dropped,
        // RST, or one of the many ICMP errors.
        _ => Outcome::Refused,
    }
}
