//! How long it takes from `connect` to the first byte, and to a direct path.
//!
//! Both nodes are new each time, so nothing is left of the time before: neither a mapping in a NAT nor a channel. They are
//! registered, and have had `settle` to look around, before the clock starts.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::sync::{mpsc, oneshot};
use traversal::{Builder, Connection, Node, PeerId, Policy, RecvStream, SendStream};

use crate::{
    figure::{Figure, cost, gain, percentile},
    place::Place,
    slow::Slow,
};

/// Whoever is not direct by then is counted as relayed.
const DIRECT_WITHIN: Duration = Duration::from_secs(5);
/// Whatever has not happened by then does not happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// Round trips of which the median is taken.
const PINGS: usize = 100;

/// What is to be measured.
pub(crate) struct Plan {
    pub(crate) supernode: String,
    pub(crate) caller: Place,
    pub(crate) callee: Place,
    pub(crate) times: usize,
    pub(crate) settle: Duration,
    /// How far each of the two is from everything; see [`Slow`].
    pub(crate) delay: Duration,
}

impl Plan {
    fn node(&self) -> Builder {
        let builder = Node::builder().supernode(&self.supernode);
        match self.delay.is_zero() {
            true => builder,
            false => builder.network(Arc::new(Slow(self.delay))),
        }
    }
}

/// The caller asks for a new node at the other end.
struct Next {
    id: oneshot::Sender<PeerId>,
    first_byte: oneshot::Sender<Instant>,
    done: oneshot::Receiver<()>,
}

/// The times of one connection, from the call of `connect` on.
struct Times {
    connected: Duration,
    first_byte: Duration,
    answered: Duration,
    direct: Option<Duration>,
    /// Round trips of a byte, over the relay and directly, where asked for.
    pings: Vec<Duration>,
}

/// When something happened, if it did.
type Moment = fn(&Times) -> Option<Duration>;

pub(crate) fn run(plan: &Plan) -> Result<Vec<Figure>> {
    let (orders, mut incoming) = mpsc::channel::<Next>(1);
    thread::scope(|scope| {
        let callee = scope.spawn(|| {
            plan.callee.block_on(|| async {
                while let Some(next) = incoming.recv().await {
                    answer(plan, next).await?;
                }
                Ok(())
            })
        });
        let measured = plan.caller.block_on(|| async { measure(plan, orders).await });
        match callee.join() {
            Ok(Ok(())) => measured,
            Ok(Err(error)) => Err(error.context("the peer that is called")),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

async fn measure(plan: &Plan, orders: mpsc::Sender<Next>) -> Result<Vec<Figure>> {
    let relayed = call(plan, &orders, Policy::RelayOnly).await?;
    let mut all = Vec::new();
    for _ in 0..plan.times {
        all.push(call(plan, &orders, Policy::PreferDirect).await?);
    }
    let round_trip = percentile(&relayed.pings, 50).context("no round trip over the relay")?;
    let pings: Vec<Duration> = all.iter().flat_map(|times| times.pings.iter().copied()).collect();
    let mut figures = vec![cost("round trip over the relay p50", "ms", round_trip)];
    figures
        .extend(percentile(&pings, 50).map(|direct| cost("round trip on the direct path p50", "ms", direct)));
    let kinds: [(&str, Moment); 4] = [
        ("connect() returns", |times| Some(times.connected)),
        ("first byte at the peer", |times| Some(times.first_byte)),
        ("first byte answered", |times| Some(times.answered)),
        ("direct", |times| times.direct),
    ];
    for (name, of) in kinds {
        let times: Vec<Duration> = all.iter().filter_map(of).collect();
        for p in [50, 95] {
            let Some(value) = percentile(&times, p) else { continue };
            figures.push(cost(format!("{name} p{p}"), "ms", value));
            if p == 50 {
                figures.push(cost(format!("{name} p50"), "relay round trips", value / round_trip));
            }
        }
    }
    let direct = all.iter().filter(|times| times.direct.is_some()).count();
    figures.push(gain("became direct", "% of connections", 100.0 * direct as f64 / all.len() as f64));
    Ok(figures)
}

/// One connection from one new node to another.
async fn call(plan: &Plan, orders: &mpsc::Sender<Next>, policy: Policy) -> Result<Times> {
    let ((id, peer), (first_byte, at_peer), (done, waiting)) =
        (oneshot::channel(), oneshot::channel(), oneshot::channel());
    let next = Next { id, first_byte, done: waiting };
    orders.send(next).await.ok().context("the peer that is called has ended")?;
    let node = plan.node().start().await?;
    let peer = peer.await.context("the peer that is called did not start")?;
    tokio::time::sleep(plan.settle).await;

    let start = Instant::now();
    let connection = node.connect_with(peer, policy).await?;
    let connected = start.elapsed();
    let direct = async {
        let found = policy == Policy::PreferDirect && connection.wait_direct(DIRECT_WITHIN).await.is_ok();
        found.then(|| start.elapsed())
    };
    let echo = async {
        let (mut send, mut receive) = connection.open_bi().await?;
        exchange(&mut send, &mut receive).await?;
        Ok::<_, anyhow::Error>((start.elapsed(), send, receive))
    };
    let (direct, echoed) = tokio::join!(direct, tokio::time::timeout(PATIENCE, echo));
    let (answered, mut send, mut receive) = echoed.context("no answer")??;
    let mut pings = Vec::new();
    if policy == Policy::RelayOnly || direct.is_some() {
        // Of all directs together as many as of the one relayed.
        let some = if plan.delay.is_zero() { PINGS } else { PINGS / 10 };
        let count = if direct.is_some() { some.div_ceil(plan.times) } else { some };
        for _ in 0..count {
            let sent = Instant::now();
            exchange(&mut send, &mut receive).await?;
            pings.push(sent.elapsed());
        }
    }
    let first_byte = at_peer.await.context("no byte has arrived")?.duration_since(start);
    connection.close(0, b"done");
    // The other end may have seen the close before.
    let _ = done.send(());
    node.close().await;
    Ok(Times { connected, first_byte, answered, direct, pings })
}

async fn exchange(send: &mut SendStream, receive: &mut RecvStream) -> Result<()> {
    send.write_all(&[7]).await?;
    receive.read_exact(&mut [0]).await?;
    Ok(())
}

/// A new node that answers one peer.
async fn answer(plan: &Plan, next: Next) -> Result<()> {
    let node = plan.node().start().await?;
    let Next { id, first_byte, done } = next;
    // Whoever asked has given up if it is gone, here and below.
    let _ = id.send(node.id());
    let serving = async {
        let Some(connection) = node.accept().await else { bail!("the node was closed") };
        echo(connection, first_byte).await
    };
    tokio::select! {
        served = serving => served?,
        _ = done => {}
    }
    node.close().await;
    Ok(())
}

/// Sends back what comes until the peer has enough.
async fn echo(connection: Connection, first_byte: oneshot::Sender<Instant>) -> Result<()> {
    let (mut send, mut receive) = connection.accept_bi().await?;
    let mut first_byte = Some(first_byte);
    let mut byte = [0];
    while receive.read_exact(&mut byte).await.is_ok() {
        if let Some(first_byte) = first_byte.take() {
            let _ = first_byte.send(Instant::now());
        }
        if send.write_all(&byte).await.is_err() {
            break;
        }
    }
    Ok(())
}
