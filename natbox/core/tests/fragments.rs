//! Fragments beside the requirements: hairpins, answers, errors about them, limits in time, forged ones, and the axis.

mod common;

use std::time::Duration;

use common::{random::behavior, *};
use natbox_core::{
    Config, DropReason, Endpoint,
    Protocol::{Icmp, Udp},
    Selection, Side, Verdict,
    behavior::{Fragments, Hairpin, Identification},
};
use proptest::{collection::vec, prelude::*, sample::select};

const OUTSIDE: Side = Side::Outside;

/// A datagram in three fragments.
fn three(from: Endpoint, to: Endpoint, id: u16) -> Vec<Raw> {
    fragments(&udp(from, to, &[id as u8; 2000]), id, 800)
}

fn reordered(pieces: &[Raw], order: [usize; 3]) -> Vec<Raw> {
    order.iter().map(|i| pieces[*i].clone()).collect()
}

#[test]
fn a_first_fragment_opens_a_flow() {
    let mut net = Net::new(rfc(|_| {}));
    let left = net.out_pieces(&reordered(&three(A, S, 7), [2, 0, 1]));
    let view = whole(&left).unwrap();
    assert_eq!((view.to, view.payload), (S, vec![7; 2000]));
    assert_eq!(net.send_in(Udp, S, view.from), Some(A));
    let counters = net.nat.counters();
    assert_eq!((counters.outbound_packets, counters.fragments_delayed), (3, 1));
    let bytes: usize = left.iter().map(|(_, raw)| raw.bytes.len()).sum();
    assert_eq!(counters.outbound_bytes, bytes as u64);
}

#[test]
fn those_that_waited_leave_in_order() {
    let mut net = Net::new(rfc(|_| {}));
    let pieces = fragments(&udp(A, S, &[1; 4000]), 7, 800);
    let order = [4, 2, 3, 1, 0, 5].map(|i| pieces[i].clone());
    let offsets: Vec<_> =
        net.out_pieces(&order).iter().map(|(_, raw)| raw.header().fragment_offset.byte_offset()).collect();
    assert_eq!(offsets, [0, 800, 1600, 2400, 3200, 4000]);
}

#[test]
fn what_the_filter_refuses_stays_out_whole() {
    let mut net = Net::new(rfc(|_| {}));
    let external = net.send_out(Udp, A, S);
    assert_eq!(net.in_pieces(&reordered(&three(P, external, 7), [1, 0, 2])), []);
    assert_eq!((net.dropped(DropReason::Filtered), net.nat.fragments_held()), (3, 0));
    assert_eq!(net.in_pieces(&three(S, at(external, external.port ^ 0x100), 8)), []);
    assert_eq!(net.dropped(DropReason::NoMapping), 3);
    assert!(whole(&net.in_pieces(&three(S, external, 7))).is_some());
}

#[test]
fn hairpins_pass_in_any_order() {
    for hairpin in [Hairpin::External, Hairpin::Internal] {
        let mut net = Net::new(rfc(|behavior| behavior.hairpin = hairpin));
        let external_b = net.send_out(Udp, B, S);
        let external_a = net.send_out(Udp, A, external_b_remote(external_b));
        net.out(&mut udp(B, external_a, b"open"));
        let came = net.out_pieces(&reordered(&three(A, external_b, 7), [2, 1, 0]));
        let view = whole(&came).unwrap();
        assert!(came.iter().all(|(to, _)| *to == Side::Inside(TUN)));
        let from = if hairpin == Hairpin::External { external_a } else { A };
        assert_eq!((view.from, view.to, view.payload), (from, B, vec![7; 2000]));
    }
    let mut net = Net::new(rfc(|behavior| behavior.hairpin = Hairpin::Off));
    let external = net.send_out(Udp, B, S);
    assert_eq!(net.out_pieces(&three(A, external, 7)), []);
    assert_eq!(net.dropped(DropReason::HairpinOff), 3);
}

/// Whom A sends to for the mapping that it will hairpin with.
fn external_b_remote(external: Endpoint) -> Endpoint {
    at(P, external.port)
}

#[test]
fn routed_ones_are_routed() {
    let mut net = Net::new(rfc(|_| {}));
    let lan = net.add_inside(7, 1500);
    let host = ep("10.7.0.2:7");
    let came = net.out_pieces(&reordered(&three(A, host, 7), [1, 2, 0]));
    assert!(came.iter().all(|(to, _)| *to == Side::Inside(lan)));
    let view = whole(&came).unwrap();
    assert_eq!((view.from, view.to, view.header.identification), (A, host, 7), "untouched");
    assert_eq!(net.nat.counters().routed_packets, 3);
}

#[test]
fn a_long_ping_to_the_nat_is_answered() {
    let mut net = Net::new(rfc(|_| {}));
    for (target, from) in [(Endpoint::v4(GATEWAY, 0), A), (Endpoint::v4(N, 0), S)] {
        let pieces = fragments(&echo(from, target, &[5; 4000]), 9, 1480);
        let order = reordered(&pieces, [2, 0, 1]);
        let answer = if from == A { net.out_pieces(&order) } else { net.in_pieces(&order) };
        let view = whole(&answer).unwrap();
        assert_eq!((view.icmp, view.from.addr, view.to), (Some((0, 0)), target.addr, from));
        assert_eq!((view.payload, view.header.time_to_live), (vec![5; 4000], 64));
    }
    assert_eq!(net.nat.counters().replies, 6);
}

#[test]
fn on_a_shared_address_the_hosts_fragments_are_the_hosts() {
    let mut net = Net::with(Config { shared: true, ..Config::new(N.into()) });
    let external = net.send_out(Udp, A, S);
    let hosts = at(external, external.port ^ 0x800);
    for order in [[0, 1, 2], [1, 2, 0]] {
        assert_eq!(net.in_pieces(&reordered(&three(S, hosts, 7), order)), []);
    }
    assert_eq!((net.nat.counters().local_packets, net.nat.fragments_held()), (6, 0));
    assert!(whole(&net.in_pieces(&reordered(&three(S, external, 8), [1, 2, 0]))).is_some());
    net.nat.set_behavior(rfc(|behavior| behavior.fragments = Fragments::Drop));
    assert_eq!(net.inn(&mut three(S, external, 9)[0].clone()), Verdict::Local);
    let elsewhere = ep("203.0.113.200:9");
    assert_eq!(net.inn(&mut three(S, elsewhere, 9)[1].clone()), Verdict::Local);
}

#[test]
fn a_fragment_waits_for_fifteen_seconds() {
    for (seconds, arrives) in [(14, true), (15, false)] {
        let mut net = Net::new(rfc(|_| {}));
        let pieces = three(A, S, 7);
        assert_eq!(net.out(&mut pieces[1].clone()), Verdict::Held);
        assert_eq!(net.nat.fragments_held(), 1);
        net.now = net.now + secs(seconds);
        let came = net.out_pieces(&[pieces[0].clone(), pieces[2].clone()]);
        assert_eq!(came.len(), 2 + usize::from(arrives));
        net.wait(secs(2));
        assert_eq!(
            (net.dropped(DropReason::FragmentOrphan), net.nat.fragments_held()),
            (u64::from(!arrives), 0)
        );
    }
    // And as long is the first one remembered.
    for (seconds, arrives) in [(14, true), (15, false)] {
        let mut net = Net::new(rfc(|_| {}));
        let pieces = three(A, S, 7);
        net.out(&mut pieces[0].clone());
        net.now = net.now + secs(seconds);
        assert_eq!(!net.out_pieces(&pieces[1..2]).is_empty(), arrives);
    }
}

#[test]
fn an_identification_may_be_used_again() {
    let mut net = Net::new(rfc(|_| {}));
    let external = net.send_out(Udp, A, S);
    let other = net.send_out(Udp, B, S);
    // At once, for a datagram to somebody else.
    for order in [[0, 1, 2], [2, 1, 0]] {
        for (to, host) in [(external, A), (other, B)] {
            let view = whole(&net.in_pieces(&reordered(&three(S, to, 7), order))).unwrap();
            assert_eq!((view.to, view.payload), (host, vec![7; 2000]));
        }
    }
    // Even when a fragment of the former was lost.
    net.in_pieces(&three(S, external, 7)[..2]);
    assert_eq!(whole(&net.in_pieces(&three(S, other, 7))).unwrap().to, B);
}

#[test]
fn no_fragment_rewrites_what_the_filter_has_seen() {
    let mut net = Net::new(rfc(|_| {}));
    let external = net.connect(A, S);
    let pieces = fragments(&tcp(S, external, ACK, &[0; 200]), 7, 8);
    assert_eq!(net.in_pieces(&pieces[..3]), [], "no first fragment holds the whole header");
    assert_eq!(net.dropped(DropReason::FragmentHeader), 3);
    let good = fragments(&tcp(S, external, ACK, &[0; 200]), 8, 40);
    assert_eq!(net.in_pieces(&good[..1]).len(), 1);
    let overlap = fragments(&tcp(S, external, SYN, &[0; 200]), 8, 8);
    assert_eq!(net.in_pieces(&overlap[1..3]), [], "nor does a later one reach into it");
    assert_eq!(net.in_pieces(&good[1..]).len(), good.len() - 1);
    // A further first fragment is judged by itself.
    let stray = fragments(&tcp(P, external, ACK, &[0; 200]), 8, 40);
    assert_eq!(net.in_pieces(&stray), []);
}

#[test]
fn time_to_live_and_size_of_the_others_count_as_well() {
    let mut net = Net::new(rfc(|_| {}));
    let pieces = three(A, S, 7);
    net.out(&mut pieces[0].clone());
    assert_eq!(net.out(&mut pieces[1].clone().ttl(1)), Verdict::Drop(DropReason::TtlExceeded));
    let small = net.add_inside(7, 576);
    let host = ep("10.7.0.2:7");
    let mut opening = udp(host, S, b"");
    net.out_via(small, &mut opening);
    let external = look(&opening).from;
    // What the small link does not carry whole is cut further.
    let came = net.in_pieces(&reordered(&three(S, external, 9), [1, 0, 2]));
    assert!(came.iter().all(|(_, raw)| raw.bytes.len() <= 576) && came.len() == 5, "{}", came.len());
    assert_eq!(whole(&came).unwrap().to, host);
    assert_eq!(net.take_sent(), []);
    // Not when it may not be: of the first the sender hears.
    let marked: Vec<_> =
        three(S, external, 10).into_iter().map(|raw| raw.ip(|header| header.dont_fragment = true)).collect();
    assert_eq!(net.in_pieces(&marked), []);
    assert_eq!((net.dropped(DropReason::TooBig), net.take_sent().len()), (3, 1));
}

#[test]
fn errors_about_fragments_find_their_sender() {
    let mut net = Net::new(rfc(|_| {}));
    net.out(&mut three(A, S, 500)[0].clone()); // so that numbers differ
    let left = net.out_pieces(&three(A, S, 700));
    let external = whole(&left).unwrap().from;
    assert_ne!(left[0].1.header().identification, 700);
    let mut report = error(at(Q, 0), external, (11, 1), &left[0].1, 64);
    assert_eq!(net.delivered(&mut report), Ok(at(A, 0)));
    let quote = look(&report).quote.unwrap();
    assert_eq!((quote.from, quote.header.identification), (A, 700), "as its host had chosen it");
    // Of a whole datagram that may be fragmented, too.
    let mut sent = udp(A, S, b"small").ip(|header| {
        header.identification = 900;
        header.dont_fragment = false;
    });
    net.forwarded(&mut sent).unwrap();
    let mut report = error(at(Q, 0), external, (3, 3), &sent, 64);
    assert_eq!(net.delivered(&mut report), Ok(at(A, 0)));
    assert_eq!(look(&report).quote.unwrap().header.identification, 900);
    // A number that nobody was given stays.
    let mut report =
        error(at(Q, 0), external, (3, 3), &sent.ip(|header| header.identification ^= 0x5555), 64);
    let forged = look(&report).quote.unwrap().header.identification;
    assert_eq!(net.delivered(&mut report), Ok(at(A, 0)));
    assert_eq!(look(&report).quote.unwrap().header.identification, forged);
}

#[test]
fn which_fragments_pass_is_an_axis() {
    let long = |protocol| match protocol {
        Udp => udp(A, S, &[1; 2000]),
        Icmp => echo(A, at(S, 0), &[1; 2000]),
        _ => tcp(A, S, SYN, &[1; 2000]),
    };
    let passes = |policy, protocol, order| {
        let mut net = Net::new(rfc(|behavior| behavior.fragments = policy));
        let pieces = reordered(&fragments(&long(protocol), 7, 800), order);
        net.out_pieces(&pieces).len() == 3
    };
    let (ahead, behind) = ([0, 2, 1], [1, 0, 2]);
    for protocol in natbox_core::Protocol::ALL {
        let is_udp = protocol == Udp;
        assert!(
            passes(Fragments::AnyOrder, protocol, ahead) && passes(Fragments::AnyOrder, protocol, behind)
        );
        assert!(passes(Fragments::InOrder, protocol, ahead) && !passes(Fragments::InOrder, protocol, behind));
        assert_eq!(passes(Fragments::UdpOnly, protocol, ahead), is_udp);
        assert_eq!(passes(Fragments::UdpOnly, protocol, behind), is_udp);
        assert!(!passes(Fragments::Drop, protocol, ahead));
    }
    let mut net = Net::new(rfc(|behavior| behavior.fragments = Fragments::Drop));
    net.out_pieces(&three(A, S, 7));
    assert_eq!((net.dropped(DropReason::Fragment), net.mappings()), (3, vec![]));
    let big = udp(A, S, &[1; 2000]).ip(|header| header.dont_fragment = false);
    assert_eq!(net.out_pieces(&[big]).len(), 2, "what is too big is cut nevertheless");
}

#[test]
fn a_cut_packet_may_owe_its_checksum() {
    let mut net = Net::new(rfc(|_| {}));
    for raw in [udp(A, S, &[3; 3000]), tcp(A, S, SYN, &[3; 3000])] {
        let parts = net.out_pieces(&[raw.ip(|header| header.dont_fragment = false).partial()]);
        assert_eq!((parts.len(), whole(&parts).unwrap().payload), (3, vec![3; 3000]));
    }
    // A super-frame whose segments are too big is answered: nobody here cuts it.
    let mut frame = udp(A, S, &[3; 6000]).ip(|header| header.dont_fragment = false).gso(1480);
    assert_eq!(net.out(&mut frame), Verdict::Drop(DropReason::TooBig));
    let mut fits = udp(A, S, &[3; 6000]).ip(|header| header.dont_fragment = false).gso(1472);
    assert_eq!(net.out(&mut fits), Verdict::Forward(OUTSIDE));
}

#[test]
fn what_is_flushed_is_forgotten() {
    let mut net = Net::new(rfc(|_| {}));
    let external = net.send_out(Udp, A, S);
    net.in_pieces(&three(S, external, 7)[..1]);
    net.in_pieces(&three(S, external, 8)[1..2]);
    net.nat.flush(&Selection::default(), net.now);
    assert_eq!((net.nat.fragments_held(), net.dropped(DropReason::FragmentOrphan)), (0, 1));
    assert_eq!(
        net.inn(&mut three(S, external, 7)[1].clone()),
        Verdict::Held,
        "its way is not known any more"
    );
}

/// A datagram that has more than may wait loses its own fragments; what waits beside it goes on waiting.
#[test]
fn a_datagram_that_does_not_fit_takes_nothing_from_others() {
    let mut net = Net::new(rfc(|_| {}));
    let small = three(A, S, 7);
    assert_eq!(net.out(&mut small[1].clone()), Verdict::Held);
    // 50,000 bytes that come again and again: two fit.
    let long = &fragments(&udp(A, S, &[0; 60_000]), 8, 10_000)[1];
    let long = Raw::new([&long.bytes[..20], &[0; 50_000]].concat()).ip(|_| {});
    for _ in 0..2 {
        assert_eq!(net.out(&mut long.clone()), Verdict::Held);
    }
    assert_eq!(net.out(&mut long.clone()), Verdict::Drop(DropReason::FragmentsFull));
    assert_eq!((net.nat.fragments_held(), net.dropped(DropReason::FragmentsFull)), (3, 1));
    assert_eq!(net.out_pieces(&[small[0].clone(), small[2].clone()]).len(), 3);
}

#[test]
fn numbers_of_whole_packets() {
    let number = |net: &mut Net, from, dont_fragment| {
        let mut raw = udp(from, S, b"x").ip(|header| {
            header.identification = 42;
            header.dont_fragment = dont_fragment;
        });
        net.forwarded(&mut raw).unwrap();
        raw.header().identification
    };
    let mut net = Net::new(rfc(|_| {}));
    let first = number(&mut net, A, false);
    assert_eq!(number(&mut net, B, false), first.wrapping_add(1), "one after the other");
    assert_eq!(number(&mut net, A, true), 42, "where it means nothing it stays");
    net.wait(Duration::from_secs(1));
    assert_eq!(number(&mut net, A, false), first.wrapping_add(2));
    net.nat.set_behavior(rfc(|behavior| behavior.identification = Identification::Keep));
    assert_eq!(number(&mut net, A, false), 42);
    // Inwards the number is the sender's, who knows what he has used.
    let external = net.send_out(Udp, A, S);
    let mut raw = udp(S, external, b"x").ip(|header| {
        header.identification = 43;
        header.dont_fragment = false;
    });
    net.delivered(&mut raw).unwrap();
    assert_eq!(raw.header().identification, 43);
}

// ---- Any fragments ----

/// A fragment of few sources, with few numbers, so that they meet; most of them make no datagram.
#[derive(Clone, Debug)]
struct Any {
    inward: bool,
    host: u8,
    id: u16,
    offset: u16,
    len: usize,
    more: bool,
    protocol: natbox_core::Protocol,
    ttl: u8,
    wait: u64,
}

fn any_fragment() -> impl Strategy<Value = Any> {
    let place = (prop_oneof![Just(0u16), 0u16..12, Just(8191u16)], 0usize..50, any::<bool>());
    let who = (any::<bool>(), 0u8..3, 0u16..3, select(&natbox_core::Protocol::ALL[..]));
    (who, place, 1u8..4, prop_oneof![4 => Just(0), 1 => 0u64..20]).prop_map(|(who, place, ttl, wait)| Any {
        inward: who.0,
        host: who.1,
        id: who.2,
        offset: place.0,
        len: place.1,
        more: place.2,
        protocol: who.3,
        ttl,
        wait,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Whatever fragments come, in whatever order: each is counted once, what goes on has a right header, never more wait
    /// than may, and in the end none does.
    #[test]
    fn any_fragments_are_accounted_for(
        steps in vec(any_fragment(), 1..80),
        behavior in behavior(),
        shared in any::<bool>(),
    ) {
        let mut net = Net::with(Config { behavior, shared, outside_mtu: 68, ..Config::new(N.into()) });
        net.add_inside(7, 100);
        let mut externals = vec![Endpoint::v4(N, 2000)];
        for step in steps {
            net.now = net.now + secs(step.wait);
            let host = at(ep(&format!("10.0.0.{}:0", 2 + step.host)), 4000);
            let (from, to) = if step.inward { (S, externals[usize::from(step.host) % externals.len()]) } else { (host, S) };
            let mut raw = opener(step.protocol, from, if step.protocol == Icmp { at(to, 0) } else { to });
            raw.bytes.truncate(20 + step.len);
            raw.bytes.resize(20 + step.len, 7);
            let mut raw = raw.ip(|header| {
                header.dont_fragment = false;
                header.identification = step.id;
                header.fragment_offset = step.offset.try_into().unwrap();
                header.more_fragments = step.more;
                header.time_to_live = step.ttl;
            });
            if !is_fragment(&raw) {
                continue;
            }
            let verdict = if step.inward { net.inn(&mut raw) } else { net.out(&mut raw) };
            if verdict == Verdict::Forward(OUTSIDE) && step.offset == 0 && step.protocol == Udp {
                let port = u16::from_be_bytes([raw.bytes[20], raw.bytes[21]]);
                externals.push(Endpoint::v4(raw.header().source.into(), port));
            }
            for (_, follower) in std::mem::take(&mut net.followers) {
                follower.header();
            }
            prop_assert!(net.nat.fragments_held() <= 80);
        }
        net.wait(secs(17));
        prop_assert_eq!(net.nat.fragments_held(), 0);
    }

    /// Any datagram, cut anyhow, in any order, with fragments that come twice: it arrives whole, and so does the answer.
    #[test]
    fn any_datagram_arrives_whole(
        size in 1usize..3000,
        step in 1usize..100,
        seed in any::<u64>(),
        doubled in any::<bool>(),
    ) {
        let mut net = Net::new(rfc(|_| {}));
        let shuffled = |mut pieces: Vec<Raw>| {
            let mut state = seed | 1;
            for i in (1..pieces.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                pieces.swap(i, (state >> 33) as usize % (i + 1));
            }
            if doubled {
                let again = pieces[(state >> 40) as usize % pieces.len()].clone();
                pieces.insert((state >> 50) as usize % pieces.len(), again);
            }
            pieces
        };
        let payload: Vec<u8> = (0..size).map(|i| (i * 31) as u8).collect();
        let unique = |came: Vec<(Side, Raw)>| {
            let mut seen = Vec::new();
            came.into_iter().filter(|(_, raw)| {
                let offset = raw.header().fragment_offset.value();
                !seen.contains(&offset) && { seen.push(offset); true }
            }).collect::<Vec<_>>()
        };
        let step = (step * 8).max(size.div_ceil(100).next_multiple_of(8));
        let pieces = fragments(&udp(A, S, &payload), 7, step);
        let came = unique(net.out_pieces(&shuffled(pieces.clone())));
        let arrived = whole(&came).unwrap();
        prop_assert_eq!((arrived.to, &arrived.payload), (S, &payload));
        let pieces = fragments(&udp(S, arrived.from, &payload), 7, step);
        let came = unique(net.in_pieces(&shuffled(pieces)));
        prop_assert_eq!(whole(&came).map(|view| (view.to, view.payload)), Some((A, payload)));
    }
}
