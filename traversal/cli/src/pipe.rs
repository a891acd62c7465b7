//! A stream joined to standard input and output, as netcat does it: the end of each direction is its own.
//!
//! A pipe has ended well when both directions have ended and both sides know it: the caller, when it has written
//! everything out and knows that its own has arrived, opens an empty one-way stream, its receipt; the listener, when it has
//! that and has written everything out itself, does the same. Any other end is an error. A connection's close is no
//! receipt: it may be lost.

use std::{cell::Cell, io::IsTerminal, time::Duration};

use anyhow::{Context, Error, anyhow};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Stdin, Stdout, stdin, stdout},
    sync::watch,
    time::timeout,
};
use traversal::{Connection, Path, RecvStream, SendStream};

use crate::{
    out,
    service::{Ending, why},
    stop::Stop,
};

/// Bytes in one step: a few packets, so that little waits and few system calls are made.
const CHUNK: usize = 64 * 1024;

/// A receipt has not been acknowledged for so long: the peer has got it, and is gone.
const FAREWELL: Duration = Duration::from_secs(2);

/// What is to be joined to standard input and output.
pub(crate) struct Pipe {
    pub(crate) connection: Connection,
    pub(crate) send: SendStream,
    pub(crate) receive: RecvStream,
    pub(crate) side: Side,
}

/// Which end of a pipe this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Caller,
    Listener,
}

/// What went through, in bytes, and by which path at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piped {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) path: Path,
}

/// A pipe that did not end well.
#[derive(Debug)]
pub(crate) struct Broken {
    /// What went through before.
    pub(crate) piped: Piped,
    /// Standard input or output failed, or a signal came: another pipe would fare no better.
    pub(crate) here: bool,
    pub(crate) error: Error,
}

/// Where something went wrong.
enum Fault {
    /// Standard input or output.
    Here(Error),
    /// The peer, or the way to it.
    There(Error),
    /// Everything has been sent and received, and the connection ended before the peer said the same.
    Unconfirmed,
}

/// Standard input and output, for as long as the program runs: what one peer has left of the input is the next one's.
pub(crate) struct Stdio {
    input: Stdin,
    output: Stdout,
    /// The input is over when the peer's is: it is a terminal, at which nobody has anything to answer, because what the
    /// peer says goes into a file or another program.
    ends_with_peer: bool,
}

impl Stdio {
    pub(crate) fn new() -> Stdio {
        let ends_with_peer = std::io::stdin().is_terminal() && !std::io::stdout().is_terminal();
        Stdio { input: stdin(), output: stdout(), ends_with_peer }
    }

    /// Copies until both directions have ended and both sides know it; closes the connection in any case.
    pub(crate) async fn join(&mut self, pipe: Pipe, stop: &Stop) -> Result<Piped, Broken> {
        let Pipe { connection, mut send, mut receive, side } = pipe;
        let (sent, received, path) = (Cell::new(0), Cell::new(0), Cell::new(None));
        let (over, peer_over) = watch::channel(false);
        let work = async {
            tokio::try_join!(
                outward(&mut self.input, &mut send, &sent, peer_over, self.ends_with_peer),
                inward(&mut self.output, &mut receive, &received, over),
            )?;
            // A connection that is over has none.
            path.set(Some(connection.path()));
            agree(&connection, side).await
        };
        // A fault is no error of the work's, so that a signal's is known by being one.
        let result = stop.or(async { Ok::<_, Error>(work.await) }).await;
        let path = path.get().unwrap_or_else(|| connection.path());
        let piped = Piped { sent: sent.get(), received: received.get(), path };
        let (here, error) = match result {
            Ok(Ok(())) => return Ok(piped),
            Err(signal) => (true, signal),
            Ok(Err(Fault::Here(error))) => (true, error),
            Ok(Err(fault)) => (false, lost(&connection, piped, &fault)),
        };
        Ending::of(&error).close(&connection);
        Err(Broken { piped, here, error })
    }
}

/// Sends what comes in here, until all of it has arrived.
async fn outward(
    input: &mut Stdin,
    send: &mut SendStream,
    sent: &Cell<u64>,
    mut peer_over: watch::Receiver<bool>,
    ends_with_peer: bool,
) -> Result<(), Fault> {
    let mut buffer = vec![0; CHUNK];
    let result = loop {
        let read = tokio::select! {
            read = input.read(&mut buffer) => {
                read.context("cannot read standard input").map_err(Fault::Here)?
            }
            // What is typed later would go nowhere.
            stopped = send.stopped() => break arrived(stopped),
            _ = peer_over.wait_for(|over| *over), if ends_with_peer => 0,
        };
        if read == 0 {
            // Fails only for a stream that is over, and that is told by the next line.
            let _ = send.finish();
            break arrived(send.stopped().await);
        }
        if let Err(error) = send.write_all(&buffer[..read]).await {
            break Err(error.into());
        }
        sent.set(sent.get() + read as u64);
    };
    if result.is_err() {
        // What the peer has sent before is still to be written out. An error means that it ended with one of its own.
        let _ = peer_over.wait_for(|over| *over).await;
    }
    result.map_err(Fault::There)
}

/// Whether the peer has everything, by how a stream has ended.
fn arrived<C: std::fmt::Display>(stopped: Result<Option<C>, impl Into<Error>>) -> Result<(), Error> {
    match stopped {
        Ok(None) => Ok(()),
        Ok(Some(code)) => Err(anyhow!("the peer wants no more (code {code})")),
        Err(error) => Err(error.into()),
    }
}

/// Writes out what the peer sends, until it has ended; tells when that is.
async fn inward(
    output: &mut Stdout,
    receive: &mut RecvStream,
    received: &Cell<u64>,
    over: watch::Sender<bool>,
) -> Result<(), Fault> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = receive.read(&mut buffer).await.map_err(|error| Fault::There(error.into()))?;
        let Some(read) = read else { break };
        output.write_all(&buffer[..read]).await.map_err(|error| Fault::Here(out::failed(error)))?;
        output.flush().await.map_err(|error| Fault::Here(out::failed(error)))?;
        received.set(received.get() + read as u64);
    }
    over.send_replace(true);
    Ok(())
}

/// Both directions have ended here: hears from the peer that they have ended there, and ends the connection.
async fn agree(connection: &Connection, side: Side) -> Result<(), Fault> {
    let heard = async { connection.accept_uni().await.map(drop).map_err(|reason| Ending::is_done(&reason)) };
    match side {
        Side::Caller => {
            say(connection).await.map_err(|_| Fault::Unconfirmed)?;
            // The close says it, too, and may overtake the stream.
            heard.await.or_else(|done| if done { Ok(()) } else { Err(Fault::Unconfirmed) })?;
        }
        Side::Listener => {
            heard.await.map_err(|_| Fault::Unconfirmed)?;
            // Everything is where it belongs. What remains is that the peer learns it: a close alone may be lost.
            if let Ok(receipt) = say(connection).await {
                let _ = timeout(FAREWELL, receipt.stopped()).await;
            }
        }
    }
    Ending::Done.close(connection);
    Ok(())
}

/// Sends a receipt: a stream without a byte.
async fn say(connection: &Connection) -> Result<SendStream, Error> {
    let mut receipt = connection.open_uni().await?;
    receipt.finish()?;
    Ok(receipt)
}

/// Tells what was lost, and by whom.
fn lost(connection: &Connection, Piped { sent, received, .. }: Piped, fault: &Fault) -> Error {
    let reason = connection.close_reason().map(|reason| why(&reason));
    match (fault, reason) {
        (Fault::Unconfirmed, reason) => anyhow!(
            "all {sent} bytes have arrived, but the peer does not confirm that it has written them out: {}",
            reason.as_deref().unwrap_or("it breaks the protocol")
        ),
        (Fault::Here(error) | Fault::There(error), reason) => {
            let reason = reason.unwrap_or_else(|| format!("{error:#}"));
            let perhaps = if sent > 0 { ", some of which may not have arrived" } else { "" };
            anyhow!("the pipe broke: {reason}; {sent} bytes were sent{perhaps}, {received} were received")
        }
    }
}
