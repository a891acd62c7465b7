//! `traverse listen`.

use std::{cell::Cell, process::ExitCode, rc::Rc};

use anyhow::{Context, Result, anyhow};
use serde_json::json;
use tokio::{io::copy, sync::mpsc, task::LocalSet};
use traversal::{Admission, Connection, RecvStream, SendStream};

use crate::{
    args::ListenArgs,
    node::Me,
    pipe,
    service::{self, Answer, Service},
    status::Status,
};

/// A stream to be joined to standard input and output.
type Pipe = (Connection, SendStream, RecvStream);

pub(crate) async fn run(args: ListenArgs) -> Result<ExitCode> {
    let status = Status::new(args.tell);
    let me = Me::listener(&args.node)?;
    let mut builder = me.node(&args.node)?;
    if !args.allow.is_empty() {
        builder = builder.admit(Admission::Only(args.allow.into_iter().collect()));
    }
    let node = builder.start().await?;
    status.tell(
        format!("listening: reach me with  traverse connect {}", node.id()),
        "listening",
        json!({ "id": node.id().to_string() }),
    );

    let (pipes, mut wanted) = mpsc::channel::<Pipe>(1);
    let busy = Rc::new(Cell::new(false));
    let accepting = LocalSet::new();
    accepting.spawn_local({
        let (node, busy) = (node.clone(), busy.clone());
        async move {
            while let Some(connection) = node.accept().await {
                tokio::task::spawn_local(serve(connection, pipes.clone(), busy.clone()));
            }
        }
    });
    accepting
        .run_until(async {
            loop {
                let (connection, send, receive) = wanted.recv().await.ok_or_else(|| anyhow!("the node is closed"))?;
                let result = status.while_doing(&connection, pipe::join(send, receive)).await;
                busy.set(false);
                let told = match &result {
                    Ok(piped) => format!("{} bytes sent, {} received", piped.sent, piped.received),
                    Err(error) => format!("{error:#}"),
                };
                let error = result.as_ref().err().map(|error| format!("{error:#}"));
                let piped = result.as_ref().copied().unwrap_or_default();
                let fields = json!({ "sent": piped.sent, "received": piped.received, "path": connection.path(), "error": error });
                if args.keep || result.is_ok() {
                    status.tell(told, "done", fields);
                }
                if !args.keep {
                    // The peer closes the connection when it has everything.
                    let patience = std::time::Duration::from_secs(2);
                    let _ = tokio::time::timeout(patience, connection.closed()).await;
                    node.close().await;
                    return result.map(|_| ExitCode::SUCCESS).context("the pipe broke");
                }
            }
        })
        .await
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
            pipes.send((connection, send, receive)).await?;
        }
    }
    Ok(())
}
