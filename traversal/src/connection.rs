//! A connection to a peer.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use quinn::{RecvStream, SendStream, VarInt};
use tokio::sync::{broadcast, watch};
use traversal_proto::{path::NatProfile, peer::PeerKey, wire::PeerId};

use crate::{CloseReason, DatagramError, NotDirect, Path, PathEvent, PathKind, node::Life, routes::Routes};

/// Events that wait for a slow reader; older ones are counted as [`PathEvent::Missed`].
const MAX_EVENTS: usize = 64;

/// An encrypted connection to a peer, whatever path its packets take. Clones are the same connection; it is closed when
/// the last one is dropped.
#[derive(Clone)]
pub struct Connection(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) quic: quinn::Connection,
    pub(crate) peer: PeerId,
    pub(crate) key: PeerKey,
    pub(crate) routes: Arc<Routes>,
    pub(crate) paths: Arc<Paths>,
    /// The peers' own stream has been taken out of the way of the application's.
    pub(crate) control_taken: watch::Receiver<bool>,
    pub(crate) _life: Arc<Life>,
}

/// What the driver tells about a connection's paths.
pub(crate) struct Paths {
    pub(crate) state: watch::Sender<PathState>,
    pub(crate) events: broadcast::Sender<PathEvent>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PathState {
    pub(crate) path: Path,
    pub(crate) ours: NatProfile,
    pub(crate) theirs: Option<NatProfile>,
    pub(crate) same_nat: bool,
}

impl Default for Paths {
    fn default() -> Paths {
        let state =
            PathState { path: Path::NONE, ours: NatProfile::default(), theirs: None, same_nat: false };
        Paths { state: watch::Sender::new(state), events: broadcast::Sender::new(MAX_EVENTS) }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close(0, b"dropped");
    }
}

impl Inner {
    /// What QUIC says then is said again, until the peer knows.
    fn close(&self, code: u32, reason: &[u8]) {
        if self.quic.close_reason().is_none() {
            self.routes.last_words().begin(self.key);
        }
        self.quic.close(VarInt::from_u32(code), reason);
    }
}

impl Connection {
    /// Who is at the other end: proved by its key.
    pub fn peer_id(&self) -> PeerId {
        self.0.peer
    }

    // ---- Data ----

    /// Opens a stream in both directions. The peer learns of it with the first bytes.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn open_bi(&self) -> Result<(SendStream, RecvStream), CloseReason> {
        Ok(self.0.quic.open_bi().await?)
    }

    /// Waits for a stream in both directions that the peer has opened.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn accept_bi(&self) -> Result<(SendStream, RecvStream), CloseReason> {
        let mut taken = self.0.control_taken.clone();
        tokio::select! {
            biased;
            () = async { drop(taken.wait_for(|taken| *taken).await) } => {}
            reason = self.0.quic.closed() => return Err(reason.into()),
        }
        Ok(self.0.quic.accept_bi().await?)
    }

    /// Opens a stream from here to the peer.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn open_uni(&self) -> Result<SendStream, CloseReason> {
        Ok(self.0.quic.open_uni().await?)
    }

    /// Waits for a stream from the peer to here.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn accept_uni(&self) -> Result<RecvStream, CloseReason> {
        Ok(self.0.quic.accept_uni().await?)
    }

    /// Sends a datagram: encrypted, not repeated when lost, and dropped, the oldest first, when more are sent than the path
    /// takes.
    ///
    /// # Errors
    /// It is longer than [`max_datagram_size`](Self::max_datagram_size), or the connection is closed.
    pub fn send_datagram(&self, datagram: impl Into<Bytes>) -> Result<(), DatagramError> {
        let datagram = datagram.into();
        let len = datagram.len();
        self.0.quic.send_datagram(datagram).map_err(|error| match error {
            quinn::SendDatagramError::ConnectionLost(reason) => DatagramError::Closed(reason.into()),
            _ => DatagramError::TooLong { len, max: self.max_datagram_size() },
        })
    }

    /// How many bytes of datagrams can be sent now without dropping others that wait to be sent.
    pub fn datagram_send_space(&self) -> usize {
        self.0.quic.datagram_send_buffer_space()
    }

    /// Waits for a datagram of the peer's.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn read_datagram(&self) -> Result<Bytes, CloseReason> {
        Ok(self.0.quic.read_datagram().await?)
    }

    /// How many bytes a datagram may have now. Changes with the path, and is never below 1100.
    pub fn max_datagram_size(&self) -> usize {
        self.0.quic.max_datagram_size().unwrap_or(0)
    }

    // ---- Paths ----

    /// The path that packets take now.
    pub fn path(&self) -> Path {
        let path = self.0.paths.state.borrow().path;
        Path { rtt: Some(self.0.quic.rtt()), ..path }
    }

    /// What happens to the paths from now on.
    pub fn path_events(&self) -> PathEvents {
        PathEvents { events: self.0.paths.events.subscribe(), quic: self.0.quic.clone() }
    }

    /// Waits until packets take a direct path.
    ///
    /// # Errors
    /// There is none after `deadline`, or the connection is closed. The error explains the pair of NATs.
    pub async fn wait_direct(&self, deadline: Duration) -> Result<Path, NotDirect> {
        let mut state = self.0.paths.state.subscribe();
        tokio::select! {
            biased;
            path = async {
                let direct = |state: &PathState| state.path.kind == PathKind::Direct;
                state.wait_for(direct).await.ok().map(|state| state.path)
            } => {
                if let Some(path) = path {
                    return Ok(path);
                }
            }
            _ = tokio::time::sleep(deadline) => {}
            _ = self.0.quic.closed() => {}
        }
        let state = self.0.paths.state.borrow().clone();
        let PathState { ours, theirs, same_nat, .. } = state;
        Err(NotDirect { peer: self.0.peer, ours, theirs, same_nat, after: deadline })
    }

    // ---- The end ----

    /// Closes the connection for both sides. What was not acknowledged yet may be lost: finish streams, and wait for the
    /// peer's answer, before. The peer is told several times, within a second: the close itself may be lost, too.
    pub fn close(&self, code: u32, reason: &[u8]) {
        self.0.close(code, reason);
    }

    /// Waits until the connection is over, and tells why.
    pub async fn closed(&self) -> CloseReason {
        self.0.quic.closed().await.into()
    }

    /// Why the connection is over; `None`: it is not.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.0.quic.close_reason().map(CloseReason::from)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.0.peer)
            .field("path", &self.path())
            .finish_non_exhaustive()
    }
}

/// Events of a connection's paths, in order.
#[derive(Debug)]
pub struct PathEvents {
    events: broadcast::Receiver<PathEvent>,
    quic: quinn::Connection,
}

impl PathEvents {
    /// The next event; `None` once the connection is over.
    pub async fn next(&mut self) -> Option<PathEvent> {
        tokio::select! {
            biased;
            event = self.events.recv() => match event {
                Ok(event) => Some(event),
                Err(broadcast::error::RecvError::Lagged(missed)) => Some(PathEvent::Missed(missed)),
                Err(broadcast::error::RecvError::Closed) => None,
            },
            _ = self.quic.closed() => None,
        }
    }
}

const fn is_usable_anywhere<T: Send + Sync + 'static>() {}
const _: () = is_usable_anywhere::<Connection>();
