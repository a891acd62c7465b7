//! `traverse connect`.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use crate::{
    args::ConnectArgs,
    node::{Me, policy},
    pipe,
    service::{self, Service},
    status::Status,
};

pub(crate) async fn run(args: ConnectArgs) -> Result<ExitCode> {
    let status = Status::new(args.tell);
    let me = Me::caller(&args.node)?;
    let node = me.node(&args.node)?.accepting(false).policy(policy(&args.path)).start().await?;
    let connection = node.connect(args.peer).await?;
    let piped = status
        .while_doing(&connection, async {
            let (send, receive) = service::open(&connection, Service::Pipe).await?;
            if let Some(deadline) = args.wait_direct
                && let Err(error) = connection.wait_direct(deadline).await
            {
                status.tell(
                    format!("{error}; going on over the relay"),
                    "not-direct",
                    json!({ "why": error.to_string() }),
                );
            }
            pipe::join(send, receive).await
        })
        .await?;
    let words = format!(
        "{} bytes sent, {} received, at the end by {}",
        piped.sent,
        piped.received,
        connection.path()
    );
    status.tell(
        words,
        "done",
        json!({ "sent": piped.sent, "received": piped.received, "path": connection.path() }),
    );
    node.close().await;
    Ok(ExitCode::SUCCESS)
}
