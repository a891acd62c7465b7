//! Peers of a supernode that do nothing but register, bind an address, and open channels: many of them over one socket.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use quinn::{IdleTimeout, RecvStream, SendStream, TransportConfig, VarInt};
use traversal::{Identity, PeerId};
use traversal_net::{
    framing::{FrameReader, FrameWriter},
    quic::{self, EndpointOptions},
    tls,
    udp::{Bind, KernelSocket},
};
use traversal_proto::wire::{
    ALPN, Record, RelayToken, SignedRecord,
    frame::{self, ChannelId, Frame, SessionId},
    message::{FromSupernode, ToSupernode},
};

use crate::turn::AGAIN;

/// Whatever has not been answered by then is not answered.
const PATIENCE: Duration = Duration::from_secs(10);
/// Handshakes at a time: below what a supernode takes from one network (64 that have proved nothing).
const AT_A_TIME: usize = 32;
/// A registration's lifetime, in seconds: longer than any measurement.
const LIFETIME: u64 = 600;

/// Opens control connections to one supernode, all from one socket.
pub(crate) struct Lobby {
    endpoint: quinn::Endpoint,
    supernode: SocketAddr,
    transport: Arc<TransportConfig>,
}

/// A control connection.
pub(crate) struct Control {
    identity: Identity,
    supernode: PeerId,
    reader: FrameReader<RecvStream>,
    writer: FrameWriter<SendStream>,
    _connection: quinn::Connection,
}

/// What a registration is given for its Binds.
pub(crate) struct Session {
    id: SessionId,
    token: RelayToken,
}

impl Lobby {
    pub(crate) fn new(supernode: SocketAddr) -> Result<Lobby> {
        let socket = KernelSocket::bind(Bind::new("0.0.0.0:0".parse()?))?;
        let endpoint = quic::endpoint(Arc::new(socket), None, &EndpointOptions::default())?;
        let mut transport = TransportConfig::default();
        let idle = IdleTimeout::from(VarInt::from_u32(60_000));
        transport.max_idle_timeout(Some(idle)).keep_alive_interval(Some(Duration::from_secs(20)));
        Ok(Lobby { endpoint, supernode, transport: Arc::new(transport) })
    }

    /// So many peers that are connected and have said nothing.
    pub(crate) async fn connect(&self, count: usize) -> Result<Vec<Control>> {
        let connecting = stream::iter(0..count).map(|number| self.connect_one(number as u64 + 1));
        connecting.buffered(AT_A_TIME).try_collect().await
    }

    /// Takes leave of the supernode, so that it forgets all of them at once.
    pub(crate) async fn close(self) {
        self.endpoint.close(VarInt::from_u32(0), b"done");
        self.endpoint.wait_idle().await;
    }

    async fn connect_one(&self, number: u64) -> Result<Control> {
        let mut secret = [0x5a; 32];
        secret[..8].copy_from_slice(&number.to_be_bytes());
        secret[8..12].copy_from_slice(&std::process::id().to_be_bytes());
        let identity = Identity::from_secret(&secret);
        let config = quic::client(&identity, None, &[ALPN], Arc::clone(&self.transport))?;
        let connecting = self.endpoint.connect_with(config, self.supernode, tls::SERVER_NAME)?;
        let connection = connecting.await.context("no control connection")?;
        let supernode = quic::peer_id(&connection)?;
        let (send, receive) = connection.open_bi().await?;
        let (reader, writer) = (FrameReader::new(receive), FrameWriter::new(send));
        let mut control = Control { identity, supernode, reader, writer, _connection: connection };
        // The stream exists for the other end when something has come on it.
        control.send(&ToSupernode::Ping { nonce: 0 }).await?;
        match control.next().await? {
            FromSupernode::Hello(_) => Ok(control),
            other => bail!("no Hello but {other:?}"),
        }
    }
}

impl Control {
    pub(crate) async fn register(&mut self) -> Result<Session> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
        let expires = traversal_proto::UnixTime(now.as_secs() + LIFETIME);
        let peer = self.identity.peer_id();
        let record = Record { peer, supernode: self.supernode, sequence: now.as_millis() as u64, expires };
        let record = SignedRecord::sign(record, &self.identity);
        self.send(&ToSupernode::Register { record, accepting: true, resume: false }).await?;
        match self.next().await? {
            FromSupernode::Registered { session, token, .. } => Ok(Session { id: session, token }),
            other => bail!("not registered: {other:?}"),
        }
    }

    /// Opens a channel; returns this end and the other.
    pub(crate) async fn channel_to(&mut self, other: &mut Control) -> Result<(ChannelId, ChannelId)> {
        self.send(&ToSupernode::Connect { request: 7, peer: other.identity.peer_id(), hops: 0 }).await?;
        Ok((self.opened(other.identity.peer_id()).await?, other.opened(self.identity.peer_id()).await?))
    }

    async fn opened(&mut self, wanted: PeerId) -> Result<ChannelId> {
        loop {
            match self.next().await? {
                FromSupernode::Opened { peer, channel, .. } if peer == wanted => return Ok(channel),
                FromSupernode::Refused { code, .. } => bail!("no channel: {code}"),
                _ => {}
            }
        }
    }

    async fn send(&mut self, message: &ToSupernode) -> Result<()> {
        self.writer.push(&message.encode())?;
        Ok(self.writer.flush().await?)
    }

    /// The next message but Pong.
    async fn next(&mut self) -> Result<FromSupernode> {
        loop {
            let body = tokio::time::timeout(PATIENCE, self.reader.next()).await.context("no answer")??;
            match FromSupernode::decode(body.context("the supernode has closed the connection")?)? {
                FromSupernode::Pong { .. } => {}
                message => return Ok(message),
            }
        }
    }
}

/// Binds a session to `socket`, which is connected to the supernode. Blocks.
pub(crate) fn bind(socket: &UdpSocket, session: &Session) -> Result<()> {
    let challenge = ask(socket, session, [0; 16])?;
    let Ok(Frame::Challenge { cookie, .. }) = Frame::decode(&challenge) else {
        bail!("no Challenge but {challenge:?}")
    };
    match Frame::decode(&ask(socket, session, cookie)?) {
        Ok(Frame::Bound { .. }) => Ok(()),
        other => bail!("not bound: {other:?}"),
    }
}

/// Sends a Bind until an answer to it comes.
fn ask(socket: &UdpSocket, session: &Session, cookie: frame::Cookie) -> Result<Vec<u8>> {
    let proof = session.token.bind(session.id, 1, &cookie);
    let request = Frame::Bind(frame::Bind { session: session.id, sequence: 1, cookie, proof }).to_vec();
    socket.set_read_timeout(Some(AGAIN))?;
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 2048];
    while Instant::now() < deadline {
        socket.send(&request)?;
        match socket.recv(&mut buffer) {
            // Both answers name the session in the same place; what is left of the one before does not.
            Ok(length) if length >= 5 && buffer[1..5] == session.id.0.to_be_bytes() => {
                let is_bound = length == frame::BOUND_LEN;
                if is_bound == (cookie != [0; 16]) {
                    return Ok(buffer[..length].to_vec());
                }
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error).context("no answer to a Bind"),
        }
    }
    bail!("no answer to a Bind within {PATIENCE:?}")
}
