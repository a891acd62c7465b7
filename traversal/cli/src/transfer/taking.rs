//! The receiver's side of one transfer, from the offer to the report.

use std::{cell::Cell, sync::Arc, time::Duration};

use anyhow::{Context, Error, Result, anyhow};
use bytes::BytesMut;
use serde_json::json;
use tokio::{
    io::AsyncReadExt,
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};
use traversal::{Connection, RecvStream, SendStream};

use super::{
    consent::{Consent, describe},
    folder::Folder,
    ledger::Ledger,
    manifest::{Arriving, Manifest},
    plan,
    progress::Progress,
    receive::FAREWELL,
    store::{Full, Manner, Store},
    stream::{Chunks, Incoming, say},
    wire::{FromReceiver, FromSender, Malformed, Refusal, VERSION, put},
};
use crate::status::Status;

/// A list is complete within this time: a million entries over a slow line.
const LISTING: Duration = Duration::from_secs(600);

/// Bytes of a block that is handed to the thread that writes.
const BLOCK: usize = 256 * 1024;

/// Blocks that wait for it.
const BLOCKS: usize = 8;

/// Messages that wait to be sent.
const MESSAGES: usize = 1024;

/// Names of an offer that are told to programs.
const NAMES: usize = 100;

/// An offer that somebody has opened a stream for.
pub(crate) struct Offer {
    pub(crate) connection: Connection,
    pub(crate) send: SendStream,
    pub(crate) receive: RecvStream,
}

/// What has come of an offer.
pub(crate) enum Taken {
    /// Every file is here, or has failed.
    Over(Arc<Progress>),
    /// In words, why.
    Refused(String),
}

/// How offers are taken.
pub(crate) struct Taking {
    pub(crate) folder: Folder,
    pub(crate) manner: Manner,
    /// In bytes.
    pub(crate) limit: u64,
    pub(crate) consent: Consent,
    pub(crate) status: Status,
}

impl Taking {
    /// Takes an offer, or refuses it. The connection is still to be closed.
    ///
    /// # Errors
    /// [`Full`]: nothing else can be taken either. Others are this sender's, or the connection's.
    pub(crate) async fn take(&mut self, offer: Offer) -> Result<Taken> {
        let Offer { connection, mut send, mut receive } = offer;
        let version = receive.read_u8().await?;
        if version != VERSION {
            return refuse(send, Refusal::Version(VERSION), format!("it speaks version {version}")).await;
        }
        let mut incoming = Incoming::new(receive);
        let listing = timeout(LISTING, list(&mut incoming, self.limit)).await;
        let manifest = match listing.context("the peer's list does not end")?? {
            Ok(manifest) => manifest,
            Err(refusal) => {
                let words = match &refusal {
                    Refusal::List(words) => words.clone(),
                    _ => format!("it is more than {}", indicatif::HumanBytes(self.limit)),
                };
                return refuse(send, refusal, words).await;
            }
        };
        let names: Vec<_> = manifest.top().take(NAMES).map(|entry| &entry.path).collect();
        let fields = json!({
            "files": manifest.files, "folders": manifest.folders, "bytes": manifest.bytes, "names": names,
        });
        if self.consent.is_given() {
            self.status.tell(format!("offered: {}", describe(&manifest)), "offer", fields);
        }
        let is_taken = tokio::select! {
            answer = self.consent.to(connection.peer_id(), &manifest) => answer?,
            _ = connection.closed() => return Err(anyhow!("the offer is withdrawn")),
        };
        if !is_taken {
            return refuse(send, Refusal::Declined, "you said no".to_owned()).await;
        }
        say(&mut send, &FromReceiver::Accept).await?;
        let progress = Arc::new(Progress::new(manifest.files, manifest.bytes));
        tokio::select! {
            biased;
            done = self.transfer(send, incoming, manifest, &progress) => done?,
            () = progress.show(&connection, self.status) => {}
        }
        let _ = timeout(FAREWELL, connection.closed()).await;
        Ok(Taken::Over(progress))
    }

    async fn transfer(
        &self,
        send: SendStream,
        incoming: Incoming,
        manifest: Manifest,
        progress: &Arc<Progress>,
    ) -> Result<()> {
        let Incoming { receive, decoder, rest } = incoming;
        let (out, messages) = mpsc::channel(MESSAGES);
        let (blocks, stored) = mpsc::channel(BLOCKS);
        let ledger = Arc::new(Ledger::new(manifest, progress.clone(), self.status, out));
        let closing = Closing(ledger.clone());
        let (folder, overwrite, planned) = (self.folder.clone(), self.manner.overwrite, ledger.clone());
        let mut planning = spawn_blocking(move || plan::run(folder, &planned, overwrite));
        let store = Store::new(self.folder.clone(), ledger.clone(), self.manner);
        let mut storing = spawn_blocking(move || store.run(decoder, stored));

        let full = Cell::new(None);
        let result = {
            let feeding = async {
                let fed = feed(receive, rest, blocks).await;
                match joined(&mut storing).await {
                    Ok(()) => Ok(()),
                    // The sender has been told, if only that arrives.
                    Err(error) if error.is::<Full>() => {
                        full.set(Some(error));
                        Ok(())
                    }
                    // That the stream ends early is what the other end of the blocks sees of a lost connection.
                    Err(error) => fed.and(Err(error)),
                }
            };
            let answering = answer(send, messages);
            tokio::pin!(feeding, answering);
            // When one is done, the other has little left; that the peer is gone meanwhile would not be noticed for long.
            tokio::select! {
                biased;
                fed = &mut feeding => {
                    if fed.is_ok() {
                        let _ = timeout(FAREWELL, answering).await;
                    }
                    fed
                }
                told = &mut answering => match told {
                    Ok(()) => timeout(FAREWELL, feeding).await.unwrap_or(Ok(())),
                    Err(error) => Err(error),
                },
            }
        };
        let is_over = ledger.is_over();
        drop(closing);
        // Neither holds a partial any more when the next transfer begins.
        let _ = joined(&mut planning).await;
        if !storing.is_finished() {
            let _ = joined(&mut storing).await;
        }
        match full.take() {
            Some(full) => Err(full),
            // Everything is here: that the connection ends now harms nobody.
            None if is_over => Ok(()),
            None => result,
        }
    }
}

/// Whatever waits for the transfer, waits no longer.
struct Closing(Arc<Ledger>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

async fn joined(thread: &mut JoinHandle<Result<()>>) -> Result<()> {
    thread.await.unwrap_or_else(|error| Err(Error::new(error)))
}

/// Reads the list; not to its end, if more bytes are announced than are taken.
pub(super) async fn list(
    incoming: &mut Incoming<impl Chunks>,
    limit: u64,
) -> Result<Result<Manifest, Refusal>> {
    let FromSender::Offer { entries, bytes } = incoming.next().await? else {
        return Err(Malformed("it does not begin with an offer").into());
    };
    if bytes > limit {
        return Ok(Err(Refusal::TooLarge { limit }));
    }
    let mut arriving = match Arriving::new(entries, bytes) {
        Ok(arriving) => arriving,
        Err(words) => return Ok(Err(Refusal::List(words))),
    };
    while !arriving.is_complete() {
        let FromSender::List(batch) = incoming.next().await? else {
            return Err(Malformed("a list is interrupted").into());
        };
        for entry in batch {
            if let Err(words) = arriving.add(entry) {
                return Ok(Err(Refusal::List(super::wire::brief(words))));
            }
        }
    }
    Ok(arriving.finish().map_err(Refusal::List))
}

/// Says no, and waits until that has arrived.
async fn refuse(mut send: SendStream, refusal: Refusal, words: String) -> Result<Taken> {
    say(&mut send, &FromReceiver::Refuse(refusal)).await?;
    send.finish()?;
    let _ = timeout(FAREWELL, send.stopped()).await;
    Ok(Taken::Refused(words))
}

/// Hands what arrives to the thread that writes, until the sender has ended or nothing more is taken.
async fn feed(mut receive: RecvStream, rest: bytes::Bytes, blocks: mpsc::Sender<bytes::Bytes>) -> Result<()> {
    let mut block = BytesMut::from(&rest[..]);
    loop {
        if !block.is_empty() && blocks.send(block.split().freeze()).await.is_err() {
            return Ok(());
        }
        // What is left of the last one is read into, while it is worth a read.
        if block.capacity() < BLOCK / 8 {
            block.reserve(BLOCK);
        }
        let read = tokio::select! {
            read = receive.read_buf(&mut block) => read?,
            () = blocks.closed() => return Ok(()),
        };
        if read == 0 {
            return Ok(());
        }
    }
}

/// Sends the messages, and waits until the last one has arrived.
async fn answer(mut send: SendStream, mut messages: mpsc::Receiver<FromReceiver>) -> Result<()> {
    let (mut ready, mut bytes) = (Vec::new(), Vec::new());
    loop {
        messages.recv_many(&mut ready, MESSAGES).await;
        let is_last = matches!(ready.last(), None | Some(FromReceiver::Report | FromReceiver::Stopped(_)));
        for message in ready.drain(..) {
            put(&message, &mut bytes)?;
        }
        send.write_all(&bytes).await?;
        bytes.clear();
        if is_last {
            break;
        }
    }
    send.finish()?;
    send.stopped().await?;
    Ok(())
}
