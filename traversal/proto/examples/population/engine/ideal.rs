//! What two peers behind given NATs can come to at best, without finding out anybody's port: both probe every address
//! that they can know of, all the time, on links without loss. If each hears the other, there is a path each way.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use natbox_sim::{BuildError, Conditions, HostId, Input, NetworkId, Node, Sim, Time, Transmit};

use super::{
    mix::Mix,
    topology::{Pair, Relation},
};

const PORTS: [u16; 2] = [4000, 4100];
const SERVER_PORT: u16 = 3478;
const PACE: Duration = Duration::from_millis(50);
/// A NAT that maps by destination shows a new address for each that it is sent to.
const MOST_ADDRESSES: usize = 16;
/// Long enough for all that probes can open.
const LONG_ENOUGH: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Prober {
    id: u8,
    server: Option<SocketAddr>,
    reflexive: Option<SocketAddr>,
    known: Vec<SocketAddr>,
    out: VecDeque<Transmit>,
    next: Option<Time>,
    hears: bool,
}

impl Prober {
    fn learn(&mut self, address: SocketAddr) {
        if !self.known.contains(&address) && self.known.len() < MOST_ADDRESSES {
            self.known.push(address);
        }
    }

    fn send(&mut self, to: SocketAddr, body: &[u8]) {
        let port = if self.server.is_some() { PORTS[usize::from(self.id)] } else { SERVER_PORT };
        self.out.push_back(Transmit::datagram(port, to, body));
    }
}

impl Node for Prober {
    fn handle_input(&mut self, input: Input<'_>, _now: Time) {
        let Input::Datagram(datagram) = input else { return };
        match (self.server, datagram.payload) {
            (None, _) => self.send(datagram.from, datagram.from.to_string().as_bytes()),
            (Some(server), text) if datagram.from == server => {
                self.reflexive = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
            }
            // Not one's own, which comes back where two homes are numbered alike.
            (Some(_), [id]) if *id != self.id && datagram.to.port() == PORTS[usize::from(self.id)] => {
                self.hears = true;
                self.learn(datagram.from);
            }
            _ => {}
        }
    }

    fn handle_timeout(&mut self, now: Time) {
        if let (Some(server), None) = (self.server, self.reflexive) {
            self.send(server, b"");
        }
        for address in self.known.clone() {
            self.send(address, &[self.id]);
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

/// Whether there is a direct path between two peers of these kinds.
fn is_direct(mix: &Mix, kinds: [usize; 2], relation: Relation, seed: u64) -> Result<bool, BuildError> {
    let mut sim = Sim::new(seed);
    let server = sim.net.add_host(NetworkId::INTERNET, Conditions::PERFECT)?;
    let server_at = SocketAddr::from((sim.net.address(server).unwrap_or([0; 4].into()), SERVER_PORT));
    sim.add_node(server, Prober::default());
    let places = Pair::ideal(kinds, relation).build(mix, &mut sim.net)?;
    let mut hosts: Vec<(HostId, SocketAddr)> = Vec::new();
    for (id, (network, attachment)) in (0u8..).zip(places) {
        let host = sim.net.add_host(network, attachment)?;
        let local = sim.net.address(host).unwrap_or([0; 4].into());
        hosts.push((host, (local, PORTS[usize::from(id)]).into()));
        sim.add_node(
            host,
            Prober { id, server: Some(server_at), next: Some(Time::ZERO), ..Prober::default() },
        );
    }
    sim.run_for(Duration::from_millis(500));
    let reflexive: Vec<_> =
        hosts.iter().map(|(host, _)| sim.node(*host).and_then(|node| node.reflexive)).collect();
    for (at, (host, _)) in hosts.iter().enumerate() {
        let local = (relation != Relation::Apart).then_some(hosts[1 - at].1);
        sim.with(*host, |node, _| reflexive[1 - at].into_iter().chain(local).for_each(|it| node.learn(it)));
    }
    let deadline = sim.now() + LONG_ENOUGH;
    Ok(sim.run_until_true(deadline, |sim| {
        hosts.iter().all(|(host, _)| sim.node(*host).is_some_and(|node| node.hears))
    }))
}

/// What each pair of kinds can come to.
pub struct Expected {
    kinds: usize,
    apart: Vec<bool>,
    same_nat: Vec<bool>,
    same_carrier: Vec<bool>,
}

impl Expected {
    pub fn new(mix: &Mix) -> Result<Expected, BuildError> {
        let kinds = mix.kinds.len();
        let apart = (0..kinds * kinds)
            .map(|at| is_direct(mix, [at / kinds, at % kinds], Relation::Apart, 1))
            .collect::<Result<_, _>>()?;
        let shared = |least: usize, relation| {
            let of_kind = |kind: usize| match mix.kinds[kind].nats.len() {
                nats if nats < least => Ok(false),
                _ => is_direct(mix, [kind; 2], relation, 1),
            };
            (0..kinds).map(of_kind).collect::<Result<_, _>>()
        };
        let (same_nat, same_carrier) = (shared(1, Relation::SameNat)?, shared(2, Relation::SameCarrier)?);
        Ok(Expected { kinds, apart, same_nat, same_carrier })
    }

    /// Whether a caller of the first kind and a callee of the second can be directly connected.
    pub fn is_direct(&self, [a, b]: [usize; 2], relation: Relation) -> bool {
        match relation {
            Relation::Apart => self.apart[a * self.kinds + b],
            Relation::SameNat => self.same_nat[a],
            Relation::SameCarrier => self.same_carrier[a],
        }
    }
}
