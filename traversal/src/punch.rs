//! Punching for somebody else: a direct path from a socket of its own, and then the socket is theirs.
//!
//! The two nodes make one more QUIC connection, for this socket only, and tell each other the socket's candidates in it.
//! An agent of its own looks for the path. Who has found one finishes its stream; when both have, both let go of their
//! sockets.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use quinn::VarInt;
use traversal_net::{
    framing::{FrameReader, FrameWriter},
    socket::DatagramSocket,
    udp::RecvBatch,
};
use traversal_proto::{
    SocketId, Time,
    path::NatProfile,
    peer::{Agent, Config, Event, Hop, Interface, PeerKey, Policy, Role},
    wire::{
        PeerId,
        peer::{PUNCH_CHECK_LABEL, PUNCH_SECRET_LABEL, PeerMessage},
        stun::CheckKey,
    },
};

use crate::{ConnectError, NotDirect};

/// How long the one that was asked looks for a path.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The codes that a punch's connection is closed with: both have their socket; there is no path; there are too many punches.
const DONE: u32 = 0;
const NO_PATH: u32 = 1;
pub(crate) const TOO_MANY: u32 = 2;

const PEER: PeerKey = PeerKey(1);
const SOCKET: SocketId = SocketId(0);

/// A UDP socket with a hole to a peer. The node never touches it again; whoever has it keeps the hole open (a packet every
/// 15 seconds does) and encrypts what goes through it: nothing here does. A few late STUN messages (first byte 0 to 3) may
/// still arrive.
#[derive(Debug)]
pub struct Punched {
    peer: PeerId,
    remote: SocketAddr,
    rtt: Option<Duration>,
    secret: [u8; 32],
    pub(crate) socket: Arc<dyn DatagramSocket>,
    pub(crate) plain: Option<std::net::UdpSocket>,
}

impl Punched {
    /// Who is at the other end.
    pub fn peer_id(&self) -> PeerId {
        self.peer
    }

    /// Where the peer is reached from this socket.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// The path's round-trip time, if it was measured.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// 32 bytes that only the two peers know: for a pre-shared key.
    pub fn secret(&self) -> [u8; 32] {
        self.secret
    }

    /// The socket as the operating system knows it, non-blocking, and the peer's address in the form that it takes: an IPv6
    /// socket wants IPv4 addresses mapped.
    ///
    /// # Errors
    /// The node runs on a simulated network.
    pub fn into_std(self) -> io::Result<(std::net::UdpSocket, SocketAddr)> {
        let socket = self.plain.ok_or(io::ErrorKind::Unsupported)?;
        let remote = match self.remote {
            SocketAddr::V4(v4) if socket.local_addr()?.is_ipv6() => {
                SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
            }
            remote => remote,
        };
        Ok((socket, remote))
    }

    /// The socket behind the seam that simulations use.
    #[doc(hidden)]
    pub fn datagram_socket(&self) -> Arc<dyn DatagramSocket> {
        Arc::clone(&self.socket)
    }
}

/// What a socket is punched with.
pub(crate) struct Punch {
    pub(crate) peer: PeerId,
    pub(crate) role: Role,
    pub(crate) socket: Arc<dyn DatagramSocket>,
    pub(crate) plain: Option<std::net::UdpSocket>,
    pub(crate) config: Config,
    pub(crate) seed: [u8; 32],
    pub(crate) reflectors: Vec<SocketAddr>,
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) within: Duration,
}

/// The search for one socket's path.
struct Search {
    agent: Agent,
    socket: Arc<dyn DatagramSocket>,
    batch: RecvBatch,
    started: tokio::time::Instant,
    said: Vec<PeerMessage>,
    found: Option<(SocketAddr, Option<Duration>)>,
    theirs: Option<NatProfile>,
}

impl Punch {
    /// Looks for the path, and lets go of the socket when both sides have one.
    pub(crate) async fn run(self, connection: quinn::Connection) -> Result<Punched, ConnectError> {
        let (peer, plain, within) = (self.peer, self.plain, self.within);
        let mut check = [0; 32];
        let mut secret = [0; 32];
        let not_direct = |ours, theirs| {
            ConnectError::NotDirect(NotDirect { peer, ours, theirs, same_nat: false, after: within })
        };
        // Only fails for absurd lengths.
        let exported = connection
            .export_keying_material(&mut check, PUNCH_CHECK_LABEL, b"")
            .and_then(|()| connection.export_keying_material(&mut secret, PUNCH_SECRET_LABEL, b""));
        if exported.is_err() {
            return Err(not_direct(NatProfile::default(), None));
        }
        let mut agent =
            Agent::new(Config { discover: false, extra_sockets: 0, ..self.config }, self.seed, Time::ZERO);
        let local = self.socket.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
        agent.handle_socket_opened(SOCKET, local, None, Time::ZERO);
        agent.handle_local_addresses(&self.interfaces, Time::ZERO);
        agent.handle_reflectors(&self.reflectors, Time::ZERO);
        agent.handle_peer(PEER, self.role, CheckKey::new(&check), Policy::PreferDirect, Time::ZERO);
        agent.handle_relay(PEER, true, Some(connection.rtt()), Time::ZERO);
        let mut search = Search {
            agent,
            batch: RecvBatch::new(&*self.socket, 4, 2048),
            socket: Arc::clone(&self.socket),
            started: tokio::time::Instant::now(),
            said: Vec::new(),
            found: None,
            theirs: None,
        };
        let result = tokio::time::timeout(within, search.run(&connection, self.role)).await;
        let refused =
            closed_by_peer(&connection).filter(|close| close.error_code == VarInt::from_u32(TOO_MANY));
        match (result, search.found) {
            (Ok(Some(())), Some((remote, rtt))) => {
                connection.close(VarInt::from_u32(DONE), b"done");
                Ok(Punched { peer, remote, rtt, secret, socket: search.socket, plain })
            }
            _ => {
                connection.close(VarInt::from_u32(NO_PATH), b"no direct path");
                Err(match refused {
                    Some(close) => {
                        let reason = String::from_utf8_lossy(&close.reason).into_owned();
                        ConnectError::TooManyPunches { peer, reason }
                    }
                    None => not_direct(search.agent.profile(), search.theirs),
                })
            }
        }
    }
}

impl Search {
    /// `None`: the connection broke.
    async fn run(&mut self, connection: &quinn::Connection, role: Role) -> Option<()> {
        self.drain();
        let streams = match role {
            Role::Initiator => connection.open_bi().await,
            Role::Acceptor => connection.accept_bi().await,
        };
        let (send, receive) = streams.ok()?;
        let (mut writer, mut reader) = (FrameWriter::new(send), FrameReader::new(receive));
        let (mut we_are_done, mut they_are_done) = (false, false);
        loop {
            self.drain();
            for message in self.said.drain(..).filter(|_| !we_are_done) {
                writer.push(&message.encode()).ok()?;
            }
            writer.flush().await.ok()?;
            if self.found.is_some() && !we_are_done {
                we_are_done = true;
                writer.finish().await.ok()?;
            }
            if we_are_done && they_are_done {
                // The other side learns of our end by the stream's: it must have arrived before the connection ends. Until
                // then it checks, and is answered. If the connection is over, the other side has ended it, knowing.
                let mut told = std::pin::pin!(writer.get_mut().stopped());
                poll_fn(|cx| {
                    while self.poll_socket(cx).is_ready() {
                        self.drain();
                    }
                    told.as_mut().poll(cx).map(drop)
                })
                .await;
                let gave_up = closed_by_peer(connection)
                    .is_some_and(|close| close.error_code != VarInt::from_u32(DONE));
                return (!gave_up).then_some(());
            }
            let due = self.agent.poll_timeout();
            let sleep = due.map(|at| self.started + at.since(Time::ZERO));
            tokio::select! {
                () = poll_fn(|cx| self.poll_socket(cx)) => {}
                frame = reader.next(), if !they_are_done => match frame {
                    Ok(Some(body)) => {
                        let message = PeerMessage::decode(body).ok()?;
                        let now = now(self.started);
                        self.agent.handle_message(PEER, message, now);
                    }
                    Ok(None) => they_are_done = true,
                    Err(_) => return None,
                },
                () = sleep_until(sleep) => {
                    let now = now(self.started);
                    self.agent.handle_timeout(now);
                }
            }
        }
    }

    fn drain(&mut self) {
        while let Some(transmit) = self.agent.poll_transmit() {
            // What cannot be sent is lost, as any datagram may be.
            let _ = self.socket.try_send_for(&transmit);
        }
        while let Some((_, message)) = self.agent.poll_message() {
            self.said.push(message);
        }
        while let Some(request) = self.agent.poll_socket() {
            if let traversal_proto::peer::SocketRequest::Open { request, .. } = request {
                let now = now(self.started);
                self.agent.handle_socket_refused(request, now);
            }
        }
        while let Some(event) = self.agent.poll_event() {
            match event {
                Event::Switched { to: Some(Hop::Direct { to, .. }), rtt, .. } => self.found = Some((to, rtt)),
                Event::GaveUp { theirs, .. } => self.theirs = Some(theirs),
                _ => {}
            }
        }
    }

    /// Ready when something came that may have changed something.
    fn poll_socket(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Poll::Ready(Ok(count)) = self.batch.poll_recv(&*self.socket, cx) else { return Poll::Pending };
        let now = now(self.started);
        for (meta, bytes) in self.batch.trains(count) {
            for datagram in bytes.chunks(meta.stride.max(1)) {
                self.agent.handle_datagram(SOCKET, meta.addr, datagram, now);
            }
        }
        Poll::Ready(())
    }
}

fn closed_by_peer(connection: &quinn::Connection) -> Option<quinn::ApplicationClose> {
    match connection.close_reason()? {
        quinn::ConnectionError::ApplicationClosed(close) => Some(close),
        _ => None,
    }
}

fn now(started: tokio::time::Instant) -> Time {
    Time::from_nanos(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
