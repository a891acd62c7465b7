//! How much goes through a direct path: a connection of traversal's, and plain quinn between the same two hosts.
//!
//! Both have the same keys (raw Ed25519, both ends proved), quinn's own streams, and a runtime of one thread at each end.
//! Plain quinn has its default transport and its own sockets, with buffers of the same size. It finds its way through the
//! NATs because that of the server lets everybody in (full cone): a STUN request from the server's socket opens the mapping,
//! and tells the client where to connect.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::ValueEnum;
use quinn::{EndpointConfig, RecvStream, SendStream, TokioRuntime, TransportConfig};
use tokio::sync::oneshot;
use traversal::{Identity, Node, PathKind, Policy, generate_identity};
use traversal_net::{quic, tls, udp::Bind};

use crate::{
    figure::{Figure, cost, gain, percentile},
    place::{Place, cpu_of_machine},
    turn::mapped_address,
};

const DIRECT_WITHIN: Duration = Duration::from_secs(5);
/// What is written at a time.
const CHUNK: usize = 64 << 10;
/// Round trips of which the median is taken.
const PINGS: usize = 500;
const PING: usize = 64;
const ALPN: &[u8] = b"bench/1";

/// Whose connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Library {
    /// Ours, on its direct path.
    Traversal,
    /// Ours, over the supernode only.
    Relayed,
    /// quinn alone.
    Quinn,
}

/// What is to be measured.
pub(crate) struct Plan {
    pub(crate) library: Library,
    pub(crate) supernode: String,
    pub(crate) client: Place,
    pub(crate) server: Place,
    pub(crate) window: Duration,
    pub(crate) warm_up: Duration,
}

/// What both ends share: they are in one process, so nothing has to be agreed over the wire.
#[derive(Default)]
struct Counters {
    received: AtomicU64,
    stop: AtomicBool,
}

pub(crate) fn run(plan: &Plan) -> Result<Vec<Figure>> {
    let counters = Counters::default();
    let (found, server) = oneshot::channel();
    thread::scope(|scope| {
        let serving = scope.spawn(|| match plan.library {
            Library::Quinn => plan.server.block_on(|| serve_quinn(plan, found, &counters)),
            _ => plan.server.block_on(|| serve_traversal(plan, found, &counters)),
        });
        let measured = match plan.library {
            Library::Quinn => plan.client.block_on(|| call_quinn(plan, server, &counters)),
            _ => plan.client.block_on(|| call_traversal(plan, server, &counters)),
        };
        counters.stop.store(true, Ordering::Relaxed);
        match serving.join() {
            Ok(served) => served.and(measured),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// How a client finds the server.
struct Server {
    id: traversal::PeerId,
    address: Option<SocketAddr>,
}

// ---- traversal ----

async fn serve_traversal(plan: &Plan, found: oneshot::Sender<Server>, counters: &Counters) -> Result<()> {
    let node = Node::builder().supernode(&plan.supernode).start().await?;
    // The client has failed if it is gone, and tells why.
    let _ = found.send(Server { id: node.id(), address: None });
    let accepted = tokio::time::timeout(DIRECT_WITHIN * 2, node.accept()).await;
    let connection = accepted.ok().flatten().context("nobody has called the server")?;
    let (send, receive) = connection.accept_bi().await?;
    pong(send, receive).await?;
    receive_all(connection.accept_uni().await?, counters).await;
    node.close().await;
    Ok(())
}

async fn call_traversal(
    plan: &Plan,
    server: oneshot::Receiver<Server>,
    counters: &Counters,
) -> Result<Vec<Figure>> {
    let server = server.await.context("the server did not start")?;
    let policy = if plan.library == Library::Relayed { Policy::RelayOnly } else { Policy::PreferDirect };
    let node = Node::builder().supernode(&plan.supernode).start().await?;
    let connection = node.connect_with(server.id, policy).await?;
    let wanted = if policy == Policy::RelayOnly { PathKind::Relay } else { PathKind::Direct };
    if wanted == PathKind::Direct {
        connection.wait_direct(DIRECT_WITHIN).await?;
    }
    let (send, receive) = connection.open_bi().await?;
    let pings = ping(send, receive).await?;
    let figures = send_all(plan, connection.open_uni().await?, &pings, counters).await?;
    let path = connection.path();
    if path.kind != wanted {
        bail!("the connection has not stayed on the path that was to be measured: {path}");
    }
    connection.close(0, b"done");
    node.close().await;
    Ok(figures)
}

// ---- quinn ----

async fn serve_quinn(plan: &Plan, found: oneshot::Sender<Server>, counters: &Counters) -> Result<()> {
    let (socket, identity) = (socket()?, generate_identity()?);
    let stun = plan.supernode.rsplit('@').next().unwrap_or_default().parse();
    let address = mapped_address(&socket, stun.context("the supernode's address, for STUN")?)?;
    let config = quic::server(&identity, &[ALPN], Arc::new(TransportConfig::default()))?;
    let endpoint = endpoint(socket, Some(config))?;
    // As above.
    let _ = found.send(Server { id: identity.peer_id(), address: Some(address) });
    let incoming = tokio::time::timeout(DIRECT_WITHIN * 2, endpoint.accept()).await;
    let connection = incoming.ok().flatten().context("nobody has called the server")?.await?;
    let (send, receive) = connection.accept_bi().await?;
    pong(send, receive).await?;
    receive_all(connection.accept_uni().await?, counters).await;
    endpoint.wait_idle().await;
    Ok(())
}

async fn call_quinn(
    plan: &Plan,
    server: oneshot::Receiver<Server>,
    counters: &Counters,
) -> Result<Vec<Figure>> {
    let Server { id, address } = server.await.context("the server did not start")?;
    let identity: Identity = generate_identity()?;
    let config = quic::client(&identity, Some(id), &[ALPN], Arc::new(TransportConfig::default()))?;
    let endpoint = endpoint(socket()?, None)?;
    let address = address.context("the server has no address")?;
    let connection = endpoint.connect_with(config, address, tls::SERVER_NAME)?.await?;
    let (send, receive) = connection.open_bi().await?;
    let pings = ping(send, receive).await?;
    let figures = send_all(plan, connection.open_uni().await?, &pings, counters).await?;
    connection.close(0_u32.into(), b"done");
    endpoint.wait_idle().await;
    Ok(figures)
}

/// With buffers as large as traversal's.
fn socket() -> Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let options = socket2::SockRef::from(&socket);
    options.set_recv_buffer_size(Bind::BUFFER)?;
    options.set_send_buffer_size(Bind::BUFFER)?;
    Ok(socket)
}

fn endpoint(socket: UdpSocket, server: Option<quinn::ServerConfig>) -> Result<quinn::Endpoint> {
    Ok(quinn::Endpoint::new(EndpointConfig::default(), server, socket, Arc::new(TokioRuntime))?)
}

// ---- The load: the same for both ----

async fn ping(mut send: SendStream, mut receive: RecvStream) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for _ in 0..PINGS {
        let sent = Instant::now();
        send.write_all(&[7; PING]).await?;
        receive.read_exact(&mut [0; PING]).await?;
        times.push(sent.elapsed());
    }
    send.finish()?;
    Ok(times)
}

async fn pong(mut send: SendStream, mut receive: RecvStream) -> Result<()> {
    let mut request = [0; PING];
    while receive.read_exact(&mut request).await.is_ok() {
        send.write_all(&request).await?;
    }
    Ok(())
}

/// Sends as much as the path takes, and tells what of it arrived while the window was open.
async fn send_all(
    plan: &Plan,
    mut send: SendStream,
    pings: &[Duration],
    counters: &Counters,
) -> Result<Vec<Figure>> {
    let chunk = Bytes::from(vec![0; CHUNK]);
    let sending = async {
        loop {
            if let Err(error) = send.write_chunk(chunk.clone()).await {
                break error;
            }
        }
    };
    let watching = async {
        tokio::time::sleep(plan.warm_up).await;
        let (start, before, cpu) =
            (Instant::now(), counters.received.load(Ordering::Relaxed), cpu_of_machine()?);
        tokio::time::sleep(plan.window).await;
        let bytes = counters.received.load(Ordering::Relaxed) - before;
        Ok::<_, anyhow::Error>((bytes as f64, start.elapsed().as_secs_f64(), cpu_of_machine()? - cpu))
    };
    let (bytes, seconds, cpu) = tokio::select! {
        error = sending => return Err(error).context("the stream is broken"),
        watched = watching => watched?,
    };
    counters.stop.store(true, Ordering::Relaxed);
    if bytes == 0.0 {
        bail!("nothing came through while the window was open");
    }
    let round_trip = percentile(pings, 50).context("no round trip")?;
    Ok(vec![
        gain("one stream", "Gbit/s", bytes * 8.0 / seconds / 1e9),
        cost("CPU of the machine, one stream", "s/GB", cpu / (bytes / 1e9)),
        cost("round trip of 64 B p50", "µs", round_trip * 1e3),
    ])
}

async fn receive_all(mut receive: RecvStream, counters: &Counters) {
    while let Ok(Some(chunk)) = receive.read_chunk(CHUNK * 4, true).await {
        counters.received.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
        if counters.stop.load(Ordering::Relaxed) {
            break;
        }
    }
}
