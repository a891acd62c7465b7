//! Simultaneous probing with peer-reflexive learning, as ICE does it (RFC 8445 §7), with an oracle that can tell a peer
//! one port that it could not have learned.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use natbox_sim::{
    Behavior, Conditions, HostId, Input, NatConfig, NatId, NetworkId, Node, Sim, Time, Transmit,
    natbox_core::MappingInfo,
};

use super::ms;

const PORT: u16 = 4000;
const SERVER_PORT: u16 = 3478;
/// Between two rounds of checks.
const PACE: Duration = Duration::from_millis(50);
/// A NAT that maps by destination shows a new endpoint for each of ours: learn some, not forever.
const MOST_CANDIDATES: usize = 12;

/// Message kinds; a check carries the candidate that it is sent to, and its answer the same.
const ASK: u8 = 0;
const TOLD: u8 = 1;
const CHECK: u8 = 2;
const ANSWER: u8 = 3;

#[derive(Default)]
pub struct Punch {
    out: VecDeque<Transmit>,
    /// Set on a peer: whom to ask for one's own address.
    server: Option<SocketAddr>,
    pub reflexive: Option<SocketAddr>,
    pub candidates: Vec<SocketAddr>,
    next: Option<Time>,
    /// A check of the other's has come.
    pub hears: bool,
    /// The other has answered a check, from wherever.
    pub is_heard: bool,
    /// The other has answered a check from where the check was sent: one path, both ways.
    pub path: Option<SocketAddr>,
}

impl Punch {
    pub fn server() -> Punch {
        Punch::default()
    }

    pub fn peer(server: SocketAddr) -> Punch {
        Punch { server: Some(server), next: Some(Time::ZERO), ..Punch::default() }
    }

    /// Checks these too from now on.
    pub fn learn(&mut self, candidate: SocketAddr, now: Time) {
        if !self.candidates.contains(&candidate) && self.candidates.len() < MOST_CANDIDATES {
            if self.candidates.is_empty() {
                self.next = Some(now);
            }
            self.candidates.push(candidate);
        }
    }

    fn send(&mut self, to: SocketAddr, kind: u8, body: &[u8]) {
        let port = if self.server.is_some() { PORT } else { SERVER_PORT };
        self.out.push_back(Transmit::datagram(port, to, [&[kind], body].concat()));
    }
}

impl Node for Punch {
    fn handle_input(&mut self, input: Input<'_>, now: Time) {
        let Input::Datagram(datagram) = input else { return };
        let Some((kind, body)) = datagram.payload.split_first() else { return };
        let address = || std::str::from_utf8(body).unwrap().parse::<SocketAddr>().unwrap();
        match *kind {
            ASK => self.send(datagram.from, TOLD, datagram.from.to_string().as_bytes()),
            TOLD => self.reflexive = Some(address()),
            CHECK => {
                self.hears = true;
                self.send(datagram.from, ANSWER, body);
                self.learn(datagram.from, now);
            }
            _ => {
                self.is_heard = true;
                if datagram.from == address() {
                    self.path = Some(datagram.from);
                }
            }
        }
    }

    fn handle_timeout(&mut self, now: Time) {
        if let (Some(server), None) = (self.server, self.reflexive) {
            self.send(server, ASK, b"");
        }
        for candidate in self.candidates.clone() {
            self.send(candidate, CHECK, candidate.to_string().as_bytes());
        }
        self.next = Some(now + PACE);
    }

    fn poll_transmit(&mut self, _now: Time) -> Option<Transmit> {
        self.out.pop_front()
    }

    fn poll_timeout(&self) -> Option<Time> {
        self.next
    }
}

/// What it takes to connect two peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Probing alone finds a path.
    Plain,
    /// Probing alone lets each hear the other, but on two paths.
    TwoPaths,
    /// One port of one side must be found.
    OneSide,
    /// More than that.
    BothSides,
}

/// Two peers, each behind its own NAT, and a server that tells them their addresses.
pub struct Scene {
    pub sim: Sim<Punch>,
    pub nats: [NatId; 2],
    pub hosts: [HostId; 2],
}

impl Scene {
    pub fn new(seed: u64, behaviors: [&Behavior; 2], link: Conditions) -> Scene {
        let mut sim = Sim::new(seed);
        let server = sim.net.add_host(NetworkId::INTERNET, Conditions::PERFECT).unwrap();
        let address = SocketAddr::from((sim.net.address(server).unwrap(), SERVER_PORT));
        sim.add_node(server, Punch::server());
        let mut nats = Vec::new();
        let hosts = behaviors.map(|behavior| {
            let nat = sim.net.add_nat(NetworkId::INTERNET, NatConfig::new(behavior.clone())).unwrap();
            nats.push(nat);
            let host = sim.net.add_host(nat, link).unwrap();
            sim.add_node(host, Punch::peer(address));
            host
        });
        sim.run_for(ms(500));
        Scene { sim, nats: [nats[0], nats[1]], hosts }
    }

    fn peer(&self, i: usize) -> &Punch {
        self.sim.node(self.hosts[i]).unwrap()
    }

    /// Both check the address that the server saw, until nothing new comes of it.
    pub fn probe(&mut self) -> bool {
        let addresses = [0, 1].map(|i| self.peer(i).reflexive.unwrap());
        for i in 0..2 {
            self.sim.with(self.hosts[i], |peer, now| peer.learn(addresses[1 - i], now));
        }
        self.settle()
    }

    fn settle(&mut self) -> bool {
        let deadline = self.sim.now() + ms(2000);
        let hosts = self.hosts;
        self.sim
            .run_until_true(deadline, |sim| hosts.iter().all(|host| sim.node(*host).unwrap().path.is_some()))
    }

    /// Tells the other side the newest external endpoint that `side` uses towards it; false when there is none that it
    /// does not know.
    fn tell(&mut self, side: usize) -> bool {
        let other = self.sim.net.external(self.nats[1 - side])[0];
        let engine = self.sim.net.nat(self.nats[side]).unwrap();
        let towards_other = |mapping: &MappingInfo| {
            mapping.remote.is_some_and(|remote| remote.0.addr == std::net::IpAddr::V4(other))
        };
        let newest = engine.mappings().filter(towards_other).max_by_key(|mapping| mapping.created);
        let Some(port) = newest.map(|mapping| SocketAddr::from(mapping.external.0)) else { return false };
        self.sim.with(self.hosts[1 - side], |peer, now| peer.learn(port, now)).is_some()
    }

    pub fn verdict(seed: u64, behaviors: [&Behavior; 2]) -> Verdict {
        let mut scene = Scene::new(seed, behaviors, super::delay(10));
        if scene.probe() {
            return Verdict::Plain;
        }
        let both = [0, 1].map(|i| (scene.peer(i).hears, scene.peer(i).is_heard));
        if both == [(true, true); 2] {
            return Verdict::TwoPaths;
        }
        let finds = (0..2).any(|side| {
            let mut scene = Scene::new(seed, behaviors, super::delay(10));
            scene.probe();
            scene.tell(side) && scene.settle()
        });
        if finds { Verdict::OneSide } else { Verdict::BothSides }
    }
}
