//! Which flows are given to whoever moves them faster, and when they are taken back.

use std::{collections::BTreeMap, sync::Mutex};

use natbox_core::{FlowRule, Moved, Selection};

use super::*;
use crate::{
    datapath::Batch,
    fastpath::{Hop, Index, Mover, Seen},
    run::express::Express,
};

const SECOND: Duration = Duration::from_secs(1);
const OTHER_MAC: Mac = [2, 0, 0, 0, 0, 0xfd];

/// Rules in memory, which packets move as a test says.
#[derive(Default)]
struct Rules {
    /// With what they have done, by number.
    in_force: BTreeMap<Index, (FlowRule, (Hop, Hop), Seen)>,
    made: Index,
    room: usize,
    gone: Option<usize>,
}

#[derive(Clone)]
struct Twin(Arc<Mutex<Rules>>);

impl Mover for Twin {
    fn serves(&self, side: usize) -> bool {
        self.0.lock().unwrap().gone != Some(side)
    }

    fn is_there(&self, side: usize) -> bool {
        self.serves(side)
    }

    fn forget(&mut self, side: usize) {
        self.0.lock().unwrap().gone = Some(side);
    }

    fn install(&mut self, rule: &FlowRule, hops: (Hop, Hop), _now: Time) -> Option<Index> {
        let mut rules = self.0.lock().unwrap();
        if rules.in_force.len() == rules.room {
            return None;
        }
        let index = rules.made;
        rules.made += 1;
        let seen = Seen { expires: rule.expires, ..Seen::default() };
        rules.in_force.insert(index, (*rule, hops, seen));
        Some(index)
    }

    fn remove(&mut self, index: Index, _now: Time) -> Seen {
        self.0.lock().unwrap().in_force.remove(&index).unwrap().2
    }

    fn seen(&self, index: Index) -> Seen {
        self.0.lock().unwrap().in_force[&index].2
    }
}

/// A gateway that knows its next hop, and whoever moves packets for it.
struct Fast {
    bench: Bench,
    rules: Arc<Mutex<Rules>>,
}

impl Fast {
    fn new(room: usize) -> Fast {
        let mut bench = Bench::new();
        let rules = Arc::new(Mutex::new(Rules { room, ..Rules::default() }));
        bench.shared.lock().express = Some(Express::new(Box::new(Twin(rules.clone())), 3));
        bench.inside[0].push(Delivered::ipv4(&udp((HOST, 1), (REMOTE, 1), b""), [0; 6]));
        bench.turn();
        bench.resolve_gateway();
        Fast { bench, rules }
    }

    /// A host sends so many packets at a time.
    fn send(&mut self, port: u16, count: usize, now: Time) {
        for _ in 0..count {
            self.bench.inside[0].push(Delivered::ipv4(&udp((HOST, port), (REMOTE, 53), b"x"), [0; 6]));
        }
        while self.bench.turn_at(now).0 > 0 {}
        while self.bench.outside.take().is_some() {}
    }

    /// As the first worker does now and then.
    fn tend(&mut self, now: Time) {
        self.bench.forwarders[0]
            .work(now, |state| {
                state.tend(now);
                Ok(())
            })
            .unwrap();
    }

    fn ports_in_force(&self) -> Vec<u16> {
        self.rules.lock().unwrap().in_force.values().map(|(rule, ..)| rule.inside.endpoint.port).collect()
    }

    /// The first rule has moved a packet at this time.
    fn moves(&self, now: Time) {
        let mut rules = self.rules.lock().unwrap();
        let (rule, _, seen) = rules.in_force.values_mut().next().unwrap();
        seen.expires = now + rule.outbound.unwrap().refresh.unwrap();
        let [out, _] = &mut seen.moved;
        *out = Moved { packets: out.packets + 1, bytes: out.bytes + 100 };
    }

    fn sessions(&self) -> usize {
        self.bench.shared.lock().nat.session_count()
    }
}

/// The gateway says that it has this Ethernet address: to us, or to everybody.
fn says(sender: Mac, target: [u8; 4]) -> Delivered {
    let mut reply = vec![0, 1, 8, 0, 6, 4, 0, 2];
    for part in [&sender[..], &GATEWAY, &OUR_MAC, &target] {
        reply.extend_from_slice(part);
    }
    Delivered { packet: reply, offload: Offload::default(), protocol: ETHERTYPE_ARP, peer: sender }
}

fn at(seconds: u64) -> Time {
    Time::ZERO + SECOND * seconds as u32
}

#[test]
fn a_quick_flow_is_exported_to_its_next_hop_and_a_slow_one_is_not() {
    let mut fast = Fast::new(8);
    fast.send(100, 40, at(1));
    for tenth in 0..100 {
        fast.send(200, 3, at(2) + Duration::from_millis(134 * tenth));
    }
    assert_eq!(fast.ports_in_force(), [100]);
    let rules = fast.rules.lock().unwrap();
    let (rule, (out, inn), _) = rules.in_force.values().next().unwrap();
    assert_eq!((out.side, out.mac, inn.side), (OUTSIDE, GATEWAY_MAC, 1));
    assert_eq!((rule.remote.0.port, rule.inbound), (53, None), "nobody has answered");
}

#[test]
fn a_flow_that_rules_keep_alive_does_not_expire_and_another_does() {
    let mut fast = Fast::new(8);
    fast.send(100, 40, at(1));
    assert_eq!(fast.sessions(), 2);
    fast.moves(at(250));
    fast.bench.forwarders[0].handle_timeout(at(302)).unwrap();
    assert_eq!((fast.sessions(), fast.ports_in_force()), (1, vec![100]), "the other one is over");
    fast.bench.forwarders[0].handle_timeout(at(549)).unwrap();
    assert_eq!(fast.sessions(), 1);
    fast.bench.forwarders[0].handle_timeout(at(550)).unwrap();
    assert_eq!((fast.sessions(), fast.ports_in_force().len()), (0, 0));
}

#[test]
fn an_idle_flow_is_taken_back_and_lives_on() {
    let mut fast = Fast::new(8);
    fast.send(100, 40, at(1));
    (2..8).for_each(|second| fast.tend(at(second)));
    fast.moves(at(8));
    (8..18).for_each(|second| fast.tend(at(second)));
    assert_eq!(fast.ports_in_force(), [100]);
    fast.tend(at(18));
    assert_eq!((fast.ports_in_force().len(), fast.sessions()), (0, 2));
    let expires: Vec<_> = fast.bench.shared.lock().nat.sessions().map(|session| session.expires).collect();
    assert!(expires.contains(&at(308)), "{expires:?}");
    fast.send(100, 40, at(19));
    assert_eq!(fast.ports_in_force(), [100], "it has become quick again");
}

#[test]
fn another_next_hop_takes_flows_back() {
    let mut fast = Fast::new(8);
    fast.send(100, 40, at(1));
    fast.tend(at(2));
    // It announces itself, is asked, and answers.
    fast.bench.outside.push(says(OTHER_MAC, GATEWAY));
    fast.bench.turn_at(at(3));
    assert_eq!(fast.ports_in_force(), [100]);
    fast.bench.outside.push(says(OTHER_MAC, EXTERNAL));
    fast.bench.turn_at(at(3));
    fast.tend(at(3));
    assert_eq!(fast.ports_in_force().len(), 0);
    fast.send(100, 40, at(4));
    assert_eq!(fast.rules.lock().unwrap().in_force.values().next().unwrap().1.0.mac, OTHER_MAC);
    // So do other routes.
    fast.bench.shared.lock().set_routes(OUTSIDE, Vec::new());
    fast.tend(at(5));
    assert_eq!(fast.ports_in_force().len(), 0);
}

#[test]
fn a_hop_that_only_rules_use_is_asked_before_it_is_forgotten() {
    let mut fast = Fast::new(8);
    fast.send(100, 40, at(1));
    let mut asked = 0;
    for second in 2..40 {
        fast.moves(at(second));
        fast.tend(at(second));
        while let Some(sent) = fast.bench.outside.take() {
            assert_eq!((sent.protocol, sent.peer), (ETHERTYPE_ARP, GATEWAY_MAC));
            asked += 1;
            fast.bench.outside.push(says(GATEWAY_MAC, EXTERNAL));
            fast.bench.turn_at(at(second));
        }
    }
    assert_eq!((asked, fast.ports_in_force()), (1, vec![100]));
}

#[test]
fn what_the_engine_ends_is_taken_out_of_force_before_packets_leave() {
    let mut fast = Fast::new(8);
    fast.send(100, 40, at(1));
    fast.bench.forwarders[0]
        .work(at(2), |state| {
            state.nat.flush(&Selection::default(), at(2));
            Ok(())
        })
        .unwrap();
    assert_eq!(fast.ports_in_force().len(), 0);
}

#[test]
fn without_room_flows_are_moved_as_before_and_it_is_counted() {
    let mut fast = Fast::new(1);
    fast.send(100, 40, at(1));
    fast.send(200, 80, at(2));
    assert_eq!(fast.ports_in_force(), [100]);
    let state = fast.bench.shared.lock();
    let totals = state.express.as_ref().unwrap().totals();
    assert_eq!((totals.flows, totals.exported, totals.refused), (1, 1, 2));
    assert_eq!(state.nat.counters().outbound_packets, 121);
}

#[test]
fn a_side_that_is_gone_takes_its_flows_along() {
    let mut fast = Fast::new(8);
    fast.send(100, 40, at(1));
    fast.bench.shared.lock().lose(2, at(2));
    assert_eq!(fast.ports_in_force(), [100], "the other one's");
    fast.bench.shared.lock().lose(1, at(2));
    assert_eq!(fast.ports_in_force().len(), 0);
    fast.send(200, 40, at(3));
    assert_eq!(fast.ports_in_force().len(), 0);
}

#[test]
fn what_rules_move_is_counted_with_the_rest() {
    let mut fast = Fast::new(8);
    fast.send(100, 40, at(1));
    (0..5).for_each(|_| fast.moves(at(2)));
    let mut state = fast.bench.shared.lock();
    state.catch_up_all(at(3));
    let express = state.express.as_ref().unwrap();
    let mut stats = [PortStats::new("eth0"), PortStats::new("tun0"), PortStats::new("tun1")];
    stats.iter_mut().enumerate().for_each(|(side, stats)| express.add_to(stats, side));
    assert_eq!((stats[0].sent_packets, stats[0].sent_bytes, stats[0].received_packets), (5, 500, 0));
    assert_eq!((stats[1].received_packets, stats[1].received_bytes, stats[2].received_packets), (5, 500, 0));
    assert_eq!(state.nat.counters().outbound_packets, 1 + 40 + 5);
}

/// However often somebody on the link changes his address, all rules are looked at only so often, and in the end.
#[test]
fn links_that_change_all_the_time_do_not_cost_all_the_time() {
    let mut fast = Fast::new(2000);
    (1000..3000).for_each(|port| fast.send(port, 40, at(1)));
    fast.tend(at(2));
    let after = |millis| at(2) + Duration::from_millis(millis);
    fast.bench.shared.lock().set_routes(OUTSIDE, Vec::new());
    fast.tend(after(1));
    assert!(fast.ports_in_force().len() > 1900, "this change is looked at a little later");
    fast.tend(after(50));
    assert_eq!(fast.ports_in_force().len(), 0);
}

#[test]
fn a_flow_that_has_ended_makes_room_for_the_next_one_with_its_ends() {
    let mut fast = Fast::new(8);
    fast.send(100, 40, at(1));
    let mut batch = Batch::new().unwrap();
    for _ in 0..40 {
        assert!(batch.push(&udp((HOST, 100), (REMOTE, 53), b"x"), Offload::default(), ETHERTYPE_IPV4));
    }
    fast.bench.forwarders[0]
        .work(at(2), |state| {
            state.nat.flush(&Selection::default(), at(2));
            (0..40).for_each(|packet| _ = state.take(1, &mut batch, packet, at(2)));
            assert_eq!(fast.rules.lock().unwrap().in_force.len(), 1, "the first one's is out of force");
            Ok(())
        })
        .unwrap();
    assert_eq!(fast.ports_in_force(), [100]);
}
