//! How external ports are chosen: policies, steps, parity, classes, ranges, and ports that the host holds.

mod common;

use std::collections::BTreeSet;

use common::*;
use natbox_core::{
    Config, DropReason, PortRange,
    Protocol::{Icmp, Tcp, Udp},
    behavior::*,
};

fn plain(ports: PortAssignment) -> Behavior {
    Behavior { ports, port_parity: false, port_class: PortClass::Off, ..Behavior::RFC }
}

#[test]
fn preserve_takes_the_inside_port_or_the_next() {
    let mut net = Net::new(plain(PortAssignment::Preserve));
    let hosts: Vec<_> = (2..6).map(|last| ep(&format!("10.0.0.{last}:4242"))).collect();
    let ports: Vec<_> = hosts.iter().map(|host| net.send_out(Udp, *host, S).port).collect();
    assert_eq!(ports, [4242, 4243, 4244, 4245]);
    assert_eq!(net.send_out(Tcp, hosts[3], S).port, 4242, "TCP has ports of its own");
    assert_eq!(net.send_out(Icmp, hosts[3], at(S, 0)).port, 4242, "and so have queries");
}

#[test]
fn preserve_or_random_jumps() {
    let mut net = Net::new(plain(PortAssignment::PreserveOrRandom));
    assert_eq!(net.send_out(Udp, A, S).port, A.port);
    let others: Vec<_> =
        (3..20).map(|last| net.send_out(Udp, ep(&format!("10.0.0.{last}:4242")), S).port).collect();
    assert!(others.iter().filter(|port| port.abs_diff(4242) > 1000).count() > 12, "{others:?}");
}

#[test]
fn sequential_ports_go_up_by_the_step() {
    for (step, parity) in [(1, false), (2, false), (7, false), (1024, false), (1, true), (4, true), (5, true)]
    {
        let behavior = Behavior { port_step: step, port_parity: parity, ..plain(PortAssignment::Sequential) };
        let range = PortRange::new(10_000, 19_999).unwrap();
        let mut net = Net::new(Behavior { port_range: range, ..behavior });
        let ports: Vec<_> = (0..8).map(|i| net.send_out(Udp, at(A, 5000 + 2 * i), S).port).collect();
        let real = if parity { step + step % 2 } else { step }; // parity leaves every other port
        for pair in ports.windows(2) {
            let expected = if pair[0] + real > 19_999 { pair[1] } else { pair[0] + real };
            assert_eq!(pair[1], expected, "step {step}, parity {parity}: {ports:?}");
            assert!(range.contains(pair[1]));
        }
    }
}

/// What a predictor counts on: each new destination of a symmetric NAT is one step on, also across protocols' ends.
#[test]
fn sequential_ports_are_predictable() {
    let mut net = Net::new(Behavior {
        mapping: Mapping::AddressAndPortDependent,
        port_range: PortRange::new(1024, 65_535).unwrap(),
        ..plain(PortAssignment::Sequential)
    });
    let first = net.send_out(Udp, A, S).port;
    net.send_out(Tcp, A, S);
    net.send_out(Icmp, A, at(S, 0));
    let second = net.send_out(Udp, A, S2).port;
    net.send_out(Udp, A, S);
    let third = net.send_out(Udp, A, P).port;
    let next = |port: u16| if port == 65_535 { 1024 } else { port + 1 };
    assert_eq!((second, third), (next(first), next(next(first))));
}

#[test]
fn parity() {
    for ports in PortAssignment::ALL {
        let mut net = Net::new(Behavior { port_parity: true, ..plain(*ports) });
        for i in 0..30 {
            for host in ["10.0.0.2:0", "10.0.0.3:0"] {
                let port = 6000 + i;
                assert_eq!(net.send_out(Udp, at(ep(host), port), S).port % 2, port % 2, "{ports}");
            }
        }
    }
}

#[test]
fn classes() {
    let bounds: [(PortClass, &[u16]); 3] =
        [(PortClass::Off, &[]), (PortClass::WellKnown, &[1024]), (PortClass::Linux, &[512, 1024])];
    for (port_class, bounds) in bounds {
        for ports in [PortAssignment::Random, PortAssignment::PreserveOrRandom, PortAssignment::Sequential] {
            let mut net = Net::new(Behavior { port_class, ..plain(ports) });
            let class = |port: u16| bounds.iter().filter(|bound| port >= **bound).count();
            for port in [1, 80, 511, 512, 600, 1023, 1024, 40_000] {
                for host in 2..6 {
                    let external = net.send_out(Udp, ep(&format!("10.0.0.{host}:{port}")), S);
                    assert_eq!(class(external.port), class(port), "{ports} {port_class} {port}");
                }
            }
        }
    }
}

#[test]
fn ranges_are_kept_and_used_up() {
    for ports in PortAssignment::ALL {
        for port_parity in [false, true] {
            let port_range = PortRange::new(3001, 3040).unwrap();
            let mut net = Net::new(Behavior { port_range, port_parity, ..plain(*ports) });
            let taken: Vec<_> = (0..60).map(|i| net.try_out(Udp, at(A, 2990 + i), S)).collect();
            let good: BTreeSet<_> = taken.iter().flatten().map(|external| external.port).collect();
            assert_eq!(good, (3001..=3040).collect(), "{ports}, parity {port_parity}");
            assert_eq!(taken.iter().flatten().count(), 40, "{ports}");
            assert_eq!(net.dropped(DropReason::PortsExhausted), 20, "{ports}");
        }
    }
}

#[test]
fn one_port_alone() {
    for (first, parity) in [(65_535, false), (65_535, true), (1, true), (2, true)] {
        let port_range = PortRange::new(first, first).unwrap();
        for ports in PortAssignment::ALL {
            let mut net = Net::new(Behavior { port_range, port_parity: parity, ..plain(*ports) });
            assert_eq!(net.send_out(Udp, at(A, 1000), S).port, first, "{ports}");
            assert_eq!(net.try_out(Udp, at(A, 1001), S), Err(DropReason::PortsExhausted), "{ports}");
            net.wait(secs(301));
            assert_eq!(net.send_out(Udp, at(A, 1001), S).port, first, "{ports}: free again");
        }
    }
}

/// The configuration's ports bound the behaviour's range: what a shared address leaves to the NAT.
#[test]
fn configured_ports_bound_the_range() {
    let cases =
        [((1, 65_535), (61_000, 61_009)), ((61_005, 65_535), (61_005, 61_009)), ((1, 99), (61_000, 61_009))];
    for ((first, last), (least, most)) in cases {
        let port_range = PortRange::new(first, last).unwrap();
        let behavior = Behavior { port_range, ..plain(PortAssignment::Preserve) };
        let ports = PortRange::new(61_000, 61_009).unwrap();
        let mut net = Net::with(Config { behavior, ports, ..Config::new(N.into()) });
        let used: BTreeSet<_> =
            (0..20).filter_map(|i| net.try_out(Udp, at(A, 61_000 + i), S).ok()).map(|e| e.port).collect();
        assert_eq!(used, (least..=most).collect(), "{first}-{last}");
    }
}

#[test]
fn reserved_ports_are_left_to_the_host() {
    for ports in PortAssignment::ALL {
        let port_range = PortRange::new(3000, 3009).unwrap();
        let mut net = Net::new(Behavior { port_range, ..plain(*ports) });
        net.nat.set_reserved(Udp, &[3000, 3003, 3009]);
        let used: BTreeSet<_> =
            (0..20).filter_map(|i| net.try_out(Udp, at(A, 3000 + i), S).ok()).map(|e| e.port).collect();
        assert_eq!(used, [3001, 3002, 3004, 3005, 3006, 3007, 3008].into(), "{ports}");
        net.nat.set_reserved(Udp, &[]);
        assert!(net.try_out(Udp, at(B, 3000), S).is_ok(), "{ports}: given back");
        assert_eq!(net.send_out(Tcp, at(A, 3003), S).port / 10, 300, "{ports}: TCP's are its own");
    }
}

/// A port is free for others from the moment its mapping is dead, whether or not anybody has called for expiry.
#[test]
fn a_dead_mapping_gives_its_port_back() {
    let mut net = Net::new(plain(PortAssignment::Preserve));
    net.send_out(Udp, A, S);
    net.now = net.now + secs(301); // and no handle_timeout
    assert_eq!(net.send_out(Udp, at(B, A.port), S).port, A.port);
}

/// The same seed gives the same ports, another seed others.
#[test]
fn choices_follow_the_seed() {
    let ports = |seed| {
        let mut nat = natbox_core::Nat::new(Config::new(N.into()), seed).unwrap();
        let gateway =
            natbox_core::InsidePort { gateway: GATEWAY.into(), prefix_len: 24, mtu: 1500, shared: false };
        let inside = nat.add_inside(gateway).unwrap();
        let mut port = |i: u16| {
            let mut raw = udp(at(A, 5000 + i), S, b"");
            raw.through(|packet| nat.outbound(inside, packet, natbox_core::Time::ZERO));
            look(&raw).from.port
        };
        (0..10).map(&mut port).collect::<Vec<_>>()
    };
    assert_eq!(ports(1), ports(1));
    assert_ne!(ports(1), ports(2));
}
