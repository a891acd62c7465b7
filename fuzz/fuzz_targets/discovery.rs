//! Behaviour discovery with reflectors that answer anything, or nothing: no panic, a bounded number of packets, only to
//! reflectors and to our own external addresses, and it ends.
#![no_main]

use std::{net::SocketAddr, time::Duration};

use libfuzzer_sys::fuzz_target;
use traversal_proto::{
    SocketId, Time, Transmit,
    address::{Scope, scope},
    path::{
        SocketRequest,
        discovery::{Config, Discovery},
    },
    wire::stun::{Reflection, ReflectorReply, ReflectorRequest},
};

/// Longest time that it may take, the lifetime's tests included.
const LONGEST: Duration = Duration::from_secs(700);

fuzz_target!(|bytes: &[u8]| {
    let [flags, bytes @ ..] = bytes else { return };
    let address = |byte: u8| match byte {
        250 => SocketAddr::from(([127, 0, 0, 1], 22)),
        251 => SocketAddr::from(([169, 254, 169, 254], 80)),
        _ => SocketAddr::from(([203, 0, 113, byte % 4], 3478 + u16::from(byte / 4 % 4))),
    };
    let config = Config {
        reflectors: (0..flags % 12).map(address).collect(),
        quick: flags & 16 != 0,
        lifetime: Duration::from_secs(if flags & 32 == 0 { 0 } else { 600 }),
    };
    let mut now = Time::ZERO;
    let (mut discovery, mut input) = (Discovery::new(config, [7; 32], now), bytes.iter().copied());
    let mut next = move || input.next();
    let (mut socket, mut sent, mut asked) = (0, 0u32, Vec::<Transmit>::new());
    while discovery.report().is_none() {
        while let Some(request) = discovery.poll_socket() {
            let SocketRequest::Open { request, .. } = request else { continue };
            socket += 1;
            match next().unwrap_or(1) {
                0 => discovery.handle_socket_refused(request, now),
                // Never opened: it is waited for only so long.
                2 => {}
                _ => discovery.handle_socket_opened(
                    request,
                    SocketId(socket),
                    SocketAddr::from(([10, 0, 0, 2], 5000 + socket)),
                    now,
                ),
            }
        }
        while let Some(transmit) = discovery.poll_transmit() {
            sent += 1;
            assert_eq!(scope(transmit.to.ip()), Scope::Global, "{} is sent to", transmit.to);
            asked.push(transmit);
        }
        assert!(sent < 1000, "{sent} packets");
        match next() {
            // An answer to one of the questions, right or twisted; then garbage.
            Some(byte @ 0..128) if !asked.is_empty() => {
                let question = asked.swap_remove(usize::from(byte) % asked.len());
                let Ok(request) = ReflectorRequest::decode(&question.bytes) else {
                    panic!("no request: {question:?}")
                };
                let (mapped, from) = (address(next().unwrap_or(0)), next().unwrap_or(0));
                let from = if from < 128 { question.to } else { address(from) };
                let reply = match byte % 8 {
                    0 => ReflectorReply::Error { id: request.id, code: 420, unknown: vec![3] },
                    _ => {
                        let other = (byte & 1 != 0).then(|| address(next().unwrap_or(0)));
                        let origin = None;
                        ReflectorReply::Success(Reflection {
                            id: request.id,
                            mapped,
                            origin,
                            other,
                            padding: 0,
                            fingerprint: true,
                        })
                    }
                };
                discovery.handle_datagram(question.socket, from, &reply.encode(), now);
            }
            Some(byte @ 128..160) => {
                let garbage: Vec<u8> = (0..byte).map_while(|_| next()).collect();
                discovery.handle_datagram(SocketId(u16::from(byte % 16)), address(byte), &garbage, now);
            }
            _ => {
                let Some(due) = discovery.poll_timeout() else {
                    assert!(discovery.report().is_some(), "it waits for nothing");
                    continue;
                };
                now = now.max(due);
                assert!(now.since(Time::ZERO) < LONGEST, "it does not end");
                discovery.handle_timeout(now);
            }
        }
    }
    assert_eq!(discovery.poll_timeout(), None);
});
