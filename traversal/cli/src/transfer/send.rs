//! `traverse send`.

use std::{
    path::PathBuf,
    sync::{Arc, mpsc as std_mpsc},
    time::{Duration, Instant},
};

use anyhow::{Context, Error, Result, anyhow, bail};
use serde_json::json;
use tokio::{
    io::AsyncWriteExt,
    sync::mpsc,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use traversal::{ConnectError, Connection, Node, SendStream};

use super::{
    args::SendArgs,
    following::Following,
    list::List,
    progress::{Progress, files},
    receive::FAREWELL,
    source::{BLOCKS, Block, Buffer, Source, Unwanted},
    stream::{Incoming, say},
    wire::{FromReceiver, FromSender, Refusal, VERSION, put},
};
use crate::{
    node::{Me, policy, with_node},
    service::{self, Ending, Service, why},
    status::Status,
    stop::{Ended, Stop},
};

/// Between two attempts, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// Bytes of paths in one message of the list: together with what else an entry has, below what a message may have.
const BATCH: usize = 16 * 1024;

/// Another attempt would fare no better.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Final(pub(crate) String);

pub(crate) async fn run(args: SendArgs, stop: &Stop) -> Result<()> {
    let status = Status::new(args.tell);
    let me = Me::caller(&args.node, status)?;
    let builder = me.node(&args.node)?.accepting(false).policy(policy(&args.path));
    let (list, skipped) = stop.or(look(args.paths.clone(), status)).await?;
    with_node(builder, stop, async |node| {
        let attempts = Attempts { args: &args, list: Arc::new(list), node, status, stop };
        let progress = attempts.run().await?;
        let (words, fields) = progress.summary("sent");
        status.tell(words, "done", fields);
        ended(progress.failures(), skipped)
    })
    .await
}

/// Lists what is to be sent; and how much is left out, with the first line about it.
async fn look(paths: Vec<PathBuf>, status: Status) -> Result<(List, Option<(u32, String)>)> {
    let looking = spawn_blocking(move || {
        let mut skipped: Option<(u32, String)> = None;
        let list = List::of(&paths, |path, why| {
            let line = format!("{}: left out: {why}", path.display());
            status.tell(&line, "skipped", json!({ "path": path.display().to_string(), "why": why }));
            skipped.get_or_insert((0, line)).0 += 1;
        });
        Ok((list?, skipped))
    });
    looking.await.context("the list was not made")?
}

/// What the whole comes to, all files having been dealt with.
pub(crate) fn ended(failed: Option<(u32, String)>, skipped: Option<(u32, String)>) -> Result<()> {
    match (failed, skipped) {
        (None, None) => Ok(()),
        (Some((1, line)), None) | (None, Some((1, line))) => Err(Error::msg(line)),
        (Some((count, line)), None) => Err(anyhow!("{count} failed, all else is done; the first: {line}")),
        (None, Some((count, line))) => {
            Err(anyhow!("{count} were left out, all else is done; the first: {line}"))
        }
        (Some((failed, line)), Some((skipped, _))) => {
            Err(anyhow!("{failed} failed and {skipped} were left out, all else is done; the first: {line}"))
        }
    }
}

struct Attempts<'a> {
    args: &'a SendArgs,
    list: Arc<List>,
    node: &'a Node,
    status: Status,
    stop: &'a Stop,
}

impl Attempts<'_> {
    /// Tries until all is sent, or for as long as the command line says.
    async fn run(&self) -> Result<Arc<Progress>> {
        let (mut since, mut pause) = (Instant::now(), PAUSES.0);
        loop {
            let progress = Arc::new(Progress::new(self.list.files, self.list.bytes));
            let error = match self.attempt(&progress).await {
                Ok(()) => return Ok(progress),
                Err(error) => error,
            };
            let patience = self.args.retry.filter(|_| may_pass(&error));
            if progress.bytes_moved() > 0 {
                (since, pause) = (Instant::now(), PAUSES.0);
            }
            if patience.is_none_or(|patience| since.elapsed() + pause > patience) {
                return Err(error);
            }
            let words = format!("{error:#}; next attempt in {} s", pause.as_secs());
            self.status.tell(
                words,
                "retry",
                json!({ "why": format!("{error:#}"), "seconds": pause.as_secs() }),
            );
            let pausing = async {
                sleep(pause).await;
                Ok::<_, Error>(())
            };
            self.stop.or(pausing).await?;
            pause = PAUSES.1.min(pause * 2);
        }
    }

    async fn attempt(&self, progress: &Arc<Progress>) -> Result<()> {
        let connection = self.stop.or(self.node.connect(self.args.peer)).await?;
        let work = self.stop.or(session(&connection, &self.list, progress, self.status));
        let result = self.status.while_doing(&connection, work).await;
        let Err(error) = result else {
            Ending::Done.close(&connection);
            return Ok(());
        };
        let reason = connection.close_reason();
        Ending::of(&error).close(&connection);
        match reason {
            Some(reason) if !is_final(&error) => Err(Lost(why(&reason)).into()),
            _ => Err(error),
        }
    }
}

/// The connection has ended.
#[derive(Debug, thiserror::Error)]
#[error("the connection is lost: {0}; what has arrived is kept, and the same command goes on from there")]
struct Lost(String);

fn is_final(error: &Error) -> bool {
    error.is::<Final>() || error.is::<Ended>()
}

/// Whether another attempt may fare better.
fn may_pass(error: &Error) -> bool {
    error.is::<Lost>()
        || error.downcast_ref::<ConnectError>().is_some_and(|error| {
            use ConnectError::{Handshake, NotAccepting, PeerOffline, Timeout};
            matches!(error, Handshake { .. } | NotAccepting { .. } | PeerOffline { .. } | Timeout { .. })
        })
}

/// Offers the list, and sends what is asked for.
async fn session(
    connection: &Connection,
    list: &Arc<List>,
    progress: &Arc<Progress>,
    status: Status,
) -> Result<()> {
    let (mut send, receive) = service::open(connection, Service::Files).await?;
    let mut incoming = Incoming::new(receive);
    match offer(&mut send, &mut incoming, list, status).await? {
        FromReceiver::Accept => status.tell("the peer takes it", "accepted", json!({})),
        FromReceiver::Refuse(refusal) => bail!(Final(refused(&refusal))),
        _ => bail!("the peer breaks the protocol: neither yes nor no"),
    }

    let (requests, asked) = std_mpsc::channel();
    let (blocks, ready) = mpsc::channel(BLOCKS);
    let unwanted = Arc::new(Unwanted::default());
    let source = Source {
        list: list.clone(),
        blocks,
        unwanted: unwanted.clone(),
        progress: progress.clone(),
        status,
        buffer: Buffer::default(),
    };
    // It ends when nobody asks, or nobody takes what it has.
    drop(spawn_blocking(move || source.run(&asked)));
    let following = Following::new(list, requests, unwanted, progress, status);
    let pumping = pump(send, ready, progress);
    let following = following.run(incoming);
    tokio::pin!(pumping, following);
    tokio::select! {
        biased;
        told = &mut following => told?,
        broken = &mut pumping => {
            // What the peer has said before may tell why.
            let told = timeout(FAREWELL, following).await;
            told.unwrap_or(Ok(()))?;
            broken?;
            bail!("the peer takes no more");
        }
        () = progress.show(connection, status) => {}
    }
    // The peer has everything: what remains is that it learns that we know.
    let _ = timeout(FAREWELL, pumping).await;
    progress.settle();
    Ok(())
}

/// Sends the list, and waits for the answer, which may come before its end.
async fn offer(
    send: &mut SendStream,
    incoming: &mut Incoming,
    list: &List,
    status: Status,
) -> Result<FromReceiver> {
    let offering = async {
        send.write_u8(VERSION).await?;
        let entries = u32::try_from(list.entries.len())?;
        say(send, &FromSender::Offer { entries, bytes: list.bytes }).await?;
        let (mut rest, mut bytes) = (&list.entries[..], Vec::new());
        while !rest.is_empty() {
            let mut size = 0;
            let fits = rest.iter().take(BATCH / 64).take_while(|entry| {
                size += entry.path.len();
                size <= BATCH
            });
            let (batch, others) = rest.split_at(fits.count().max(1));
            put(&FromSender::List(batch.to_vec()), &mut bytes)?;
            send.write_all(&bytes).await?;
            bytes.clear();
            rest = others;
        }
        let words = format!("{} offered; waiting for the peer to agree", files(list.files));
        status.tell(words, "offered", json!({ "files": list.files, "bytes": list.bytes }));
        std::future::pending::<Result<FromReceiver>>().await
    };
    let failed = tokio::select! {
        biased;
        answer = incoming.next() => return answer,
        failed = offering => failed,
    };
    match timeout(FAREWELL, incoming.next()).await {
        Ok(Ok(answer)) => Ok(answer),
        _ => failed,
    }
}

fn refused(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Version(theirs) => format!(
            "the peer's program knows version {theirs} of the transfer, this one {VERSION}: the older of the two must be \
             updated"
        ),
        Refusal::Declined => "the peer refuses: somebody there has said no".to_owned(),
        Refusal::TooLarge { limit } => {
            let limit = indicatif::HumanBytes(*limit);
            format!("the peer refuses: it takes {limit} at most (--max-size there)")
        }
        Refusal::List(words) => format!("the peer refuses: {}", super::wire::brief(words)),
    }
}

/// Sends the blocks in their order, and waits until all have arrived.
async fn pump(mut send: SendStream, mut blocks: mpsc::Receiver<Block>, progress: &Progress) -> Result<()> {
    while let Some(Block { bytes, payload, files }) = blocks.recv().await {
        send.write_chunk(bytes).await?;
        progress.moved(payload);
        progress.stored(files);
    }
    send.finish()?;
    send.stopped().await?;
    Ok(())
}
