//! Clients and a supernode, joined without a network.

use std::{net::SocketAddr, time::Duration};

use traversal_proto::{
    PeerId, SocketId, Time, UnixTime,
    client::{Carrier, Client, Config, Event, Route},
    supernode::{self, ConnectionId, Listen, Outgoing, Supernode, Target, Verdict},
    wire::{Identity, frame::data_header, message::ToSupernode},
};

pub(crate) const WALL: u64 = 1_800_000_000;
pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const SOCKET: SocketId = SocketId(3);

/// A node, what it has told, and how its network is.
pub(crate) struct Node {
    pub(crate) client: Client,
    pub(crate) id: PeerId,
    pub(crate) addr: SocketAddr,
    pub(crate) connection: Option<ConnectionId>,
    pub(crate) events: Vec<Event>,
    pub(crate) received: Vec<(PeerId, Vec<u8>)>,
    /// UDP to and from this node is dropped.
    pub(crate) udp_blocked: bool,
    /// So many Binds more are lost.
    pub(crate) lose_binds: u32,
    pub(crate) binds: u32,
}

pub(crate) struct Net {
    pub(crate) supernode: Supernode,
    pub(crate) at: SocketAddr,
    pub(crate) now: Time,
    pub(crate) nodes: Vec<Node>,
    pub(crate) connections: u64,
    /// Nobody can connect.
    pub(crate) down: bool,
    pub(crate) stream: bool,
    /// Messages to this node wait here.
    pub(crate) held: Option<(usize, Vec<Outgoing>)>,
}

pub(crate) fn supernode(seed: u8, now: Time) -> Supernode {
    let listen = Listen { socket: SocketId(0), address: "203.0.113.10:3478".parse().unwrap() };
    let id = Identity::from_secret(&[1; 32]).peer_id();
    Supernode::new(supernode::Config::new(id, listen), [seed; 32], now, wall(now)).unwrap()
}

pub(crate) fn wall(now: Time) -> UnixTime {
    UnixTime(WALL) + now.since(Time::ZERO)
}

impl Net {
    pub(crate) fn new() -> Net {
        let (now, at) = (Time::ZERO, "203.0.113.10:3478".parse().unwrap());
        let supernode = supernode(42, now);
        Net { supernode, at, now, nodes: Vec::new(), connections: 0, down: false, stream: false, held: None }
    }

    pub(crate) fn node(&mut self, secret: u8, wall: u64) -> usize {
        let identity = Identity::from_secret(&[secret; 32]);
        let id = identity.peer_id();
        self.nodes.push(Node {
            client: Client::new(Config::new(identity), [secret; 32], self.now, wall),
            id,
            addr: SocketAddr::from(([198, 51, 100, secret], 40_000)),
            connection: None,
            events: Vec::new(),
            received: Vec::new(),
            udp_blocked: false,
            lose_binds: 0,
            binds: 0,
        });
        self.settle();
        self.nodes.len() - 1
    }

    pub(crate) fn dial(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if self.down {
            return node.client.handle_disconnected(self.now);
        }
        self.connections += 1;
        let connection = ConnectionId(self.connections);
        node.connection = Some(connection);
        let path = (SOCKET, self.at);
        let carrier = match self.stream {
            true => Carrier::Stream { udp: Some(path) },
            false => Carrier::Datagrams { socket: path.0, to: path.1 },
        };
        node.client.handle_connected(Identity::from_secret(&[1; 32]).peer_id(), carrier, self.now);
        self.supernode.handle_connected(connection, node.id, node.addr, self.now);
    }

    /// Moves everything that waits, until nothing does.
    pub(crate) fn settle(&mut self) {
        loop {
            let mut moved = false;
            for n in 0..self.nodes.len() {
                moved |= self.drain_node(n);
            }
            while let Some(outgoing) = self.supernode.poll_message() {
                moved = true;
                self.deliver(outgoing);
            }
            while let Some(transmit) = self.supernode.poll_transmit() {
                moved = true;
                self.datagram_to(transmit.to, &transmit.bytes);
            }
            if !moved {
                return;
            }
        }
    }

    pub(crate) fn drain_node(&mut self, n: usize) -> bool {
        let mut moved = false;
        while let Some(message) = self.nodes[n].client.poll_message() {
            moved = true;
            let connection = self.nodes[n].connection.expect("a message without a connection");
            let message = ToSupernode::decode(&message.encode()).unwrap();
            self.supernode.handle_message(connection, message, self.now);
        }
        while let Some(transmit) = self.nodes[n].client.poll_transmit() {
            moved = true;
            assert_eq!((transmit.socket, transmit.to), (SOCKET, self.at));
            let node = &mut self.nodes[n];
            node.binds += 1;
            if node.udp_blocked || node.lose_binds > 0 || self.down {
                node.lose_binds = node.lose_binds.saturating_sub(1);
                continue;
            }
            let (addr, mut bytes) = (node.addr, transmit.bytes);
            self.supernode.handle_datagram(SocketId(0), addr, &mut bytes, self.now);
        }
        while let Some(event) = self.nodes[n].client.poll_event() {
            moved = true;
            match event {
                Event::Dial => self.dial(n),
                Event::Lost(_) => {
                    if let Some(connection) = self.nodes[n].connection.take() {
                        self.supernode.handle_disconnected(connection, self.now);
                    }
                }
                _ => {}
            }
            self.nodes[n].events.push(event);
        }
        while let Some(early) = self.nodes[n].client.poll_early() {
            self.nodes[n].received.push(early);
        }
        moved
    }

    pub(crate) fn deliver(&mut self, outgoing: Outgoing) {
        let (Outgoing::Message(to, _) | Outgoing::Close(to, _)) = &outgoing;
        if let Some((n, held)) = &mut self.held
            && self.nodes[*n].connection == Some(*to)
        {
            return held.push(outgoing);
        }
        let Some(node) = self.nodes.iter_mut().find(|node| node.connection == Some(*to)) else { return };
        match outgoing {
            Outgoing::Message(_, message) => {
                assert_eq!(node.client.handle_frame(&message.encode(), self.now), Ok(None));
            }
            Outgoing::Close(..) => {
                node.connection = None;
                node.client.handle_disconnected(self.now);
            }
        }
    }

    pub(crate) fn datagram_to(&mut self, to: SocketAddr, bytes: &[u8]) {
        let Some(node) = self.nodes.iter_mut().find(|node| node.addr == to) else { return };
        if node.udp_blocked {
            return;
        }
        if let Some((peer, range)) = node.client.handle_datagram(SOCKET, self.at, bytes, self.now) {
            node.received.push((peer, bytes[range].to_vec()));
        }
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let due = self.nodes.iter().filter_map(|node| node.client.poll_timeout());
            let Some(due) = due.chain(self.supernode.poll_timeout()).min().filter(|due| *due <= until) else {
                break;
            };
            self.now = self.now.max(due);
            self.supernode.handle_timeout(self.now);
            for node in &mut self.nodes {
                node.client.handle_timeout(self.now);
            }
            self.settle();
        }
        self.now = until;
    }

    /// Sends from one node to another as a driver does, and tells whether it arrived.
    pub(crate) fn relays(&mut self, from: usize, to: usize) -> bool {
        let (sender, receiver) = (&self.nodes[from], self.nodes[to].id);
        let (Some(channel), Some(route)) = (sender.client.channel(&receiver), sender.client.route()) else {
            return false;
        };
        let mut bytes = data_header(channel).to_vec();
        bytes.extend_from_slice(b"payload");
        let verdict = match route {
            Route::Datagram { .. } if sender.udp_blocked => return false,
            Route::Datagram { .. } => {
                self.supernode.handle_datagram(SocketId(0), sender.addr, &mut bytes, self.now)
            }
            Route::Stream => self.supernode.handle_frame(sender.connection.unwrap(), &mut bytes, self.now),
        };
        let Verdict::Relay { to: target, .. } = verdict else {
            self.settle();
            return false;
        };
        let before = self.nodes[to].received.len();
        match target {
            Target::Datagram { to, .. } => self.datagram_to(to, &bytes),
            Target::Stream(connection) => {
                let node = self.nodes.iter_mut().find(|node| node.connection == Some(connection)).unwrap();
                if let Ok(Some((peer, range))) = node.client.handle_frame(&bytes, self.now) {
                    node.received.push((peer, bytes[range].to_vec()));
                }
            }
        }
        let expected = (self.nodes[from].id, b"payload".to_vec());
        self.nodes[to].received[before..] == [expected]
    }

    pub(crate) fn count(&self, n: usize, which: impl Fn(&Event) -> bool) -> usize {
        self.nodes[n].events.iter().filter(|event| which(event)).count()
    }

    /// Two nodes with a channel.
    pub(crate) fn pair() -> Net {
        let mut net = Net::new();
        let (a, b) = (net.node(2, WALL * 1000), net.node(3, WALL * 1000));
        let peer = net.nodes[b].id;
        net.nodes[a].client.connect(peer, net.now);
        net.settle();
        assert!(net.relays(a, b) && net.relays(b, a));
        net
    }

    /// The supernode's process ends; another one starts with nothing but the key. Nobody is told.
    pub(crate) fn restart_silently(&mut self, seed: u8) {
        self.supernode = supernode(seed, self.now);
    }

    /// The same, and the ends of connections are noticed.
    pub(crate) fn restart(&mut self, seed: u8) {
        self.restart_silently(seed);
        for node in &mut self.nodes {
            node.connection = None;
            node.client.handle_disconnected(self.now);
        }
        self.settle();
    }
}
