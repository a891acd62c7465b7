//! Clients and a supernode, engine against engine: registered, bound, connected, through whatever fails.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod net;

use std::{collections::BTreeMap, time::Duration};

use traversal_proto::{
    PeerId,
    client::{Client, Config, Event, Lost, Route},
    wire::{
        Identity,
        frame::{Frame, FrameError},
        message::{Code, FromSupernode},
    },
};

use net::*;

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
fn packets_that_overtake_their_channel_are_kept() {
    let news_after = |wait| {
        let mut net = Net::new();
        let (a, b) = (net.node(2, WALL * 1000), net.node(3, WALL * 1000));
        net.held = Some((b, Vec::new()));
        let peer = net.nodes[b].id;
        net.nodes[a].client.connect(peer, net.now);
        net.settle();
        for _ in 0..9 {
            assert!(!net.relays(a, b), "nobody has told b of the channel");
        }
        net.pass(wait);
        let (_, late) = net.held.take().unwrap();
        late.into_iter().for_each(|outgoing| net.deliver(outgoing));
        net.settle();
        let early = net.nodes[b].received.clone();
        assert!(early.iter().all(|packet| *packet == (net.nodes[a].id, b"payload".to_vec())));
        assert!(net.relays(a, b) && net.relays(b, a));
        early.len()
    };
    assert_eq!(news_after(SECOND / 2), 4, "as many as one channel may have waiting");
    assert_eq!(news_after(SECOND * 2), 0, "too old: its sender has sent it again");
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

/// A connection does not tell that the supernode at its other end is another one; a packet that it does not relay does.
#[test]
fn a_silent_restart_is_found_out_by_what_is_relayed() {
    let mut net = Net::pair();
    for round in 0..5 {
        net.restart_silently(100 + round);
        let before = net.now;
        // Both send, whether the other one is heard or not.
        while !(net.relays(0, 1) & net.relays(1, 0)) {
            assert!(net.now.since(before) < 4 * SECOND, "round {round}");
            net.pass(Duration::from_millis(10));
        }
        net.pass(SECOND * 30);
    }
}

/// Anybody can say that there is no such channel: the supernode is asked about it once a second, and not left.
#[test]
fn forged_hints_cost_little() {
    let mut net = Net::pair();
    let channel = net.nodes[0].client.channel(&net.nodes[1].id).unwrap();
    let hint = Frame::Error { code: FrameError::NoChannel, id: channel.0 }.to_vec();
    let (addr, before) = (net.nodes[0].addr, net.supernode.counters().messages);
    let told = net.nodes[0].events.len();
    for _ in 0..1000 {
        net.datagram_to(addr, &hint);
        net.settle();
        net.pass(Duration::from_millis(10));
    }
    net.settle();
    let asked = net.supernode.counters().messages - before;
    assert!(asked <= 1000 + 12, "{asked} messages: a Connect for each, and a Ping a second");
    assert_eq!(net.nodes[0].events[told..], []);
    assert!(net.relays(0, 1));
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
/// Behind a bulk transfer over the control connection a Pong is late: what comes meanwhile is as good.
#[test]
fn relayed_packets_are_signs_of_life() {
    let mut net = Net::new();
    net.stream = true;
    let (a, b) = (net.node(2, WALL * 1000), net.node(3, WALL * 1000));
    for node in &mut net.nodes {
        node.udp_blocked = true;
    }
    let peer = net.nodes[b].id;
    net.nodes[a].client.connect(peer, net.now);
    net.pass(60 * SECOND);
    assert_eq!(net.nodes[b].client.route(), Some(Route::Stream));
    net.held = Some((b, Vec::new()));
    for _ in 0..30 {
        net.nodes[b].client.suspect(net.now);
        net.settle();
        net.pass(SECOND);
        assert!(net.relays(a, b));
    }
    let lost = |event: &Event| matches!(event, Event::Lost(Lost::Unresponsive));
    assert_eq!(net.count(b, lost), 0);
    net.nodes[b].client.suspect(net.now);
    net.settle();
    net.pass(3 * SECOND);
    assert_eq!(net.count(b, lost), 1, "nothing comes any more");
}

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
