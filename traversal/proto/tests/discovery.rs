//! Discovery with reflectors that lie, and with sockets that cannot be had.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use traversal_proto::{
    SocketId, Time,
    path::{
        Discovery, SocketRequest,
        discovery::{Config, Report},
    },
    wire::stun::{Reflection, ReflectorReply, ReflectorRequest},
};

const FIRST: &str = "203.0.113.10:3478";

/// Discovery with a reflector that answers everything with these addresses; what it found, and to where it sent.
fn discover(mapped: &str, other: &str) -> (Report, BTreeSet<String>) {
    let (mapped, other): (SocketAddr, SocketAddr) = (mapped.parse().unwrap(), other.parse().unwrap());
    let config =
        Config { reflectors: vec![FIRST.parse().unwrap()], quick: false, lifetime: Duration::from_secs(20) };
    let (mut discovery, mut now) = (Discovery::new(config, [7; 32], Time::ZERO), Time::ZERO);
    let (mut sent, mut sockets) = (BTreeSet::new(), 0);
    loop {
        while let Some(request) = discovery.poll_socket() {
            if let SocketRequest::Open { request, .. } = request {
                sockets += 1;
                let local = SocketAddr::from(([10, 0, 0, 2], 5000 + sockets));
                discovery.handle_socket_opened(request, SocketId(sockets), local, now);
            }
        }
        if let Some(transmit) = discovery.poll_transmit() {
            sent.insert(transmit.to.to_string());
            let Ok(request) = ReflectorRequest::decode(&transmit.bytes) else { panic!("{transmit:?}") };
            if transmit.to == FIRST.parse().unwrap() {
                let reflection = Reflection {
                    id: request.id,
                    mapped,
                    origin: None,
                    other: Some(other),
                    padding: 0,
                    fingerprint: true,
                };
                let reply = ReflectorReply::Success(reflection).encode();
                discovery.handle_datagram(transmit.socket, transmit.to, &reply, now);
            }
            continue;
        }
        match (discovery.report(), discovery.poll_timeout()) {
            (Some(report), _) => return (report.clone(), sent),
            (None, due) => {
                now = now.max(due.expect("it waits for nothing"));
                discovery.handle_timeout(now);
            }
        }
    }
}

#[test]
fn nothing_is_sent_to_where_no_reflector_is() {
    for lie in [
        "127.0.0.1:22",
        "[::1]:22",
        "169.254.169.254:80",
        "192.168.1.1:53",
        "100.64.0.1:53",
        "224.0.0.251:5353",
        "255.255.255.255:9",
        "0.0.0.0:9",
        "[::ffff:127.0.0.1]:22",
        "[64:ff9b::7f00:1]:22",
        "203.0.113.11:0",
    ] {
        let (_, sent) = discover(lie, lie);
        assert_eq!(sent.into_iter().collect::<Vec<_>>(), [FIRST], "told {lie}");
    }
}

#[test]
fn what_may_be_true_is_looked_into() {
    let (report, sent) = discover("198.51.100.9:4000", "203.0.113.11:3479");
    assert_eq!(
        sent.into_iter().collect::<Vec<_>>(),
        ["198.51.100.9:4000", "203.0.113.10:3478", "203.0.113.11:3479"]
    );
    assert_eq!(report.profile.translated, Some(true));
}

/// Only one socket can be had, and the reflector has one address: there is nothing to test, and the report says so.
#[test]
fn it_ends_when_nothing_can_be_tested() {
    for (quick, opened) in [(true, 0), (true, 2), (false, 0), (false, 3)] {
        let config = Config { reflectors: vec![FIRST.parse().unwrap()], quick, lifetime: Duration::ZERO };
        let (mut discovery, mut now) = (Discovery::new(config, [7; 32], Time::ZERO), Time::ZERO);
        while let Some(request) = discovery.poll_socket() {
            let SocketRequest::Open { request, .. } = request else { continue };
            match request.0 == 0 || request.0 == opened {
                true => {
                    let local = SocketAddr::from(([10, 0, 0, 2], 5000 + request.0 as u16));
                    discovery.handle_socket_opened(request, SocketId(request.0 as u16), local, now);
                }
                false => discovery.handle_socket_refused(request, now),
            }
        }
        while discovery.report().is_none() {
            while let Some(transmit) = discovery.poll_transmit() {
                let Ok(request) = ReflectorRequest::decode(&transmit.bytes) else { panic!("{transmit:?}") };
                let (id, mapped) = (request.id, "198.51.100.9:4000".parse().unwrap());
                let reflection =
                    Reflection { id, mapped, origin: None, other: None, padding: 0, fingerprint: true };
                // The other socket's mapping is silent.
                if transmit.socket == SocketId(0) {
                    let reply = ReflectorReply::Success(reflection).encode();
                    discovery.handle_datagram(transmit.socket, transmit.to, &reply, now);
                }
            }
            if discovery.report().is_none() {
                now = now.max(discovery.poll_timeout().expect("it waits for nothing"));
                discovery.handle_timeout(now);
            }
        }
        assert_eq!(discovery.report().unwrap().profile.filtering, None);
    }
}
