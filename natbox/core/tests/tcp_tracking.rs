//! TCP connections through the NAT, segment by segment: their states, their timers, and what a stranger can do to them.

mod common;

use common::*;
use natbox_core::{DropReason, Endpoint, Side, behavior::*};

/// Distinct timers, so that each state is told by what is left of it.
fn timed() -> Behavior {
    rfc(|behavior| {
        behavior.tcp_opening_timeout = secs(10);
        behavior.tcp_established_timeout = secs(1000);
        behavior.tcp_closing_timeout = secs(20);
        behavior.tcp_reset_timeout = secs(5);
    })
}

/// The only session's state, and how long it has left.
fn session(net: &Net) -> (&'static str, u64) {
    let sessions: Vec<_> = net.nat.sessions().collect();
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    (sessions[0].state, (sessions[0].expires - net.now).as_secs())
}

/// Lets the session run out, second by second; returns how long it lived.
fn lifetime(net: &mut Net) -> u64 {
    let begun = net.now;
    while net.nat.sessions().next().is_some() {
        net.wait(secs(1));
    }
    (net.now - begun).as_secs()
}

#[test]
fn three_way_from_inside() {
    let mut net = Net::new(timed());
    let external = net.tcp_out(A, S, SYN).unwrap();
    assert_eq!(session(&net), ("syn-out", 10));
    net.wait(secs(9));
    assert_eq!(net.tcp_out(A, S, SYN), Ok(external), "sent again");
    assert_eq!(session(&net), ("syn-out", 10));
    assert_eq!(net.tcp_in(S, external, SYN_ACK), Ok(A));
    assert_eq!(session(&net), ("established", 1000));
    assert_eq!(net.tcp_out(A, S, ACK), Ok(external));
    assert_eq!(lifetime(&mut net), 1000);
    assert_eq!(net.tcp_in(S, external, ACK), Err(DropReason::NoMapping));
    assert_eq!(net.tcp_out(A, S, ACK), Err(DropReason::StrayTcp));
}

/// A mapping is made for its connections and goes with the last of them, also before an opening one would have.
#[test]
fn a_mapping_goes_with_its_last_session() {
    let mut net = Net::new(Behavior { mapping: Mapping::AddressAndPortDependent, ..timed() });
    let external = net.connect(A, S);
    assert_eq!(net.tcp_in(S, external, RST), Ok(A));
    assert_eq!(lifetime(&mut net), 5);
    net.wait(secs(1)); // expired is gone for every lookup; its memory comes back at the wheel's next tick
    assert_eq!(net.nat.mapping_count(), 0);
}

#[test]
fn three_way_from_outside() {
    let mut net = Net::new(timed());
    let external = net.forward(natbox_core::Protocol::Tcp, A, 8080);
    assert_eq!(net.tcp_in(S, external, ACK), Err(DropReason::StrayTcp), "only a SYN makes a session");
    assert_eq!(net.tcp_in(S, external, SYN), Ok(A));
    assert_eq!(session(&net), ("syn-in", 10));
    assert_eq!(net.tcp_out(A, S, SYN_ACK), Ok(external), "the answer goes by the same mapping");
    assert_eq!(session(&net), ("established", 1000));
    assert_eq!(net.tcp_in(S, external, ACK), Ok(A));
    assert_eq!(lifetime(&mut net), 1000);
}

#[test]
fn simultaneous_open_in_every_order() {
    for filtering in Filtering::ALL {
        let mut net = Net::new(Behavior { filtering: *filtering, ..timed() });
        let external = net.tcp_out(A, S, SYN).unwrap();
        assert_eq!(net.tcp_in(S, external, SYN), Ok(A));
        assert_eq!(session(&net), ("established", 1000), "{filtering}");
        for _ in 0..2 {
            assert_eq!(net.tcp_out(A, S, SYN_ACK), Ok(external));
            assert_eq!(net.tcp_in(S, external, SYN_ACK), Ok(A));
        }
        assert_eq!(net.tcp_in(S, external, ACK), Ok(A));
        // The other's SYN first, admitted because A has sent there before.
        net.nat.flush(&Default::default(), net.now);
        let external = net.tcp_out(A, P, SYN).unwrap();
        if *filtering == Filtering::AddressAndPortDependent {
            continue;
        }
        assert_eq!(net.tcp_in(at(P, 99), external, SYN), Ok(A));
        assert_eq!(net.tcp_out(A, at(P, 99), SYN), Ok(external));
        assert_eq!(net.states(), ["established", "syn-out"]);
    }
}

#[test]
fn half_closed_connections_stay_open() {
    for inside_first in [true, false] {
        let mut net = Net::new(timed());
        let external = net.connect(A, S);
        if inside_first {
            net.tcp_out(A, S, FIN_ACK).unwrap();
        } else {
            net.tcp_in(S, external, FIN_ACK).unwrap();
        }
        let half = if inside_first { "fin-out" } else { "fin-in" };
        for _ in 0..3 {
            net.wait(secs(900));
            net.tcp_in(S, external, ACK).unwrap();
            net.tcp_out(A, S, ACK).unwrap();
            assert_eq!(session(&net), (half, 1000), "data may flow for as long as it likes");
        }
        if inside_first {
            net.tcp_in(S, external, FIN_ACK).unwrap();
        } else {
            net.tcp_out(A, S, FIN_ACK).unwrap();
        }
        assert_eq!(session(&net), ("closed", 20));
        net.wait(secs(15));
        net.tcp_out(A, S, ACK).unwrap();
        net.tcp_in(S, external, ACK).unwrap();
        assert_eq!(session(&net), ("closed", 5), "nothing prolongs a closed connection");
        assert_eq!(lifetime(&mut net), 5);
    }
}

#[test]
fn ports_are_used_again_after_a_close() {
    for (ending, what) in [(FIN_ACK, "closed"), (RST, "reset")] {
        let mut net = Net::new(timed());
        let external = net.connect(A, S);
        net.tcp_out(A, S, ending).unwrap();
        net.tcp_in(S, external, ending).unwrap();
        assert_eq!(session(&net).0, what);
        assert_eq!(net.tcp_out(A, S, SYN), Ok(external), "the same two endpoints at once");
        assert_eq!(session(&net), ("syn-out", 10));
        assert_eq!(net.tcp_in(S, external, SYN_ACK), Ok(A));
        assert_eq!(session(&net), ("established", 1000), "{what}");
    }
}

#[test]
fn a_reset_ends_soon() {
    let mut net = Net::new(timed());
    let external = net.tcp_out(A, S, SYN).unwrap();
    assert_eq!(net.tcp_in(S, external, RST | ACK), Ok(A), "refused");
    assert_eq!(session(&net), ("reset", 5));
    assert_eq!(lifetime(&mut net), 5);

    let external = net.connect(A, S);
    assert_eq!(net.tcp_in(S, external, RST), Ok(A));
    net.wait(secs(4));
    assert_eq!(net.tcp_in(S, external, RST), Ok(A), "a second one passes");
    assert_eq!(session(&net), ("reset", 1), "and prolongs nothing");
    assert_eq!(net.tcp_in(S, external, ACK), Ok(A), "so do the segments behind a forged one");
    assert_eq!(session(&net), ("reset", 1));
    assert_eq!(net.tcp_out(A, S, ACK), Ok(external), "which the host acknowledges");
    assert_eq!(session(&net), ("established", 1000));
}

/// Nobody inside has said a word: three segments of a stranger must not last for hours.
#[test]
fn a_stranger_alone_establishes_nothing() {
    let mut net = Net::new(timed());
    let external = net.forward(natbox_core::Protocol::Tcp, A, 8080);
    let attempts: [&[u8]; 5] =
        [&[SYN, ACK], &[SYN, SYN_ACK, ACK], &[SYN, RST, ACK], &[SYN, FIN, FIN, ACK], &[SYN, RST, SYN, ACK]];
    for (i, attempt) in attempts.into_iter().enumerate() {
        let stranger = at(Q, 1000 + i as u16);
        for flags in attempt {
            net.tcp_in(stranger, external, *flags).unwrap();
        }
    }
    assert!(net.nat.sessions().all(|session| session.expires - net.now <= secs(10)));
    net.wait(secs(10));
    assert_eq!(net.nat.sessions().count(), 0);
}

/// The host has one connection with S already; a SYN by another of its mappings must not confuse it.
#[test]
fn one_connection_for_each_pair_of_endpoints() {
    let mut net = Net::new(Behavior {
        mapping: Mapping::AddressAndPortDependent,
        filtering: Filtering::EndpointIndependent,
        ..timed()
    });
    let (to_s, to_p) = (net.connect(A, S), net.connect(A, P));
    assert_ne!(to_s, to_p);
    assert_eq!(net.tcp_in(S, to_p, SYN), Err(DropReason::StrayTcp));
    assert_eq!(net.tcp_out(A, S, ACK), Ok(to_s), "the connection is as it was");
    assert_eq!(net.states(), ["established"; 2]);
    // Once it is over, the new one may begin, and its answer leaves by its own mapping.
    net.tcp_in(S, to_s, RST).unwrap();
    assert_eq!(net.tcp_in(S, to_p, SYN), Ok(A));
    assert_eq!(net.tcp_out(A, S, SYN_ACK), Ok(to_p));
    assert_eq!(net.states(), ["established"; 2]);
}

#[test]
fn the_full_table_refuses_a_syn_quietly() {
    let limits = natbox_core::Limits { mappings: 10, sessions: 1 };
    let behavior = rfc(|behavior| behavior.unsolicited_syn = UnsolicitedSyn::Reset);
    let mut net = Net::with(natbox_core::Config { behavior, limits, ..natbox_core::Config::new(N.into()) });
    let external = net.connect(A, S);
    assert_eq!(net.tcp_in(S2, external, SYN), Err(DropReason::TableFull));
    assert_eq!(net.take_sent(), [], "the filter would have let it in: there is nothing to say");
}

#[test]
fn stray_segments_from_inside() {
    for stray_tcp in StrayTcp::ALL {
        let mut net = Net::new(Behavior { stray_tcp: *stray_tcp, ..timed() });
        let result = net.tcp_out(A, S, ACK);
        let sent = net.take_sent();
        match stray_tcp {
            StrayTcp::Drop => assert_eq!((result, sent), (Err(DropReason::StrayTcp), vec![])),
            StrayTcp::Forward => {
                let external = result.unwrap();
                assert_eq!(session(&net).0, "picked-up");
                assert_eq!(net.tcp_in(S, external, ACK), Ok(A));
                assert_eq!(session(&net), ("established", 1000));
            }
            StrayTcp::Reset => {
                assert_eq!(result, Err(DropReason::StrayTcp));
                let [(to, reset)] = &sent[..] else { panic!("{sent:?}") };
                assert_eq!((*to, reset.from, reset.to), (Side::Inside(TUN), S, A), "as if S had sent it");
                assert_eq!((reset.flags, reset.sequence), (RST, 5_000), "where A's acknowledgement points");
                // Without an acknowledgement the reset acknowledges what came (RFC 9293 §3.10.7.1).
                net.tcp_out(A, S, FIN).unwrap_err();
                let reset = net.take_sent().pop().unwrap().1;
                assert_eq!((reset.flags, reset.sequence, reset.acknowledgement), (RST | ACK, 0, 1_001));
            }
        }
        assert_eq!(net.tcp_out(B, S, RST), Err(DropReason::StrayTcp), "a reset resets nothing");
        assert_eq!(net.take_sent(), [], "and a reset is never answered");
        for flags in [SYN_ACK, FIN_ACK, FIN, 0] {
            assert!(net.tcp_out(B, S, flags).is_err(), "{flags:#x} is in the middle of nothing");
        }
        net.take_sent();
    }
}

#[test]
fn unsolicited_syns() {
    for unsolicited_syn in UnsolicitedSyn::ALL {
        let mut net = Net::new(Behavior { unsolicited_syn: *unsolicited_syn, ..timed() });
        let external = net.connect(A, S);
        assert_eq!(net.tcp_in(P, external, SYN), Err(DropReason::UnsolicitedSyn));
        let at_once = net.take_sent();
        net.wait(secs(6));
        let later = net.take_sent();
        match unsolicited_syn {
            UnsolicitedSyn::Drop => assert_eq!((at_once, later), (vec![], vec![])),
            UnsolicitedSyn::Wait => {
                assert_eq!((at_once, later.len()), (vec![], 1));
                assert_eq!(later[0].1.icmp, Some((3, 3)));
            }
            UnsolicitedSyn::Reset => {
                assert_eq!(later, []);
                let [(to, reset)] = &at_once[..] else { panic!("{at_once:?}") };
                assert_eq!((*to, reset.from, reset.to), (Side::Outside, external, P));
                assert_eq!((reset.flags, reset.sequence, reset.acknowledgement), (RST | ACK, 0, 1_001));
            }
        }
        assert_eq!(net.tcp_in(P, external, ACK), Err(DropReason::Filtered), "no SYN: no answer");
        assert_eq!(net.take_sent(), []);
    }
}

/// A thousand SYNs are remembered, no more; each of them gets one answer, as far as the rate limit allows.
#[test]
fn a_scan_is_answered_within_bounds() {
    let mut net = Net::new(timed());
    for i in 0..2000u16 {
        net.tcp_in(at(Q, 1 + i), Endpoint::v4(N, 80), SYN).unwrap_err();
    }
    net.wait(secs(7));
    let answers = net.take_sent().len();
    assert!((200..=256).contains(&answers), "{answers}");
    let counters = net.nat.counters();
    assert_eq!(counters.generated_packets + counters.generated_suppressed, 1024);
}
