//! Clients of a supernode, as small as they can be: control by QUIC or TLS, relaying by a UDP socket.

pub(crate) mod capture;
pub(crate) mod pair;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use quinn::TransportConfig;
use supernode::{Config, Supernode};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use traversal_net::{
    framing::{FrameReader, FrameWriter},
    quic::{self, EndpointOptions},
    socket::DatagramSocket,
    tls,
    udp::{Bind, KernelSocket},
};
use traversal_proto::{
    UnixTime,
    wire::{
        ALPN, Identity, PeerId, Record, RelayToken, SignedRecord,
        frame::{self, ChannelId, Frame, SessionId, data_header},
        message::{FromSupernode, Hello, ToSupernode},
    },
};

/// Longer than anything here takes on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) fn identity(n: u8) -> Identity {
    Identity::from_secret(&[n; 32])
}

/// A configuration for loopback, on ports of the system's choice.
pub(crate) fn config(listens: usize) -> Config {
    let mut config = Config::new(identity(1));
    config.listen = (0..listens).map(|_| "127.0.0.1:0".parse().unwrap()).collect();
    config.shards = 2;
    config
}

pub(crate) async fn start(config: Config) -> Supernode {
    Supernode::bind(config).await.unwrap()
}

type Reader = Box<dyn AsyncRead + Unpin + Send>;
type Writer = Box<dyn AsyncWrite + Unpin + Send>;

/// A control connection.
pub(crate) struct Client {
    pub(crate) identity: Identity,
    pub(crate) supernode: PeerId,
    reader: FrameReader<Reader>,
    writer: FrameWriter<Writer>,
    /// Keeps what carries it.
    pub(crate) quic: Option<(quinn::Endpoint, quinn::Connection)>,
}

/// A client's session, as Registered told it.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) token: RelayToken,
}

impl Client {
    /// By QUIC, from a socket of the kernel.
    pub(crate) async fn quic(to: SocketAddr, n: u8) -> Client {
        Client::quic_at("127.0.0.1", to, n).await
    }

    /// By QUIC, from a socket of the kernel with this address of ours.
    pub(crate) async fn quic_at(ip: &str, to: SocketAddr, n: u8) -> Client {
        let socket = KernelSocket::bind(Bind::new(SocketAddr::new(ip.parse().unwrap(), 0))).unwrap();
        Client::quic_from(Arc::new(socket), to, n).await
    }

    /// By QUIC, from any socket.
    pub(crate) async fn quic_from(socket: Arc<dyn DatagramSocket>, to: SocketAddr, n: u8) -> Client {
        let endpoint = quic::endpoint(socket, None, &EndpointOptions::default()).unwrap();
        let transport = Arc::new(TransportConfig::default());
        let expected = Some(self::identity(1).peer_id());
        let config = quic::client(&self::identity(n), expected, &[ALPN], transport).unwrap();
        let connecting = endpoint.connect_with(config, to, tls::SERVER_NAME).unwrap();
        let connection = timeout(SOON, connecting).await.expect("no QUIC handshake").unwrap();
        let (writer, reader) = connection.open_bi().await.unwrap();
        let mut client = Client::over(Box::new(reader), Box::new(writer), n);
        client.quic = Some((endpoint, connection));
        // A stream exists for the other end when something has come on it.
        client.send(&ToSupernode::Ping { nonce: 0 }).await;
        client
    }

    /// By TLS over TCP.
    pub(crate) async fn tcp(to: SocketAddr, n: u8) -> Client {
        Client::tls_over(TcpStream::connect(to).await.unwrap(), n).await
    }

    /// By TLS over any stream.
    pub(crate) async fn tls_over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        n: u8,
    ) -> Client {
        let config = tls::client(&identity(n), Some(identity(1).peer_id()), &[ALPN]).unwrap();
        let connecting = TlsConnector::from(Arc::new(config)).connect(tls::server_name(), stream);
        let stream = timeout(SOON, connecting).await.expect("no TLS handshake").unwrap();
        let (reader, writer) = tokio::io::split(stream);
        Client::over(Box::new(reader), Box::new(writer), n)
    }

    fn over(reader: Reader, writer: Writer, n: u8) -> Client {
        Client {
            identity: identity(n),
            supernode: identity(1).peer_id(),
            reader: FrameReader::new(reader),
            writer: FrameWriter::new(writer),
            quic: None,
        }
    }

    pub(crate) fn id(&self) -> PeerId {
        self.identity.peer_id()
    }

    pub(crate) async fn send(&mut self, message: &ToSupernode) {
        self.send_raw(&message.encode()).await;
    }

    pub(crate) async fn send_raw(&mut self, body: &[u8]) {
        self.writer.push(body).unwrap();
        self.writer.flush().await.unwrap();
    }

    /// Bytes that are in no frame.
    pub(crate) async fn send_plain(&mut self, bytes: &[u8]) {
        self.writer.get_mut().write_all(bytes).await.unwrap();
        self.writer.get_mut().flush().await.unwrap();
    }

    /// The next frame; `None` at the end, however it comes.
    pub(crate) async fn next_raw(&mut self) -> Option<Vec<u8>> {
        let next = timeout(SOON, self.reader.next()).await.expect("nothing comes");
        next.ok().flatten().map(|body| body.to_vec())
    }

    /// The next message but Pong.
    pub(crate) async fn next(&mut self) -> FromSupernode {
        loop {
            let body = self.next_raw().await.expect("the connection has ended");
            match FromSupernode::decode(&body).unwrap() {
                FromSupernode::Pong { .. } => {}
                message => return message,
            }
        }
    }

    /// Until the other end has closed it; the messages that came before.
    pub(crate) async fn until_end(&mut self) -> Vec<FromSupernode> {
        let mut messages = Vec::new();
        while let Some(body) = self.next_raw().await {
            messages.push(FromSupernode::decode(&body).unwrap());
        }
        messages
    }

    pub(crate) async fn hello(&mut self) -> Hello {
        match self.next().await {
            FromSupernode::Hello(hello) => hello,
            other => panic!("no Hello first: {other:?}"),
        }
    }

    pub(crate) async fn register_at(&mut self, now: UnixTime) -> Session {
        let sequence = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64;
        let record =
            Record { peer: self.id(), supernode: self.supernode, sequence, expires: UnixTime(now.0 + 300) };
        let record = SignedRecord::sign(record, &self.identity);
        self.send(&ToSupernode::Register { record, accepting: true, resume: false }).await;
        match self.next().await {
            FromSupernode::Registered { session, token, .. } => Session { id: session, token },
            other => panic!("not registered: {other:?}"),
        }
    }

    /// Takes the Hello, and registers.
    pub(crate) async fn register(&mut self) -> Session {
        let now = self.hello().await.time;
        self.register_at(now).await
    }

    /// Opens a channel to `other` and returns both ends.
    pub(crate) async fn channel_to(&mut self, other: &mut Client) -> (ChannelId, ChannelId) {
        self.send(&ToSupernode::Connect { request: 7, peer: other.id(), hops: 0 }).await;
        let near = match self.next().await {
            FromSupernode::Opened { request: Some(7), channel, peer, .. } if peer == other.id() => channel,
            unexpected => panic!("no channel: {unexpected:?}"),
        };
        match other.next().await {
            FromSupernode::Opened { request: None, channel, peer, .. } if peer == self.id() => {
                (near, channel)
            }
            unexpected => panic!("not told of the channel: {unexpected:?}"),
        }
    }
}

/// Sends until an answer comes: UDP may lose.
pub(crate) async fn ask(socket: &UdpSocket, to: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; 2048];
    let asking = async {
        loop {
            socket.send_to(request, to).await.unwrap();
            if let Ok(received) = timeout(Duration::from_millis(500), socket.recv_from(&mut buffer)).await {
                return received.unwrap().0;
            }
        }
    };
    let length = timeout(SOON, asking).await.expect("no answer");
    buffer.truncate(length);
    buffer
}

/// Binds a socket to a session.
pub(crate) async fn bind(socket: &UdpSocket, to: SocketAddr, session: &Session) {
    let Session { id, token } = session;
    let with = |cookie| {
        let proof = token.bind(*id, 1, &cookie);
        Frame::Bind(frame::Bind { session: *id, sequence: 1, cookie, proof }).to_vec()
    };
    let challenge = ask(socket, to, &with([0; 16])).await;
    let Frame::Challenge { cookie, .. } = Frame::decode(&challenge).unwrap() else {
        panic!("no challenge: {challenge:?}")
    };
    let bound = ask(socket, to, &with(cookie)).await;
    let Frame::Bound { proof, .. } = Frame::decode(&bound).unwrap() else { panic!("not bound: {bound:?}") };
    assert_eq!(proof, token.bound(*id, 1, &cookie));
}

pub(crate) fn data(channel: ChannelId, payload: &[u8]) -> Vec<u8> {
    [&data_header(channel)[..], payload].concat()
}

/// Waits until `done` says so.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("never happened: {what}"));
}

/// What the shell has counted under this name.
pub(crate) fn shell(status: &supernode::Status, name: &str) -> u64 {
    status.shell().named().find(|(other, ..)| *other == name).unwrap().2
}

pub(crate) async fn udp() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").await.unwrap()
}

/// A TCP connection from this address of ours.
pub(crate) async fn tcp_from(ip: &str, to: SocketAddr) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(ip.parse().unwrap(), 0)).unwrap();
    socket.connect(to).await.unwrap()
}

/// The answer to a GET, headers and all.
pub(crate) async fn http(to: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(SOON, stream.read_to_string(&mut answer)).await.expect("no answer").unwrap();
    answer
}
