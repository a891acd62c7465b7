//! `traverse listen`.

use std::{cell::Cell, rc::Rc, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;
use tokio::{io::copy, sync::mpsc, task::LocalSet};
use traversal::{Admission, Connection, Node, RecvStream, SendStream};

use crate::{
    args::ListenArgs,
    node::{Me, policy, with_node},
    pipe::{Pipe, Piped, Side, Stdio},
    service::{self, Answer, Service},
    status::Status,
    stop::Stop,
};

/// Between two looks at the supernodes: their own keepalive is slower.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) async fn run(args: ListenArgs, stop: &Stop) -> Result<()> {
    let status = Status::new(args.tell);
    let me = Me::listener(&args.node)?;
    let mut builder = me.node(&args.node)?.policy(policy(&args.path));
    if !args.allow.is_empty() {
        builder = builder.admit(Admission::Only(args.allow.into_iter().collect()));
    }
    with_node(builder, stop, async |node| {
        status.tell(
            format!("listening: reach me with  traverse connect {}", node.id()),
            "listening",
            json!({ "id": node.id().to_string() }),
        );
        let (pipes, wanted) = mpsc::channel(1);
        let busy = Rc::new(Cell::new(false));
        let tasks = LocalSet::new();
        tasks.spawn_local(accept(node.clone(), pipes, busy.clone()));
        tasks.spawn_local(tell_of_supernodes(node.clone(), status));
        tasks.run_until(one_after_the_other(args.keep, status, wanted, &busy, stop)).await
    })
    .await
}

/// Joins peers to standard input and output: the first, or with `keep` as many as come.
async fn one_after_the_other(
    keep: bool,
    status: Status,
    mut wanted: mpsc::Receiver<Pipe>,
    busy: &Cell<bool>,
    stop: &Stop,
) -> Result<()> {
    let mut stdio = Stdio::new();
    loop {
        let pipe = stop.or(async { wanted.recv().await.context("the node is closed") }).await?;
        let connection = pipe.connection.clone();
        let result = status.while_doing(&connection, stdio.join(pipe, stop)).await;
        busy.set(false);
        let fields = |piped: Piped, error: Option<String>| {
            json!({
                "sent": piped.sent, "received": piped.received, "path": piped.path, "error": error,
            })
        };
        match result {
            Ok(piped) => {
                let words = format!("{} bytes sent, {} received", piped.sent, piped.received);
                status.tell(words, "done", fields(piped, None));
                if !keep {
                    return Ok(());
                }
            }
            Err(broken) if broken.here || !keep => return Err(broken.error),
            Err(broken) => {
                let words = format!("{:#}", broken.error);
                status.tell(&words, "done", fields(broken.piped, Some(words.clone())));
            }
        }
    }
}

async fn accept(node: Node, pipes: mpsc::Sender<Pipe>, busy: Rc<Cell<bool>>) {
    while let Some(connection) = node.accept().await {
        tokio::task::spawn_local(serve(connection, pipes.clone(), busy.clone()));
    }
}

/// Tells when the last supernode is lost, and when one is back: meanwhile nobody new can connect.
pub(crate) async fn tell_of_supernodes(node: Node, status: Status) {
    let mut ticks = tokio::time::interval(LOOK);
    let mut was_registered = true;
    loop {
        ticks.tick().await;
        let supernodes = node.supernodes();
        let registered = supernodes.iter().find(|supernode| supernode.registered);
        if registered.is_some() == was_registered {
            continue;
        }
        was_registered = registered.is_some();
        let words = match registered {
            Some(supernode) => format!("registered again, at {}", supernode.address),
            None => {
                let why = supernodes.iter().find_map(|supernode| supernode.problem.as_deref());
                format!(
                    "no supernode answers ({}): nobody new can connect; trying again",
                    why.unwrap_or("silence")
                )
            }
        };
        status.tell(words, "supernodes", json!({ "supernodes": supernodes }));
    }
}

/// Serves the streams of one connection until it is over.
async fn serve(connection: Connection, pipes: mpsc::Sender<Pipe>, busy: Rc<Cell<bool>>) {
    while let Ok((send, receive)) = connection.accept_bi().await {
        let (connection, pipes, busy) = (connection.clone(), pipes.clone(), busy.clone());
        // A stream that breaks is its peer's business.
        tokio::task::spawn_local(async move { drop(stream(connection, send, receive, pipes, busy).await) });
    }
}

async fn stream(
    connection: Connection,
    mut send: SendStream,
    mut receive: RecvStream,
    pipes: mpsc::Sender<Pipe>,
    busy: Rc<Cell<bool>>,
) -> Result<()> {
    match service::wanted(&mut send, &mut receive).await? {
        None => {}
        Some(Service::Ping) => {
            service::answer(&mut send, Answer::Yes).await?;
            copy(&mut receive, &mut send).await?;
            send.finish()?;
        }
        Some(Service::Files | Service::Forward) => {
            service::answer(&mut send, Answer::Unknown).await?;
            send.finish()?;
        }
        Some(Service::Pipe) if busy.replace(true) => {
            service::answer(&mut send, Answer::Busy).await?;
            send.finish()?;
        }
        Some(Service::Pipe) => {
            let answered = service::answer(&mut send, Answer::Yes).await;
            if let Err(error) = answered {
                busy.set(false);
                return Err(error);
            }
            pipes.send(Pipe { connection, send, receive, side: Side::Listener }).await?;
        }
    }
    Ok(())
}
