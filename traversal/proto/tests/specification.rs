//! docs/protocol.md names what the code has: a number that is changed here has to be changed there, and the other way
//! round.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Debug;

use traversal_proto::{
    PeerId, Rate, SocketId, UnixTime,
    supernode::{Config, Listen},
    wire::{
        ALPN, Identity, List, MAX_HOPS, Record, RelayToken, SignedRecord,
        frame::{Bind, ChannelId, Frame, FrameError, SessionId},
        message::{Code, FromSupernode, Hello, MAX_NAMED, MAX_WATCH, RelayMode, Resource, ToSupernode},
        peer::{
            CHECK_LABEL, Candidates, MAX_CANDIDATES, NatProfile, PEER_ALPN, PUNCH_ALPN, PUNCH_CHECK_LABEL,
            PUNCH_SECRET_LABEL, PeerMessage,
        },
        stream::MAX_FRAME,
        stun::MAX_STUN,
    },
};

const PAGE: &str = include_str!("../../../docs/protocol.md");

fn says(row: &str) {
    let row = row.split_whitespace().collect::<Vec<_>>().join(" ");
    let is_there = PAGE.lines().any(|line| line.starts_with(&row) || line == row);
    assert!(is_there, "no line of docs/protocol.md begins with {row:?}");
}

/// The name of a variant, as its Debug form begins with it.
fn name(value: &impl Debug) -> String {
    format!("{value:?}").chars().take_while(char::is_ascii_alphanumeric).collect()
}

fn id() -> PeerId {
    PeerId::from_bytes([7; 32])
}

fn record() -> SignedRecord {
    let record = Record { peer: id(), supernode: id(), sequence: 1, expires: UnixTime(1) };
    SignedRecord::sign(record, &Identity::from_secret(&[1; 32]))
}

#[test]
fn protocols_and_labels() {
    let labels = [ALPN, PEER_ALPN, PUNCH_ALPN, CHECK_LABEL, PUNCH_CHECK_LABEL, PUNCH_SECRET_LABEL];
    for label in labels.map(|label| std::str::from_utf8(label).unwrap()) {
        assert!(PAGE.contains(&format!("`{label}`")), "{label} is not in docs/protocol.md");
    }
}

#[test]
fn messages() {
    let (peer, channel, code, request, hops) = (id(), ChannelId(1), Code::Full, 1, 0);
    let (relay, record, alternatives) = (RelayMode::Full, record(), List::new());
    let to = [
        ToSupernode::Register { record, accepting: true, resume: false },
        ToSupernode::Unregister,
        ToSupernode::Lookup { request, peer, hops },
        ToSupernode::Connect { request, peer, hops },
        ToSupernode::Close { channel },
        ToSupernode::Watch { peers: List::new() },
        ToSupernode::Unwatch { peers: List::new() },
        ToSupernode::Ping { nonce: 1 },
        ToSupernode::Attach,
    ];
    to.iter().for_each(|message| says(&format!("| {} | {} |", message.encode()[0], name(message))));
    let hello = Hello {
        time: UnixTime(1),
        observed: "192.0.2.1:1".parse().unwrap(),
        reflectors: List::new(),
        max_lifetime: 1,
        max_channels: 1,
        max_watches: 1,
    };
    let quota = FromSupernode::Quota { resource: Resource::Volume, used: 1, limit: 1, resets_in: 1 };
    let from = [
        FromSupernode::Hello(hello),
        FromSupernode::Registered { session: SessionId(1), token: RelayToken([1; 16]), lifetime: 1, relay },
        FromSupernode::Found { request, record, elsewhere: None },
        FromSupernode::Opened { request: None, peer, channel, relay },
        FromSupernode::Refused { request, code, detail: 0, elsewhere: None },
        FromSupernode::Closed { channel, code },
        FromSupernode::Presence { peer, online: true },
        quota,
        FromSupernode::Drain { leave_in: 1, alternatives: List::new() },
        FromSupernode::Redirect { alternatives },
        FromSupernode::Pong { nonce: 1 },
        FromSupernode::Error { code },
        FromSupernode::Attached,
    ];
    from.iter().for_each(|message| says(&format!("| {} | {} |", message.encode()[0], name(message))));
    let (list, profile) = (List::new(), NatProfile::default());
    let candidates = PeerMessage::Candidates(Candidates { generation: 1, seen: 0, tag: 1, profile, list });
    for message in [candidates, PeerMessage::Start { round: 1 }] {
        says(&format!("| {} | {} |", message.encode()[0], name(&message)));
    }
}

#[test]
fn codes() {
    for code in Code::ALL {
        says(&format!("| {} | {code:?}", u16::from(*code)));
    }
    for code in [FrameError::NotBound, FrameError::NoChannel, FrameError::NoSession] {
        says(&format!("| {} | {code:?}:", code.to_byte()));
    }
}

#[test]
fn frames() {
    let (session, sequence, channel, cookie, proof) = (SessionId(1), 1, ChannelId(1), [0; 16], [0; 16]);
    let fixed = [
        Frame::Bind(Bind { session, sequence, cookie, proof }),
        Frame::Challenge { session, sequence, cookie },
        Frame::Bound { session, sequence, lifetime: 1, proof },
        Frame::Error { code: FrameError::NotBound, id: 1 },
    ];
    let row = |frame: &Frame<'_>| format!("| 0x{:02x} | {} |", frame.to_vec()[0], name(frame));
    for frame in fixed {
        says(&row(&frame));
        let row = row(&frame);
        let line = PAGE.lines().find(|line| line.starts_with(&row)).unwrap();
        assert!(line.ends_with(&format!("| {} |", frame.to_vec().len())), "{line}");
    }
    says(&row(&Frame::Data { channel, payload: &[] }));
    says(&row(&Frame::Forward { hops: 0, channel, payload: &[] }));
}

#[test]
fn limits() {
    let listen = Listen { socket: SocketId(0), address: "192.0.2.1:1".parse().unwrap() };
    let Config { limits, rates, timing, quotas, .. } = Config::new(id(), listen);
    let rate = |Rate { per_second, burst }: Rate| format!("{per_second}/s, burst {burst}");
    let seconds = |time: std::time::Duration| format!("{} s", time.as_secs());
    let network = rates.unproven_per_network;
    for row in [
        format!("| frame on a control connection | {MAX_FRAME} bytes |"),
        format!("| list of peers, of supernodes, of addresses | {MAX_WATCH}, {MAX_NAMED}, {MAX_NAMED} |"),
        format!("| STUN message, its attributes | {MAX_STUN} bytes,"),
        format!("| candidates in one announcement | {MAX_CANDIDATES} |"),
        format!("| hops | {MAX_HOPS} |"),
        format!("| requests of one connection | {} |", rate(rates.requests)),
        format!("| Register on one connection | {} |", rate(rates.registrations)),
        format!("| Connects to one peer | {} |", rate(rates.incoming)),
        format!(
            "| answers to unproven addresses, in one network | 50,000/s, {}/s burst {} |",
            network.per_second, network.burst
        ),
        format!("| connections from one network (/24, /56) | {} |", limits.connections_per_network),
        format!(
            "| channels, watches of one registration | {}, {} |",
            limits.channels_per_registration, limits.watches_per_registration
        ),
        format!("| watchers of one peer | {} |", limits.watchers_per_peer),
        format!("| time to register in | {} |", seconds(timing.register_within)),
        format!("| lifetime of a registration | {} min |", timing.lifetime.as_secs() / 60),
        format!("| lifetime of a binding | {} |", seconds(timing.binding)),
        format!("| directory's time to answer | {} |", seconds(timing.query)),
        format!(
            "| signalling only, for one peer | {} KiB/s, burst {} KiB |",
            quotas.signalling.per_second >> 10,
            quotas.signalling.burst >> 10
        ),
    ] {
        says(&row);
    }
    assert_eq!((rates.unproven.per_second, rates.unproven.burst), (50_000, 50_000));
    let (own, all) = (quotas.per_peer, quotas.total);
    assert_eq!(own.bytes.unwrap().per_second, 12_500_000);
    assert_eq!((own.packets.unwrap().per_second, all.bytes.unwrap().per_second), (20_000, 125_000_000));
    says("| relayed for one peer, for all | 12.5 MB/s and 20,000 packets/s, 125 MB/s |");
}
