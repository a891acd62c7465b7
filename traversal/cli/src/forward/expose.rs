//! `traverse expose`: the one who is found.

use std::{cell::RefCell, rc::Rc};

use anyhow::{Context, Result};
use serde_json::json;
use tokio::task::LocalSet;
use traversal::{Admission, Connection, Node, Path, PathEvent};

use super::{
    allow::Allowed,
    args::ExposeArgs,
    exit::Exit,
    files,
    report::Report,
    resolve::Resolver,
    session::{MAX_STREAMS, MAX_UNREAD, Session},
};
use crate::{
    listen::tell_of_supernodes,
    node::{Me, policy, with_node},
    service::{Ending, why},
    status::Status,
    stop::Stop,
};

/// Peers at a time: each may have [`MAX_UNREAD`] bytes lying here.
const MAX_PEERS: usize = 32;

pub(crate) async fn run(args: ExposeArgs, stop: &Stop) -> Result<()> {
    let status = Status::new(args.tell);
    files::as_many_as_may_be();
    let me = Me::listener(&args.node)?;
    let mut builder = me.node(&args.node)?.policy(policy(&args.path));
    builder = builder.max_streams(MAX_STREAMS).max_unread(MAX_UNREAD);
    if !args.allow.is_empty() {
        builder = builder.admit(Admission::Only(args.allow.into_iter().collect()));
    }
    let allowed = Allowed { targets: args.targets, listeners: args.listen };
    let exit = Exit { allowed, behind: Vec::new(), resolver: Resolver::default(), idle: args.udp_idle };
    with_node(builder, stop, async |node| {
        tell(node, &exit.allowed, status);
        let report = Report::new(status);
        let peers = Rc::new(RefCell::new(Vec::new()));
        let tasks = LocalSet::new();
        tasks.spawn_local(tell_of_supernodes(node.clone(), status));
        tasks.spawn_local(follow(Rc::clone(&report), Rc::clone(&peers)));
        let result = tasks.run_until(stop.or(accept(node, Rc::new(exit), &report, &peers))).await;
        if let Err(error) = &result {
            // Before their streams end: half of something must not look like all of it.
            for connection in peers.borrow().iter() {
                Ending::of(error).close(connection);
            }
        }
        report.done();
        result
    })
    .await
}

fn tell(node: &Node, allowed: &Allowed, status: Status) {
    let id = node.id().to_string();
    let all = |entries: &[_]| entries.iter().map(ToString::to_string).collect::<Vec<String>>();
    let (targets, listeners) = (all(&allowed.targets), all(&allowed.listeners));
    let reach = match targets.first() {
        Some(target) => format!("traverse forward --local PORT {id} {target}"),
        None => format!("traverse forward --remote PORT {id} TARGET"),
    };
    let mut what = targets.join(" ");
    if !listeners.is_empty() {
        what += if what.is_empty() { "" } else { ", and " };
        what += &format!("ports {} for peers", listeners.join(" "));
    }
    status.tell(
        format!("exposing {what}: reach it with  {reach}"),
        "exposing",
        json!({ "id": id, "targets": targets, "listen": listeners }),
    );
}

async fn accept(
    node: &Node,
    exit: Rc<Exit>,
    report: &Rc<Report>,
    peers: &Rc<RefCell<Vec<Connection>>>,
) -> Result<()> {
    loop {
        let connection = node.accept().await.context("the node is closed")?;
        if peers.borrow().len() >= MAX_PEERS {
            let peer = connection.peer_id().to_string();
            let words = format!("{peer} was turned away: {MAX_PEERS} peers are connected");
            report.refusal(words, json!({ "peer": peer, "why": "too-many-peers" }));
            Ending::Failed.close(&connection);
            continue;
        }
        peers.borrow_mut().push(connection.clone());
        let (exit, report, peers) = (Rc::clone(&exit), Rc::clone(report), Rc::clone(peers));
        tokio::task::spawn_local(async move {
            let session = Session::new(connection.clone(), &report);
            while_connected(&connection, report.status, exit.serve(session)).await;
            // By what it is, not by whose: a peer that is back may have another one already.
            peers.borrow_mut().retain(|known: &Connection| known.close_reason().is_none());
        });
    }
}

/// Tells of a peer from its coming to its going.
async fn while_connected(connection: &Connection, status: Status, work: impl Future<Output = ()>) {
    let peer = connection.peer_id().to_string();
    let mut events = connection.path_events();
    let path = connection.path();
    status.tell(format!("{peer} is connected: {path}"), "connected", json!({ "peer": peer, "path": path }));
    let telling = async {
        while let Some(event) = events.next().await {
            if let PathEvent::Switched { from, to, .. } = &event {
                let fields = json!({ "peer": peer, "path": event });
                status.tell(format!("{peer}: {} → {to}", from.kind), "path", fields);
            }
        }
    };
    tokio::join!(work, telling);
    let reason = connection.close_reason().map_or_else(String::new, |reason| why(&reason));
    status.tell(format!("{peer} is gone: {reason}"), "gone", json!({ "peer": peer, "why": reason }));
}

async fn follow(report: Rc<Report>, peers: Rc<RefCell<Vec<Connection>>>) {
    let latest = || {
        let peers = peers.borrow();
        (peers.last().map(Connection::path), peers.len())
    };
    report.follow(move || -> (Option<Path>, usize) { latest() }).await;
}
