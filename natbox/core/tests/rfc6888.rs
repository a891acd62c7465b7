//! RFC 6888: what a carrier-grade NAT owes beyond the requirements of each protocol, as far as it is there
//! (docs/rfc-compliance.md names the rest). Where real NATs are known to fail, the body runs again with that axis
//! violated, and must notice.

mod common;

use std::{collections::BTreeSet, net::IpAddr};

use common::*;
use natbox_core::{
    Config, DropReason, Endpoint, Event, Limits, PortRange, Protocol,
    Protocol::{Icmp, Tcp, Udp},
    Side,
    behavior::*,
    preset::Preset,
};

fn cgnat() -> Behavior {
    Preset::by_name("cgnat").expect("a preset").behavior()
}

/// Where a query goes has no port.
fn remote(protocol: Protocol, endpoint: Endpoint) -> Endpoint {
    if protocol == Icmp { at(endpoint, 0) } else { endpoint }
}

#[test]
fn req_1_each_protocol_keeps_its_requirements() {
    let body = |behavior: Behavior| {
        for (protocol, least) in [(Udp, 120), (Tcp, 240), (Icmp, 60)] {
            let mut net = Net::new(behavior.clone());
            let remotes = [S, P, Q].map(|endpoint| remote(protocol, endpoint));
            let seen = remotes.map(|endpoint| net.send_out(protocol, A, endpoint));
            met(seen.iter().all(|external| *external == seen[0]), "one external endpoint towards everybody");
            net.wait(secs(least - 1));
            met(net.send_in(protocol, remotes[0], seen[0]) == Some(A), "it lives as long as it must");
        }
    };
    body(Behavior::RFC);
    body(cgnat());
    violated(|behavior| behavior.mapping = Mapping::AddressAndPortDependent, body);
    violated(|behavior| behavior.udp_timeout = secs(30), body);
}

#[test]
fn req_3_the_pool_may_be_any_addresses() {
    let pool: Vec<IpAddr> =
        [[198, 51, 100, 1], [198, 51, 100, 200], [192, 0, 2, 1], [100, 64, 9, 9], [8, 8, 8, 8]]
            .map(IpAddr::from)
            .into();
    let mut net = Net::with(Config { behavior: cgnat(), external: pool.clone(), ..Config::new(N.into()) });
    let mut used = BTreeSet::new();
    for host in 2..100 {
        let host = ep(&format!("10.0.0.{host}:5000"));
        let external = net.send_out(Udp, host, S);
        used.insert(external.addr);
        assert_eq!(net.send_in(Udp, S, external), Some(host));
    }
    assert_eq!(used, pool.into_iter().collect(), "every address serves somebody");
}

#[test]
fn req_7_anybody_may_send_to_a_mapping() {
    let body = |behavior: Behavior| {
        for protocol in [Udp, Tcp] {
            let mut net = Net::new(behavior.clone());
            let external = net.send_out(protocol, A, S);
            met(net.send_in(protocol, Q, external) == Some(A), "who was never sent to may send");
        }
    };
    body(cgnat());
    violated(|behavior| behavior.filtering = Filtering::AddressAndPortDependent, body);
}

/// What finds no room is dropped, told, reported, and pushes nobody out.
#[test]
fn req_11_exhaustion_deletes_nothing() {
    let few_ports = Behavior { port_range: PortRange::new(2000, 2003).unwrap(), ..cgnat() };
    let small_table = Limits { mappings: 4, sessions: 4 };
    for (behavior, limits, why) in [
        (few_ports, Limits::default(), DropReason::PortsExhausted),
        (cgnat(), small_table, DropReason::TableFull),
    ] {
        let mut net = Net::with(Config { behavior, limits, ..Config::new(N.into()) });
        let hosts = [0, 1, 2, 3].map(|i| at(A, 5000 + i));
        let externals = hosts.map(|host| net.send_out(Udp, host, S));
        let (before, events) = (net.mappings(), net.events.len());
        for i in 0..200 {
            assert_eq!(net.try_out(Udp, at(B, 5000 + i), S), Err(why));
        }
        assert_eq!(net.mappings(), before, "{why}: nobody had to go");
        let told = net.take_sent();
        assert_eq!(told.len(), 200, "{why}");
        for (to, report) in told {
            // The code is that of RFC 5508 REQ-8, not the 1 of this requirement's (b).
            assert_eq!(
                (to, report.icmp, report.to.addr),
                (Side::Inside(TUN), Some((3, 13)), B.addr),
                "{why}"
            );
        }
        let refused = |event: &&Event| matches!(event, Event::MappingRefused { .. });
        assert_eq!(net.events[events..].iter().filter(refused).count(), 200, "{why}");
        for (host, external) in hosts.into_iter().zip(externals) {
            assert_eq!(net.send_in(Udp, S, external), Some(host), "{why}");
        }
    }
}

#[test]
fn req_15_ports_are_hard_to_guess() {
    let body = |behavior: Behavior| {
        for protocol in [Udp, Tcp, Icmp] {
            let mut net = Net::new(behavior.clone());
            let port = |i: u16| net.send_out(protocol, at(A, 5000 + 2 * i), remote(protocol, S)).port;
            let ports: Vec<_> = (0..100).map(port).collect();
            let near = ports.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) <= 256).count();
            met(near < 10, "neighbours in time are no neighbours in number");
        }
    };
    body(Behavior::RFC);
    body(cgnat());
    violated(|behavior| behavior.ports = PortAssignment::Sequential, body);
}
