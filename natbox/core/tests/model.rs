//! The engine against a NAT that is slow and obviously right: two lists and no index, written from the RFC's words.
//! Both get the same random packets; they must agree on every verdict, on every endpoint that is used again, and on what
//! they remember.

mod common;

use common::*;
use natbox_core::{
    Behavior, DropReason, Endpoint,
    Protocol::Udp,
    Selection, Time,
    behavior::{FilterScope, Filtering, Hairpin, Mapping, PortAssignment, Refresh},
};
use proptest::{collection::vec, option, prelude::*, sample::select};

struct Entry {
    inside: Endpoint,
    external: Endpoint,
    /// Which remotes it is for, by the mapping behaviour.
    key: Option<(std::net::IpAddr, Option<u16>)>,
    expires: Time,
    limit: Time,
}

struct Exchange {
    inside: Endpoint,
    external: Endpoint,
    remote: Endpoint,
    replied: bool,
    expires: Time,
}

/// The reference.
struct Model {
    behavior: Behavior,
    mappings: Vec<Entry>,
    sessions: Vec<Exchange>,
}

impl Model {
    /// Forgets what is over: a session at its deadline, a mapping at its own when no session is left.
    fn forget(&mut self, now: Time) {
        self.sessions.retain(|session| session.expires > now);
        let sessions = &self.sessions;
        let in_use = |mapping: &Entry| sessions.iter().any(|session| session.external == mapping.external);
        self.mappings.retain(|mapping| mapping.expires > now || in_use(mapping));
    }

    fn key(&self, remote: Endpoint) -> Option<(std::net::IpAddr, Option<u16>)> {
        match self.behavior.mapping {
            Mapping::EndpointIndependent => None,
            Mapping::AddressDependent => Some((remote.addr, None)),
            Mapping::AddressAndPortDependent => Some((remote.addr, Some(remote.port))),
        }
    }

    /// A packet leaves; `got` is the endpoint that the engine has chosen, in case a new one is needed.
    fn leave(
        &mut self,
        inside: Endpoint,
        remote: Endpoint,
        got: Option<Endpoint>,
        now: Time,
    ) -> Option<Endpoint> {
        let (timeout, replied_timeout) = (self.behavior.udp_timeout, self.behavior.udp_replied_timeout);
        let limit_of = |mappings: &[Entry], external| {
            mappings
                .iter()
                .find(|mapping| mapping.external == external)
                .map_or(Time::ZERO, |mapping| mapping.limit)
        };
        let refreshes = self.behavior.refresh != Refresh::Inbound;
        let known =
            self.sessions.iter_mut().find(|session| session.inside == inside && session.remote == remote);
        if let Some(session) = known {
            if refreshes {
                let timeout = if session.replied { replied_timeout } else { timeout };
                session.expires = (now + timeout).min(limit_of(&self.mappings, session.external));
            }
            return Some(session.external);
        }
        let key = self.key(remote);
        let found = self.mappings.iter().find(|mapping| mapping.inside == inside && mapping.key == key);
        let external = match found {
            Some(mapping) => mapping.external,
            None => {
                let external = got?;
                assert!(
                    self.mappings.iter().all(|mapping| mapping.external != external),
                    "{external} is in use"
                );
                let limit = self.behavior.mapping_lifetime.map_or(Time::NEVER, |lifetime| now + lifetime);
                self.mappings.push(Entry { inside, external, key, expires: now, limit });
                external
            }
        };
        let expires = (now + timeout).min(limit_of(&self.mappings, external));
        self.sessions.push(Exchange { inside, external, remote, replied: false, expires });
        Some(external)
    }

    /// A packet comes in: to whom?
    fn enter(&mut self, external: Endpoint, remote: Endpoint, now: Time) -> Result<Endpoint, DropReason> {
        let inbound_counts = self.behavior.refresh != Refresh::Outbound;
        let Some(at) = self.mappings.iter().position(|mapping| mapping.external == external) else {
            return Err(DropReason::NoMapping);
        };
        let (inside, limit) = (self.mappings[at].inside, self.mappings[at].limit);
        let known =
            self.sessions.iter_mut().find(|session| session.external == external && session.remote == remote);
        if let Some(session) = known {
            session.replied = true;
            if inbound_counts {
                session.expires = (now + self.behavior.udp_replied_timeout).min(limit);
            }
            return Ok(inside);
        }
        let counts = |session: &&Exchange| match self.behavior.filter_scope {
            FilterScope::Mapping => session.external == external,
            FilterScope::Endpoint => session.inside == inside,
        };
        let mut sent_to = self.sessions.iter().filter(counts).map(|session| session.remote);
        let admitted = match self.behavior.filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => sent_to.any(|other| other.addr == remote.addr),
            Filtering::AddressAndPortDependent => sent_to.any(|other| other == remote),
        };
        if !admitted {
            return Err(DropReason::Filtered);
        }
        if inbound_counts {
            let mapping = &mut self.mappings[at];
            mapping.expires = mapping.expires.max((now + self.behavior.udp_timeout).min(limit));
        }
        Ok(inside)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Out { host: u8, port: u8, remote: u8 },
    In { remote: u8, external: usize },
    Hairpin { host: u8, port: u8, external: usize },
    Wait(u64),
    Filter(Filtering, FilterScope),
    Flush(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0u8..3, 0u8..2, 0u8..9).prop_map(|(host, port, remote)| Step::Out { host, port, remote }),
        10 => (0u8..9, 0usize..1000).prop_map(|(remote, external)| Step::In { remote, external }),
        3 => (0u8..3, 0u8..2, 0usize..1000)
            .prop_map(|(host, port, external)| Step::Hairpin { host, port, external }),
        6 => (0u64..60).prop_map(Step::Wait),
        1 => (select(Filtering::ALL), select(FilterScope::ALL)).prop_map(|(f, s)| Step::Filter(f, s)),
        1 => (0u8..3).prop_map(Step::Flush),
    ]
}

fn host(number: u8, port: u8) -> Endpoint {
    Endpoint::v4([10, 0, 0, 2 + number].into(), 4000 + u16::from(port))
}

fn remote(number: u8) -> Endpoint {
    Endpoint::v4([203, 0, 113, 1 + number / 3].into(), 100 + u16::from(number % 3))
}

fn behavior() -> impl Strategy<Value = Behavior> {
    let rules =
        (select(Mapping::ALL), select(Filtering::ALL), select(FilterScope::ALL), select(Refresh::ALL));
    let ports = select(PortAssignment::ALL);
    let hairpin = select(&[Hairpin::Internal, Hairpin::External][..]);
    (rules, ports, hairpin, 10u64..100, 10u64..100, option::of(20u64..200)).prop_map(
        |(rules, ports, hairpin, timeout, replied, lifetime)| Behavior {
            mapping: rules.0,
            filtering: rules.1,
            filter_scope: rules.2,
            refresh: rules.3,
            ports,
            hairpin,
            // Half a second off the steps of time: what hangs on a deadline may be a millisecond late.
            udp_timeout: secs(timeout) + std::time::Duration::from_millis(500),
            udp_replied_timeout: secs(replied) + std::time::Duration::from_millis(500),
            mapping_lifetime: lifetime.map(|life| secs(life) + std::time::Duration::from_millis(500)),
            ..Behavior::RFC
        },
    )
}

fn run(behavior: Behavior, steps: Vec<Step>, expire: bool) -> Result<(), TestCaseError> {
    let mut net = Net::new(behavior.clone());
    let mut model = Model { behavior, mappings: Vec::new(), sessions: Vec::new() };
    let mut seen = vec![Endpoint::v4(N, 2000)];
    for step in steps {
        model.forget(net.now);
        let now = net.now;
        match step.clone() {
            Step::Out { host: number, port, remote: to } => {
                let (inside, to) = (host(number, port), remote(to));
                let got = net.try_out(Udp, inside, to).ok();
                prop_assert_eq!(got, model.leave(inside, to, got, now), "{:?}", step);
                seen.extend(got);
            }
            Step::In { remote: from, external } => {
                let (from, external) = (remote(from), seen[external % seen.len()]);
                let got = net.try_in(Udp, from, external);
                prop_assert_eq!(got, model.enter(external, from, now), "{:?} at {}", step, external);
            }
            Step::Hairpin { host: number, port, external } => {
                let (inside, external) = (host(number, port), seen[external % seen.len()]);
                let got = net.hairpin(&mut udp(inside, external, b"hairpin"));
                if model.mappings.iter().all(|mapping| mapping.external != external) {
                    prop_assert_eq!(got, Err(DropReason::NoMapping));
                    continue;
                }
                let chosen = net
                    .nat
                    .sessions()
                    .find(|session| session.inside.endpoint == inside && session.remote.0 == external);
                let own = model
                    .leave(inside, external, chosen.map(|session| session.external.0), now)
                    .expect("a mapping that stands, or the new one");
                let shown = if model.behavior.hairpin == Hairpin::External { own } else { inside };
                let expected = model.enter(external, own, now).map(|to| (shown, to));
                prop_assert_eq!(got, expected, "{:?} at {}", step, external);
                seen.push(own);
            }
            Step::Wait(seconds) if expire => net.wait(secs(seconds)),
            Step::Wait(seconds) => net.now = net.now + secs(seconds),
            Step::Filter(filtering, filter_scope) => {
                model.behavior = Behavior { filtering, filter_scope, ..model.behavior };
                net.nat.set_behavior(model.behavior.clone());
            }
            Step::Flush(number) => {
                let addr = host(number, 0).addr;
                net.nat.flush(&Selection { host: Some(addr), ..Selection::default() }, now);
                model.mappings.retain(|mapping| mapping.inside.addr != addr);
                model.sessions.retain(|session| session.inside.addr != addr);
            }
        }
        model.forget(net.now);
        net.nat.handle_timeout(if expire { net.now } else { now }); // or only tell the time that is known anyway
        let remembered = (net.nat.mappings().count(), net.nat.sessions().count());
        if expire {
            prop_assert_eq!(remembered, (model.mappings.len(), model.sessions.len()), "{:?}", step);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn the_engine_agrees_with_the_model(behavior in behavior(), steps in vec(step(), 1..100)) {
        run(behavior, steps, true)?;
    }

    /// The same where nobody calls for expiry in time: what is over is over all the same.
    #[test]
    fn the_engine_agrees_when_expiry_is_late(behavior in behavior(), steps in vec(step(), 1..100)) {
        run(behavior, steps, false)?;
    }
}
