//! A population of homes, each a host behind a NAT of one of the nine kinds, and how fast the net is: every home asks a
//! server for its address, learns of another home, and both probe each other for a second.
//!
//! `cargo run --release -p natbox-sim --example homes -- [homes] [seed]`

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use natbox_sim::{
    Behavior, Conditions, Input, NatConfig, NetworkId, Node, Sim, Time, Transmit,
    natbox_core::behavior::{Filtering, Mapping, PortAssignment},
};

const ROUNDS: u32 = 10;

#[derive(Default)]
struct Home {
    out: VecDeque<Transmit>,
    server: Option<SocketAddr>,
    seen_as: Option<SocketAddr>,
    far: Option<SocketAddr>,
    rounds: u32,
    next: Option<Time>,
    heard: bool,
}

impl Node for Home {
    fn handle_input(&mut self, input: Input<'_>, _now: Time) {
        let Input::Datagram(datagram) = input else { return };
        match (self.server, datagram.payload.len()) {
            // At the server: tell the sender where it came from.
            (None, _) => {
                let seen = datagram.from.to_string();
                self.out.push_back(Transmit::datagram(3478, datagram.from, seen));
            }
            (Some(server), _) if datagram.from == server => {
                self.seen_as = std::str::from_utf8(datagram.payload).ok().and_then(|text| text.parse().ok());
            }
            (Some(_), _) => {
                self.heard = true;
                self.far = Some(datagram.from);
            }
        }
    }

    fn handle_timeout(&mut self, now: Time) {
        self.out.extend(self.far.map(|far| Transmit::datagram(4000, far, [0; 100])));
        self.rounds += 1;
        self.next = (self.rounds < ROUNDS).then(|| now + Duration::from_millis(100));
    }

    fn poll_transmit(&mut self, _now: Time) -> Option<Transmit> {
        self.out.pop_front()
    }

    fn poll_timeout(&self) -> Option<Time> {
        self.next
    }
}

#[expect(clippy::disallowed_methods, reason = "the example measures the machine that it runs on")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let homes: usize = args.next().map_or(Ok(20_000), |text| text.parse())?;
    let seed: u64 = args.next().map_or(Ok(1), |text| text.parse())?;
    let clock = std::time::Instant::now;
    let resident = || -> Option<usize> {
        let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
        Some(statm.split_whitespace().nth(1)?.parse::<usize>().ok()? * 4096)
    };
    let behaviors: Vec<Arc<Behavior>> = Mapping::ALL
        .iter()
        .flat_map(|mapping| Filtering::ALL.iter().map(move |filtering| (*mapping, *filtering)))
        .map(|(mapping, filtering)| {
            Arc::new(Behavior { mapping, filtering, ports: PortAssignment::Random, ..Behavior::RFC })
        })
        .collect();

    let (started, before) = (clock(), resident());
    let mut sim = Sim::new(seed);
    let server = sim.net.add_host(NetworkId::INTERNET, Conditions::PERFECT)?;
    let address = SocketAddr::from((sim.net.address(server).ok_or("no server")?, 3478));
    sim.add_node(server, Home::default());
    let link = Conditions {
        jitter: Duration::from_millis(5),
        loss: 0.01,
        ..Conditions::delayed(Duration::from_millis(20))
    };
    let mut hosts = Vec::new();
    for i in 0..homes {
        let config = NatConfig::new(behaviors[i % behaviors.len()].clone());
        let nat = sim.net.add_nat(NetworkId::INTERNET, config)?;
        hosts.push(sim.net.add_host(nat, link)?);
    }
    let built = started.elapsed();
    let per_home = |bytes: Option<usize>| Some((bytes? - before?) / homes);
    println!("{homes} homes in {built:.2?}, {} bytes each", per_home(resident()).unwrap_or(0));

    let started = clock();
    for (i, host) in hosts.iter().enumerate() {
        let out = VecDeque::from([Transmit::datagram(4000, address, *b"who am I")]);
        sim.add_node(*host, Home { out, server: Some(address), ..Home::default() });
        // Not all at once: a second is a thousand steps of a millisecond.
        if i % (homes / 1000 + 1) == 0 {
            sim.run_for(Duration::from_millis(1));
        }
    }
    sim.run_for(Duration::from_secs(1));
    // A neighbour of another kind, so that pairs of all kinds occur.
    for (i, host) in hosts.iter().enumerate() {
        let partner = hosts[(i ^ 1).min(homes - 1)];
        let far = sim.node(partner).and_then(|node| node.seen_as);
        sim.with(*host, |node, now| (node.far, node.next) = (far, Some(now)));
    }
    sim.run_for(Duration::from_secs(3));
    let took = started.elapsed();
    let connected = sim.nodes().filter(|(_, node)| node.heard).count();
    let sent = sim.net.counters().sent;
    println!(
        "{sent} packets in {took:.2?}: {:.0} packets/s, {:.0} homes/s; {connected} homes heard their partner",
        sent as f64 / took.as_secs_f64(),
        homes as f64 / took.as_secs_f64(),
    );
    println!("{} bytes each, used; digest {:016x}", per_home(resident()).unwrap_or(0), sim.net.digest());
    Ok(())
}
