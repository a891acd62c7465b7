//! The path agent under datagrams, messages, sockets that come and go, and time: no panic, nothing sent to an address
//! that may not be probed, the budget for probes kept, and nothing left of a peer that is gone.
#![no_main]

use std::{net::SocketAddr, time::Duration};

use libfuzzer_sys::fuzz_target;
use traversal_proto::{
    SocketId, Time,
    address::{Scope, scope},
    peer::{Agent, Config, Hop, Interface, PeerKey, Policy, Role, SocketRequest},
    wire::{
        peer::PeerMessage,
        stun::{Check, CheckKey, Reflection, ReflectorReply, ReflectorRequest, TransactionId, peek},
    },
};

const PEERS: u32 = 4;
const REFLECTORS: [([u8; 4], u16); 3] =
    [([203, 0, 113, 10], 3478), ([203, 0, 113, 10], 3479), ([203, 0, 113, 11], 3479)];

/// An address that a byte stands for: ours, the peers', and those that nobody may be made to send to.
fn address(byte: u8) -> SocketAddr {
    let forms = [
        "127.0.0.1:9",
        "169.254.169.254:80",
        "224.0.0.1:9",
        "[::1]:9",
        "[::ffff:127.0.0.1]:9",
        "[2002:7f00:1::]:9",
        "[64:ff9b::a9fe:a9fe]:9",
        "[fe80::1]:9",
        "0.0.0.0:9",
        "192.168.1.1:9",
        "203.0.113.5:0",
        "10.1.1.77:4000",
        "[2001:db8::7]:4000",
        "255.255.255.255:9",
    ];
    match forms.get(usize::from(byte)) {
        Some(form) => form.parse().unwrap_or_else(|_| SocketAddr::from(([192, 0, 2, 1], 9))),
        None => SocketAddr::from(([192, 0, 2, byte / 8], 1000 + u16::from(byte % 8))),
    }
}

fn key(peer: u32) -> [u8; 32] {
    [peer as u8; 32]
}

/// A byte that is missing is a zero.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

struct World {
    agent: Agent,
    now: Time,
    next_socket: u16,
    /// What went out last, so that it can be answered.
    sent: Vec<(SocketId, SocketAddr, Vec<u8>)>,
    tags: [u32; PEERS as usize],
}

impl World {
    fn new() -> World {
        let config = Config { extra_sockets: 1, ..Config::default() };
        let mut agent = Agent::new(config, [7; 32], Time::ZERO);
        agent.handle_socket_opened(SocketId(0), SocketAddr::from(([10, 1, 1, 2], 4000)), None, Time::ZERO);
        let interface = Interface { address: [10, 1, 1, 2].into(), prefix_len: 24 };
        agent.handle_local_addresses(&[interface], Time::ZERO);
        agent.handle_reflectors(&REFLECTORS.map(SocketAddr::from), Time::ZERO);
        World { agent, now: Time::ZERO, next_socket: 1, sent: Vec::new(), tags: [0; PEERS as usize] }
    }

    fn step(&mut self, input: &mut Bytes<'_>) {
        let (what, who) = (input.next(), input.next());
        let (peer, now) = (PeerKey(u32::from(who) % PEERS), self.now);
        let socket = SocketId(u16::from(who / 4) % (self.next_socket + 1));
        let from = address(input.next());
        match what % 16 {
            0 => {
                let role = if who & 4 == 0 { Role::Initiator } else { Role::Acceptor };
                let policy =
                    [Policy::PreferDirect, Policy::RelayOnly, Policy::DirectOnly][usize::from(who / 8 % 3)];
                self.agent.handle_peer(peer, role, CheckKey::new(&key(peer.0)), policy, now);
            }
            1 => self.agent.handle_peer_closed(peer, now),
            2 | 3 => {
                let length = usize::from(input.next());
                if let Ok(message) = PeerMessage::decode(input.take(length)) {
                    self.agent.handle_message(peer, message, now);
                }
            }
            4 => {
                let length = usize::from(input.next());
                self.agent.handle_datagram(socket, from, input.take(length), now);
            }
            // The peer's own check, with the right key.
            5 | 6 => {
                let id = TransactionId::tagged(self.tags[peer.0 as usize], u64::from(input.next()));
                let bytes =
                    Check::Request { id, nominate: who & 8 != 0 }.encode(&CheckKey::new(&key(peer.0)));
                self.agent.handle_datagram(socket, from, &bytes, now);
            }
            // An answer to something that was sent, from where it was sent to or from elsewhere.
            7 | 8 | 9 => self.answer(input.next(), (what % 16 == 9).then_some(from), from),
            10 => self.agent.handle_received(peer, socket, from, now),
            11 => drop(self.agent.handle_sent(peer, now)),
            12 => self.agent.handle_unknown(socket, from, usize::from(input.next()) * 6, now),
            13 => match who % 6 {
                0 => self.agent.handle_socket_closed(socket, now),
                1 => self.agent.handle_observed(socket, from, now),
                2 => self.agent.handle_network_changed(now),
                3 => self.agent.handle_relay(peer, who & 8 != 0, Some(Duration::from_millis(20)), now),
                4 => self.agent.set_policy(peer, Policy::PreferDirect, now),
                _ => self.agent.handle_reflectors(&REFLECTORS.map(SocketAddr::from), now),
            },
            _ => self.now = now + Duration::from_millis(u64::from(who) * u64::from(who)),
        }
        self.drain();
        while self.agent.poll_timeout().is_some_and(|due| due <= self.now) {
            self.agent.handle_timeout(self.now);
            self.drain();
        }
    }

    fn answer(&mut self, which: u8, elsewhere: Option<SocketAddr>, mapped: SocketAddr) {
        let Some((socket, to, bytes)) = self.sent.get(usize::from(which) % self.sent.len().max(1)).cloned()
        else {
            return;
        };
        let Ok(header) = peek(&bytes) else { return };
        let from = elsewhere.unwrap_or(to);
        let reply = match ReflectorRequest::decode(&bytes) {
            Ok(request) => {
                let padding = request.padding;
                let reflection = Reflection {
                    id: header.id,
                    mapped,
                    origin: None,
                    other: None,
                    padding,
                    fingerprint: true,
                };
                ReflectorReply::Success(reflection).encode()
            }
            Err(_) => Check::Response { id: header.id, mapped }
                .encode(&CheckKey::new(&key(u32::from(which) % PEERS))),
        };
        self.agent.handle_datagram(socket, from, &reply, self.now);
    }

    fn drain(&mut self) {
        while let Some(transmit) = self.agent.poll_transmit() {
            let scope = scope(transmit.to.ip());
            let is_allowed =
                matches!(scope, Scope::Global | Scope::Private | Scope::Shared) && transmit.to.port() != 0;
            assert!(is_allowed, "{} is sent to", transmit.to);
            self.sent.push((transmit.socket, transmit.to, transmit.bytes));
        }
        let old = self.sent.len().saturating_sub(64);
        self.sent.drain(..old);
        while let Some((to, message)) = self.agent.poll_message() {
            assert!(message.encode().len() <= 4096);
            if let PeerMessage::Candidates(told) = message {
                self.tags[to.0 as usize] = told.tag;
            }
        }
        while let Some(request) = self.agent.poll_socket() {
            if let SocketRequest::Open { request, .. } = request {
                self.next_socket = self.next_socket.wrapping_add(1).max(1);
                let local = SocketAddr::from(([10, 1, 1, 2], 5000));
                match self.next_socket % 5 {
                    0 => self.agent.handle_socket_refused(request, self.now),
                    _ => self.agent.handle_socket_opened(
                        SocketId(self.next_socket),
                        local,
                        Some(request),
                        self.now,
                    ),
                }
            }
        }
        while let Some(peer) = self.agent.poll_route() {
            if let Some(Hop::Direct { to, .. }) = self.agent.route(peer).map(|route| route.primary) {
                assert!(to.port() != 0);
            }
        }
        while self.agent.poll_event().is_some() {}
    }
}

fuzz_target!(|bytes: &[u8]| {
    let (mut world, mut input) = (World::new(), Bytes(bytes));
    while !input.0.is_empty() {
        world.step(&mut input);
    }
    // 100 at once and 500 a second, for all peers together.
    let most = 101 + world.now.since(Time::ZERO).as_millis() as u64 / 2;
    assert!(
        world.agent.counters().probes <= most,
        "{} probes, {most} allowed",
        world.agent.counters().probes
    );
    for peer in 0..PEERS {
        world.agent.handle_peer_closed(PeerKey(peer), world.now);
        assert_eq!((world.agent.route(PeerKey(peer)), world.agent.paths(PeerKey(peer)).count()), (None, 0));
    }
});
