//! The control connection to a supernode: QUIC from the node's own socket, or TLS over TCP where that does not get
//! through. One task dials and then moves frames; what they mean is the driver's business.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use quinn::{IdleTimeout, TransportConfig, VarInt};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};
use traversal_net::{
    framing::{FrameReader, FrameWriter},
    quic, tls,
};
use traversal_proto::wire::{ALPN, Identity, PeerId};

use crate::{driver::Command, network::Network};

/// When TCP is tried beside QUIC: long enough that a slow network is not taken for a blocked one.
const TCP_AFTER: Duration = Duration::from_millis(1500);
/// An attempt that has come to nothing by then is over.
const DIAL_WITHIN: Duration = Duration::from_secs(8);
/// A supernode that is not heard of for so long is gone; see [`KEEP_ALIVE`].
const IDLE: u32 = 9_000;
/// Keeps the NAT's mapping, and finds out in time that the supernode is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(4);
/// What a round trip takes before one was measured: the first packet is repeated after three of them, so that a supernode
/// that comes back, or a lost packet, is not waited for long.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Frames that wait to be written.
pub(crate) const MAX_WAITING: usize = 256;
/// Relayed packets leave so much of that to the node's own messages, and are dropped instead: a bulk transfer would keep
/// Pings out, and the supernode would be taken for dead.
pub(crate) const ROOM_FOR_MESSAGES: usize = 32;
/// Bytes that wait for the stream. More are written only after these.
const MAX_PENDING: usize = 64 << 10;

/// What the supernode is reached by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// QUIC.
    Quic,
    /// TLS over TCP.
    Tcp,
}

/// News of a control connection.
#[derive(Debug)]
pub(crate) enum News {
    /// It is tried at this address: QUIC that comes from there is the supernode's.
    Resolved(SocketAddr),
    /// It is up, and the supernode's key is proved. Frames go into `frames`; dropping it ends the connection.
    Up { supernode: PeerId, by: By, address: SocketAddr, frames: mpsc::Sender<Vec<u8>> },
    /// The body of a frame.
    Frame(Vec<u8>),
    /// It is over, or was never up.
    Down(String),
}

/// What it takes to dial.
#[derive(Clone)]
pub(crate) struct Dialer {
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) identity: Identity,
    pub(crate) commands: mpsc::Sender<Command>,
}

/// One attempt: for which supernode, and which of the attempts it is.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) home: usize,
    pub(crate) number: u64,
    pub(crate) address: String,
    pub(crate) expected: Option<PeerId>,
    /// Whether TCP may be tried.
    pub(crate) tcp: bool,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

struct Established {
    stream: Box<dyn Stream>,
    supernode: PeerId,
    by: By,
    address: SocketAddr,
    /// Ends the QUIC connection in order, once the stream is done.
    quic: Option<quinn::Connection>,
}

impl Dialer {
    /// Dials in a task of its own.
    pub(crate) fn spawn(&self, attempt: Attempt) {
        let dialer = self.clone();
        tokio::spawn(async move {
            let reason = dialer.run(&attempt).await;
            dialer.tell(&attempt, News::Down(reason)).await;
        });
    }

    async fn tell(&self, attempt: &Attempt, news: News) -> bool {
        let command = Command::Control { home: attempt.home, attempt: attempt.number, news };
        self.commands.send(command).await.is_ok()
    }

    /// Returns why the connection is over.
    async fn run(&self, attempt: &Attempt) -> String {
        let established = match tokio::time::timeout(DIAL_WITHIN, self.dial(attempt)).await {
            Ok(Ok(established)) => established,
            Ok(Err(reason)) => return reason,
            Err(_) => return format!("{} does not answer", attempt.address),
        };
        let Established { stream, supernode, by, address, quic } = established;
        let (frames, waiting) = mpsc::channel(MAX_WAITING);
        if !self.tell(attempt, News::Up { supernode, by, address, frames }).await {
            return String::new();
        }
        let result = self.carry(attempt, stream, waiting).await;
        if let Some(quic) = quic {
            quic.close(VarInt::from_u32(0), b"done");
        }
        match result {
            Ok(()) => "closed by the supernode".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    async fn dial(&self, attempt: &Attempt) -> Result<Established, String> {
        let address = resolve(&*self.network, &attempt.address).await?;
        if !self.tell(attempt, News::Resolved(address)).await {
            return Err("this node is closed".to_owned());
        }
        let quic = self.by_quic(address, attempt.expected);
        if !attempt.tcp {
            return quic.await;
        }
        let mut quic = std::pin::pin!(quic);
        let refused = tokio::select! {
            biased;
            result = &mut quic => match result {
                Ok(established) => return Ok(established),
                Err(reason) => Some(reason),
            },
            () = tokio::time::sleep(TCP_AFTER) => None,
        };
        let tcp = self.by_tcp(address, attempt.expected);
        let Some(refused) = refused else {
            let mut tcp = std::pin::pin!(tcp);
            return tokio::select! {
                biased;
                result = &mut quic => match result {
                    Ok(established) => Ok(established),
                    Err(by_quic) => tcp.await.map_err(|by_tcp| both(&by_quic, &by_tcp)),
                },
                result = &mut tcp => match result {
                    Ok(established) => Ok(established),
                    Err(by_tcp) => quic.await.map_err(|by_quic| both(&by_quic, &by_tcp)),
                },
            };
        };
        tcp.await.map_err(|by_tcp| both(&refused, &by_tcp))
    }

    async fn by_quic(&self, address: SocketAddr, expected: Option<PeerId>) -> Result<Established, String> {
        let config = quic::client(&self.identity, expected, &[ALPN], Arc::new(transport()))
            .map_err(|error| error.to_string())?;
        let connecting = self
            .endpoint
            .connect_with(config, address, tls::SERVER_NAME)
            .map_err(|error| error.to_string())?;
        let connection = connecting.await.map_err(|error| told(&error))?;
        let supernode = quic::peer_id(&connection).map_err(|error| error.to_string())?;
        let (send, receive) = connection.open_bi().await.map_err(|error| error.to_string())?;
        let mut stream = tokio::io::join(receive, send);
        // The supernode says Hello first, but learns of the stream by its first bytes only: a Ping asks for nothing.
        let mut first = FrameWriter::new(&mut stream);
        let ping = traversal_proto::wire::message::ToSupernode::Ping { nonce: 0 };
        first.push(&ping.encode()).map_err(|error| error.to_string())?;
        first.flush().await.map_err(|error| error.to_string())?;
        let by = By::Quic;
        Ok(Established { stream: Box::new(stream), supernode, by, address, quic: Some(connection) })
    }

    async fn by_tcp(&self, address: SocketAddr, expected: Option<PeerId>) -> Result<Established, String> {
        let config = tls::client(&self.identity, expected, &[ALPN]).map_err(|error| error.to_string())?;
        let tcp = self.network.connect(address).await.map_err(|error| error.to_string())?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect(tls::server_name(), tcp).await.map_err(|error| told(&error))?;
        let shown = stream.get_ref().1.peer_certificates();
        let supernode = tls::peer_id(shown).map_err(|error| error.to_string())?;
        Ok(Established { stream: Box::new(stream), supernode, by: By::Tcp, address, quic: None })
    }

    /// Moves frames until either side has enough.
    async fn carry(
        &self,
        attempt: &Attempt,
        stream: Box<dyn Stream>,
        mut waiting: mpsc::Receiver<Vec<u8>>,
    ) -> io::Result<()> {
        let (read, write) = tokio::io::split(stream);
        let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
        // Once the driver hears no more it still has something to say: the end of its connections.
        let mut is_heard = true;
        loop {
            tokio::select! {
                frame = waiting.recv(), if writer.pending() < MAX_PENDING => {
                    let Some(frame) = frame else { break };
                    // The driver makes no frame that is too long.
                    let _ = writer.push(&frame);
                    while writer.pending() < MAX_PENDING && let Ok(frame) = waiting.try_recv() {
                        let _ = writer.push(&frame);
                    }
                }
                result = writer.flush(), if writer.pending() > 0 => result?,
                frame = reader.next() => match frame.map_err(io::Error::other)? {
                    Some(body) if is_heard => is_heard = self.tell(attempt, News::Frame(body.to_vec())).await,
                    Some(_) => {}
                    None => break,
                },
            }
        }
        writer.finish().await
    }
}

fn transport() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    config
}

/// An address is taken as it is; only a name is looked up.
async fn resolve(network: &dyn Network, address: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = address.parse() {
        return Ok(traversal_proto::address::canonical(address));
    }
    let found = network.resolve(address).await;
    let found = found.map_err(|error| format!("{address} cannot be resolved: {error}"))?;
    let first = found.first().copied().map(traversal_proto::address::canonical);
    first.ok_or_else(|| format!("{address} has no address"))
}

fn told(error: &(dyn std::error::Error + 'static)) -> String {
    match tls::wrong_peer(error) {
        Some(wrong) => format!("another key than expected: {wrong}"),
        None => error.to_string(),
    }
}

fn both(by_quic: &str, by_tcp: &str) -> String {
    format!("by QUIC: {by_quic}; by TLS: {by_tcp}")
}
