//! A stream joined to standard input and output, as netcat does it: the end of each direction is its own.

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt, stdin, stdout};
use traversal::{RecvStream, SendStream};

/// Bytes in one step: a few packets, so that little waits and few system calls are made.
const CHUNK: usize = 64 * 1024;

/// What went through, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Piped {
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

/// Copies until both directions have ended, and everything has arrived at the peer.
pub(crate) async fn join(send: SendStream, receive: RecvStream) -> Result<Piped> {
    let (sent, received) = tokio::try_join!(outward(send), inward(receive))?;
    Ok(Piped { sent, received })
}

async fn outward(mut send: SendStream) -> Result<u64> {
    let mut input = stdin();
    let mut buffer = vec![0; CHUNK];
    let mut total = 0;
    loop {
        let read = tokio::select! {
            read = input.read(&mut buffer) => read.context("cannot read standard input")?,
            // The peer has gone, or wants no more: what is typed later would go nowhere.
            _ = send.stopped() => return Ok(total),
        };
        if read == 0 {
            break;
        }
        send.write_all(&buffer[..read]).await.context("the peer takes no more")?;
        total += read as u64;
    }
    send.finish()?;
    // Acknowledged to the last byte: this process may end now.
    send.stopped().await.context("the connection ended before everything had arrived")?;
    Ok(total)
}

async fn inward(mut receive: RecvStream) -> Result<u64> {
    let mut output = stdout();
    let mut buffer = vec![0; CHUNK];
    let mut total = 0;
    while let Some(read) = receive.read(&mut buffer).await.context("the connection broke")? {
        output.write_all(&buffer[..read]).await.context("cannot write to standard output")?;
        output.flush().await.context("cannot write to standard output")?;
        total += read as u64;
    }
    Ok(total)
}
