//! Each timer, idle and absolute, to the second; and what happens between a deadline and the call that carries it out.

mod common;

use std::time::Duration;

use common::*;
use natbox_core::{
    DropReason,
    Protocol::{self, Icmp, Tcp, Udp},
    Time,
    behavior::*,
};

/// Every timer different, none of them round.
fn timed() -> Behavior {
    rfc(|behavior| {
        behavior.refresh = Refresh::Both;
        behavior.udp_timeout = secs(31);
        behavior.udp_replied_timeout = secs(97);
        behavior.tcp_opening_timeout = secs(41);
        behavior.tcp_established_timeout = secs(5003);
        behavior.tcp_closing_timeout = secs(61);
        behavior.tcp_reset_timeout = secs(43);
        behavior.icmp_timeout = secs(53);
    })
}

const INSTANT: Duration = Duration::from_nanos(1);

/// After `prepare`, the remote's packets come in until just before `seconds` have passed, and not from then on.
#[track_caller]
fn lives(seconds: u64, protocol: Protocol, prepare: impl Fn(&mut Net) -> natbox_core::Endpoint) {
    let remote = if protocol == Icmp { at(S, 0) } else { S };
    let probe = |net: &mut Net, external| match protocol {
        Tcp => net.tcp_in(remote, external, ACK),
        _ => net.try_in(protocol, remote, external),
    };
    for called in [true, false] {
        for (time, alive) in [(secs(seconds) - INSTANT, true), (secs(seconds), false)] {
            let mut net = Net::new(timed());
            let external = prepare(&mut net);
            if called {
                net.wait(time);
            } else {
                net.now = net.now + time;
            }
            let seen = probe(&mut net, external);
            assert_eq!(seen.is_ok(), alive, "{protocol} after {time:?}, expiry called: {called}: {seen:?}");
            assert_eq!(net.mappings().is_empty(), !alive || (protocol, seconds) == (Tcp, 0));
        }
    }
}

#[test]
fn udp_unanswered() {
    lives(31, Udp, |net| net.send_out(Udp, A, S));
}

#[test]
fn udp_replied() {
    lives(97, Udp, |net| {
        let external = net.send_out(Udp, A, S);
        net.wait(secs(30));
        net.send_in(Udp, S, external).unwrap();
        external
    });
    lives(97, Udp, |net| {
        let external = net.send_out(Udp, A, S);
        net.send_in(Udp, S, external).unwrap();
        net.wait(secs(96));
        net.send_out(Udp, A, S)
    });
}

#[test]
fn icmp() {
    lives(53, Icmp, |net| net.send_out(Icmp, A, at(S, 0)));
    // Answers do not refresh.
    lives(23, Icmp, |net| {
        let external = net.send_out(Icmp, A, at(S, 0));
        net.wait(secs(30));
        net.send_in(Icmp, at(S, 0), external).unwrap();
        external
    });
}

#[test]
fn tcp() {
    lives(41, Tcp, |net| net.tcp_out(A, S, SYN).unwrap());
    lives(5003, Tcp, |net| net.connect(A, S));
    lives(61, Tcp, |net| {
        let external = net.connect(A, S);
        net.tcp_out(A, S, FIN_ACK).unwrap();
        net.wait(secs(3000));
        net.tcp_in(S, external, FIN_ACK).unwrap();
        external
    });
    lives(43, Tcp, |net| {
        let external = net.connect(A, S);
        net.wait(secs(50)); // so that the mapping lives by its session alone
        net.tcp_in(S, external, RST).unwrap();
        external
    });
}

#[test]
fn absolute_lifetime() {
    for protocol in [Udp, Tcp, Icmp] {
        let mut net = Net::new(rfc(|behavior| behavior.mapping_lifetime = Some(secs(60))));
        let remote = if protocol == Icmp { at(S, 0) } else { S };
        let first = net.send_out(protocol, A, remote);
        if protocol == Tcp {
            net.tcp_in(S, first, SYN_ACK).unwrap();
        }
        for _ in 0..5 {
            net.wait(secs(10));
            assert_eq!(net.try_out(protocol, A, remote), Ok(first), "busy all the time");
            net.try_out(protocol, A, at(P, remote.port)).unwrap();
        }
        net.wait(secs(10));
        assert_eq!(net.mappings(), [], "{protocol}: dead at sixty seconds");
        assert_eq!(
            net.try_in(protocol, remote, first),
            Err(match protocol {
                Tcp => DropReason::UnsolicitedSyn,
                _ => DropReason::NoMapping,
            })
        );
        assert_ne!(net.send_out(protocol, A, remote), first, "{protocol}: a new mapping, a new port");
    }
}

/// The lifetime that counts is the one at the mapping's birth, and static forwards have none.
#[test]
fn lifetimes_are_given_at_birth() {
    let mut net = Net::new(rfc(|behavior| behavior.mapping_lifetime = Some(secs(60))));
    net.send_out(Udp, A, S);
    let forward = net.forward(Udp, B, 8080);
    net.nat.set_behavior(Behavior::RFC);
    net.send_out(Udp, at(A, 77), S);
    net.wait(secs(60));
    let alive: Vec<_> = net.mappings().iter().map(|mapping| mapping.inside.endpoint).collect();
    assert_eq!(alive, [at(A, 77), B]);
    net.wait(secs(1_000_000));
    assert_eq!(net.send_in(Udp, Q, forward), Some(B));
}

/// A deadline may come nearer: what is over then is given back then, not when it would have been.
#[test]
fn deadlines_that_come_nearer() {
    let given_back = |net: &mut Net, seconds: u64| {
        net.wait(secs(seconds));
        assert_eq!(net.mappings(), []);
        net.wait(Duration::from_millis(2));
        assert_eq!((net.nat.mapping_count(), net.nat.session_count(), net.expired()), (0, 0, 1));
    };
    for reset in [true, false] {
        let mut net = Net::new(timed());
        let external = net.connect(A, S);
        net.wait(secs(4000)); // by now the wheel knows of the long deadline
        if reset {
            net.tcp_in(S, external, RST).unwrap();
            given_back(&mut net, 43);
        } else {
            net.tcp_out(A, S, FIN_ACK).unwrap();
            net.tcp_in(S, external, FIN_ACK).unwrap();
            given_back(&mut net, 61);
        }
    }
    // A timer that is set shorter counts from the next packet on.
    let mut net = Net::new(timed());
    let external = net.send_out(Udp, A, S);
    net.send_in(Udp, S, external).unwrap();
    net.wait(secs(40));
    net.nat.set_behavior(rfc(|behavior| behavior.udp_replied_timeout = secs(5)));
    net.send_out(Udp, A, S);
    given_back(&mut net, 5);
}

/// `poll_timeout` never asks for a call that has nothing to do for long, nor forgets anything.
#[test]
fn deadlines_are_polled() {
    let mut net = Net::new(timed());
    assert_eq!(net.nat.poll_timeout(), None);
    net.send_out(Udp, A, S);
    net.send_out(Icmp, A, at(S, 0));
    net.connect(A, S);
    let mut calls = 0;
    while let Some(due) = net.nat.poll_timeout() {
        assert!(due >= net.now || due == Time::ZERO, "{due} is over");
        net.now = due.max(net.now);
        net.nat.handle_timeout(net.now);
        calls += 1;
        assert!(calls < 100, "it never ends");
    }
    assert_eq!((net.nat.mapping_count(), net.nat.session_count()), (0, 0));
    assert!(net.now - Time::ZERO >= secs(5003) && net.now - Time::ZERO < secs(5004));
    assert_eq!(net.nat.poll_timeout(), None);
}

/// Ten thousand mappings that end at once are given back piece by piece, and all of them.
#[test]
fn expiry_is_bounded_by_call() {
    let mut net = Net::new(timed());
    for i in 0..10_000 {
        net.send_out(Udp, at(A, 5000 + i), S);
    }
    net.now = net.now + secs(40);
    assert_eq!(net.nat.mapping_count(), 10_000);
    net.nat.handle_timeout(net.now);
    assert_eq!(net.nat.mappings().count(), 0, "dead they are all");
    assert_eq!(net.nat.mapping_count(), 10_000 - 64, "but only so many are given back");
    assert_eq!(net.nat.poll_timeout(), Some(net.now), "and the next call is wanted at once");
    net.wait(Duration::ZERO);
    assert_eq!(net.nat.mapping_count(), 0);
    assert_eq!(net.expired(), 10_000);
}
