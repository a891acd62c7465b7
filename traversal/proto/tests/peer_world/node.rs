//! A host with an agent: sockets, a reliable way for messages over the relay, and a stream of numbered packets.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use natbox_sim::{Datagram, Transmit};
use traversal_proto::{
    SocketId, Time,
    peer::{Agent, Config, Event, Hop, Interface, PeerKey, SocketRequest},
    wire::peer::PeerMessage,
};

use super::{
    call::{Calls, DONE, REGISTER},
    hub::RELAY,
};

const MESSAGE: u8 = 1;
const ACK: u8 = 2;
const DATA: u8 = 3;
/// First byte of a data packet that goes directly: QUIC's, as far as anybody looks.
const DIRECT: u8 = 0x40;
/// A message that is not acknowledged is sent again, unless it is said otherwise after this time.
const RETRY: Duration = Duration::from_millis(120);
const KEEPALIVE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Link {
    sent: u32,
    unacknowledged: BTreeMap<u32, (Vec<u8>, Time)>,
    delivered: u32,
    early: BTreeMap<u32, Vec<u8>>,
}

/// What came of the stream to or from one peer.
#[derive(Default)]
pub struct Stream {
    every: Option<Duration>,
    next: Option<Time>,
    pub sent: u32,
    pub direct: u32,
    pub relayed: u32,
    seen: BTreeSet<u32>,
    pub last: Option<Time>,
    /// The longest time without a new packet.
    pub gap: Duration,
}

impl Stream {
    pub fn received(&self) -> usize {
        self.seen.len()
    }
}

pub struct Peer {
    pub id: u8,
    ip: Ipv4Addr,
    /// Where the relay is asked.
    pub hub: SocketAddr,
    pub agent: Agent,
    sockets: BTreeMap<SocketId, u16>,
    links: BTreeMap<u8, Link>,
    pub streams: BTreeMap<u8, Stream>,
    pub out: VecDeque<Transmit>,
    pub events: Vec<(Time, Event)>,
    /// Everything the agent has sent: when, and to where.
    /// When, to where, and how far at most.
    pub transmits: Vec<(Time, SocketAddr, Option<u8>)>,
    pub unknown: u64,
    /// How often a search has been given up for now.
    pub gave_up: u32,
    pub calls: Calls,
    /// A message that is not acknowledged is sent again after this time.
    pub retry: Duration,
    keepalive: Time,
    /// Sockets are refused from now on.
    pub refuses_sockets: bool,
}

impl Peer {
    pub fn new(
        id: u8,
        ip: Ipv4Addr,
        reflectors: &[SocketAddr],
        config: Config,
        seed: u64,
        sockets: u16,
        now: Time,
    ) -> Peer {
        let mut bytes = [id; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        let mut peer = Peer {
            id,
            ip,
            hub: reflectors[0],
            agent: Agent::new(config, bytes, now),
            sockets: BTreeMap::new(),
            links: BTreeMap::new(),
            streams: BTreeMap::new(),
            out: VecDeque::new(),
            events: Vec::new(),
            transmits: Vec::new(),
            unknown: 0,
            gave_up: 0,
            calls: Calls::default(),
            retry: RETRY,
            keepalive: now,
            refuses_sockets: false,
        };
        for socket in 0..sockets {
            // Another port on each host: two hosts with one address and one port would be the same to each other.
            let port = 4000 + 100 * u16::from(id) + socket;
            peer.sockets.insert(SocketId(socket), port);
            peer.agent.handle_socket_opened(SocketId(socket), (ip, port).into(), None, now);
        }
        peer.agent.handle_local_addresses(&[Interface { address: ip.into(), prefix_len: 24 }], now);
        peer.agent.handle_reflectors(reflectors, now);
        peer.handle_timeout(now);
        peer
    }

    pub fn is_direct(&self, to: usize) -> bool {
        let route = self.agent.route(PeerKey(to as u32));
        route.is_some_and(|route| matches!(route.primary, Hop::Direct { .. }))
    }

    /// The host has another address.
    pub fn move_to(&mut self, ip: Ipv4Addr, now: Time) {
        self.ip = ip;
        for (socket, port) in self.sockets.clone() {
            self.agent.handle_socket_opened(socket, (ip, port).into(), None, now);
        }
        self.agent.handle_local_addresses(&[Interface { address: ip.into(), prefix_len: 24 }], now);
        self.keepalive = now;
        self.agent.handle_network_changed(now);
    }

    pub fn handle(&mut self, datagram: Datagram<'_>, now: Time) {
        let is_ours = |(_, port): &(&SocketId, &u16)| **port == datagram.to.port();
        let Some(socket) = self.sockets.iter().find(is_ours).map(|(socket, _)| *socket) else { return };
        match datagram.payload {
            [0..=3, ..] => drop(self.agent.handle_datagram(socket, datagram.from, datagram.payload, now)),
            [RELAY, from, _, MESSAGE, rest @ ..] if rest.len() >= 4 => self.handle_message(*from, rest, now),
            [RELAY, from, _, ACK, a, b, c, d] => {
                let number = u32::from_be_bytes([*a, *b, *c, *d]);
                self.links.entry(*from).or_default().unacknowledged.remove(&number);
                self.calls.confirm(*from);
            }
            [RELAY, from, _, REGISTER] => self.handle_call(*from, REGISTER, [0; 2], now),
            [RELAY, from, _, kind @ REGISTER..=DONE, said, answered] => {
                self.handle_call(*from, *kind, [*said, *answered], now);
            }
            [RELAY, from, _, DATA, a, b, c, d] => self.handle_data(*from, [*a, *b, *c, *d], false, now),
            [DIRECT, a, b, c, d] => match self.agent.peer_of(socket, datagram.from) {
                Some(peer) => {
                    self.agent.handle_received(peer, socket, datagram.from, now);
                    self.handle_data(peer.0 as u8, [*a, *b, *c, *d], true, now);
                }
                None => {
                    self.unknown += 1;
                    // The few bytes of data stand for a full packet.
                    self.agent.handle_unknown(socket, datagram.from, 1200, now);
                }
            },
            _ => {}
        }
        self.drain(now);
    }

    fn handle_message(&mut self, from: u8, bytes: &[u8], now: Time) {
        if self.calls.is_under_way(from) {
            // It cannot be read yet, and comes again.
            return;
        }
        self.calls.confirm(from);
        let number = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        self.relay(from, ACK, &bytes[..4]);
        let link = self.links.entry(from).or_default();
        if number >= link.delivered {
            link.early.insert(number, bytes[4..].to_vec());
        }
        while let Some(bytes) = self.links.get_mut(&from).and_then(|link| link.early.remove(&link.delivered))
        {
            self.links.entry(from).or_default().delivered += 1;
            let message = PeerMessage::decode(&bytes).unwrap();
            assert_eq!(message.encode(), bytes);
            self.agent.handle_message(PeerKey(from.into()), message, now);
        }
    }

    fn handle_data(&mut self, from: u8, number: [u8; 4], is_direct: bool, now: Time) {
        let stream = self.streams.entry(from).or_default();
        if !stream.seen.insert(u32::from_be_bytes(number)) {
            return;
        }
        stream.gap = stream.gap.max(stream.last.map_or(Duration::ZERO, |last| now.since(last)));
        stream.last = Some(now);
        *if is_direct { &mut stream.direct } else { &mut stream.relayed } += 1;
    }

    pub fn handle_timeout(&mut self, now: Time) {
        self.agent.handle_timeout(now);
        if self.keepalive <= now {
            self.relay(self.id, 0, &[]);
            self.keepalive = now + KEEPALIVE;
        }
        let mut late = Vec::new();
        for (to, link) in &mut self.links {
            for (number, (bytes, due)) in link.unacknowledged.iter_mut().filter(|(_, (_, due))| *due <= now) {
                *due = now + self.retry;
                late.push((*to, [&number.to_be_bytes(), &bytes[..]].concat()));
            }
        }
        late.into_iter().for_each(|(to, body)| self.relay(to, MESSAGE, &body));
        self.call_timeout(now);
        let due: Vec<_> = self
            .streams
            .iter()
            .filter(|(_, s)| s.next.is_some_and(|next| next <= now))
            .map(|(to, _)| *to)
            .collect();
        due.into_iter().for_each(|to| self.send_data(to, now));
        self.drain(now);
    }

    pub fn stream(&mut self, to: usize, every: Duration, now: Time) {
        let stream = self.streams.entry(to as u8).or_default();
        (stream.every, stream.next, stream.gap, stream.last) = (Some(every), Some(now), Duration::ZERO, None);
    }

    /// Forgets the longest gap so far.
    pub fn reset_gap(&mut self, from: usize) {
        self.streams.entry(from as u8).or_default().gap = Duration::ZERO;
    }

    fn send_data(&mut self, to: u8, now: Time) {
        let stream = self.streams.entry(to).or_default();
        stream.next = stream.every.map(|every| now + every);
        let number = stream.sent.to_be_bytes();
        stream.sent += 1;
        let Some(route) = self.agent.route(PeerKey(to.into())) else { return };
        for hop in [Some(route.primary), route.also].into_iter().flatten() {
            match hop {
                Hop::Relay => self.relay(to, DATA, &number),
                Hop::Direct { socket, to } => {
                    let bytes = [&[DIRECT], &number[..]].concat();
                    self.send(socket, to, bytes, 64);
                }
            }
        }
        self.agent.handle_sent(PeerKey(to.into()), now);
    }

    pub fn deadline(&self) -> Option<Time> {
        let retries = self.links.values().flat_map(|link| link.unacknowledged.values().map(|(_, due)| *due));
        let streams = self.streams.values().filter_map(|stream| stream.next);
        let others =
            [self.keepalive].into_iter().chain(self.agent.poll_timeout()).chain(self.calls.deadline());
        retries.chain(streams).chain(others).min()
    }

    pub fn drain(&mut self, now: Time) {
        // First, since an opened socket makes more to drain.
        while let Some(request) = self.agent.poll_socket() {
            match request {
                SocketRequest::Open { request, .. } if self.refuses_sockets => {
                    self.agent.handle_socket_refused(request, now);
                }
                SocketRequest::Open { request, .. } => {
                    let number = self.sockets.keys().last().map_or(0, |last| last.0 + 1);
                    let port = 20_000 + 100 * u16::from(self.id) + number;
                    self.sockets.insert(SocketId(number), port);
                    self.agent.handle_socket_opened(
                        SocketId(number),
                        (self.ip, port).into(),
                        Some(request),
                        now,
                    );
                }
                SocketRequest::Close(socket) => drop(self.sockets.remove(&socket)),
            }
        }
        while let Some(transmit) = self.agent.poll_transmit() {
            self.transmits.push((now, transmit.to, transmit.hops));
            self.send(transmit.socket, transmit.to, transmit.bytes, transmit.hops.unwrap_or(64));
        }
        while let Some((to, message)) = self.agent.poll_message() {
            let to = to.0 as u8;
            let link = self.links.entry(to).or_default();
            let (number, bytes) = (link.sent, message.encode());
            link.sent += 1;
            link.unacknowledged.insert(number, (bytes.clone(), now + self.retry));
            self.relay(to, MESSAGE, &[&number.to_be_bytes(), &bytes[..]].concat());
        }
        while let Some(event) = self.agent.poll_event() {
            self.gave_up += u32::from(matches!(event, Event::GaveUp { .. }));
            self.events.push((now, event));
        }
    }

    pub(super) fn relay(&mut self, to: u8, kind: u8, body: &[u8]) {
        let bytes = [&[RELAY, self.id, to, kind], body].concat();
        let main = *self.sockets.keys().next().unwrap();
        self.send(main, self.hub, bytes, 64);
    }

    fn send(&mut self, socket: SocketId, to: SocketAddr, payload: Vec<u8>, ttl: u8) {
        let Some(port) = self.sockets.get(&socket) else { return };
        self.out.push_back(Transmit::Datagram { from: (self.ip, *port).into(), to, ttl, payload });
    }
}
