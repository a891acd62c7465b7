//! QUIC (quinn) over any [`DatagramSocket`]: the kernel's, or a virtual one beneath which somebody else chooses paths.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, ClientConfig, EndpointConfig, ServerConfig, TokioRuntime, TransportConfig, UdpPoller,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::pki_types::CertificateDer;
use traversal_proto::wire::{Identity, PeerId};

use crate::{
    RecvMeta, Transmit, lasting,
    socket::DatagramSocket,
    tls::{self, PeerKeyError},
};

/// How an endpoint is set up.
#[derive(Clone, Debug, Default)]
pub struct EndpointOptions {
    /// Seeds what QUIC draws for itself, so that the same input gives the same packets (for simulations). `None`: the
    /// operating system's randomness. Keys are always the operating system's.
    pub rng_seed: Option<[u8; 32]>,
    /// The largest datagram to be received, in bytes; `None`: 1472, an Ethernet frame's.
    pub max_udp_payload: Option<u16>,
    /// Connections of an earlier endpoint with this identity and name are ended at once when something comes on them. `None`:
    /// they are ignored, and time out. No two endpoints at a time may have both in common: one would tell how to end the
    /// other's connections.
    pub lasting: Option<(Identity, String)>,
}

/// A configuration that QUIC cannot work with.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The socket or the runtime is of no use.
    #[error("cannot start QUIC on this socket")]
    Io(#[from] io::Error),
    /// The TLS provider lacks something.
    #[error("cannot set up TLS for QUIC")]
    Tls(#[from] rustls::Error),
    /// The TLS provider lacks the cipher suite of QUIC's first packets.
    #[error("the TLS provider lacks the cipher suite that QUIC begins with")]
    Cipher(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
    /// [`EndpointOptions::max_udp_payload`] is out of range.
    #[error("a datagram size of {0} bytes is out of range: 1200 to 65527")]
    PayloadSize(u16),
}

/// The only version that is spoken (RFC 9000 §15).
const VERSION: u32 = 1;

/// An endpoint on `socket`, in the running tokio runtime. With `server` it accepts connections. The QUIC bit is never
/// greased: other protocols share the socket (RFC 9443).
pub fn endpoint(
    socket: Arc<dyn DatagramSocket>,
    server: Option<ServerConfig>,
    options: &EndpointOptions,
) -> Result<quinn::Endpoint, QuicError> {
    let mut config = EndpointConfig::default();
    config.grease_quic_bit(false).supported_versions(vec![VERSION]).rng_seed(options.rng_seed);
    if let Some((identity, name)) = &options.lasting {
        lasting::last(&mut config, identity, name)?;
    }
    if let Some(size) = options.max_udp_payload {
        config.max_udp_payload_size(size).map_err(|_| QuicError::PayloadSize(size))?;
    }
    let socket = Arc::new(Adapter(socket));
    Ok(quinn::Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(TokioRuntime))?)
}

/// A server that is `identity`; see [`tls::server`].
pub fn server(
    identity: &Identity,
    alpn: &[&[u8]],
    transport: Arc<TransportConfig>,
) -> Result<ServerConfig, QuicError> {
    let tls = QuicServerConfig::try_from(tls::server(identity, alpn)?)?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(transport);
    Ok(config)
}

/// A client that is `identity` and, with `expected`, talks to that peer only; see [`tls::client`]. Connect to
/// [`tls::SERVER_NAME`].
pub fn client(
    identity: &Identity,
    expected: Option<PeerId>,
    alpn: &[&[u8]],
    transport: Arc<TransportConfig>,
) -> Result<ClientConfig, QuicError> {
    let tls = QuicClientConfig::try_from(tls::client(identity, expected, alpn)?)?;
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(transport);
    Ok(config)
}

/// Whose key the other end of an established connection holds.
pub fn peer_id(connection: &quinn::Connection) -> Result<PeerId, PeerKeyError> {
    let shown =
        connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    tls::peer_id(shown.as_ref().map(|certificates| certificates.as_slice()))
}

/// A [`DatagramSocket`] as quinn knows sockets.
#[derive(Debug)]
struct Adapter(Arc<dyn DatagramSocket>);

impl AsyncUdpSocket for Adapter {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller(Arc::clone(&self.0)))
    }

    /// A datagram that cannot be sent is lost: one bad route must not end a connection.
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match self.0.try_send(transmit) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_recv(cx, buffers, metas)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.0.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.0.may_fragment()
    }
}

#[derive(Debug)]
struct Poller(Arc<dyn DatagramSocket>);

impl UdpPoller for Poller {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_writable(cx)
    }
}
