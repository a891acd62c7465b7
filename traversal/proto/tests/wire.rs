//! Every message on the wire: there and back, and what happens to bytes that are none.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;

use proptest::{collection::vec, option, prelude::*};
use traversal_proto::{
    PeerId, UnixTime,
    wire::{
        Identity, Kind, List, Record, RelayToken, SignedRecord, demultiplex,
        frame::{self, Bind, ChannelId, Frame, FrameError, SessionId},
        message::{
            Code, DecodeError, FromSupernode, Hello, MAX_NAMED, MAX_WATCH, RelayMode, Resource, Supernode,
            ToSupernode,
        },
        stream::{self, BadLength, MAX_FRAME},
        stun::{
            Change, Check, CheckKey, Class, Reflection, ReflectorReply, ReflectorRequest, StunError,
            TransactionId, peek,
        },
    },
};

fn peer_id() -> impl Strategy<Value = PeerId> {
    any::<[u8; 32]>().prop_map(PeerId::from_bytes)
}

fn addr() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        any::<([u8; 4], u16)>().prop_map(SocketAddr::from),
        any::<([u8; 16], u16)>().prop_map(SocketAddr::from),
    ]
}

fn record() -> impl Strategy<Value = SignedRecord> {
    (any::<[u8; 32]>(), peer_id(), any::<u64>(), any::<u64>()).prop_map(
        |(secret, supernode, sequence, expires)| {
            let identity = Identity::from_secret(&secret);
            let record = Record { peer: identity.peer_id(), supernode, sequence, expires: UnixTime(expires) };
            SignedRecord::sign(record, &identity)
        },
    )
}

fn supernode() -> impl Strategy<Value = Supernode> {
    (peer_id(), vec(addr(), 0..=MAX_NAMED))
        .prop_map(|(id, addresses)| Supernode { id, addresses: addresses.try_into().unwrap() })
}

fn alternatives() -> impl Strategy<Value = List<Supernode, MAX_NAMED>> {
    vec(supernode(), 0..=MAX_NAMED).prop_map(|list| list.try_into().unwrap())
}

fn peers() -> impl Strategy<Value = List<PeerId, MAX_WATCH>> {
    vec(peer_id(), 0..=MAX_WATCH).prop_map(|list| list.try_into().unwrap())
}

fn code() -> impl Strategy<Value = Code> {
    any::<u16>().prop_map(Code::from)
}

fn relay() -> impl Strategy<Value = RelayMode> {
    let only = |(burst, rate)| RelayMode::SignallingOnly { burst, rate };
    prop_oneof![Just(RelayMode::Full), any::<(u32, u32)>().prop_map(only)]
}

fn to_supernode() -> impl Strategy<Value = ToSupernode> {
    prop_oneof![
        (record(), any::<bool>(), any::<bool>())
            .prop_map(|(record, accepting, resume)| ToSupernode::Register { record, accepting, resume }),
        Just(ToSupernode::Unregister),
        (any::<u32>(), peer_id(), any::<u8>()).prop_map(|(request, peer, hops)| ToSupernode::Lookup {
            request,
            peer,
            hops
        }),
        (any::<u32>(), peer_id(), any::<u8>()).prop_map(|(request, peer, hops)| ToSupernode::Connect {
            request,
            peer,
            hops
        }),
        any::<u32>().prop_map(|channel| ToSupernode::Close { channel: ChannelId(channel) }),
        peers().prop_map(|peers| ToSupernode::Watch { peers }),
        peers().prop_map(|peers| ToSupernode::Unwatch { peers }),
        any::<u64>().prop_map(|nonce| ToSupernode::Ping { nonce }),
        Just(ToSupernode::Attach),
    ]
}

fn hello() -> impl Strategy<Value = FromSupernode> {
    (any::<u64>(), addr(), vec(addr(), 0..=MAX_NAMED), any::<[u32; 3]>()).prop_map(
        |(time, observed, reflectors, [max_lifetime, max_channels, max_watches])| {
            let (time, reflectors) = (UnixTime(time), reflectors.try_into().unwrap());
            FromSupernode::Hello(Hello {
                time,
                observed,
                reflectors,
                max_lifetime,
                max_channels,
                max_watches,
            })
        },
    )
}

fn from_supernode() -> impl Strategy<Value = FromSupernode> {
    let resource = prop_oneof![Just(Resource::Volume), Just(Resource::Bytes), Just(Resource::Packets)];
    prop_oneof![
        hello(),
        (any::<u32>(), any::<[u8; 16]>(), any::<u32>(), relay()).prop_map(
            |(session, token, lifetime, relay)| {
                FromSupernode::Registered {
                    session: SessionId(session),
                    token: RelayToken(token),
                    lifetime,
                    relay,
                }
            }
        ),
        (any::<u32>(), record(), option::of(supernode()))
            .prop_map(|(request, record, elsewhere)| FromSupernode::Found { request, record, elsewhere }),
        (option::of(any::<u32>()), peer_id(), any::<u32>(), relay()).prop_map(
            |(request, peer, channel, relay)| {
                FromSupernode::Opened { request, peer, channel: ChannelId(channel), relay }
            }
        ),
        (any::<u32>(), code(), any::<u64>(), option::of(supernode())).prop_map(
            |(request, code, detail, elsewhere)| FromSupernode::Refused { request, code, detail, elsewhere }
        ),
        (any::<u32>(), code())
            .prop_map(|(channel, code)| FromSupernode::Closed { channel: ChannelId(channel), code }),
        (peer_id(), any::<bool>()).prop_map(|(peer, online)| FromSupernode::Presence { peer, online }),
        (resource, any::<u64>(), any::<u64>(), any::<u32>()).prop_map(
            |(resource, used, limit, resets_in)| {
                FromSupernode::Quota { resource, used, limit, resets_in }
            }
        ),
        (any::<u32>(), alternatives())
            .prop_map(|(leave_in, alternatives)| FromSupernode::Drain { leave_in, alternatives }),
        alternatives().prop_map(|alternatives| FromSupernode::Redirect { alternatives }),
        any::<u64>().prop_map(|nonce| FromSupernode::Pong { nonce }),
        code().prop_map(|code| FromSupernode::Error { code }),
        Just(FromSupernode::Attached),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn messages_round_trip_and_fit_a_frame(up in to_supernode(), down in from_supernode()) {
        for (bytes, same) in [
            (up.encode(), ToSupernode::decode(&up.encode()) == Ok(up.clone())),
            (down.encode(), FromSupernode::decode(&down.encode()) == Ok(down.clone())),
        ] {
            prop_assert!(same);
            prop_assert!(bytes[0] < 128, "a message looks like a relay frame");
            let mut framed = Vec::new();
            stream::push_frame(&mut framed, &bytes).unwrap();
            prop_assert_eq!(stream::next_frame(&framed), Ok(Some(2..framed.len())));
            prop_assert_eq!(stream::next_frame(&framed[..framed.len() - 1]), Ok(None));
        }
    }

    /// A message cut short or run on is an error; a changed one is a message or an error.
    #[test]
    fn damaged_messages(up in to_supernode(), down in from_supernode(), cut: prop::sample::Index, to: u8) {
        let (up, down) = (up.encode(), down.encode());
        prop_assert!(ToSupernode::decode(&up[..cut.index(up.len())]).is_err());
        prop_assert!(FromSupernode::decode(&down[..cut.index(down.len())]).is_err());
        prop_assert_eq!(ToSupernode::decode(&[&up[..], &[to]].concat()), Err(DecodeError::LeftOver(1)));
        prop_assert_eq!(FromSupernode::decode(&[&down[..], &[to]].concat()), Err(DecodeError::LeftOver(1)));
        for mut bytes in [up, down] {
            let at = cut.index(bytes.len());
            bytes[at] = to;
            let _ = (ToSupernode::decode(&bytes), FromSupernode::decode(&bytes));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Whatever the bytes, every decoder says something.
    #[test]
    fn decoders_are_total(bytes in vec(any::<u8>(), 0..300)) {
        let _ = (ToSupernode::decode(&bytes), FromSupernode::decode(&bytes), stream::next_frame(&bytes));
        let _ = (ReflectorRequest::decode(&bytes), ReflectorReply::decode(&bytes), peek(&bytes));
        let _ = Check::decode(&bytes, &CheckKey::new(&[3; 32]));
        // Whatever is read as a frame is written back as it was.
        if let Ok(frame) = Frame::decode(&bytes) {
            prop_assert_eq!(frame.to_vec(), bytes);
        }
    }

    /// Messages that are STUN by their header, with attributes of every kind and any value: the library beneath must
    /// not be brought down by one.
    #[test]
    fn stun_attributes_of_every_kind(
        kind in prop::sample::select(vec![0x0001u16, 0x0101, 0x0111, 0x0011]),
        attributes in vec((prop_oneof![0u16..0x40, 0x8000u16..0x8040], vec(any::<u8>(), 0..40)), 0..6),
        lie in option::of(any::<u16>()),
    ) {
        let mut bytes = vec![0; 20];
        bytes[..2].copy_from_slice(&kind.to_be_bytes());
        bytes[4..8].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
        for (kind, value) in attributes {
            bytes.extend_from_slice(&kind.to_be_bytes());
            bytes.extend_from_slice(&lie.unwrap_or(value.len() as u16).to_be_bytes());
            bytes.extend_from_slice(&value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let length = (bytes.len() - 20) as u16;
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        let _ = (ReflectorRequest::decode(&bytes), ReflectorReply::decode(&bytes));
        prop_assert!(Check::decode(&bytes, &CheckKey::new(&[3; 32])).is_err());
    }

    #[test]
    fn frames_round_trip(
        words: [u32; 2], cookie: [u8; 16], proof: [u8; 16], lifetime: u16, byte: u8, payload in vec(any::<u8>(), 0..64)
    ) {
        let [first, sequence] = words;
        let (session, channel) = (SessionId(first), ChannelId(first));
        for (frame, length) in [
            (Frame::Data { channel, payload: &payload }, frame::DATA_HEADER + payload.len()),
            (Frame::Bind(Bind { session, sequence, cookie, proof }), frame::BIND_LEN),
            (Frame::Challenge { session, sequence, cookie }, frame::CHALLENGE_LEN),
            (Frame::Bound { session, sequence, lifetime, proof }, frame::BOUND_LEN),
            (Frame::Error { code: FrameError::from_byte(byte), id: first }, frame::ERROR_LEN),
            (Frame::Forward { hops: byte, channel, payload: &payload }, frame::DATA_HEADER + 1 + payload.len()),
        ] {
            let bytes = frame.to_vec();
            prop_assert_eq!(bytes.len(), length);
            prop_assert_eq!(demultiplex(bytes[0]), Kind::Relay);
            prop_assert_eq!(Frame::decode(&bytes), Ok(frame));
            if !matches!(frame, Frame::Data { .. } | Frame::Forward { .. }) {
                prop_assert!(Frame::decode(&bytes[..length - 1]).is_err());
                prop_assert!(Frame::decode(&[&bytes[..], &[0]].concat()).is_err());
            }
        }
    }

    #[test]
    fn checks_round_trip_and_are_authentic(
        secret: [u8; 32], tag: u32, random: u64, nominate: bool, mapped in addr(), at: prop::sample::Index, bit in 0u8..8
    ) {
        let (key, id) = (CheckKey::new(&secret), TransactionId::tagged(tag, random));
        prop_assert_eq!(id.tag(), tag);
        let mapped = traversal_proto::address::canonical(mapped);
        for check in [Check::Request { id, nominate }, Check::Response { id, mapped }] {
            let mut bytes = check.encode(&key);
            prop_assert!((64..=88).contains(&bytes.len()));
            prop_assert_eq!(demultiplex(bytes[0]), Kind::Stun);
            prop_assert_eq!(peek(&bytes).unwrap().id, id);
            prop_assert_eq!(Check::decode(&bytes, &key), Ok(check));
            let mut other = secret;
            other[0] ^= 1;
            prop_assert_eq!(Check::decode(&bytes, &CheckKey::new(&other)), Err(StunError::BadIntegrity));
            bytes[at.index(check.encode(&key).len())] ^= 1 << bit;
            prop_assert!(Check::decode(&bytes, &key).is_err(), "a changed check was believed");
        }
    }

    #[test]
    fn reflector_requests_round_trip(
        id: [u8; 12],
        change in option::of(any::<(bool, bool)>()),
        response_port in option::of(1u16..),
        padding in 0u16..=1280,
        fingerprint: bool,
    ) {
        let change = change.map(|(address, port)| Change { address, port });
        let request = ReflectorRequest { id: TransactionId(id), change, response_port, padding, fingerprint };
        prop_assert_eq!(ReflectorRequest::decode(&request.encode()), Ok(request));
    }

    #[test]
    fn reflector_replies_round_trip(
        id: [u8; 12], mapped in addr(), origin in option::of(addr()), other in option::of(addr()),
        padding in 0u16..=1280, fingerprint: bool, unknown in vec(any::<u16>(), 0..8), limit in 52usize..400,
    ) {
        let id = TransactionId(id);
        let reflection = Reflection { id, mapped, origin, other, padding, fingerprint };
        let reply = ReflectorReply::Success(reflection);
        prop_assert_eq!(reply.encode().len(), reflection.encoded_len());
        prop_assert_eq!(ReflectorReply::decode(&reply.encode()), Ok(reply));

        let fitted = reflection.within(limit);
        prop_assert_eq!(fitted.mapped, mapped);
        prop_assert!(ReflectorReply::Success(fitted).encode().len() <= limit, "{} > {}", fitted.encoded_len(), limit);

        let mut unknown = unknown;
        unknown.sort_unstable();
        unknown.dedup();
        let refusal = ReflectorReply::Error { id, code: 420, unknown };
        prop_assert_eq!(ReflectorReply::decode(&refusal.encode()), Ok(refusal));
    }
}

#[test]
fn one_socket_carries_them_all() {
    for first in 0..=255u8 {
        let expected = match first {
            0..=3 => Kind::Stun,
            128..=191 => Kind::Relay,
            64..=127 | 192..=255 => Kind::Quic,
            _ => Kind::Unknown,
        };
        assert_eq!(demultiplex(first), expected);
    }
}

/// A length that promises far more than there may be is refused before anything is allocated.
#[test]
fn lists_are_bounded() {
    let mut bytes = ToSupernode::Watch { peers: List::new() }.encode();
    bytes.pop();
    bytes.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert!(ToSupernode::decode(&bytes).is_err());
    bytes.truncate(1);
    bytes.push(MAX_WATCH as u8 + 1);
    bytes.resize(2 + 32 * (MAX_WATCH + 1), 0);
    assert!(ToSupernode::decode(&bytes).is_err(), "65 of 64 peers");
    assert!(matches!(ToSupernode::decode(&vec![0; MAX_FRAME + 1]), Err(DecodeError::TooLong(_))));
}

#[test]
fn stream_frames_have_a_limit() {
    assert_eq!(stream::push_frame(&mut Vec::new(), &[0; MAX_FRAME + 1]), Err(BadLength(MAX_FRAME + 1)));
    assert_eq!(stream::push_frame(&mut Vec::new(), &[]), Err(BadLength(0)));
    assert_eq!(stream::next_frame(&[0, 0]), Err(BadLength(0)));
    assert_eq!(stream::next_frame(&[0x10, 0x01]), Err(BadLength(0x1001)));
    assert_eq!(stream::next_frame(&[0]), Ok(None));
}

/// RFC 5769 §2.1 is a request of another program, with attributes that a reflector has to refuse by name.
#[test]
fn a_foreign_request_is_read_or_refused_by_name() {
    let mut foreign = vec![0x00, 0x01, 0x00, 0x08, 0x21, 0x12, 0xa4, 0x42];
    foreign.extend_from_slice(&[7; 12]);
    foreign.extend_from_slice(&[0x00, 0x24, 0x00, 0x04, 0x6e, 0x00, 0x01, 0xff]); // PRIORITY
    assert_eq!(ReflectorRequest::decode(&foreign), Err(StunError::UnknownAttributes(vec![0x24])));

    // SOFTWARE is optional, and passes.
    let mut foreign = vec![0x00, 0x01, 0x00, 0x08, 0x21, 0x12, 0xa4, 0x42];
    foreign.extend_from_slice(&[7; 12]);
    foreign.extend_from_slice(&[0x80, 0x22, 0x00, 0x04, b't', b'e', b's', b't']);
    let request = ReflectorRequest::decode(&foreign).unwrap();
    assert_eq!((request.id, request.change, request.padding), (TransactionId([7; 12]), None, 0));
    assert_eq!(peek(&foreign).unwrap().class, Class::Request);
}

/// The bytes of docs/protocol.md: a change here is a change of the protocol.
#[test]
fn the_examples_of_the_specification() {
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(hex(ToSupernode::Unregister.encode()), "01");
    assert_eq!(hex(ToSupernode::Ping { nonce: 300 }.encode()), "07ac02");
    let close = ToSupernode::Close { channel: ChannelId(0x0102_0304) };
    assert_eq!(hex(close.encode()), "0484868808");
    let observed = "198.51.100.7:40000".parse().unwrap();
    let reflectors = List::first_of(["203.0.113.10:3478".parse().unwrap()]);
    let hello = Hello {
        time: UnixTime(300),
        observed,
        reflectors,
        max_lifetime: 600,
        max_channels: 1024,
        max_watches: 64,
    };
    assert_eq!(hex(FromSupernode::Hello(hello).encode()), "00ac0200c6336407c0b8020100cb00710a961bd804800840");
    let closed = FromSupernode::Closed { channel: ChannelId(5), code: Code::PeerGone };
    assert_eq!(hex(closed.encode()), "050510");
    assert_eq!(
        hex(Frame::Data { channel: ChannelId(0x0a0b_0c0d), payload: b"hi" }.to_vec()),
        "800a0b0c0d6869"
    );
}
