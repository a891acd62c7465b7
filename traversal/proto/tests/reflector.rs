//! The STUN reflector: RFC 8489, RFC 5780.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::SocketAddr;

use common::{Net, config};
use traversal_proto::{
    SocketId,
    supernode::{Config, Listen, Verdict},
    wire::stun::{Change, ReflectorReply, ReflectorRequest, TransactionId},
};

/// RFC 5780: two addresses with the same two ports.
fn reflector() -> Net {
    let listen = ["203.0.113.10:3478", "203.0.113.10:3479", "203.0.113.11:3478", "203.0.113.11:3479"];
    let listen = listen.iter().enumerate();
    let listen =
        listen.map(|(n, address)| Listen { socket: SocketId(n as u16), address: address.parse().unwrap() });
    Net::new(Config { listen: listen.collect(), ..config() })
}

#[test]
fn behaviour_discovery() {
    let mut net = reflector();
    let client: SocketAddr = "198.51.100.9:50000".parse().unwrap();
    for (address, port, socket) in [(false, false, 0), (false, true, 1), (true, false, 2), (true, true, 3)] {
        let request = ReflectorRequest {
            change: Some(Change { address, port }),
            ..ReflectorRequest::new(TransactionId([socket; 12]))
        };
        let bytes = request.encode();
        assert_eq!(net.datagram(client, &bytes).0, Verdict::Handled);
        let transmit = net.transmits().pop().unwrap();
        assert_eq!((transmit.socket, transmit.to), (SocketId(socket.into()), client));
        assert!(transmit.bytes.len() <= 3 * bytes.len());
        let Ok(ReflectorReply::Success(reflection)) = ReflectorReply::decode(&transmit.bytes) else {
            panic!()
        };
        assert_eq!(reflection.id, request.id);
        assert_eq!(reflection.mapped, client);
        assert_eq!(reflection.other, Some("203.0.113.11:3479".parse().unwrap()));
        let origin = ["203.0.113.10:3478", "203.0.113.10:3479", "203.0.113.11:3478", "203.0.113.11:3479"];
        assert_eq!(reflection.origin, Some(origin[usize::from(socket)].parse().unwrap()));
        assert!(reflection.fingerprint);
    }
}

#[test]
fn the_answer_to_another_port() {
    let mut net = reflector();
    let request =
        ReflectorRequest { response_port: Some(777), ..ReflectorRequest::new(TransactionId([1; 12])) };
    net.datagram("198.51.100.9:50000".parse().unwrap(), &request.encode());
    assert_eq!(net.transmits()[0].to, "198.51.100.9:777".parse().unwrap());

    let request = ReflectorRequest { padding: 100, ..request };
    net.datagram("198.51.100.9:50000".parse().unwrap(), &request.encode());
    let reply = ReflectorReply::decode(&net.transmits()[0].bytes).unwrap();
    assert!(matches!(reply, ReflectorReply::Error { code: 400, .. }));
}

/// With one address there is no other one to answer from, and the request says so by name.
#[test]
fn a_change_that_is_not_possible() {
    let mut net = Net::new(config());
    let request = ReflectorRequest {
        change: Some(Change { address: true, port: false }),
        ..ReflectorRequest::new(TransactionId([1; 12]))
    };
    net.datagram("198.51.100.9:50000".parse().unwrap(), &request.encode());
    let reply = ReflectorReply::decode(&net.transmits()[0].bytes).unwrap();
    assert_eq!(reply, ReflectorReply::Error { id: request.id, code: 420, unknown: vec![3] });
}

/// What a dual-stack socket reports is an IPv4 address for us, in every answer.
#[test]
fn mapped_sources_are_ipv4() {
    let mut net = Net::new(config());
    let request = ReflectorRequest::new(TransactionId([1; 12]));
    net.datagram("[::ffff:198.51.100.9]:50000".parse().unwrap(), &request.encode());
    let transmit = net.transmits().pop().unwrap();
    let client = "198.51.100.9:50000".parse().unwrap();
    assert_eq!(transmit.to, client);
    assert!(
        matches!(ReflectorReply::decode(&transmit.bytes), Ok(ReflectorReply::Success(r)) if r.mapped == client)
    );
}
