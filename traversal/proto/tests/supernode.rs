//! What a supernode does for its peers.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{net::SocketAddr, time::Duration};

use common::{MAIN, Net, Peer, WALL, config, supernode_identity};
use traversal_proto::{
    PeerId, Time, UnixTime,
    supernode::{Admission, Config, DropReason, Location, Outgoing, Query, QueryId, Target, Verdict},
    wire::{
        Identity, List, Record, SignedRecord,
        frame::{ChannelId, Frame, data_header},
        message::{Code, FromSupernode, Supernode as Other, ToSupernode},
    },
};

const SECOND: Duration = Duration::from_secs(1);

fn net() -> Net {
    Net::new(config())
}

fn refused(messages: &[FromSupernode]) -> Option<Code> {
    messages.iter().find_map(|message| match message {
        FromSupernode::Refused { code, .. } | FromSupernode::Error { code } => Some(*code),
        _ => None,
    })
}

fn closed(outgoing: &[Outgoing], peer: &Peer) -> Option<Code> {
    outgoing.iter().find_map(|outgoing| match outgoing {
        Outgoing::Close(connection, code) if *connection == peer.connection => Some(*code),
        _ => None,
    })
}

fn other(n: u8) -> (Identity, Other) {
    let identity = Identity::from_secret(&[n; 32]);
    let addresses = List::first_of([SocketAddr::from(([203, 0, 113, n], 3478))]);
    (identity.clone(), Other { id: identity.peer_id(), addresses })
}

/// Two peers in memory: register, bind, connect, talk both ways, hang up.
#[test]
fn a_conversation() {
    let mut net = net();
    let (a, s) = (net.peer(1), net.peer(2));
    let (near, far) = net.open(&a, &s);
    for n in 0..100u32 {
        net.relays(&a, near, &s, far, format!("question {n}").as_bytes());
        net.relays(&s, far, &a, near, format!("answer {n}").as_bytes());
    }
    assert_eq!(net.node.counters().relayed_packets, 200);
    assert_eq!(net.node.volume(), net.node.counters().relayed_bytes);

    net.say(&a, ToSupernode::Close { channel: near });
    assert_eq!(net.heard(&s), [FromSupernode::Closed { channel: far, code: Code::ClosedByPeer }]);
    assert_eq!(net.send(s.addr, far, b"too late").0, Verdict::Drop(DropReason::NoChannel));
    assert_eq!(net.node.gauges().channels, 0);
}

/// The other direction of the same call, and the same call again, name the channel that is there.
#[test]
fn one_channel_between_two_peers() {
    let mut net = net();
    let (a, s) = (net.peer(1), net.peer(2));
    let (near, far) = net.open(&a, &s);
    net.say(&s, ToSupernode::Connect { request: 3, peer: a.id(), hops: 0 });
    net.say(&a, ToSupernode::Connect { request: 4, peer: s.id(), hops: 0 });
    let opened: Vec<_> = net
        .outgoing()
        .into_iter()
        .map(|outgoing| match outgoing {
            Outgoing::Message(to, FromSupernode::Opened { request, channel, .. }) => (to, request, channel),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(opened, [(s.connection, Some(3), far), (a.connection, Some(4), near)]);
    assert_eq!(net.node.gauges().channels, 1);
}

#[test]
fn refusals_have_their_reasons() {
    let mut net = net();
    let a = net.peer(1);
    let mut shy = net.dial(2, "198.51.100.2:1".parse().unwrap());
    net.register(&mut shy, false, false).unwrap();
    let stranger = net.dial(3, "198.51.100.3:1".parse().unwrap());
    net.outgoing();

    let nobody = PeerId::from_bytes([5; 32]);
    for (peer, hops, expected) in [
        (nobody, 0, Code::UnknownPeer),
        (shy.id(), 0, Code::NotAccepting),
        (a.id(), 0, Code::SelfConnect),
        (shy.id(), 2, Code::HopLimit),
    ] {
        net.say(&a, ToSupernode::Connect { request: 1, peer, hops });
        assert_eq!(refused(&net.heard(&a)), Some(expected));
    }
    net.say(&a, ToSupernode::Lookup { request: 1, peer: shy.id(), hops: 0 });
    assert_eq!(refused(&net.heard(&a)), Some(Code::UnknownPeer), "who does not accept is not to be found");
    net.say(&stranger, ToSupernode::Lookup { request: 1, peer: a.id(), hops: 0 });
    assert_eq!(refused(&net.heard(&stranger)), Some(Code::NotRegistered));
    net.say(&a, ToSupernode::Close { channel: ChannelId(77) });
    assert_eq!(refused(&net.heard(&a)), Some(Code::NoChannel));
}

#[test]
fn lookup_gives_the_signed_record() {
    let mut net = net();
    let (a, s) = (net.peer(1), net.peer(2));
    net.say(&a, ToSupernode::Lookup { request: 9, peer: s.id(), hops: 0 });
    let [FromSupernode::Found { request: 9, record, elsewhere: None }] = &net.heard(&a)[..] else { panic!() };
    assert_eq!(record.verify(net.unix()).unwrap().peer, s.id());
    assert_eq!(record.claims().supernode, supernode_identity().peer_id());
}

#[test]
fn registrations_expire_unless_renewed() {
    let mut net = net();
    let (mut a, b) = (net.peer(1), net.peer(2));
    net.pass(200 * SECOND);
    net.register(&mut a, true, false).unwrap();
    net.pass(105 * SECOND);
    assert_eq!(net.heard(&b), [FromSupernode::Error { code: Code::Expired }]);
    assert_eq!(net.node.gauges().registrations, 1);
    net.pass(10 * SECOND);
    assert_eq!(closed(&net.outgoing(), &b), Some(Code::NotRegistered));
    net.pass(400 * SECOND);
    assert_eq!((net.node.gauges().registrations, net.node.gauges().connections), (0, 0));
    assert_eq!(net.node.poll_timeout(), None, "nothing is left to wait for");
}

/// The same peer on a new connection: with `resume` its channels live on, without they are closed.
#[test]
fn a_session_moves_to_a_new_connection() {
    for resume in [true, false] {
        let mut net = net();
        let (a, s) = (net.peer(1), net.peer(2));
        let (near, far) = net.open(&a, &s);
        let mut again = net.dial(1, a.addr);
        net.outgoing();
        again.sequence = a.sequence + 1;
        let record = again.record(again.sequence, 300, &net);
        net.say(&again, ToSupernode::Register { record, accepting: true, resume });
        let outgoing = net.outgoing();
        assert_eq!(closed(&outgoing, &a), Some(Code::Replaced));
        assert_eq!(net.node.gauges().registrations, 2);
        let told = outgoing.iter().any(|out| {
            matches!(out, Outgoing::Message(to, FromSupernode::Closed { channel, code: Code::PeerGone })
                if *to == s.connection && *channel == far)
        });
        assert_eq!(told, !resume);
        if resume {
            net.relays(&a, near, &s, far, b"as if nothing had happened");
        }
        // The end of the old connection ends nothing else.
        net.node.handle_disconnected(a.connection, net.now);
        assert_eq!(net.node.gauges().registrations, 2);
    }
}

#[test]
fn presence_is_told_now_and_later() {
    let mut net = net();
    let a = net.peer(1);
    let b = net.dial(2, "198.51.100.2:1".parse().unwrap());
    net.outgoing();
    let presence = |online| FromSupernode::Presence { peer: b.id(), online };
    net.say(&a, ToSupernode::Watch { peers: List::first_of([b.id()]) });
    assert_eq!(net.heard(&a), [presence(false)]);

    let record = b.record(1, 300, &net);
    net.say(&b, ToSupernode::Register { record, accepting: true, resume: false });
    assert_eq!(net.heard(&a), [presence(true)]);
    let record = b.record(2, 300, &net);
    net.say(&b, ToSupernode::Register { record, accepting: true, resume: false });
    assert_eq!(net.heard(&a), [], "a renewal is no news");
    let record = b.record(3, 300, &net);
    net.say(&b, ToSupernode::Register { record, accepting: false, resume: false });
    assert_eq!(net.heard(&a), [presence(false)]);
    let record = b.record(4, 300, &net);
    net.say(&b, ToSupernode::Register { record, accepting: true, resume: false });
    assert_eq!(net.heard(&a), [presence(true)]);
    net.node.handle_disconnected(b.connection, net.now);
    assert_eq!(net.heard(&a), [presence(false)]);

    net.say(&a, ToSupernode::Unwatch { peers: List::first_of([b.id()]) });
    assert_eq!(net.node.gauges().watches, 0);
}

#[test]
fn watches_go_with_their_watcher() {
    let mut net = net();
    let (a, b) = (net.peer(1), net.peer(2));
    net.say(&a, ToSupernode::Watch { peers: List::first_of([b.id(), PeerId::from_bytes([3; 32])]) });
    assert_eq!(net.node.gauges().watches, 2);
    net.node.handle_disconnected(a.connection, net.now);
    assert_eq!(net.node.gauges().watches, 0);
}

/// The engine asks, goes on with its work, and takes the answer when it comes.
#[test]
fn a_directory_is_asked_and_not_trusted() {
    let mut net = Net::new(Config { directory: true, ..config() });
    let a = net.peer(1);
    assert!(matches!(net.node.poll_query(), Some(Query::Publish(record)) if record.claims().peer == a.id()));

    let (identity, elsewhere) = other(7);
    let sought = Identity::from_secret(&[8; 32]);
    let record = |signer: &Identity, peer, supernode, expires| {
        let mut record = Record { peer, supernode, sequence: 1, expires: UnixTime(WALL.0 + expires) };
        record.peer = peer;
        SignedRecord::sign(record, signer)
    };
    let good = record(&sought, sought.peer_id(), identity.peer_id(), 60);
    let ask = |net: &mut Net, message| -> QueryId {
        net.say(&a, message);
        match net.node.poll_query() {
            Some(Query::Locate { id, peer }) if peer == sought.peer_id() => id,
            other => panic!("{other:?}"),
        }
    };
    let lookup = ToSupernode::Lookup { request: 5, peer: sought.peer_id(), hops: 0 };
    let connect = ToSupernode::Connect { request: 6, peer: sought.peer_id(), hops: 0 };
    let remote = |record| Some(Location::Remote { record, supernode: elsewhere.clone() });

    let query = ask(&mut net, lookup.clone());
    assert_eq!(net.heard(&a), [], "no answer before there is one");
    net.node.handle_answer(query, remote(good), net.now);
    let found = FromSupernode::Found { request: 5, record: good, elsewhere: Some(elsewhere.clone()) };
    assert_eq!(net.heard(&a), [found]);
    net.node.handle_answer(query, None, net.now);
    assert_eq!(net.heard(&a), [], "a second answer is to nobody");

    let query = ask(&mut net, connect.clone());
    net.node.handle_answer(query, remote(good), net.now);
    let refusal = FromSupernode::Refused {
        request: 6,
        code: Code::Elsewhere,
        detail: 0,
        elsewhere: Some(elsewhere.clone()),
    };
    assert_eq!(net.heard(&a), [refusal]);

    // Somebody else's record, one for another supernode, one that has expired, and one that is not signed by its peer.
    let forged = SignedRecord::sign(*good.claims(), &identity);
    for bad in [
        record(&identity, identity.peer_id(), identity.peer_id(), 60),
        record(&sought, sought.peer_id(), sought.peer_id(), 60),
        record(&sought, sought.peer_id(), identity.peer_id(), 0),
        forged,
    ] {
        let query = ask(&mut net, lookup.clone());
        net.node.handle_answer(query, remote(bad), net.now);
        assert_eq!(refused(&net.heard(&a)), Some(Code::UnknownPeer));
    }
    assert_eq!(net.node.counters().answers_forged, 4);

    ask(&mut net, connect);
    net.pass(2 * SECOND);
    assert_eq!(refused(&net.heard(&a)), Some(Code::Timeout));
    assert_eq!(net.node.gauges().queries, 0);

    // No longer to be found, to be found again, gone.
    for (sequence, accepting) in [(2, false), (3, true)] {
        let record = a.record(sequence, 300, &net);
        net.say(&a, ToSupernode::Register { record, accepting, resume: true });
        let news =
            if accepting { Query::Publish(record) } else { Query::Withdraw { peer: a.id(), sequence } };
        assert_eq!((net.node.poll_query(), net.node.poll_query()), (Some(news), None));
    }
    net.node.handle_disconnected(a.connection, net.now);
    assert_eq!(net.node.poll_query(), Some(Query::Withdraw { peer: a.id(), sequence: 3 }));
}

/// The sought peer registers here while the directory is being asked.
#[test]
fn an_answer_meets_the_state_of_its_own_time() {
    let mut net = Net::new(Config { directory: true, ..config() });
    let a = net.peer(1);
    net.node.poll_query();
    let late = net.dial(2, "198.51.100.2:1".parse().unwrap());
    net.say(&a, ToSupernode::Connect { request: 6, peer: late.id(), hops: 0 });
    let Some(Query::Locate { id, .. }) = net.node.poll_query() else { panic!() };
    let record = late.record(1, 300, &net);
    net.say(&late, ToSupernode::Register { record, accepting: true, resume: false });
    net.outgoing();
    net.node.handle_answer(id, None, net.now);
    assert!(matches!(net.heard(&a)[..], [FromSupernode::Opened { request: Some(6), .. }]));
}

/// A network that blocks UDP: one peer's packets go by its control connection, the other's by UDP.
#[test]
fn a_control_connection_carries_packets_too() {
    let mut net = net();
    let (mut a, s) = (net.peer(1), net.peer(2));
    let (near, far) = net.open(&a, &s);
    net.say(&a, ToSupernode::Attach);
    assert_eq!(net.heard(&a), [FromSupernode::Attached]);

    let mut frame = [&data_header(near)[..], b"by tcp"].concat();
    let verdict = net.node.handle_frame(a.connection, &mut frame, net.now);
    assert_eq!(verdict, Verdict::Relay { to: Target::Datagram { socket: MAIN, to: s.addr }, range: 0..11 });
    assert_eq!(Frame::decode(&frame).unwrap(), Frame::Data { channel: far, payload: b"by tcp" });

    let (verdict, _) = net.send(s.addr, far, b"back");
    assert_eq!(verdict, Verdict::Relay { to: Target::Stream(a.connection), range: 0..9 });
    assert_eq!(net.send(a.addr, near, b"by udp").0, Verdict::Drop(DropReason::NotBound));
    assert_eq!(net.send(s.addr, far, &[0; 5000]).0, Verdict::Drop(DropReason::TooLong));

    // UDP is back.
    net.transmits();
    net.bind(&mut a);
    net.relays(&a, near, &s, far, b"by udp");
}

#[test]
fn a_binding_has_to_be_confirmed() {
    let mut net = net();
    let (mut a, mut s) = (net.peer(1), net.peer(2));
    let (near, far) = net.open(&a, &s);
    net.pass(50 * SECOND);
    net.bind(&mut s);
    net.pass(20 * SECOND);
    assert_eq!(net.send(a.addr, near, b"x").0, Verdict::Drop(DropReason::NotBound));
    assert_eq!(net.send(s.addr, far, b"x").0, Verdict::Drop(DropReason::PeerNotBound));
    net.transmits();
    net.bind(&mut a);
    net.relays(&a, near, &s, far, b"x");
}

/// A NAT has moved the peer: its next packet is answered with "bind again", and two datagrams later it is back.
#[test]
fn a_peer_moves_to_another_address() {
    let mut net = net();
    let (mut a, s) = (net.peer(1), net.peer(2));
    let (near, far) = net.open(&a, &s);
    a.addr = "192.0.2.99:7777".parse().unwrap();
    assert_eq!(net.send(a.addr, near, b"hello?").0, Verdict::Drop(DropReason::NotBound));
    assert!(matches!(Frame::decode(&net.transmits()[0].bytes), Ok(Frame::Error { .. })));
    net.bind(&mut a);
    net.relays(&a, near, &s, far, b"here I am");
    net.relays(&s, far, &a, near, b"welcome");
}

#[test]
fn a_drain_spreads_its_peers_and_ends() {
    let (_, elsewhere) = other(7);
    let mut net = Net::new(Config { alternatives: vec![elsewhere.clone()], ..config() });
    let peers: Vec<Peer> = (1..=50).map(|n| net.peer(n)).collect();
    net.outgoing();
    net.node.drain(10 * SECOND, net.now);
    let mut times: Vec<u32> = net
        .outgoing()
        .into_iter()
        .map(|outgoing| match outgoing {
            Outgoing::Message(_, FromSupernode::Drain { leave_in, alternatives }) => {
                assert_eq!((alternatives.len(), &alternatives[0]), (1, &elsewhere));
                leave_in
            }
            other => panic!("{other:?}"),
        })
        .collect();
    times.sort_unstable();
    assert_eq!(times.len(), 50);
    assert!(times[49] < 9_000 && times[25] > 2_000 && times[25] < 7_000, "{times:?}");

    let late = net.dial(99, "192.0.2.1:1".parse().unwrap());
    let outgoing = net.outgoing();
    assert!(matches!(outgoing[0], Outgoing::Message(_, FromSupernode::Redirect { .. })));
    assert_eq!(closed(&outgoing, &late), Some(Code::Draining));

    for peer in &peers[..49] {
        net.node.handle_disconnected(peer.connection, net.now);
    }
    assert!(!net.node.is_drained());
    net.pass(10 * SECOND);
    assert_eq!(closed(&net.outgoing(), &peers[49]), Some(Code::Draining));
    assert!(net.node.is_drained());
}

#[test]
fn shedding_asks_a_share_to_move() {
    let (_, elsewhere) = other(7);
    let mut net = Net::new(Config { alternatives: vec![elsewhere], ..config() });
    for n in 1..=200 {
        net.peer(n);
    }
    net.outgoing();
    net.node.shed(250, 10 * SECOND, net.now);
    let asked = net.outgoing().len();
    assert!((25..=75).contains(&asked), "{asked} of 200 for 250 permille");
    assert_eq!(net.node.gauges().connections, 200, "asked, not thrown out");

    net.node.set_admitting(false);
    net.dial(999, "192.0.2.1:1".parse().unwrap());
    assert!(matches!(net.outgoing()[0], Outgoing::Message(_, FromSupernode::Redirect { .. })));
    net.node.set_admitting(true);
    net.dial(998, "192.0.2.1:1".parse().unwrap());
    assert!(matches!(net.outgoing()[0], Outgoing::Message(_, FromSupernode::Hello(_))));
}

#[test]
fn only_the_admitted() {
    let friend = net().peer(1).id();
    let mut net = Net::new(Config { admission: Admission::Only([friend].into()), ..config() });
    net.peer(1);
    let stranger = net.dial(2, "192.0.2.1:1".parse().unwrap());
    assert_eq!(closed(&net.outgoing(), &stranger), Some(Code::NotAdmitted));
}

/// The same seed and the same input give the same output.
#[test]
fn deterministic() {
    let run = || {
        let mut net = net();
        let peers: Vec<Peer> = (1..20).map(|n| net.peer(n)).collect();
        let channels: Vec<_> = peers.windows(2).map(|pair| net.open(&pair[0], &pair[1])).collect();
        net.node.drain(SECOND, net.now);
        (peers.iter().map(|peer| (peer.session, peer.token)).collect::<Vec<_>>(), channels, net.outgoing())
    };
    assert_eq!(run(), run());
}

/// A signature is looked at by the caller, in its own time: what has happened meanwhile counts.
#[test]
fn what_happens_while_a_signature_is_looked_at() {
    let mut net = net();
    let [first, second] = ["192.0.2.1:1", "192.0.2.2:1"].map(|addr| net.dial(1, addr.parse().unwrap()));
    let ask = |net: &mut Net, peer: &Peer, sequence| {
        let record = peer.record(sequence, 300, net);
        let mut body = ToSupernode::Register { record, accepting: true, resume: false }.encode();
        match net.node.handle_frame(peer.connection, &mut body, net.now) {
            Verdict::Verify(asked) => asked,
            verdict => panic!("{verdict:?}"),
        }
    };
    let (old, new) = (ask(&mut net, &first, 5), ask(&mut net, &second, 6));
    assert_eq!(net.node.gauges().registrations, 0, "nothing is believed yet");
    net.outgoing();
    net.node.handle_verified(new.verify(), net.now);
    assert!(matches!(net.heard(&second)[..], [FromSupernode::Registered { .. }]));
    net.node.handle_verified(old.verify(), net.now);
    assert_eq!(refused(&net.heard(&first)), Some(Code::StaleSequence));
    let late = ask(&mut net, &first, 7);
    net.pass(Duration::from_secs(301));
    net.node.handle_verified(late.verify(), net.now);
    assert_eq!(net.node.gauges().registrations, 0, "its connection was closed meanwhile");
}

/// A clock that jumps back changes nothing; one that jumps ahead expires what it should, and nothing breaks.
#[test]
fn clock_jumps() {
    let mut net = net();
    let (a, s) = (net.peer(1), net.peer(2));
    let (near, far) = net.open(&a, &s);
    net.now = Time::from_nanos(30_000_000_000);
    net.relays(&a, near, &s, far, b"x");
    net.now = Time::ZERO;
    net.relays(&a, near, &s, far, b"x");
    net.node.handle_timeout(Time::ZERO);
    net.pass(Duration::from_secs(100_000_000));
    assert_eq!(net.node.gauges().registrations, 0);
    assert_eq!(net.send(a.addr, near, b"x").0, Verdict::Drop(DropReason::NoChannel));
    net.node.set_wall_clock(UnixTime(5), net.now);
    let mut again = net.dial(3, "192.0.2.1:1".parse().unwrap());
    net.outgoing();
    let record = again.record(1, 300, &net);
    net.say(&again, ToSupernode::Register { record, accepting: true, resume: false });
    assert_eq!(refused(&net.heard(&again)), Some(Code::BadExpiry), "the record is of another time");
    again.sequence = 1;
    net.node.set_wall_clock(net.unix(), net.now);
    net.register(&mut again, true, false).unwrap();
}
