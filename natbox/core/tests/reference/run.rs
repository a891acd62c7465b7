//! One run of random operations on both.

use super::*;

fn behavior(random: &mut Random) -> Behavior {
    // Half a second off the steps of time: what hangs on a deadline may be a millisecond late.
    let mut time = || secs(5 + random.below(90)) + std::time::Duration::from_millis(500);
    let times = [time(), time(), time(), time(), time(), time(), time(), time()];
    Behavior {
        mapping: random.of(Mapping::ALL),
        filtering: random.of(Filtering::ALL),
        filter_scope: random.of(FilterScope::ALL),
        filter_protocol: random.of(FilterProtocol::ALL),
        ports: random.of(PortAssignment::ALL),
        port_parity: random.below(2) == 0,
        port_class: random.of(PortClass::ALL),
        pooling: random.of(Pooling::ALL),
        hairpin: random.of(&[Hairpin::Internal, Hairpin::External]),
        refresh: random.of(Refresh::ALL),
        udp_timeout: times[0],
        udp_replied_timeout: times[1],
        tcp_opening_timeout: times[2],
        tcp_established_timeout: times[3],
        tcp_closing_timeout: times[4],
        tcp_reset_timeout: times[5],
        icmp_timeout: times[6],
        mapping_lifetime: (random.below(3) == 0).then_some(times[7]),
        unsolicited_syn: UnsolicitedSyn::Drop,
        ..Behavior::RFC
    }
}

struct Run {
    random: Random,
    net: Net,
    model: Model,
    externals: Vec<(Protocol, Endpoint)>,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut random = Random(seed);
        let behavior = behavior(&mut random);
        let mut limits = Limits { mappings: 1000, sessions: 1000 };
        if random.below(3) == 0 {
            limits =
                Limits { mappings: 3 + random.below(6) as usize, sessions: 4 + random.below(9) as usize };
        }
        let external = vec![N.into(), [198, 51, 100, 2].into()];
        let net = Net::with(Config { behavior: behavior.clone(), limits, external, ..Config::new(N.into()) });
        let model = Model { behavior, limits, mappings: Vec::new(), sessions: Vec::new() };
        Run {
            random,
            net,
            model,
            externals: vec![(Udp, Endpoint::v4(N, 2000)), (Tcp, Endpoint::v4(N, 2000))],
        }
    }

    fn flow(&mut self) -> (Protocol, Endpoint, Endpoint) {
        let random = &mut self.random;
        let protocol = random.of(&[Udp, Udp, Tcp, Tcp, Icmp]);
        let inside =
            Endpoint::v4([10, 0, 0, 2 + random.below(3) as u8].into(), 4000 + random.below(2) as u16);
        (protocol, inside, self.remote(protocol))
    }

    fn remote(&mut self, protocol: Protocol) -> Endpoint {
        let random = &mut self.random;
        let port = if protocol == Icmp { 0 } else { 100 + random.below(3) as u16 };
        Endpoint::v4([203, 0, 113, 1 + random.below(3) as u8].into(), port)
    }

    fn flags(&mut self) -> u8 {
        self.random.of(&[SYN, SYN, SYN, SYN_ACK, SYN_ACK, ACK, ACK, FIN_ACK, FIN_ACK, RST])
    }

    fn outbound(&mut self) {
        let (protocol, inside, remote) = self.flow();
        let flags = self.flags();
        let mut raw = match protocol {
            Tcp => tcp(inside, remote, flags, b""),
            _ => opener(protocol, inside, remote),
        };
        let got = self.net.forwarded(&mut raw);
        let now = self.net.now;
        let expected = self.model.leave((protocol, inside, remote), flags, got.ok(), now);
        assert_eq!(got, expected, "{protocol} {inside} → {remote} {flags:#x}");
        self.externals.extend(got.ok().map(|external| (protocol, external)));
    }

    fn inbound(&mut self) {
        let (protocol, external) = self.random_external();
        let (remote, flags) = (self.remote(protocol), self.flags());
        let mut raw = match protocol {
            Tcp => tcp(remote, external, flags, b""),
            _ => visitor(protocol, remote, external),
        };
        let got = self.net.delivered(&mut raw);
        let expected = self.model.enter((protocol, external, remote), flags, self.net.now);
        assert_eq!(got, expected, "{protocol} {remote} → {external} {flags:#x}");
    }

    /// The recent ones are asked for more often.
    fn random_external(&mut self) -> (Protocol, Endpoint) {
        let len = self.externals.len() as u64;
        let back = self.random.below(len).min(self.random.below(20));
        self.externals[(len - 1 - back) as usize]
    }

    fn hairpin(&mut self) {
        let (protocol, external) = self.random_external();
        if protocol == Icmp {
            return;
        }
        let (_, inside, _) = self.flow();
        let (flags, now) = (self.flags(), self.net.now);
        let mut raw = if protocol == Tcp {
            tcp(inside, external, flags, b"")
        } else {
            udp(inside, external, b"hairpin")
        };
        let got = self.net.hairpin(&mut raw);
        if self.model.at(protocol, external).is_none() {
            assert_eq!(got, Err(DropReason::NoMapping));
            return;
        }
        let chosen = self.net.nat.sessions().find(|session| {
            (session.protocol, session.inside.endpoint, session.remote.0) == (protocol, inside, external)
        });
        let chosen = chosen.map(|session| session.external.0);
        let expected = self.model.leave((protocol, inside, external), flags, chosen, now).and_then(|own| {
            self.externals.push((protocol, own));
            let shown = if self.model.behavior.hairpin == Hairpin::External { own } else { inside };
            let entered = self.model.enter((protocol, external, own), flags, now);
            // A neighbour's SYN is told apart from a stranger's: nobody sends an ICMP error about it.
            let entered = entered
                .map_err(|why| if why == DropReason::UnsolicitedSyn { DropReason::Filtered } else { why });
            entered.map(|to| (shown, to))
        });
        assert_eq!(got, expected, "{protocol} {inside} → {external} {flags:#x}");
    }

    /// A static forward, for an inside endpoint that has no mapping of its own.
    fn forward(&mut self) {
        let (protocol, inside, _) = self.flow();
        let now = self.net.now;
        let until = if self.random.below(2) == 0 {
            Time::NEVER
        } else {
            now + std::time::Duration::from_millis(40_500)
        };
        if protocol == Icmp
            || self.model.mappings.iter().any(|m| (m.protocol, m.inside) == (protocol, inside))
        {
            return;
        }
        let request = MappingRequest {
            protocol,
            inside: Inside { port: TUN, endpoint: inside },
            address: None,
            port: 0,
            until,
        };
        let full = self.model.mappings.len() >= self.model.limits.mappings;
        let got = self.net.nat.add_mapping(request, now);
        assert_eq!(got.is_err(), full, "{got:?}");
        let Ok(external) = got else { return };
        let external = external.0;
        assert_eq!(self.model.at(protocol, external), None);
        let mapped =
            Mapped { protocol, inside, external, key: None, is_static: true, expires: until, limit: until };
        self.model.mappings.push(mapped);
        self.externals.push((protocol, external));
    }

    fn flush(&mut self) {
        let (protocol, inside, _) = self.flow();
        let protocol = (self.random.below(2) == 0).then_some(protocol);
        let statics = self.random.below(2) == 0;
        let selection = Selection { protocol, host: Some(inside.addr), statics, ..Selection::default() };
        self.net.nat.flush(&selection, self.net.now);
        let goes = |m: &Mapped| {
            protocol.is_none_or(|p| p == m.protocol)
                && m.inside.addr == inside.addr
                && (statics || !m.is_static)
        };
        let gone: Vec<_> =
            self.model.mappings.iter().filter(|m| goes(m)).map(|m| (m.protocol, m.external)).collect();
        self.model.mappings.retain(|m| !goes(m));
        self.model.sessions.retain(|s| !gone.contains(&(s.protocol, s.external)));
    }

    fn step(&mut self) {
        self.model.forget(self.net.now);
        match self.random.below(32) {
            0..12 => self.outbound(),
            12..24 => self.inbound(),
            24..27 => self.hairpin(),
            27 => self.forward(),
            28 if self.random.below(8) == 0 => self.flush(),
            29 if self.random.below(8) == 0 => {
                self.model.behavior.filtering = self.random.of(Filtering::ALL);
                self.model.behavior.filter_scope = self.random.of(FilterScope::ALL);
                self.net.nat.set_behavior(self.model.behavior.clone());
            }
            _ => {
                let time = secs(self.random.below(12));
                self.net.wait(time);
            }
        }
        self.model.forget(self.net.now);
        self.net.wait(std::time::Duration::ZERO);
        let remembered = (self.net.nat.mapping_count(), self.net.nat.session_count());
        assert_eq!(remembered, (self.model.mappings.len(), self.model.sessions.len()));
    }
}

#[test]
fn a_million_operations_agree_with_the_reference() {
    let replayed = std::env::var(REPLAY).ok().map(|seed| seed.parse::<u64>().unwrap());
    for seed in replayed.map_or(0..RUNS, |seed| seed..seed + 1) {
        let mut run = Run::new(seed);
        for operation in 0..OPERATIONS {
            let step = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run.step()));
            if step.is_err() {
                panic!("operation {operation} of {REPLAY}={seed} under {:?}", run.model.behavior);
            }
        }
    }
}
