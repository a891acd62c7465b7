//! cargo run --example chat -- SUPERNODE NAME         opens a room, and prints how others come in
//! cargo run --example chat -- SUPERNODE NAME ID      comes into the room in which ID is
//!
//! A chat room without a server: everybody is connected to everybody, each pair by the best path that its two NATs allow.
//! `/who` lists who is here and by which path, `/quit` leaves, as do Ctrl-C and SIGTERM. Each message is a stream of its
//! own, in JSON.
mod stop;

use std::collections::BTreeMap;
use std::pin::pin;

use anyhow::{Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader, stdin};
use tokio::sync::mpsc::{Sender, channel};
use traversal::{CloseReason, Connection, Node, PathEvent, PeerId};

/// The longest message, in bytes. Here and below: a stranger must not make us keep, or dial, any number of things.
const MAX_MESSAGE: usize = 8192;
const MAX_MEMBERS: usize = 32;

#[derive(Serialize, Deserialize)]
enum Message {
    /// My name, and the ids of all who are here: said to everybody whenever somebody has come.
    Hello(String, Vec<String>),
    Say(String),
}

enum Event {
    Connected(Connection),
    Hello(PeerId, String, Vec<String>),
    Gone(PeerId),
}

struct Room {
    node: Node,
    name: String,
    /// Everybody's name, or the id of who has not told it yet.
    members: BTreeMap<PeerId, (String, Connection)>,
    events: Sender<Event>,
}

impl Room {
    fn handle(&mut self, event: Event) {
        match event {
            Event::Connected(connection) => self.enter(connection),
            Event::Hello(peer, name, members) => {
                self.members.entry(peer).and_modify(|member| member.0 = name);
                members.iter().filter_map(|id| id.parse().ok()).for_each(|id| self.connect(id));
            }
            Event::Gone(peer) => drop(self.members.remove(&peer)),
        }
    }

    fn enter(&mut self, connection: Connection) {
        let peer = connection.peer_id();
        if self.members.len() >= MAX_MEMBERS || self.members.contains_key(&peer) {
            return;
        }
        tokio::spawn(read(connection.clone(), self.events.clone()));
        self.members.insert(peer, (peer.to_string(), connection));
        let members = self.members.keys().map(PeerId::to_string).collect();
        self.tell(&Message::Hello(self.name.clone(), members));
    }

    /// To a peer that is here, or is being connected to, there is no second connection.
    fn connect(&self, peer: PeerId) {
        if peer == self.node.id() || self.members.contains_key(&peer) || self.members.len() >= MAX_MEMBERS {
            return;
        }
        let (node, events) = (self.node.clone(), self.events.clone());
        tokio::spawn(async move {
            match node.connect(peer).await {
                Ok(connection) => drop(events.send(Event::Connected(connection)).await),
                Err(error) => println!("* {error}"),
            }
        });
    }

    fn tell(&self, message: &Message) {
        for (_, connection) in self.members.values() {
            let (connection, json) = (connection.clone(), serde_json::to_vec(message));
            tokio::spawn(async move {
                let mut stream = connection.open_uni().await?;
                stream.write_all(&json?).await?;
                anyhow::Ok(stream.finish()?)
            });
        }
    }
}

async fn read(connection: Connection, events: Sender<Event>) -> Result<()> {
    let (peer, mut paths, mut who) = (connection.peer_id(), connection.path_events(), String::new());
    loop {
        let mut stream = tokio::select! {
            stream = connection.accept_uni() => match stream { Ok(stream) => stream, Err(_) => break },
            Some(event) = paths.next() => {
                if let PathEvent::Switched { from, to, .. } = event {
                    println!("* {who}: {} → {to}", from.kind);
                }
                continue;
            }
        };
        let Ok(bytes) = stream.read_to_end(MAX_MESSAGE).await else { continue };
        match serde_json::from_slice(&bytes) {
            // Control characters would move the cursor, or worse.
            Ok(Message::Say(text)) => println!("{who}: {}", text.replace(char::is_control, " ")),
            Ok(Message::Hello(name, members)) => {
                let name = name.replace(char::is_control, " ").chars().take(32).collect();
                if std::mem::replace(&mut who, name).is_empty() {
                    println!("* {who} is here, by {}", connection.path());
                }
                events.send(Event::Hello(peer, who.clone(), members)).await?;
            }
            Err(_) => {}
        }
    }
    if connection.close_reason() != Some(CloseReason::Here) {
        println!("* {who} has left");
    }
    Ok(events.send(Event::Gone(peer)).await?)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [supernode, name, rest @ ..] = &args[..] else { bail!("usage: chat SUPERNODE NAME [ID]") };
    let host = rest.first().map(|id| id.parse::<PeerId>()).transpose();
    let host = host.map_err(|error| anyhow!("whose room? {error}"))?;
    let node = Node::builder().supernode(supernode).start().await?;
    println!("* others come in by: chat {supernode} THEIR-NAME {}", node.id());
    let (events, mut happened) = channel(MAX_MEMBERS);
    let mut room = Room { node: node.clone(), name: name.clone(), members: BTreeMap::new(), events };
    host.into_iter().for_each(|id| room.connect(id));
    let mut lines = BufReader::new(stdin()).lines();
    let mut stop = pin!(stop::stop());
    loop {
        tokio::select! {
            Some(event) = happened.recv() => room.handle(event),
            Some(connection) = node.accept() => room.enter(connection),
            line = lines.next_line() => match line?.as_deref().map(str::trim) {
                Some("") => {}
                Some("/who") => for (id, (name, connection)) in &room.members {
                    println!("* {name} {id}: {}", connection.path());
                },
                None | Some("/quit") => break,
                Some(line) => room.tell(&Message::Say(line.to_owned())),
            },
            _ = &mut stop => break,
        }
    }
    node.close().await;
    // Reading from a terminal goes on in a thread until the next line: nobody waits for it.
    std::process::exit(0)
}
