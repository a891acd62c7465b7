//! What a supernode does not let itself be used for.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{net::SocketAddr, time::Duration};

use common::{MAIN, Net, Peer, config, supernode_identity};
use proptest::{collection::vec, prelude::*};
use traversal_proto::{
    PeerId, SocketId, UnixTime,
    supernode::{Config, ConnectionId, DropReason, Listen, Outgoing, Rate, Verdict},
    wire::{
        Identity, Record, SignedRecord,
        frame::{BIND_LEN, Bind, CHALLENGE_LEN, ChannelId, Frame, FrameError, SessionId, data_header},
        message::{Code, FromSupernode, ToSupernode},
        stun::{Change, ReflectorRequest, TransactionId},
    },
};

fn net() -> Net {
    Net::new(config())
}

fn generous() -> Config {
    let mut config = config();
    let much = Rate { per_second: 1 << 40, burst: 1 << 40 };
    (config.rates.unproven, config.rates.unproven_per_network) = (much, much);
    config.rates.requests = much;
    config
}

// --- anything at all -----------------------------------------------------------------------------------------------

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// Random and damaged datagrams from anywhere: no panic, no state, no answer longer than allowed, nothing relayed.
    #[test]
    fn random_datagrams(first in prop_oneof![0u8..4, 0x80u8..0x92, any::<u8>()], rest in vec(any::<u8>(), 0..80), port: u16) {
        let mut net = Net::new(generous());
        let (a, s) = (net.peer(1), net.peer(2));
        net.open(&a, &s);
        let before = net.node.gauges();
        let bytes = [&[first], &rest[..]].concat();
        let (verdict, _) = net.datagram(SocketAddr::from(([192, 0, 2, 1], port)), &bytes);
        let relayed = matches!(verdict, Verdict::Relay { .. });
        prop_assert!(!relayed);
        prop_assert_eq!(net.node.gauges(), before);
        for transmit in net.transmits() {
            prop_assert!(transmit.bytes.len() <= 3 * bytes.len());
        }
    }

    /// Random frames on a control connection end at worst that connection.
    #[test]
    fn random_frames(frames in vec(vec(any::<u8>(), 1..100), 1..10)) {
        let mut net = Net::new(generous());
        let (a, s) = (net.peer(1), net.peer(2));
        for mut frame in frames {
            net.frame(a.connection, &mut frame);
        }
        prop_assert!(net.node.gauges().connections >= 1);
        net.outgoing();
        net.say(&s, ToSupernode::Ping { nonce: 1 });
        prop_assert_eq!(net.heard(&s), [FromSupernode::Pong { nonce: 1 }]);
    }

    /// Valid frames cut short, or with a bit changed, from the very address that may send them.
    #[test]
    fn damaged_frames(cut in 0usize..60, at in 0usize..60, bit in 0u8..8) {
        let mut net = Net::new(generous());
        let (mut a, s) = (net.peer(1), net.peer(2));
        let (near, far) = net.open(&a, &s);
        a.bind_sequence += 1;
        let cookie = net.cookie(&a, a.addr);
        for good in [a.bind_frame(cookie), Frame::Data { channel: near, payload: b"payload" }.to_vec()] {
            let mut bad = good.clone();
            bad.truncate(cut);
            let (verdict, _) = net.datagram(a.addr, &bad);
            let relayed = matches!(verdict, Verdict::Relay { .. });
            prop_assert!(cut >= 5 || !relayed, "a frame without its header");
            let mut bad = good.clone();
            let at = at % good.len();
            bad[at] ^= 1 << bit;
            let (verdict, bytes) = net.datagram(a.addr, &bad);
            if let Verdict::Relay { .. } = verdict {
                // Only the payload may have changed: the channel's number is intact.
                prop_assert_eq!(&bytes[..5], &data_header(far));
                prop_assert!(at >= 5);
            }
        }
        net.relays(&a, near, &s, far, b"still here");
    }
}

#[test]
fn a_malformed_message_ends_the_connection() {
    let mut net = net();
    let a = net.peer(1);
    net.node.handle_frame(a.connection, &mut [0x7f, 1, 2], net.now);
    assert_eq!(
        net.outgoing(),
        [
            Outgoing::Message(a.connection, FromSupernode::Error { code: Code::Malformed }),
            Outgoing::Close(a.connection, Code::Malformed)
        ]
    );
    assert_eq!(net.node.gauges().registrations, 0);
    // What still comes from it is nobody's.
    net.say(&a, ToSupernode::Ping { nonce: 1 });
    assert_eq!(net.outgoing(), []);
}

// --- registrations -------------------------------------------------------------------------------------------------

fn refusal(net: &mut Net, peer: &Peer, record: SignedRecord) -> (Code, u64) {
    net.say(peer, ToSupernode::Register { record, accepting: true, resume: true });
    match net.heard(peer)[..] {
        [FromSupernode::Refused { request: 0, code, detail, .. }] => (code, detail),
        ref other => panic!("{other:?} instead of a refusal"),
    }
}

#[test]
fn forged_and_replayed_registrations() {
    let mut net = net();
    let victim = net.peer(1);
    let mallory = net.dial(2, "192.0.2.66:1".parse().unwrap());
    net.outgoing();

    // The victim's own record, shown by somebody else.
    let record = victim.record(100, 300, &net);
    assert_eq!(refusal(&mut net, &mallory, record).0, Code::WrongPeer);
    // A record about the victim that Mallory signed: the signer's name is in it.
    let expires = UnixTime(net.unix().0 + 300);
    let supernode = supernode_identity().peer_id();
    let claims = Record { peer: victim.id(), supernode, sequence: 100, expires };
    let record = SignedRecord::sign(claims, &mallory.identity);
    assert_eq!(record.claims().peer, mallory.id());
    // Mallory's own record with one bit of the signature changed.
    let mut message = ToSupernode::Register { record, accepting: true, resume: true }.encode();
    let at = message.len() - 10;
    message[at] ^= 1;
    net.frame(mallory.connection, &mut message);
    let bad_signature =
        FromSupernode::Refused { request: 0, code: Code::BadSignature, detail: 0, elsewhere: None };
    assert_eq!(net.heard(&mallory), [bad_signature]);
    // A record for another supernode.
    let claims = Record { peer: mallory.id(), supernode: PeerId::from_bytes([3; 32]), sequence: 1, expires };
    let record = SignedRecord::sign(claims, &mallory.identity);
    assert_eq!(refusal(&mut net, &mallory, record).0, Code::WrongSupernode);
    // Records that are void, or good for years.
    for lifetime in [0, 100_000_000] {
        let record = mallory.record(1, lifetime, &net);
        assert_eq!(refusal(&mut net, &mallory, record).0, Code::BadExpiry);
    }
    assert_eq!(net.node.gauges().registrations, 1);
    assert_eq!(net.node.counters().registrations_refused, 5);
}

#[test]
fn an_old_record_is_not_believed_again() {
    let mut net = net();
    let a = net.peer(1);
    let (old, new) = (a.record(1, 300, &net), a.record(2, 300, &net));
    assert_eq!(refusal(&mut net, &a, old), (Code::StaleSequence, 1));
    net.say(&a, ToSupernode::Register { record: new, accepting: true, resume: true });
    net.outgoing();
    assert_eq!(refusal(&mut net, &a, new), (Code::StaleSequence, 2));
    // Nor when the peer has gone and comes back.
    net.node.handle_disconnected(a.connection, net.now);
    let again = net.dial(1, a.addr);
    net.outgoing();
    assert_eq!(refusal(&mut net, &again, new), (Code::StaleSequence, 2));
}

#[test]
fn registrations_cost_signature_checks_and_are_limited() {
    let mut net = net();
    let a = net.peer(1);
    let codes: Vec<Code> = (0..20)
        .map(|_| {
            let record = a.record(1, 300, &net);
            refusal(&mut net, &a, record).0
        })
        .collect();
    assert_eq!(codes.iter().filter(|code| **code == Code::TooFast).count(), 11, "{codes:?}");
}

/// Any bytes are an id, also those that are no point of the curve, or a point of small order.
#[test]
fn an_id_without_a_key_registers_nowhere() {
    let mut net = net();
    let connection = ConnectionId(77);
    for bytes in [[0; 32], [0xff; 32], [1; 32]] {
        let id = PeerId::from_bytes(bytes);
        net.node.handle_connected(connection, id, "192.0.2.1:1".parse().unwrap(), net.now);
        let supernode = supernode_identity().peer_id();
        let expires = UnixTime(net.unix().0 + 60);
        let record = Record { peer: id, supernode, sequence: 1, expires };
        // The signature is somebody's, the name in the record is patched in afterwards.
        let signed = SignedRecord::sign(record, &Identity::from_secret(&[5; 32]));
        let mut message = ToSupernode::Register { record: signed, accepting: true, resume: false }.encode();
        message[1..33].copy_from_slice(&bytes);
        net.frame(connection, &mut message);
        let refused = net.outgoing().into_iter().any(|out| {
            matches!(out, Outgoing::Message(_, FromSupernode::Refused { code: Code::BadSignature, .. }))
        });
        assert!(refused);
        net.node.handle_disconnected(connection, net.now);
    }
}

// --- reflection ----------------------------------------------------------------------------------------------------

/// Every frame of ours that anybody can send from any address: never more bytes back than came in.
#[test]
fn own_frames_never_grow() {
    let mut net = Net::new(generous());
    let (a, s) = (net.peer(1), net.peer(2));
    let (near, _) = net.open(&a, &s);
    let victim: SocketAddr = "192.0.2.200:9".parse().unwrap();
    let (session, sequence) = (a.session, 9);
    let mut frames = vec![
        Frame::Bind(Bind { session, sequence, cookie: [0; 16], proof: [0; 16] }).to_vec(),
        Frame::Bind(Bind { session: SessionId(1), sequence, cookie: [5; 16], proof: [0; 16] }).to_vec(),
        Frame::Challenge { session, sequence, cookie: [0; 16] }.to_vec(),
        Frame::Bound { session, sequence, lifetime: 9, proof: [0; 16] }.to_vec(),
        Frame::Error { code: FrameError::NotBound, id: 1 }.to_vec(),
        Frame::Forward { hops: 0, channel: near, payload: b"payload" }.to_vec(),
        Frame::Forward { hops: 2, channel: near, payload: b"payload" }.to_vec(),
    ];
    for channel in [near, ChannelId(12345)] {
        frames.extend((0..20).map(|n| Frame::Data { channel, payload: &[0; 20][..n] }.to_vec()));
    }
    for frame in frames {
        let (verdict, _) = net.datagram(victim, &frame);
        assert!(!matches!(verdict, Verdict::Relay { .. }));
        let back: usize = net.transmits().iter().map(|transmit| transmit.bytes.len()).sum();
        assert!(back <= frame.len(), "{back} bytes for {} of {frame:02x?}", frame.len());
    }
    assert_eq!(net.node.counters().dropped(DropReason::HopLimit), 1);
    const { assert!(CHALLENGE_LEN < BIND_LEN) };
}

/// The smallest STUN requests are answered with three times their size at the most, IPv6 and all changes included.
#[test]
fn stun_grows_threefold_at_most() {
    let v6 = ["[2001:db8::1]:1", "[2001:db8::1]:2", "[2001:db8::2]:1", "[2001:db8::2]:2"];
    let v4 = ["203.0.113.10:1", "203.0.113.10:2", "203.0.113.11:1", "203.0.113.11:2"];
    for (addresses, client) in [(v4, "192.0.2.1:9"), (v6, "[2001:db8:9::1]:9")] {
        let listen = addresses.iter().enumerate();
        let listen = listen.map(|(n, a)| Listen { socket: SocketId(n as u16), address: a.parse().unwrap() });
        let mut net = Net::new(Config { listen: listen.collect(), ..generous() });
        let client = client.parse().unwrap();
        for change in [None, Some(Change { address: true, port: true })] {
            for (padding, fingerprint) in [(0, false), (0, true), (1, false), (300, true), (1280, true)] {
                let id = TransactionId([0; 12]);
                let bytes =
                    ReflectorRequest { id, change, response_port: None, padding, fingerprint }.encode();
                assert_eq!(net.datagram(client, &bytes).0, Verdict::Handled);
                let [transmit] = &net.transmits()[..] else { panic!("one answer") };
                assert!(
                    transmit.bytes.len() <= 3 * bytes.len(),
                    "{} for {}",
                    transmit.bytes.len(),
                    bytes.len()
                );
            }
        }
        // Attributes that nobody knows, as many as fit.
        let mut bytes = vec![0, 1, 0, 64, 0x21, 0x12, 0xa4, 0x42];
        bytes.resize(20, 7);
        for n in 0..16u8 {
            bytes.extend_from_slice(&[0x7f, n, 0, 0]);
        }
        assert_eq!(net.datagram(client, &bytes).0, Verdict::Handled);
        assert!(net.transmits()[0].bytes.len() <= 3 * bytes.len());
    }
}

/// A victim's network gets only so many answers, whatever the ports and hosts that are made up; others still get theirs.
#[test]
fn answers_are_limited_by_network() {
    let mut net = net();
    let request = ReflectorRequest::new(TransactionId([0; 12])).encode();
    let answered = (0..10_000u16)
        .filter(|n| {
            let from = SocketAddr::from(([192, 0, 2, *n as u8], 1 + n));
            net.datagram(from, &request).0 == Verdict::Handled
        })
        .count();
    assert_eq!(answered, 400, "the burst, at one moment");
    assert_eq!(net.node.counters().dropped(DropReason::Unproven), 10_000 - 400);
    // Hidden forms of the same network are the same network.
    let hidden = "[2002:c000:0205::1]:5".parse().unwrap();
    assert_eq!(net.datagram(hidden, &request).0, Verdict::Drop(DropReason::Unproven));
    let elsewhere = "198.51.100.1:5".parse().unwrap();
    assert_eq!(net.datagram(elsewhere, &request).0, Verdict::Handled);
    // Who has proved its address is not held up by a flood in its name.
    let mut peer = net.dial(1, "192.0.2.77:7".parse().unwrap());
    net.register(&mut peer, true, false).unwrap();
    net.now = net.now + Duration::from_secs(1);
    peer.bind_sequence = 1;
    net.transmits();
    let cookie = net.cookie(&peer, peer.addr);
    for n in 0..1000 {
        net.datagram(SocketAddr::from(([192, 0, 2, 1], 1 + n)), &request);
    }
    net.transmits();
    assert_eq!(net.datagram(peer.addr, &peer.bind_frame(cookie)).0, Verdict::Handled);
    assert_eq!(net.transmits().len(), 1);
}

/// A first packet of QUIC, of this version.
fn quic(version: u32) -> Vec<u8> {
    let mut bytes = vec![0xc0; 1200];
    bytes[1..5].copy_from_slice(&version.to_be_bytes());
    bytes
}

/// What QUIC answers to strangers comes out of the same budget, whatever it is: it is asked for when it is to be sent.
#[test]
fn quic_has_no_budget_of_its_own() {
    let mut net = net();
    let from = |n: u16| SocketAddr::from(([192, 0, 2, n as u8], 1 + n));
    for n in 0..100 {
        for bytes in [&quic(1), &quic(0x1a2a_3a4a), &[0x40; 30][..]] {
            assert_eq!(net.datagram(from(n), bytes).0, Verdict::NotOurs);
        }
    }
    let handshakes = (0..1000).filter(|n| net.node.may_answer(from(*n), net.now)).count();
    assert_eq!(handshakes, 400);
    let request = ReflectorRequest::new(TransactionId([0; 12])).encode();
    assert_eq!(net.datagram(from(2), &request).0, Verdict::Drop(DropReason::Unproven));
    assert!(net.node.may_answer("198.51.100.9:9".parse().unwrap(), net.now));
    net.now = net.now + Duration::from_secs(1);
    assert_eq!((0..1000).filter(|n| net.node.may_answer(from(*n), net.now)).count(), 200);
}

#[test]
fn nobody_sends_from_a_group_or_from_port_0() {
    let mut net = net();
    let request = ReflectorRequest::new(TransactionId([0; 12])).encode();
    for from in [
        "224.0.0.1:5",
        "255.255.255.255:5",
        "192.0.2.1:0",
        "0.0.0.0:5",
        "[ff02::1]:5",
        "[::ffff:224.0.0.1]:5",
    ] {
        let verdict = net.datagram(from.parse().unwrap(), &request).0;
        assert_eq!(verdict, Verdict::Drop(DropReason::BadSource), "{from}");
        let quic = net.datagram(from.parse().unwrap(), &quic(1)).0;
        assert_eq!(quic, Verdict::Drop(DropReason::BadSource), "{from}");
    }
    assert_eq!(net.transmits(), []);
}

// --- relay sessions ------------------------------------------------------------------------------------------------

/// Everything that somebody can do who has seen every datagram of a peer, but does not have its token.
#[test]
fn a_session_cannot_be_hijacked() {
    let mut net = Net::new(generous());
    let (mut a, s) = (net.peer(1), net.peer(2));
    let (near, far) = net.open(&a, &s);
    a.bind_sequence += 1;
    let cookie = net.cookie(&a, a.addr);
    let seen = a.bind_frame(cookie);
    assert_eq!(net.datagram(a.addr, &seen).0, Verdict::Handled);
    net.transmits();
    let thief: SocketAddr = "192.0.2.66:6666".parse().unwrap();

    // The peer's own Bind from elsewhere: the cookie is not of this address, so there is a challenge and no more.
    assert_eq!(net.datagram(thief, &seen).0, Verdict::Handled);
    let answer = net.transmits().pop().unwrap();
    let Ok(Frame::Challenge { cookie: own, .. }) = Frame::decode(&answer.bytes) else { panic!("{answer:?}") };
    // The thief's own cookie, without the token: with the proof that it saw, and with made-up ones.
    let Ok(Frame::Bind(bind)) = Frame::decode(&seen) else { panic!() };
    for proof in [bind.proof, [0; 16], [0xff; 16]] {
        let forged = Frame::Bind(Bind { cookie: own, proof, sequence: 99, ..bind }).to_vec();
        assert_eq!(net.datagram(thief, &forged).0, Verdict::Drop(DropReason::BadProof));
    }
    // A registered peer with its own token, for somebody else's session.
    let proof = s.token.bind(a.session, 99, &own);
    let forged = Frame::Bind(Bind { session: a.session, sequence: 99, cookie: own, proof }).to_vec();
    assert_eq!(net.datagram(thief, &forged).0, Verdict::Drop(DropReason::BadProof));
    // Packets for the channel from elsewhere, also from the other end's address.
    for from in [thief, s.addr] {
        assert_eq!(net.send(from, near, b"forged").0, Verdict::Drop(DropReason::NotBound));
    }
    // The channel's other end from the wrong side.
    assert_eq!(net.send(a.addr, far, b"forged").0, Verdict::Drop(DropReason::NotBound));
    // Somebody else's channel on a control connection.
    let mut frame = [&data_header(near)[..], b"forged"].concat();
    let verdict = net.node.handle_frame(s.connection, &mut frame, net.now);
    assert_eq!(verdict, Verdict::Drop(DropReason::NotBound));
    net.say(&s, ToSupernode::Close { channel: near });
    assert_eq!(net.heard(&s), [FromSupernode::Error { code: Code::NoChannel }]);

    net.transmits();
    net.relays(&a, near, &s, far, b"undisturbed");
    net.relays(&s, far, &a, near, b"undisturbed");
}

/// The peer has moved; an old Bind, replayed with its old address as forged source, does not move it back.
#[test]
fn an_old_bind_does_not_move_a_session_back() {
    let mut net = net();
    let (mut a, s) = (net.peer(1), net.peer(2));
    let (near, far) = net.open(&a, &s);
    let old = a.addr;
    a.bind_sequence += 1;
    let cookie = net.cookie(&a, old);
    let seen = a.bind_frame(cookie);
    net.datagram(old, &seen);
    a.addr = "192.0.2.50:5".parse().unwrap();
    net.transmits();
    net.bind(&mut a);
    assert_eq!(net.datagram(old, &seen).0, Verdict::Drop(DropReason::StaleBind));
    net.relays(&s, far, &a, near, b"to the new address");
}

/// A new connection brings a new token: the old one is worth nothing.
#[test]
fn a_token_dies_with_its_connection() {
    let mut net = net();
    let a = net.peer(1);
    let mut again = net.dial(1, a.addr);
    again.sequence = a.sequence;
    net.register(&mut again, true, true).unwrap();
    assert_ne!(a.token, again.token);
    let cookie = net.cookie(&a, a.addr);
    let mut stale = a;
    stale.bind_sequence = 50;
    assert_eq!(net.datagram(stale.addr, &stale.bind_frame(cookie)).0, Verdict::Drop(DropReason::BadProof));
}

/// A million Binds from made-up addresses leave nothing behind, and a real peer gets through.
#[test]
fn a_flood_of_half_open_sessions() {
    let mut net = net();
    let mut a = net.dial(1, "198.51.100.1:40000".parse().unwrap());
    net.register(&mut a, true, false).unwrap();
    a.bind_sequence = 1;
    let (gauges, timeout) = (net.node.gauges(), net.node.poll_timeout());
    let mut frame = a.bind_frame([0; 16]);
    let mut sent = 0;
    for n in 0..1_000_000u32 {
        frame[1..5].copy_from_slice(&n.wrapping_mul(0x9e37_79b9).to_be_bytes());
        let from = SocketAddr::from((
            (n.wrapping_mul(0x85eb_ca6b) | 0x0100_0000).to_be_bytes(),
            1 + (n >> 8) as u16,
        ));
        net.node.handle_datagram(MAIN, from, &mut frame, net.now);
        while net.node.poll_transmit().is_some() {
            sent += 1;
        }
        if n % 1000 == 0 {
            net.now = net.now + Duration::from_millis(1);
        }
    }
    assert_eq!(
        (net.node.gauges(), net.node.poll_timeout()),
        (gauges, timeout),
        "a flood leaves nothing behind"
    );
    assert!(sent <= 50_000 + 50_000 + 1, "{sent} answers in a second and a burst");
    // In the middle of it, with nothing left for strangers.
    net.bind(&mut a);
}

/// A copied Bind is no way around the limits.
#[test]
fn a_copied_bind_gets_few_challenges() {
    let mut config = config();
    config.rates.unproven = Rate { per_second: 1, burst: 100 };
    let mut net = Net::new(config);
    let mut a = net.dial(1, "198.51.100.1:40000".parse().unwrap());
    net.register(&mut a, true, false).unwrap();
    a.bind_sequence = 1;
    let seen = a.bind_frame([0; 16]);
    for n in 0..10_000u32 {
        net.datagram(SocketAddr::from(((n << 8 | 0x0100_0001).to_be_bytes(), 9)), &seen);
    }
    assert_eq!(net.transmits().len(), 110);
}
