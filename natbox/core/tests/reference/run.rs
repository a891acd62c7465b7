//! One run of random operations on both.

use super::{
    Random, Tally,
    axes::{EXEMPT, REMOTE_PORTS, behavior},
    common::*,
    model::{Chosen, Exchange, Flow, Mapped, Model, Told},
};
use natbox_core::{
    Behavior, Config, DropReason, Endpoint, Inside, Limits, MappingRequest,
    Protocol::{self, Icmp, Tcp, Udp},
    Selection, Side, Time, Verdict,
    behavior::*,
};
use std::{net::IpAddr, time::Duration};

pub struct Run {
    random: Random,
    net: Net,
    model: Model,
    externals: Vec<(Protocol, Endpoint)>,
    tally: Tally,
    suppressed: u64,
}

impl Run {
    pub fn new(seed: u64, tally: Tally) -> Run {
        let mut random = Random(seed);
        let (behavior, rates) = behavior(&mut random);
        let mut limits = Limits { mappings: 1000, sessions: 1000 };
        if random.once_in(3) {
            limits =
                Limits { mappings: 3 + random.below(6) as usize, sessions: 4 + random.below(9) as usize };
        }
        let external: Vec<IpAddr> = vec![N.into(), [198, 51, 100, 2].into()];
        let prefix = behavior.subscriber_prefix;
        let net = Net::with(Config {
            behavior: behavior.clone(),
            limits,
            external: external.clone(),
            ..Config::new(N.into())
        });
        let mut model = Model::new(behavior, limits, rates);
        model.paired = hosts().map(|host| (host, pair(host, prefix, &external))).collect();
        model.addresses = external;
        let externals = vec![(Udp, Endpoint::v4(N, 2000)), (Tcp, Endpoint::v4(N, 2000))];
        Run { random, net, model, externals, tally, suppressed: 0 }
    }

    pub fn behavior(&self) -> &Behavior {
        &self.model.behavior
    }

    /// What has been met so far.
    pub fn finish(self) -> Tally {
        let counters = self.net.nat.counters();
        let mut tally = self.tally;
        tally.shared += self.model.shared;
        tally.reset += self.model.reset;
        tally.picked_up += self.model.picked_up;
        tally.rested += self.model.rested;
        tally.displaced += counters.displaced;
        tally.occupied += counters.tuples_occupied;
        tally.blocks += counters.blocks_assigned;
        tally.suppressed += counters.generated_suppressed;
        tally.untranslated += counters.untranslated_packets;
        for (reason, count) in counters.drops() {
            match reason {
                DropReason::SubscriberMappings
                | DropReason::SubscriberSessions
                | DropReason::SubscriberRate => tally.over_quota += count,
                DropReason::PortsExhausted => tally.no_port += count,
                DropReason::Prohibited => tally.prohibited += count,
                _ => {}
            }
        }
        tally
    }

    // ---- What is drawn ----

    fn flow(&mut self) -> Flow {
        let random = &mut self.random;
        let protocol = random.of(&[Udp, Udp, Tcp, Tcp, Icmp]);
        let host = 2 + random.below(3) as u8;
        let inside = Endpoint::v4([10, 0, 0, host].into(), random.of(&[4000, 4000, 4001, 600]));
        (protocol, inside, self.remote(protocol))
    }

    fn remote(&mut self, protocol: Protocol) -> Endpoint {
        let random = &mut self.random;
        let port = if protocol == Icmp { 0 } else { random.of(&REMOTE_PORTS) };
        Endpoint::v4([203, 0, 113, 1 + random.below(3) as u8].into(), port)
    }

    fn flags(&mut self) -> u8 {
        self.random.of(&[SYN, SYN, SYN, SYN_ACK, SYN_ACK, ACK, ACK, FIN_ACK, FIN_ACK, RST])
    }

    /// The recent ones are asked for more often.
    fn random_external(&mut self) -> (Protocol, Endpoint) {
        let len = self.externals.len() as u64;
        let back = self.random.below(len).min(self.random.below(20));
        self.externals[(len - 1 - back) as usize]
    }

    // ---- Operations ----

    fn outbound(&mut self) {
        let flow @ (protocol, inside, remote) = self.flow();
        let flags = self.flags();
        let mut raw = match protocol {
            Tcp => tcp(inside, remote, flags, b""),
            _ => opener(protocol, inside, remote),
        };
        let got = match self.net.out(&mut raw) {
            Verdict::Forward(Side::Outside) => Ok(look(&raw).from),
            Verdict::Drop(why) => Err(why),
            other => panic!("{other:?}"),
        };
        let now = self.net.now;
        let expected = match self.exception(flow, flags) {
            Some(expected) => expected,
            None => {
                let nat = &self.net.nat;
                let has = |session: &Exchange| has(nat, session);
                self.model.leave(flow, flags, &Chosen { external: got.ok(), has: &has }, now)
            }
        };
        assert_eq!(got, expected, "{protocol} {inside} → {remote} {flags:#x}");
        self.externals.extend(got.ok().filter(|from| *from != inside).map(|external| (protocol, external)));
    }

    /// A new flow that may not leave, or leaves untranslated.
    fn exception(&mut self, flow: Flow, flags: u8) -> Option<Result<Endpoint, DropReason>> {
        let (protocol, inside, remote) = flow;
        let Behavior { allow_udp, allow_tcp, untranslated, .. } = &self.model.behavior;
        if self.model.knows(flow) {
            return None;
        }
        let may_leave = match protocol {
            Udp => allow_udp.permits(remote.port),
            Tcp => allow_tcp.permits(remote.port),
            Icmp => true,
        };
        if !may_leave {
            self.model.turn_away(DropReason::Prohibited, flow, flags);
            return Some(Err(DropReason::Prohibited));
        }
        let is_exempt = remote.addr == IpAddr::from(EXEMPT) && untranslated.holds(v4(remote), remote.port);
        is_exempt.then_some(Ok(inside))
    }

    fn inbound(&mut self) {
        let (protocol, external) = self.random_external();
        let (remote, flags) = (self.remote(protocol), self.flags());
        if !self.model.addresses.contains(&external.addr) {
            return;
        }
        let mut raw = match protocol {
            Tcp => tcp(remote, external, flags, b""),
            _ => visitor(protocol, remote, external),
        };
        let got = self.net.delivered(&mut raw);
        let expected = self.model.arrive((protocol, external, remote), flags, self.net.now);
        assert_eq!(got, expected, "{protocol} {remote} → {external} {flags:#x}");
    }

    fn hairpin(&mut self) {
        let (protocol, external) = self.random_external();
        if protocol == Icmp || !self.model.addresses.contains(&external.addr) {
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
        if self.model.holders(protocol, external).is_empty() {
            assert_eq!(got, Err(DropReason::NoMapping));
            return;
        }
        if self.model.behavior.hairpin == Hairpin::Off {
            assert_eq!(got, Err(DropReason::HairpinOff));
            return;
        }
        let nat = &self.net.nat;
        let chosen = nat.sessions().find(|session| {
            (session.protocol, session.inside.endpoint, session.remote.0) == (protocol, inside, external)
        });
        let has = |session: &Exchange| has(nat, session);
        let chosen = Chosen { external: chosen.map(|session| session.external.0), has: &has };
        let left = self.model.leave((protocol, inside, external), flags, &chosen, now);
        let expected = left.and_then(|own| {
            self.externals.push((protocol, own));
            let shown = if self.model.behavior.hairpin == Hairpin::External { own } else { inside };
            self.model.enter((protocol, external, own), flags, now).map(|to| (shown, to))
        });
        assert_eq!(got, expected, "{protocol} {inside} → {external} {flags:#x}");
    }

    /// A static forward: a new mapping, or the one for every remote that the inside endpoint has.
    fn forward(&mut self) {
        let (protocol, inside, _) = self.flow();
        let now = self.net.now;
        let until = if self.random.once_in(2) { Time::NEVER } else { now + Duration::from_millis(40_500) };
        if protocol == Icmp {
            return;
        }
        let standing = self.model.standing_for_anybody(protocol, inside);
        let request = MappingRequest {
            protocol,
            inside: Inside { port: TUN, endpoint: inside },
            address: None,
            port: 0,
            until,
        };
        let full = self.model.mappings.len() >= self.model.limits.mappings;
        let got = self.net.nat.add_mapping(request, now).ok().map(|external| external.0);
        if let Some(standing) = standing {
            if self.model.holders(protocol, standing.external).len() == 1 {
                assert_eq!(got, Some(standing.external));
                self.tally.held += 1;
                self.model.hold(standing.number, until);
                self.externals.push((protocol, standing.external));
                return;
            }
            assert!(!standing.is_static);
        } else if full {
            assert_eq!(got, None, "the table is full");
            return;
        }
        let Some(external) = self.model.choose(protocol, inside, None, got) else { return };
        if let Some(standing) = standing {
            self.tally.replaced += 1;
            self.model.end(standing.number, now);
        }
        self.model.add(Mapped {
            number: 0,
            protocol,
            inside,
            external,
            key: None,
            is_static: true,
            expires: until,
            limit: until,
        });
        self.externals.push((protocol, external));
    }

    fn flush(&mut self) {
        let (protocol, inside, _) = self.flow();
        let protocol = self.random.once_in(2).then_some(protocol);
        let statics = self.random.once_in(2);
        let selection = Selection { protocol, host: Some(inside.addr), statics, ..Selection::default() };
        self.net.nat.flush(&selection, self.net.now);
        let goes = |m: &&Mapped| {
            protocol.is_none_or(|p| p == m.protocol)
                && m.inside.addr == inside.addr
                && (statics || !m.is_static)
        };
        let gone: Vec<_> = self.model.mappings.iter().filter(goes).map(|m| m.number).collect();
        gone.into_iter().for_each(|number| self.model.end(number, self.net.now));
    }

    fn behave_otherwise(&mut self) {
        let (behavior, random) = (&mut self.model.behavior, &mut self.random);
        behavior.mapping = random.of(Mapping::ALL);
        let own = ForTcp::Own(random.of(Mapping::ALL));
        behavior.tcp_mapping = random.of(&[ForTcp::Same, own]);
        behavior.filtering = random.of(Filtering::ALL);
        behavior.filter_scope = random.of(FilterScope::ALL);
        behavior.overloading = random.once_in(2);
        self.net.nat.set_behavior(behavior.clone());
    }

    /// Other external addresses.
    fn move_on(&mut self) {
        let all: [IpAddr; 4] = [1, 2, 3, 5].map(|host| [198, 51, 100, host].into());
        let bits = 1 + self.random.below(15);
        let external: Vec<IpAddr> =
            (0..4).filter(|bit| bits >> bit & 1 == 1).map(|bit| all[bit as usize]).collect();
        let (now, prefix) = (self.net.now, self.model.behavior.subscriber_prefix);
        self.net.nat.set_external(external.clone(), now).unwrap();
        self.model.paired = hosts().map(|host| (host, pair(host, prefix, &external))).collect();
        self.model.move_to(external, now);
    }

    /// One operation, and what both make of it.
    pub fn step(&mut self) {
        // No two flows are of one age: of which one makes room there is no doubt.
        self.net.wait(Duration::from_millis(1));
        self.model.forget(self.net.now);
        match self.random.below(32) {
            0..12 => self.outbound(),
            12..24 => self.inbound(),
            24..27 => self.hairpin(),
            27 => self.forward(),
            28 if self.random.once_in(8) => self.flush(),
            29 if self.random.once_in(4) => self.behave_otherwise(),
            30 if self.random.once_in(12) => self.move_on(),
            _ => {
                let time = secs(self.random.below(12));
                self.net.wait(time);
            }
        }
        self.model.forget(self.net.now);
        self.net.wait(Duration::ZERO);
        self.compare();
    }

    // ---- What is compared after each ----

    fn compare(&mut self) {
        let nat = &self.net.nat;
        let remembered = [nat.mapping_count(), nat.session_count(), nat.resting_count(), nat.block_count()];
        let Model { mappings, sessions, resting, blocks, .. } = &self.model;
        let mut theirs: Vec<_> =
            nat.sessions().map(|s| (s.protocol, s.inside.endpoint, s.external.0, s.remote.0)).collect();
        let mut ours: Vec<_> =
            sessions.iter().map(|s| (s.protocol, s.inside, s.external, s.remote)).collect();
        theirs.sort_unstable();
        ours.sort_unstable();
        assert_eq!(theirs, ours);
        assert_eq!(remembered, [mappings.len(), sessions.len(), resting.len(), blocks.len()]);
        let counters = nat.counters();
        assert_eq!((counters.displaced, counters.mappings_created), (self.model.displaced, self.model.made));
        let mut theirs: Vec<_> =
            nat.mappings().map(|m| (m.protocol, m.inside.endpoint, m.external.0)).collect();
        let mut ours: Vec<_> = mappings.iter().map(|m| (m.protocol, m.inside, m.external)).collect();
        theirs.sort_unstable();
        ours.sort_unstable();
        assert_eq!(theirs, ours);

        let suppressed = counters.generated_suppressed - self.suppressed;
        self.suppressed += suppressed;
        let sent = self.net.take_sent().into_iter().map(|(side, view)| {
            let what = view.icmp.map_or(Told::Reset, |(kind, code)| Told::Error(kind, code));
            (side, view.to.addr, what)
        });
        let mut missing = std::mem::take(&mut self.model.told);
        for told in sent {
            let at = missing.iter().position(|other| *other == told);
            missing.swap_remove(at.unwrap_or_else(|| panic!("{told:?} was not expected")));
            self.tally.told += 1;
        }
        assert!(missing.len() as u64 <= suppressed, "nobody was told {missing:?}");
    }
}

fn has(nat: &natbox_core::Nat, session: &Exchange) -> bool {
    nat.sessions().any(|other| {
        (other.protocol, other.inside.endpoint, other.remote.0)
            == (session.protocol, session.inside, session.remote)
    })
}

fn hosts() -> impl Iterator<Item = IpAddr> {
    (2..5).map(|host| [10, 0, 0, host].into())
}

/// The address that a host keeps: which one is the engine's affair, that it is always the same one is not.
fn pair(host: IpAddr, prefix: u8, external: &[IpAddr]) -> IpAddr {
    let behavior = Behavior { subscriber_prefix: prefix, ..Behavior::RFC };
    let mut net = Net::with(Config { behavior, external: external.to_vec(), ..Config::new(N.into()) });
    net.send_out(Udp, Endpoint::new(host, 4000), S).addr
}
