//! How control connections come into being: QUIC and TLS handshakes, each within its time and all within the gate.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quinn::{Endpoint, Incoming, TransportConfig, VarInt};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use traversal_net::{
    quic::{self, QuicError},
    tls,
};
use traversal_proto::{
    address::canonical,
    wire::{ALPN, Identity, message::Code, stream::MAX_FRAME},
};

use crate::{
    config::{HANDSHAKE, IDLE},
    connection::{Registered, linger},
    core::Shared,
    counters::add,
    gate::{Gate, Pass},
    ledger::{Account, Ledger},
    tasks::Tasks,
};

/// After an accept that failed (no file descriptors): how long until the next.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);
/// Initial packets that wait to be looked at, and the bytes that each may bring along.
const WAITING: usize = 1024;
const WAITING_BYTES: u64 = 16 << 10;
/// How long the peer may take to confirm the last bytes of a connection that was closed.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// QUIC for control connections: one stream, opened by the peer, with windows of a few frames.
pub(crate) fn quic_server(identity: &Identity) -> Result<quinn::ServerConfig, QuicError> {
    let mut transport = TransportConfig::default();
    let window = VarInt::from_u32(16 * MAX_FRAME as u32);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(window)
        .receive_window(window)
        .send_window(window.into_inner())
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(IDLE.try_into().ok())
        // Messages are small and rare: not worth the probes of every connection.
        .mtu_discovery_config(None);
    let mut config = quic::server(identity, &[ALPN], Arc::new(transport))?;
    config
        .max_incoming(WAITING)
        .incoming_buffer_size(WAITING_BYTES)
        .incoming_buffer_size_total(WAITING as u64 * WAITING_BYTES);
    Ok(config)
}

/// Takes QUIC connections, for ever.
pub(crate) async fn quic(
    shared: Arc<Shared>,
    tasks: Arc<Tasks>,
    gate: Gate,
    ledger: Ledger,
    endpoint: Endpoint,
) {
    while let Some(incoming) = endpoint.accept().await {
        let proven = incoming.remote_address_validated();
        let remote = canonical(incoming.remote_address());
        if let Some(pass) = gate.enter(remote.ip(), proven) {
            if !proven && !shared.may_answer(remote) {
                add(&shared.counters.handshakes_ignored, 1);
                incoming.ignore();
                continue;
            }
            let account = ledger.open(remote, proven);
            tasks.spawn_connection(quic_connection(Arc::clone(&shared), incoming, remote, pass, account));
        } else if incoming.may_retry() {
            add(&shared.counters.handshakes_retried, 1);
            let _ = incoming.retry();
        } else {
            add(&shared.counters.handshakes_refused, 1);
            incoming.refuse();
        }
    }
}

async fn quic_connection(
    shared: Arc<Shared>,
    incoming: Incoming,
    remote: SocketAddr,
    pass: Pass,
    mut account: Account,
) {
    add(&shared.counters.handshakes, 1);
    let connection = match timeout(HANDSHAKE, async { incoming.await }).await {
        Ok(Ok(connection)) => connection,
        failed => {
            if let Ok(Err(error)) = failed {
                tracing::debug!(%remote, %error, "a QUIC handshake failed");
            }
            drop(pass);
            add(&shared.counters.handshakes_failed, 1);
            // What QUIC says to that counts as well.
            return tokio::time::sleep(LAST_BYTES).await;
        }
    };
    account.prove();
    drop(pass);
    let Ok(peer) = quic::peer_id(&connection) else {
        return add(&shared.counters.handshakes_failed, 1);
    };
    let registered = Registered::new(&shared, peer, remote);
    // The stream exists for us when its first bytes come; the engine gives them their time.
    let stream = tokio::select! {
        stream = connection.accept_bi() => stream.map_err(|_| Code::PeerGone),
        // Who is sent away at once is told so on the stream, and where to go instead.
        code = registered.ended() => match timeout(LAST_BYTES, connection.accept_bi()).await {
            Ok(Ok(stream)) => Ok(stream),
            _ => Err(code),
        },
    };
    let code = match stream {
        Ok((mut writer, mut reader)) => {
            let code = registered.run(&mut reader, &mut writer).await;
            let _ = timeout(LAST_BYTES, writer.stopped()).await;
            code
        }
        Err(code) => code,
    };
    connection.close(u32::from(u16::from(code)).into(), code.to_string().as_bytes());
}

/// Takes TCP connections, for ever.
pub(crate) async fn tcp(
    shared: Arc<Shared>,
    tasks: Arc<Tasks>,
    gate: Gate,
    listener: TcpListener,
    acceptor: TlsAcceptor,
) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                let _ = stream.set_nodelay(true);
                let remote = canonical(remote);
                tcp_stream(&shared, &tasks, &gate, stream, remote, &acceptor);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept TCP connections");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Serves TLS on any byte stream from `remote`.
pub(crate) fn tcp_stream<S>(
    shared: &Arc<Shared>,
    tasks: &Tasks,
    gate: &Gate,
    stream: S,
    remote: SocketAddr,
    acceptor: &TlsAcceptor,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(pass) = gate.enter(remote.ip(), true) else {
        return add(&shared.counters.handshakes_refused, 1);
    };
    tasks.spawn_connection(tls_connection(Arc::clone(shared), stream, remote, acceptor.clone(), pass));
}

async fn tls_connection<S>(
    shared: Arc<Shared>,
    stream: S,
    remote: SocketAddr,
    acceptor: TlsAcceptor,
    pass: Pass,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    add(&shared.counters.handshakes, 1);
    let stream = match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%remote, %error, "a TLS handshake failed");
            return add(&shared.counters.handshakes_failed, 1);
        }
        Err(_) => return add(&shared.counters.handshakes_failed, 1),
    };
    drop(pass);
    let session = stream.get_ref().1;
    let speaks = session.alpn_protocol() == Some(ALPN);
    let Some(peer) = tls::peer_id(session.peer_certificates()).ok().filter(|_| speaks) else {
        return add(&shared.counters.handshakes_failed, 1);
    };
    let registered = Registered::new(&shared, peer, remote);
    let (mut reader, mut writer) = tokio::io::split(stream);
    registered.run(&mut reader, &mut writer).await;
    drop(registered);
    linger(&mut reader, LAST_BYTES).await;
}
