//! What each of many costs in memory: the growth of a process's resident memory, divided by how many there are more.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use traversal::{Node, PeerId};

use crate::{
    figure::{Figure, cost, gain},
    place::{Place, resident},
    relay::{Kind, connected},
    session::{Lobby, bind},
    turn,
};

/// What is under way when the last one is there: acknowledgements, handshakes that are forgotten.
const SETTLE: Duration = Duration::from_secs(1);
/// Nodes that are started and connected at a time.
const AT_A_TIME: usize = 8;
const DIRECT_WITHIN: Duration = Duration::from_secs(5);

/// A relay's memory; its process must have served nobody before.
pub(crate) fn of_relay(
    kind: Kind,
    relay: SocketAddr,
    place: &Place,
    count: usize,
    pid: u32,
) -> Result<Vec<Figure>> {
    place.block_on(|| async {
        let mut figures = vec![cost("the process, serving nobody", "MiB", resident(pid)? / 1048576.0)];
        match kind {
            Kind::Supernode => figures.extend(of_supernode(relay, count, pid).await?),
            Kind::Turn => figures.push(of_turn(relay, count, pid).await?),
        }
        figures.push(cost(format!("the process, with {count} of each"), "MiB", resident(pid)? / 1048576.0));
        Ok(figures)
    })
}

/// Tells what one of them costs.
async fn each(name: &str, before: f64, count: usize, pid: u32) -> Result<(Figure, f64)> {
    tokio::time::sleep(SETTLE).await;
    let after = resident(pid)?;
    Ok((cost(format!("each {name}"), "B", (after - before) / count as f64), after))
}

async fn of_supernode(relay: SocketAddr, count: usize, pid: u32) -> Result<Vec<Figure>> {
    let (empty, lobby) = (resident(pid)?, Lobby::new(relay)?);
    let mut controls = lobby.connect(count).await?;
    let (connection, connected_all) = each("control connection (QUIC)", empty, count, pid).await?;

    let mut sessions = Vec::new();
    for control in &mut controls {
        sessions.push(control.register().await?);
    }
    let (registration, registered) =
        each("registration, beside its connection", connected_all, count, pid).await?;

    // A ring: as many channels as there are peers.
    for at in 1..count {
        let (left, right) = controls.split_at_mut(at);
        left[at - 1].channel_to(&mut right[0]).await?;
    }
    let (first, others) = controls.split_at_mut(1);
    others[count - 2].channel_to(&mut first[0]).await?;
    let socket = connected(relay)?;
    for session in &sessions {
        bind(&socket, session)?;
    }
    let (session, all) = each("relay session (a bound address, a channel)", registered, count, pid).await?;
    let together = cost("each peer with all of that", "B", (all - empty) / count as f64);
    Ok(vec![connection, registration, session, together])
}

async fn of_turn(relay: SocketAddr, count: usize, pid: u32) -> Result<Figure> {
    let empty = resident(pid)?;
    let (mut clients, peer) = (Vec::new(), connected(relay)?.local_addr()?);
    for _ in 0..count {
        let client = connected(relay)?;
        turn::allocate(&client)?;
        turn::bind_channel(&client, peer)?;
        clients.push(client);
    }
    Ok(each("peer with all of that", empty, count, pid).await?.0)
}

/// A node's memory: one in a process of its own, many others that connect to it directly.
pub(crate) fn of_node(supernode: &str, hub: &Place, others: &Place, count: usize) -> Result<Vec<Figure>> {
    let myself = std::env::current_exe()?;
    let mut child = hub.run(|| {
        // A child is in the namespace of the thread that starts it.
        let mut command = Command::new(myself);
        command.args(["hold", "--supernode", supernode]).stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(command.spawn()?)
    })?;
    let measured = (|| {
        let mut id = String::new();
        BufReader::new(child.stdout.take().context("no pipe")?).read_line(&mut id)?;
        let id: PeerId = id.trim().parse().context("the node did not start")?;
        others.block_on(|| connect_all(supernode, id, count, child.id()))
    })();
    // It ends with its standard input, too.
    let _ = child.kill();
    let _ = child.wait();
    measured
}

async fn connect_all(supernode: &str, hub: PeerId, count: usize, pid: u32) -> Result<Vec<Figure>> {
    tokio::time::sleep(SETTLE).await;
    let empty = resident(pid)?;
    let connecting = stream::iter(0..count).map(|_| async {
        let node = Node::builder().supernode(supernode).accepting(false).start().await?;
        let connection = node.connect(hub).await?;
        let direct = connection.wait_direct(DIRECT_WITHIN).await.is_ok();
        Ok::<_, anyhow::Error>((node, connection, direct))
    });
    let all: Vec<_> = connecting.buffer_unordered(AT_A_TIME).try_collect().await?;
    let (connection, _) = each("connection of a node", empty, count, pid).await?;
    let direct = all.iter().filter(|(_, _, direct)| *direct).count();
    Ok(vec![connection, gain("of these direct", "%", 100.0 * direct as f64 / count as f64)])
}

/// A node that takes every connection and holds it until its standard input ends.
pub(crate) fn hold(supernode: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        drop(ended);
    });
    runtime.block_on(async {
        let node = Node::builder().supernode(supernode).start().await?;
        println!("{}", node.id());
        let mut held = Vec::new();
        let holding = async {
            while let Some(connection) = node.accept().await {
                held.push(connection);
            }
        };
        tokio::select! {
            () = holding => {}
            _ = end => {}
        }
        Ok(())
    })
}
