//! `traverse receive`.

use std::{cell::Cell, rc::Rc, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;
use tokio::{io::copy, sync::mpsc, task::LocalSet};
use traversal::{Admission, Connection, Node, PeerId, RecvStream, SendStream};

use super::{
    args::ReceiveArgs,
    consent::{self, Consent},
    folder::Folder,
    send::ended,
    store::{Full, Manner},
    taking::{Offer, Taken, Taking},
};
use crate::{
    listen::tell_of_supernodes,
    node::{Me, policy, with_node},
    service::{self, Answer, Ending, Service, why},
    status::Status,
    stop::{Ended, Stop},
};

/// What was said last has not been acknowledged for so long: the peer has got it, and is gone.
pub(crate) const FAREWELL: Duration = Duration::from_secs(2);

pub(crate) async fn run(args: ReceiveArgs, stop: &Stop) -> Result<()> {
    let status = Status::new(args.tell);
    let mut taking = Taking {
        consent: Consent::new(&args)?,
        folder: Folder::open(&args.folder)?,
        manner: Manner { overwrite: args.overwrite, sync: args.sync },
        limit: consent::limit(&args),
        status,
    };
    let me = Me::listener(&args.node)?;
    let mut builder = me.node(&args.node)?.policy(policy(&args.path));
    if !args.allow.is_empty() {
        builder = builder.admit(Admission::Only(args.allow.iter().copied().collect()));
    }
    with_node(builder, stop, async |node| {
        let words = format!("receiving: send me files with  traverse send {} FILE…", node.id());
        status.tell(words, "listening", json!({ "id": node.id().to_string() }));
        let (offers, offered) = mpsc::channel(1);
        let served = Rc::new(Cell::new(None));
        let tasks = LocalSet::new();
        tasks.spawn_local(accept(node.clone(), offers, served.clone()));
        tasks.spawn_local(tell_of_supernodes(node.clone(), status));
        tasks.run_until(one_after_the_other(args.keep, &mut taking, offered, &served, stop)).await
    })
    .await
}

/// Takes what is offered: until one offer has been dealt with, or with `keep` for good. A sender that is gone may come back.
async fn one_after_the_other(
    keep: bool,
    taking: &mut Taking,
    mut offered: mpsc::Receiver<Offer>,
    served: &Cell<Option<PeerId>>,
    stop: &Stop,
) -> Result<()> {
    let status = taking.status;
    loop {
        let mut offer = stop.or(async { offered.recv().await.context("the node is closed") }).await?;
        let connection = offer.connection.clone();
        served.set(Some(connection.peer_id()));
        let work = stop.or(async {
            service::answer(&mut offer.send, Answer::Yes).await?;
            taking.take(offer).await
        });
        let result = status.while_doing(&connection, work).await;
        served.set(None);
        match result {
            Ok(Taken::Over(progress)) => {
                Ending::Done.close(&connection);
                let (words, fields) = progress.summary("received");
                status.tell(words, "done", fields);
                if !keep {
                    return ended(progress.failures(), None);
                }
            }
            Ok(Taken::Refused(words)) => {
                Ending::Done.close(&connection);
                status.tell(
                    format!("refused: {words}; waiting for another"),
                    "refused",
                    json!({ "why": words }),
                );
            }
            Err(error) => {
                let reason = connection.close_reason();
                Ending::of(&error).close(&connection);
                if error.is::<Ended>() || error.is::<Full>() {
                    return Err(error);
                }
                let words = reason.map_or_else(|| format!("{error:#}"), |reason| why(&reason));
                let told =
                    format!("the transfer broke off: {words}; what is here is kept; waiting for the sender");
                status.tell(told, "lost", json!({ "why": words }));
            }
        }
    }
}

async fn accept(node: Node, offers: mpsc::Sender<Offer>, served: Rc<Cell<Option<PeerId>>>) {
    while let Some(connection) = node.accept().await {
        tokio::task::spawn_local(serve(connection, offers.clone(), served.clone()));
    }
}

/// Serves the streams of one connection until it is over.
async fn serve(connection: Connection, offers: mpsc::Sender<Offer>, served: Rc<Cell<Option<PeerId>>>) {
    while let Ok((send, receive)) = connection.accept_bi().await {
        let (connection, offers, served) = (connection.clone(), offers.clone(), served.clone());
        // A stream that breaks is its peer's business.
        tokio::task::spawn_local(
            async move { drop(stream(connection, send, receive, offers, served).await) },
        );
    }
}

async fn stream(
    connection: Connection,
    mut send: SendStream,
    mut receive: RecvStream,
    offers: mpsc::Sender<Offer>,
    served: Rc<Cell<Option<PeerId>>>,
) -> Result<()> {
    match service::wanted(&mut send, &mut receive).await? {
        Some(Service::Ping) => {
            service::answer(&mut send, Answer::Yes).await?;
            copy(&mut receive, &mut send).await?;
            send.finish()?;
        }
        // The same peer again has lost its connection, or its life: the old transfer is about to end.
        Some(Service::Files) if served.get().is_none_or(|peer| peer == connection.peer_id()) => {
            offers.send(Offer { connection, send, receive }).await?;
        }
        Some(Service::Files) => {
            service::answer(&mut send, Answer::Busy).await?;
            send.finish()?;
        }
        Some(_) => {
            service::answer(&mut send, Answer::Unknown).await?;
            send.finish()?;
        }
        None => {}
    }
    Ok(())
}
