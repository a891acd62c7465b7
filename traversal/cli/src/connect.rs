//! `traverse connect`.

use anyhow::{Context, Result};
use serde_json::json;
use traversal::{Connection, RecvStream, SendStream};

use crate::{
    args::ConnectArgs,
    node::{Me, policy, with_node},
    pipe::{Pipe, Piped, Side, Stdio},
    service::{self, Ending, Service},
    status::Status,
    stop::Stop,
};

pub(crate) async fn run(args: ConnectArgs, stop: &Stop) -> Result<()> {
    let status = Status::new(args.tell);
    let me = Me::caller(&args.node, status)?;
    let builder = me.node(&args.node)?.accepting(false).policy(policy(&args.path));
    with_node(builder, stop, async |node| {
        let connection = stop.or(node.connect(args.peer)).await?;
        let work = async {
            let opened = stop.or(open(&args, status, &connection)).await;
            let (send, receive) = opened.inspect_err(|error| Ending::of(error).close(&connection))?;
            let pipe = Pipe { connection: connection.clone(), send, receive, side: Side::Caller };
            Stdio::new().join(pipe, stop).await.map_err(|broken| broken.error)
        };
        let piped = status.while_doing(&connection, work).await?;
        let Piped { sent, received, path } = piped;
        let words = format!("{sent} bytes sent, {received} received, at the end by {path}");
        let fields = json!({ "sent": sent, "received": received, "path": path });
        status.tell(words, "done", fields);
        Ok(())
    })
    .await
}

/// Opens the pipe, and waits for a direct path if that is wanted.
async fn open(
    args: &ConnectArgs,
    status: Status,
    connection: &Connection,
) -> Result<(SendStream, RecvStream)> {
    let streams = service::open(connection, Service::Pipe).await?;
    let Some(deadline) = args.wait_direct else { return Ok(streams) };
    if let Err(error) = connection.wait_direct(deadline).await {
        if let Some(reason) = connection.close_reason() {
            return Err(reason).context("the connection ended while a direct path was looked for");
        }
        let fields = json!({ "why": error.to_string() });
        status.tell(format!("{error}; going on over the relay"), "not-direct", fields);
    }
    Ok(streams)
}
