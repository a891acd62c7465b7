//! Exported flows: a NAT whose quick flows are moved by rules is the same NAT.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use common::{random::*, *};
use natbox_core::{
    Config, Endpoint, FlowId, FlowKey, FlowRule, FlowWay, InsidePort, MappingInfo, Moved, Nat, Packet,
    Protocol::{self, Tcp, Udp},
    Selection, SessionInfo, Side, Time, Transmit, Verdict,
    behavior::*,
};
use proptest::{collection::vec, prelude::*, sample::select};

// ---- Whoever has the rules ----

struct Rule {
    rule: FlowRule,
    /// The deadline as packets have moved it, and as the engine knows it.
    expires: Time,
    known: Time,
}

/// A NAT that exports every flow that it can, and what moves their packets.
struct Exporting {
    nat: Nat,
    rules: Vec<Rule>,
    moved: usize,
}

impl Exporting {
    fn new(behavior: Behavior) -> Exporting {
        Exporting { nat: nat(behavior), rules: Vec::new(), moved: 0 }
    }

    /// The engine is about to be handed something at this time.
    fn begin(&mut self, now: Time) {
        for rule in self.rules.iter_mut().filter(|rule| rule.known <= now) {
            rule.known = rule.expires;
            self.nat.renew(rule.rule.flow, rule.expires);
        }
    }

    /// The engine was handed something.
    fn end(&mut self) {
        while let Some(flow) = self.nat.poll_recall() {
            self.take_back(flow);
        }
    }

    fn take_back(&mut self, flow: FlowId) {
        let Some(at) = self.rules.iter().position(|rule| rule.rule.flow == flow) else { return };
        let rule = self.rules.swap_remove(at);
        self.nat.take_back(flow, rule.expires);
    }

    fn take_all_back(&mut self) {
        let flows: Vec<_> = self.rules.iter().map(|rule| rule.rule.flow).collect();
        flows.into_iter().for_each(|flow| self.take_back(flow));
    }

    /// Moves a packet by a rule, or hands it over.
    fn packet(&mut self, from: Side, raw: &mut Raw, now: Time, export: bool) -> Verdict {
        if let Some(verdict) = self.by_rule(from, raw, now) {
            self.moved += 1;
            return verdict;
        }
        self.begin(now);
        let verdict = hand(&mut self.nat, from, raw, now);
        if let (Verdict::Forward(_), Some(key), true) = (verdict, self.nat.known_flow(), export) {
            self.export(key, now);
        }
        self.end();
        verdict
    }

    fn export(&mut self, key: FlowKey, now: Time) {
        if let Some(rule) = self.nat.export(key, now) {
            self.rules.push(Rule { rule, expires: rule.expires, known: rule.expires });
        }
    }

    fn by_rule(&mut self, from: Side, raw: &mut Raw, now: Time) -> Option<Verdict> {
        if is_fragment(raw) || raw.bytes[0] != 0x45 || raw.header().time_to_live < 2 {
            return None;
        }
        let view = look(raw);
        if view.flags & (SYN | FIN | RST) != 0 {
            return None;
        }
        let rule = self.rules.iter_mut().find(|rule| {
            let FlowRule { protocol, inside, external, remote, .. } = rule.rule;
            let ends = match from {
                Side::Inside(id) => (view.from, view.to) == (inside.endpoint, remote.0) && id == inside.port,
                Side::Outside => (view.from, view.to) == (remote.0, external.0),
            };
            ends && protocol == view.protocol
        })?;
        let out = from != Side::Outside;
        let way = if out { rule.rule.outbound } else { rule.rule.inbound };
        let FlowWay { refresh, mtu, needs_df } = way?;
        if raw.bytes.len() > usize::from(mtu) || needs_df && !view.header.dont_fragment || rule.expires <= now
        {
            return None;
        }
        if let Some(refresh) = refresh {
            rule.expires = (now + refresh).min(rule.rule.limit);
        }
        let moved = Moved { packets: 1, bytes: raw.bytes.len() as u64 };
        let FlowRule { inside, external, remote, .. } = rule.rule;
        let (ends, to, counts) = match out {
            true => ((external.0, remote.0), Side::Outside, (moved, Moved::default())),
            false => ((remote.0, inside.endpoint), Side::Inside(inside.port), (Moved::default(), moved)),
        };
        self.nat.count_moved(counts.0, counts.1);
        *raw = match view.protocol {
            Udp => udp(ends.0, ends.1, &view.payload),
            _ => tcp(ends.0, ends.1, view.flags, &view.payload),
        }
        .ttl(view.header.time_to_live - 1);
        Some(Verdict::Forward(to))
    }
}

fn nat(behavior: Behavior) -> Nat {
    let config = Config { behavior, report_events: true, ..Config::new(N.into()) };
    let mut nat = Nat::new(config, 11).unwrap();
    let port =
        |third| InsidePort { gateway: [10, third, 0, 1].into(), prefix_len: 24, mtu: 1400, shared: false };
    nat.add_inside(port(0)).unwrap();
    nat.add_inside(port(1)).unwrap();
    nat
}

fn hand(nat: &mut Nat, from: Side, raw: &mut Raw, now: Time) -> Verdict {
    raw.through(|packet: &mut Packet<'_>| match from {
        Side::Inside(id) => nat.outbound(id, packet, now),
        Side::Outside => nat.inbound(packet, now),
    })
}

// ---- The same NAT ----

#[derive(Clone, Debug)]
enum Step {
    /// A host sends, or a remote to the external endpoint that has last sent to it.
    Out(Protocol, usize, usize, Bits),
    In(Protocol, usize, Bits),
    Wait(Duration),
    Flush,
    Set(Box<Behavior>),
    TakeBack,
}

/// Flags, DF, TTL, options, bytes, and whether the flow is exported afterwards.
type Bits = (u8, bool, u8, bool, usize, bool);

fn bits() -> impl Strategy<Value = Bits> {
    let size = prop_oneof![8 => Just(10), 1 => Just(1365), 1 => Just(1465), 1 => Just(2000)];
    (
        prop_oneof![6 => Just(ACK), 4 => flags()],
        any::<bool>(),
        1u8..5,
        prop::bool::weighted(0.1),
        size,
        any::<bool>(),
    )
}

fn step() -> impl Strategy<Value = Step> {
    let protocol = || select(&[Udp, Tcp][..]);
    prop_oneof![
        40 => (protocol(), 0..HOSTS.len(), 0..REMOTES.len(), bits()).prop_map(|(p, h, r, b)| Step::Out(p, h, r, b)),
        40 => (protocol(), 0..REMOTES.len(), bits()).prop_map(|(p, r, b)| Step::In(p, r, b)),
        15 => (0u64..100_000).prop_map(|millis| Step::Wait(Duration::from_millis(millis))),
        1 => Just(Step::Flush),
        2 => behavior().prop_map(|behavior| Step::Set(Box::new(behavior))),
        2 => Just(Step::TakeBack),
    ]
}

const HOSTS: [Endpoint; 3] = [A, B, Endpoint::v4(std::net::Ipv4Addr::new(10, 1, 0, 2), 4242)];
const REMOTES: [Endpoint; 3] = [S, S2, P];

fn dressed(
    protocol: Protocol,
    from: Endpoint,
    to: Endpoint,
    (flags, df, ttl, options, size, _): Bits,
) -> Raw {
    let payload = vec![7; size];
    let raw = match protocol {
        Udp => udp(from, to, &payload),
        _ => tcp(from, to, flags, &payload),
    };
    let raw = raw.ttl(ttl).ip(|header| header.dont_fragment = df);
    if options { raw.with_options() } else { raw }
}

/// All that can be seen of a NAT.
#[derive(Debug, PartialEq)]
struct Seen {
    sessions: Vec<SessionInfo>,
    mappings: Vec<MappingInfo>,
    counters: Vec<(&'static str, u64)>,
    sent: Vec<Transmit>,
}

fn seen(nat: &mut Nat) -> Seen {
    let mut sessions: Vec<_> = nat.sessions().collect();
    sessions.sort_by_key(|session| (session.protocol, session.inside, session.remote));
    let mut mappings: Vec<_> = nat.mappings().collect();
    mappings.sort_by_key(|mapping| (mapping.protocol, mapping.inside, mapping.external, mapping.remote));
    let sent = std::iter::from_fn(|| nat.poll_transmit()).collect();
    Seen { sessions, mappings, counters: nat.counters().named().collect(), sent }
}

/// What the outside or the inside sees of a packet.
fn ends(verdict: Verdict, raw: &Raw) -> Option<(Endpoint, Endpoint, u8, Vec<u8>)> {
    let came = matches!(verdict, Verdict::Forward(_)) && !is_fragment(raw);
    came.then(|| look(raw)).map(|view| (view.from, view.to, view.header.time_to_live, view.payload))
}

fn agree(behavior: Behavior, steps: &[Step]) -> usize {
    let (mut plain, mut exporting) = (nat(behavior.clone()), Exporting::new(behavior));
    let mut now = Time::ZERO;
    let mut last = [[Endpoint::v4(N, 1); REMOTES.len()]; 2];
    let place = |protocol: Protocol| usize::from(protocol == Tcp);
    for (number, step) in steps.iter().enumerate() {
        now = now + Duration::from_millis(1);
        let packet = match step {
            Step::Out(protocol, host, remote, bits) => {
                let from = Side::Inside(natbox_core::InsideId((*host / 2) as u16));
                Some((
                    *protocol,
                    *remote,
                    from,
                    dressed(*protocol, HOSTS[*host], REMOTES[*remote], *bits),
                    bits.5,
                ))
            }
            Step::In(protocol, remote, bits) => {
                let to = last[place(*protocol)][*remote];
                Some((
                    *protocol,
                    *remote,
                    Side::Outside,
                    dressed(*protocol, REMOTES[*remote], to, *bits),
                    bits.5,
                ))
            }
            _ => None,
        };
        if let Some((protocol, remote, from, raw, export)) = packet {
            let (mut one, mut other) = (raw.clone(), raw);
            let verdict = hand(&mut plain, from, &mut one, now);
            let same = exporting.packet(from, &mut other, now, export);
            assert_eq!((verdict, ends(verdict, &one)), (same, ends(same, &other)), "step {number}: {step:?}");
            if let (Verdict::Forward(Side::Outside), Some((from, ..))) = (verdict, ends(verdict, &one)) {
                last[place(protocol)][remote] = from;
            }
        }
        match step {
            Step::Wait(time) => {
                let until = now + *time;
                let mut at = now;
                while let Some(due) = plain.poll_timeout().filter(|due| *due <= until) {
                    at = at.max(due);
                    plain.handle_timeout(at);
                }
                while let Some(due) = exporting.nat.poll_timeout().filter(|due| *due <= until) {
                    now = now.max(due);
                    exporting.begin(now);
                    exporting.nat.handle_timeout(now);
                    exporting.end();
                }
                now = until;
            }
            Step::Flush => {
                exporting.begin(now);
                assert_eq!(
                    plain.flush(&Selection::default(), now),
                    exporting.nat.flush(&Selection::default(), now)
                );
                exporting.end();
            }
            Step::Set(behavior) => {
                exporting.begin(now);
                plain.set_behavior((**behavior).clone());
                exporting.nat.set_behavior((**behavior).clone());
                exporting.end();
            }
            Step::TakeBack => exporting.take_all_back(),
            _ => {}
        }
    }
    exporting.take_all_back();
    plain.handle_timeout(now);
    exporting.nat.handle_timeout(now);
    assert_eq!(seen(&mut exporting.nat), seen(&mut plain));
    exporting.moved
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever the behaviour, and whatever happens: what comes out, who is remembered for how long, and what is counted is
    /// the same whether rules move packets or the engine does.
    #[test]
    fn a_nat_that_exports_is_the_same_nat(behavior in behavior(), steps in vec(step(), 1..120)) {
        agree(behavior, &steps);
    }
}

/// Most packets of a plain exchange are moved by the rule, and still it is the same NAT.
#[test]
fn rules_move_what_changes_nothing() {
    let quiet = (ACK, true, 64, false, 10, true);
    let mut steps = vec![
        Step::Out(Tcp, 0, 0, (SYN, true, 64, false, 0, true)),
        Step::In(Tcp, 0, (SYN_ACK, true, 64, false, 0, true)),
    ];
    for _ in 0..100 {
        steps.extend([Step::Out(Tcp, 0, 0, quiet), Step::In(Tcp, 0, quiet)]);
        steps.extend([Step::Out(Udp, 1, 1, quiet), Step::In(Udp, 1, quiet)]);
    }
    assert!(agree(Behavior::RFC, &steps) > 380);
}

// ---- One rule ----

/// A UDP exchange that is exported, and its rule.
fn exported(behavior: Behavior) -> (Nat, FlowRule) {
    let mut nat = nat(behavior);
    let mut raw = udp(A, S, b"out");
    hand(&mut nat, Side::Inside(TUN), &mut raw, Time::ZERO);
    let mut raw = udp(S, look(&raw).from, b"in");
    assert_eq!(hand(&mut nat, Side::Outside, &mut raw, Time::ZERO), Verdict::Forward(Side::Inside(TUN)));
    let key = nat.known_flow().unwrap();
    let rule = nat.export(key, Time::ZERO).unwrap();
    (nat, rule)
}

#[test]
fn a_rule_says_what_the_engine_would_do() {
    let behavior = rfc(|behavior| {
        behavior.refresh = Refresh::Outbound;
        behavior.udp_timeout = secs(31);
        behavior.udp_replied_timeout = secs(97);
        behavior.mapping_lifetime = Some(secs(1000));
    });
    let (nat, rule) = exported(behavior);
    assert_eq!((rule.inside.endpoint, rule.remote.0, rule.protocol), (A, S, Udp));
    assert_eq!(nat.mappings().map(|mapping| mapping.external).collect::<Vec<_>>(), [rule.external]);
    assert_eq!(rule.outbound, Some(FlowWay { refresh: Some(secs(97)), mtu: 1500, needs_df: true }));
    assert_eq!(rule.inbound, Some(FlowWay { refresh: None, mtu: 1400, needs_df: false }));
    assert_eq!((rule.limit, nat.sessions().next().unwrap().expires), (Time::ZERO + secs(1000), rule.expires));
}

#[test]
fn a_flow_without_an_answer_goes_outwards_only() {
    let mut nat = nat(Behavior::RFC);
    let send = |nat: &mut Nat| {
        let mut raw = udp(A, S, b"x");
        hand(nat, Side::Inside(TUN), &mut raw, Time::ZERO);
        look(&raw).from
    };
    let external = send(&mut nat);
    assert_eq!(nat.known_flow(), None, "its first packet");
    send(&mut nat);
    let rule = nat.export(nat.known_flow().unwrap(), Time::ZERO).unwrap();
    assert!(rule.outbound.is_some() && rule.inbound.is_none());
    // The answer makes it another flow.
    hand(&mut nat, Side::Outside, &mut udp(S, external, b"y"), Time::ZERO);
    assert_eq!(nat.poll_recall(), Some(rule.flow));
    nat.take_back(rule.flow, rule.expires);
    let again = nat.export(nat.known_flow().unwrap(), Time::ZERO).unwrap();
    assert!(again.inbound.is_some() && again.flow != rule.flow);
}

#[test]
fn what_may_change_is_not_exported() {
    let mut nat = nat(Behavior::RFC);
    let mut one = |protocol: Protocol, to: Endpoint, flags: u8| {
        let mut raw = if protocol == Tcp { tcp(A, to, flags, b"") } else { opener(protocol, A, to) };
        hand(&mut nat, Side::Inside(TUN), &mut raw.clone(), Time::ZERO);
        hand(&mut nat, Side::Inside(TUN), &mut raw, Time::ZERO);
        let key = nat.known_flow().unwrap();
        nat.export(key, Time::ZERO)
    };
    assert!(one(Protocol::Icmp, at(S, 0), 0).is_none(), "a query");
    assert!(one(Udp, S, 0).is_some());
    assert!(one(Udp, S, 0).is_none(), "it is");
}

/// The deadline of a state with a longer timer is the engine's alone: a packet that a rule moved would bring it forward.
#[test]
fn a_deadline_of_before_is_waited_for() {
    let behavior = rfc(|behavior| {
        behavior.refresh = Refresh::Outbound;
        behavior.udp_replied_timeout = secs(20);
    });
    let mut nat = nat(behavior);
    let mut raw = udp(A, S, b"out");
    hand(&mut nat, Side::Inside(TUN), &mut raw, Time::ZERO);
    hand(&mut nat, Side::Outside, &mut udp(S, look(&raw).from, b"in"), Time::ZERO);
    let key = nat.known_flow().unwrap();
    assert_eq!(nat.export(key, Time::ZERO), None);
    hand(&mut nat, Side::Inside(TUN), &mut udp(A, S, b"out"), Time::ZERO);
    assert!(nat.export(key, Time::ZERO).is_some());
}

#[test]
fn flows_that_end_are_recalled_and_their_deadlines_are_void() {
    let (mut nat, rule) = exported(Behavior::RFC);
    nat.flush(&Selection::default(), Time::ZERO);
    assert_eq!((nat.poll_recall(), nat.poll_recall()), (Some(rule.flow), None));
    // Another flow gets its place; what is said of the old one is not about it.
    let mut raw = udp(B, P, b"x");
    hand(&mut nat, Side::Inside(TUN), &mut raw, Time::ZERO);
    let expires = nat.sessions().next().unwrap().expires;
    nat.renew(rule.flow, Time::ZERO + secs(9999));
    nat.take_back(rule.flow, Time::ZERO + secs(9999));
    assert_eq!(nat.sessions().next().unwrap().expires, expires);
}

#[test]
fn a_renewed_flow_lives_and_one_that_is_not_does_not() {
    for (renewed, lives) in [(true, true), (false, false)] {
        let (mut nat, rule) = exported(Behavior::RFC);
        if renewed {
            nat.renew(rule.flow, rule.expires + secs(10));
        }
        let mut raw = udp(S, rule.external.0, b"late");
        let verdict = hand(&mut nat, Side::Outside, &mut raw, rule.expires + secs(5));
        assert_eq!(verdict == Verdict::Forward(Side::Inside(TUN)), lives);
        assert_eq!(nat.poll_recall(), (!lives).then_some(rule.flow));
    }
}

#[test]
fn another_behaviour_recalls_every_flow() {
    let (mut nat, rule) = exported(Behavior::RFC);
    nat.set_behavior(rfc(|behavior| behavior.refresh = Refresh::Inbound));
    assert_eq!(nat.poll_recall(), Some(rule.flow));
    nat.take_back(rule.flow, Time::ZERO + secs(1234));
    assert_eq!(nat.sessions().next().unwrap().expires, Time::ZERO + secs(1234), "its deadline is true");
}

/// A remote whose address becomes one of the NAT's own is outside no longer.
#[test]
fn other_external_addresses_recall_every_flow() {
    let (mut nat, rule) = exported(Behavior::RFC);
    nat.set_external(vec![N.into(), S.addr], Time::ZERO).unwrap();
    assert_eq!(nat.poll_recall(), Some(rule.flow));
    nat.take_back(rule.flow, rule.expires);
    let mut raw = udp(A, S, b"out");
    assert!(!matches!(hand(&mut nat, Side::Inside(TUN), &mut raw, Time::ZERO), Verdict::Forward(_)));
}
