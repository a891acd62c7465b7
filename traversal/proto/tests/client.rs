//! Clients and a supernode, engine against engine: registered, bound, connected, through whatever fails.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use traversal_proto::{
    PeerId, SocketId, Time, UnixTime,
    client::{Carrier, Client, Config, Event, Lost, Route},
    supernode::{self, ConnectionId, Listen, Outgoing, Supernode, Target, Verdict},
    wire::{
        Identity,
        frame::{Frame, data_header},
        message::{Code, FromSupernode, ToSupernode},
    },
};

const WALL: u64 = 1_800_000_000;
const SECOND: Duration = Duration::from_secs(1);
const SOCKET: SocketId = SocketId(3);

/// A node, what it has told, and how its network is.
struct Node {
    client: Client,
    id: PeerId,
    addr: SocketAddr,
    connection: Option<ConnectionId>,
    events: Vec<Event>,
    received: Vec<(PeerId, Vec<u8>)>,
    /// UDP to and from this node is dropped.
    udp_blocked: bool,
    /// So many Binds more are lost.
    lose_binds: u32,
    binds: u32,
}

struct Net {
    supernode: Supernode,
    at: SocketAddr,
    now: Time,
    nodes: Vec<Node>,
    connections: u64,
    /// Nobody can connect.
    down: bool,
    stream: bool,
}

fn supernode(seed: u8, now: Time) -> Supernode {
    let listen = Listen { socket: SocketId(0), address: "203.0.113.10:3478".parse().unwrap() };
    let id = Identity::from_secret(&[1; 32]).peer_id();
    Supernode::new(supernode::Config::new(id, listen), [seed; 32], now, wall(now)).unwrap()
}

fn wall(now: Time) -> UnixTime {
    UnixTime(WALL) + now.since(Time::ZERO)
}

impl Net {
    fn new() -> Net {
        let (now, at) = (Time::ZERO, "203.0.113.10:3478".parse().unwrap());
        let supernode = supernode(42, now);
        Net { supernode, at, now, nodes: Vec::new(), connections: 0, down: false, stream: false }
    }

    fn node(&mut self, secret: u8, wall: u64) -> usize {
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

    fn dial(&mut self, n: usize) {
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
    fn settle(&mut self) {
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

    fn drain_node(&mut self, n: usize) -> bool {
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
        moved
    }

    fn deliver(&mut self, outgoing: Outgoing) {
        let (Outgoing::Message(to, _) | Outgoing::Close(to, _)) = &outgoing;
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

    fn datagram_to(&mut self, to: SocketAddr, bytes: &[u8]) {
        let Some(node) = self.nodes.iter_mut().find(|node| node.addr == to) else { return };
        if node.udp_blocked {
            return;
        }
        if let Some((peer, range)) = node.client.handle_datagram(SOCKET, self.at, bytes, self.now) {
            node.received.push((peer, bytes[range].to_vec()));
        }
    }

    fn pass(&mut self, time: Duration) {
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
    fn relays(&mut self, from: usize, to: usize) -> bool {
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

    fn count(&self, n: usize, which: impl Fn(&Event) -> bool) -> usize {
        self.nodes[n].events.iter().filter(|event| which(event)).count()
    }

    /// Two nodes with a channel.
    fn pair() -> Net {
        let mut net = Net::new();
        let (a, b) = (net.node(2, WALL * 1000), net.node(3, WALL * 1000));
        let peer = net.nodes[b].id;
        net.nodes[a].client.connect(peer, net.now);
        net.settle();
        assert!(net.relays(a, b) && net.relays(b, a));
        net
    }

    /// The supernode's process ends; another one starts with nothing but the key.
    fn restart(&mut self, seed: u8) {
        self.supernode = supernode(seed, self.now);
        for node in &mut self.nodes {
            node.connection = None;
            node.client.handle_disconnected(self.now);
        }
        self.settle();
    }
}

fn registered(event: &Event) -> bool {
    matches!(event, Event::Registered { .. })
}

#[test]
fn two_nodes_talk() {
    let mut net = Net::pair();
    let opened =
        |incoming| move |event: &Event| matches!(event, Event::Opened { incoming: i, .. } if *i == incoming);
    assert_eq!((net.count(0, opened(false)), net.count(1, opened(true))), (1, 1));

    // Idle for an hour: renewed, the binding kept, and nobody is told anything.
    let told = net.nodes[0].events.len();
    net.pass(3600 * SECOND);
    assert_eq!(net.nodes[0].events.len(), told);
    assert!(net.relays(0, 1) && net.relays(1, 0));
    let binds = net.nodes[0].binds;
    assert!((3600 / 25..=3600 / 15 * 2 + 10).contains(&binds), "{binds} Binds in an hour");

    let (a, b) = (net.nodes[0].id, net.nodes[1].id);
    net.nodes[0].client.close(&b, net.now);
    net.settle();
    let closed = Event::Closed { peer: a, code: Code::ClosedByPeer, retrying: false };
    assert!(net.nodes[1].events.contains(&closed));
    assert_eq!(net.supernode.gauges().channels, 0);
    net.pass(60 * SECOND);
    assert_eq!(net.supernode.gauges().channels, 0, "what was closed stays closed");
}

#[test]
fn refusals_are_final_for_what_was_never_open() {
    let mut net = Net::new();
    let a = net.node(2, WALL * 1000);
    let nobody = PeerId::from_bytes([9; 32]);
    net.nodes[a].client.connect(nobody, net.now);
    net.settle();
    let refused = Event::Refused { peer: nobody, code: Code::UnknownPeer, elsewhere: None };
    assert_eq!(net.nodes[a].events.last(), Some(&refused));
    let told = net.nodes[a].events.len();
    net.pass(60 * SECOND);
    assert_eq!(net.nodes[a].events.len(), told);
}

/// A supernode that restarts has lost everything; everything comes back by itself.
#[test]
fn a_restarted_supernode_gets_everything_back() {
    let mut net = Net::pair();
    for round in 0..10 {
        net.restart(100 + round);
        let before = net.now;
        while !(net.relays(0, 1) && net.relays(1, 0)) {
            assert!(net.now.since(before) < 3 * SECOND, "round {round}");
            net.pass(Duration::from_millis(10));
        }
        net.pass(SECOND * 30);
    }
}

/// It is away for ten minutes: attempts get rarer, and do not stop.
#[test]
fn a_supernode_that_is_long_away_is_found_again() {
    let mut net = Net::pair();
    (net.down, net.nodes[0].events) = (true, Vec::new());
    net.restart(50);
    net.pass(600 * SECOND);
    let dials = net.count(0, |event| *event == Event::Dial);
    assert!((20..60).contains(&dials), "{dials} dials in ten minutes");
    net.down = false;
    net.pass(31 * SECOND);
    assert!(net.relays(0, 1) && net.relays(1, 0));
}

/// The connection breaks and nobody tells the supernode: the session is resumed, the channel is still there.
#[test]
fn a_broken_connection_is_resumed() {
    let mut net = Net::pair();
    let channel = net.nodes[0].client.channel(&net.nodes[1].id);
    net.nodes[0].connection = None;
    net.nodes[0].client.handle_disconnected(net.now);
    net.settle();
    assert!(net.relays(0, 1), "the bound address outlives the connection");
    net.pass(SECOND);
    assert!(net.nodes[0].events.iter().any(|event| matches!(event, Event::Registered { resumed: true, .. })));
    assert_eq!(net.nodes[0].client.channel(&net.nodes[1].id), channel);
    assert!(net.relays(0, 1) && net.relays(1, 0));
    assert_eq!(net.count(1, |event| matches!(event, Event::Closed { .. })), 0);
}

#[test]
fn lost_binds_are_sent_again() {
    for lost in 0..12 {
        let mut net = Net::pair();
        net.nodes[0].lose_binds = lost;
        net.pass(240 * SECOND);
        assert!(net.relays(0, 1) && net.relays(1, 0), "{lost} lost");
        assert!(matches!(net.nodes[0].client.route(), Some(Route::Datagram { .. })), "{lost} lost");
    }
}

/// UDP is blocked, works, and is blocked again; packets always find a way.
#[test]
fn udp_that_comes_and_goes() {
    for stream in [false, true] {
        let mut net = Net::new();
        net.stream = stream;
        let a = net.node(2, WALL * 1000);
        net.nodes[a].udp_blocked = true;
        let b = net.node(3, WALL * 1000);
        net.nodes[b].udp_blocked = stream;
        let peer = net.nodes[b].id;
        net.pass(3 * SECOND);
        net.nodes[a].client.connect(peer, net.now);
        net.pass(30 * SECOND);
        assert_eq!(net.nodes[a].client.route(), Some(Route::Stream), "{:?}", net.nodes[a].events);
        assert!(net.relays(a, b) && net.relays(b, a));

        net.nodes[a].udp_blocked = false;
        net.pass(31 * SECOND);
        assert!(matches!(net.nodes[a].client.route(), Some(Route::Datagram { .. })));
        assert!(net.relays(a, b) && net.relays(b, a));

        net.nodes[a].udp_blocked = true;
        net.pass(28 * SECOND);
        assert_eq!(net.nodes[a].client.route(), Some(Route::Stream));
        assert!(net.relays(a, b) && net.relays(b, a));
    }
}

/// The NAT gives us another address: the supernode says that it does not know it, and gets to know it.
#[test]
fn a_changed_address_is_bound_at_once() {
    let mut net = Net::pair();
    for port in 41_000..41_010 {
        net.nodes[0].addr.set_port(port);
        assert!(!net.relays(0, 1), "the address is not the bound one yet");
        assert!(net.relays(0, 1), "an Error frame, then Bind, Challenge, Bind, Bound");
        assert!(net.relays(1, 0));
        net.pass(SECOND);
    }
}

/// Our clock is a day wrong, in either direction, or there is none: the supernode's counts.
#[test]
fn clocks_may_differ() {
    for wall in [0, (WALL - 86_400) * 1000, (WALL + 86_400) * 1000] {
        let mut net = Net::new();
        net.node(2, wall);
        net.pass(SECOND);
        assert_eq!(net.count(0, registered), 1, "{wall}");
    }
}

/// A former process of ours had a faster clock: its sequence numbers are higher.
#[test]
fn a_stale_sequence_is_raised() {
    let mut net = Net::new();
    net.node(2, (WALL + 86_400) * 1000);
    let first = net.nodes.remove(0);
    net.supernode.handle_disconnected(first.connection.unwrap(), net.now);
    net.node(2, WALL * 1000);
    assert_eq!(net.count(0, registered), 1);
    net.pass(3600 * SECOND);
    assert_eq!(net.supernode.gauges().registrations, 1, "renewed with numbers above the floor");
}

/// The same key on another machine: the younger one stays, the older one keeps its distance.
#[test]
fn who_is_replaced_does_not_fight() {
    let mut net = Net::new();
    net.node(2, WALL * 1000);
    net.pass(SECOND);
    net.node(2, WALL * 1000 + 5000);
    net.pass(20 * SECOND);
    assert!(net.nodes[0].events.contains(&Event::Lost(Lost::Code(Code::Replaced))));
    assert_eq!((net.count(0, registered), net.count(1, registered)), (1, 1));
}

/// A supernode that says nothing any more, though its connection stands, is left.
#[test]
fn silence_is_noticed() {
    let mut net = Net::new();
    net.node(2, WALL * 1000);
    net.pass(5 * SECOND);
    net.supernode = supernode(1, net.now);
    let left = |net: &Net| net.nodes[0].events.contains(&Event::Lost(Lost::Unresponsive));
    net.pass(60 * SECOND);
    assert!(left(&net));
    assert_eq!(net.count(0, registered), 2);
}

/// Frames and messages that do not belong here: none of them changes anything, or panics.
#[test]
fn noise_changes_nothing() {
    let mut net = Net::pair();
    let at = net.at;
    let told = net.nodes[0].events.len();
    let session = traversal_proto::wire::frame::SessionId(7);
    let mut frames: Vec<Vec<u8>> = (0..=255u8).map(|first| vec![first; usize::from(first)]).collect();
    frames.push(Frame::Challenge { session, sequence: 1, cookie: [1; 16] }.to_vec());
    frames.push(Frame::Bound { session, sequence: 1, lifetime: 9, proof: [1; 16] }.to_vec());
    for frame in frames {
        assert_eq!(net.nodes[0].client.handle_datagram(SOCKET, at, &frame, net.now), None);
        let stranger = "192.0.2.66:66".parse().unwrap();
        assert_eq!(net.nodes[0].client.handle_datagram(SOCKET, stranger, &frame, net.now), None);
    }
    for message in [
        FromSupernode::Opened {
            request: Some(99),
            peer: PeerId::from_bytes([3; 32]),
            channel: traversal_proto::wire::frame::ChannelId(1),
            relay: traversal_proto::wire::message::RelayMode::Full,
        },
        FromSupernode::Refused { request: 99, code: Code::Full, detail: 0, elsewhere: None },
        FromSupernode::Attached,
        FromSupernode::Pong { nonce: 1 },
    ] {
        net.nodes[0].client.handle_message(message, net.now);
    }
    net.settle();
    net.pass(60 * SECOND);
    assert!(net.relays(0, 1) && net.relays(1, 0));
    let lost = net.nodes[0].events[told..].iter().any(|event| matches!(event, Event::Lost(_)));
    assert!(!lost, "{:?}", &net.nodes[0].events[told..]);
}

/// Many channels at once, and where the limit is.
#[test]
fn channels_have_a_limit() {
    let mut net = Net::new();
    let identity = Identity::from_secret(&[2; 32]);
    let mut config = Config::new(identity);
    config.max_channels = 10;
    net.node(2, WALL * 1000);
    net.nodes[0].client = Client::new(config, [1; 32], net.now, WALL * 1000 + 1);
    net.settle();
    let others: BTreeMap<_, _> = (10..30).map(|n| (net.node(n, WALL * 1000), n)).collect();
    for n in others.keys() {
        let peer = net.nodes[*n].id;
        net.nodes[0].client.connect(peer, net.now);
    }
    net.settle();
    assert_eq!(net.supernode.gauges().channels, 10);
    let full = |event: &Event| matches!(event, Event::Refused { code: Code::TooManyChannels, .. });
    assert_eq!(net.count(0, full), 10);
}
