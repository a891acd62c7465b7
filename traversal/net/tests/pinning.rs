//! Both ends of QUIC and of TLS over TCP know whose key the other holds, and a client refuses a stranger.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quinn::TransportConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use traversal_net::{
    memory::MemoryNet,
    quic::{self, EndpointOptions},
    tls::{self, WrongPeer},
};
use traversal_proto::wire::{ALPN, Identity, PeerId};

fn identity(n: u8) -> Identity {
    Identity::from_secret(&[n; 32])
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 4000))
}

/// A QUIC server that is identity 1 and sends each client's id back, and an endpoint for clients.
fn quic_pair(network: &MemoryNet) -> (quinn::Endpoint, quinn::Endpoint) {
    let server = quic::server(&identity(1), &[ALPN], Arc::new(TransportConfig::default())).unwrap();
    let options = |seed| EndpointOptions { rng_seed: Some([seed; 32]), ..EndpointOptions::default() };
    let listener = quic::endpoint(Arc::new(network.socket(address(1))), Some(server), &options(1)).unwrap();
    let accepting = listener.clone();
    tokio::spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            let Ok(connection) = incoming.await else { continue };
            let mut stream = connection.open_uni().await.unwrap();
            stream.write_all(quic::peer_id(&connection).unwrap().as_bytes()).await.unwrap();
            stream.finish().unwrap();
            connection.closed().await;
        }
    });
    (listener, quic::endpoint(Arc::new(network.socket(address(2))), None, &options(2)).unwrap())
}

async fn quic_connect(
    endpoint: &quinn::Endpoint,
    expected: Option<PeerId>,
) -> Result<quinn::Connection, quinn::ConnectionError> {
    let transport = Arc::new(TransportConfig::default());
    let config = quic::client(&identity(2), expected, &[ALPN], transport).unwrap();
    endpoint.connect_with(config, address(1), tls::SERVER_NAME).unwrap().await
}

#[tokio::test(start_paused = true)]
async fn quic_knows_both_ends() {
    let network = MemoryNet::new(Duration::from_millis(20));
    let (_listener, endpoint) = quic_pair(&network);
    for expected in [None, Some(identity(1).peer_id())] {
        let connection = quic_connect(&endpoint, expected).await.unwrap();
        assert_eq!(quic::peer_id(&connection), Ok(identity(1).peer_id()));
        let seen = connection.accept_uni().await.unwrap().read_to_end(64).await.unwrap();
        assert_eq!(seen, identity(2).peer_id().as_bytes());
    }
}

#[tokio::test(start_paused = true)]
async fn quic_refuses_a_stranger() {
    let network = MemoryNet::new(Duration::from_millis(20));
    let (_listener, endpoint) = quic_pair(&network);
    let expected = identity(9).peer_id();
    let error = quic_connect(&endpoint, Some(expected)).await.unwrap_err();
    assert_eq!(
        tls::wrong_peer(&error),
        Some(WrongPeer { expected, found: identity(1).peer_id() }),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn another_protocol_is_refused() {
    let network = MemoryNet::new(Duration::ZERO);
    let (_listener, endpoint) = quic_pair(&network);
    let transport = Arc::new(TransportConfig::default());
    let config = quic::client(&identity(2), None, &[b"h3"], transport).unwrap();
    let error = endpoint.connect_with(config, address(1), tls::SERVER_NAME).unwrap().await.unwrap_err();
    assert_eq!(tls::wrong_peer(&error), None);
}

/// A TLS server on loopback that is identity 1 and sends one client's id back.
async fn tcp_server() -> SocketAddr {
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls::server(&identity(1), &[ALPN]).unwrap()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let Ok(mut stream) = acceptor.accept(stream).await else { return };
        let peer = tls::peer_id(stream.get_ref().1.peer_certificates()).unwrap();
        stream.write_all(peer.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    address
}

async fn tcp_connect(expected: Option<PeerId>) -> std::io::Result<([u8; 32], PeerId)> {
    let config = tls::client(&identity(2), expected, &[ALPN]).unwrap();
    let stream = tokio::net::TcpStream::connect(tcp_server().await).await?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(tls::server_name(), stream).await?;
    let mut seen = [0; 32];
    stream.read_exact(&mut seen).await?;
    Ok((seen, tls::peer_id(stream.get_ref().1.peer_certificates()).unwrap()))
}

#[tokio::test]
async fn tcp_knows_both_ends() {
    let expected = identity(1).peer_id();
    let (seen, server) = tcp_connect(Some(expected)).await.unwrap();
    assert_eq!((&seen, server), (identity(2).peer_id().as_bytes(), expected));
}

#[tokio::test]
async fn tcp_refuses_a_stranger() {
    let expected = identity(9).peer_id();
    let error = tcp_connect(Some(expected)).await.unwrap_err();
    assert_eq!(
        tls::wrong_peer(&error),
        Some(WrongPeer { expected, found: identity(1).peer_id() }),
        "{error}"
    );
}

/// A client that shows no key is nobody.
#[tokio::test]
async fn a_client_without_a_key_is_refused() {
    let mut config = tls::client(&identity(2), None, &[ALPN]).unwrap();
    struct NoKey;
    impl std::fmt::Debug for NoKey {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("NoKey")
        }
    }
    impl rustls::client::ResolvesClientCert for NoKey {
        fn resolve(
            &self,
            _hints: &[&[u8]],
            _schemes: &[rustls::SignatureScheme],
        ) -> Option<Arc<rustls::sign::CertifiedKey>> {
            None
        }
        fn only_raw_public_keys(&self) -> bool {
            true
        }
        fn has_certs(&self) -> bool {
            false
        }
    }
    config.client_auth_cert_resolver = Arc::new(NoKey);
    let stream = tokio::net::TcpStream::connect(tcp_server().await).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    // In TLS 1.3 the client is done before the server has looked at its key: the refusal comes with the first read.
    let outcome = match connector.connect(tls::server_name(), stream).await {
        Ok(mut stream) => stream.read_exact(&mut [0; 32]).await.map(drop),
        Err(error) => Err(error),
    };
    assert!(outcome.is_err());
}
