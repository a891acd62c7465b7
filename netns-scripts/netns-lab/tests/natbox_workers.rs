//! A natbox whose packets are moved by several threads: all of them do their part, and nobody outside can tell.

mod common;

use std::collections::HashSet;
use std::error::Error;
use std::net::{IpAddr, TcpListener};
use std::process::ExitCode;

use common::machine::{difference, state};
use common::tools::{Echo, connect, exchange, receive_all, send_all, text};
use common::{EXTERNAL, OWN, PATIENCE, Tested, count, endpoint, mappings, reflector, udp};
use netns_lab::harness::{self, Test};
use netns_lab::probe::{self, Filtering, Flows, Hairpin, Mapping, PortAssignment};
use netns_lab::{Host, Lab, Nat, wait_until};

const TWO: &str = "--workers=2";

fn main() -> ExitCode {
    harness::main(vec![
        Test::new("both_workers_move_flows_through_a_tun", || both_move_flows("one-nat", "tun0")),
        Test::new("both_workers_move_flows_of_a_lan", || both_move_flows("lan-gateway", "lan0")),
        Test::new("bulk_both_ways_through_three_workers", bulk_both_ways),
        Test::new("behaviours_are_the_same", behaviours_are_the_same),
        Test::new("sequential_ports_are_sequential", sequential_ports_are_sequential),
        Test::new("hairpin_is_the_same", hairpin_is_the_same),
        Test::new("a_limit_holds_for_all", a_limit_holds_for_all),
        Test::new("sigterm_ends_all_of_it", || the_end_undoes_everything(Nat::stop)),
        Test::new("sigkill_ends_all_of_it", || the_end_undoes_everything(Nat::kill)),
        Test::new("a_removed_uplink_ends_all_of_it", a_removed_uplink_ends_all_of_it),
    ])
}

/// What each worker has received and sent at one port.
fn shares(nat: &Nat, port: &str) -> Result<Vec<[u64; 2]>, Box<dyn Error + Send + Sync>> {
    let shown: serde_json::Value = serde_json::from_str(&nat.control(&["show", "--ports", "--json"])?)?;
    let ports = shown["ports"].as_array().ok_or("natbox shows its ports")?;
    let found = ports.iter().find(|it| it["name"] == port).ok_or(format!("no port {port} in {shown}"))?;
    let workers = found["workers"].as_array().ok_or(format!("no workers in {found}"))?;
    let number = |worker: &serde_json::Value, name| worker[name].as_u64().ok_or(format!("{name} in {found}"));
    let shares = workers
        .iter()
        .map(|worker| Ok([number(worker, "received-packets")?, number(worker, "sent-packets")?]));
    let shares = shares.collect::<Result<Vec<_>, String>>()?;
    for (at, name) in ["received-packets", "sent-packets"].into_iter().enumerate() {
        let sum: u64 = shares.iter().map(|share| share[at]).sum();
        assert_eq!(found["counters"][name], sum, "the sum over all workers: {found}");
    }
    Ok(shares)
}

/// Thousands of UDP flows and dozens of TCP connections, all of them answered, and all again.
fn both_move_flows(topology: &str, inside: &str) -> Tested {
    const UDP: usize = 3000;
    const TCP: usize = 64;
    let lab = Lab::up(topology).nat("N1", "full-cone").nat_args("N1", &[EXTERNAL, TWO]).start()?;
    let (reflector, a, s, nat) = (reflector(&lab)?, lab.host("A")?, lab.host("S")?, lab.nat("N1")?);
    let mut flows = a.run(|| Flows::open(reflector.endpoints(), a.addr().into(), UDP))??;
    let report = flows.check()?;
    assert_eq!((report.opened, report.answered_again, report.moved), (UDP, UDP, 0), "{report}");
    let ports: HashSet<_> = report.flows.iter().filter_map(|flow| flow.opened_as).collect();
    assert_eq!((ports.len(), count(nat, "udp")?), (UDP, UDP));

    let _echo = Echo::start(s, 7)?;
    let mut streams = (0..TCP).map(|_| connect(a, endpoint(s.addr(), 7))).collect::<Result<Vec<_>, _>>()?;
    for round in 0..3_u8 {
        for (number, stream) in streams.iter_mut().enumerate() {
            exchange(stream, &vec![round ^ number as u8; 3000])?;
        }
    }
    assert_eq!(count(nat, "tcp")?, TCP);

    for port in [inside, "eth0"] {
        let shares = shares(nat, port)?;
        // Of 3,000 flows neither gets less than a tenth.
        let fair = shares.iter().flatten().all(|share| *share > UDP as u64 / 5);
        assert!(shares.len() == 2 && fair, "{port}: {shares:?}");
    }
    Ok(())
}

/// Six transfers at once, three each way.
fn bulk_both_ways() -> Tested {
    const BULK: usize = 24 << 20;
    let lab = Lab::up("one-nat").nat("N1", "port-restricted").nat_args("N1", &["--workers=3"]).start()?;
    let (a, s) = (lab.host("A")?, lab.host("S")?);
    let listener = s.run(|| TcpListener::bind((s.addr(), 80)))??;
    let (mut sending, mut receiving) = (Vec::new(), Vec::new());
    for seed in 0..6 {
        let client = connect(a, endpoint(s.addr(), 80))?;
        let (server, _) = listener.accept()?;
        server.set_read_timeout(Some(PATIENCE))?;
        let ((mut from, sender), (mut to, receiver)): ((_, &Host), (_, &Host)) =
            if seed % 2 == 0 { ((client, a), (server, s)) } else { ((server, s), (client, a)) };
        sending.push(sender.start(move || send_all(&mut from, seed, BULK))?);
        receiving.push(receiver.start(move || receive_all(&mut to))?);
    }
    for (sent, received) in sending.into_iter().zip(receiving) {
        assert_eq!(received.join()?, (BULK, sent.join()?));
    }
    Ok(())
}

/// The probe sees what was configured, by UDP and by TCP.
fn behaviours_are_the_same() -> Tested {
    let lab = Lab::up("one-nat")
        .nat("N1", "full-cone")
        .nat_args("N1", &["--ports=random", "--port-class=off", TWO])
        .start()?;
    let (reflector, a, nat) = (reflector(&lab)?, lab.host("A")?, lab.nat("N1")?);
    let local = IpAddr::from(a.addr());
    for (mapping, filtering) in [
        (Mapping::EndpointIndependent, Filtering::EndpointIndependent),
        (Mapping::EndpointIndependent, Filtering::AddressAndPortDependent),
        (Mapping::AddressDependent, Filtering::AddressDependent),
        (Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent),
    ] {
        nat.set(&["--mapping", mapping.short(), "--filtering", filtering.short()])?;
        nat.flush()?;
        let udp = a.run(|| probe::udp(reflector.endpoints(), local))??;
        let tcp = a.run(|| probe::tcp(reflector.endpoints(), local))??;
        for class in [udp, tcp] {
            assert_eq!((class.mapping, class.filtering), (mapping, filtering), "{class}");
            assert_eq!(class.ports, PortAssignment::Random, "{class}");
        }
    }
    Ok(())
}

/// There is one allocator: whichever workers see the first packets of the flows, port follows port.
fn sequential_ports_are_sequential() -> Tested {
    let flags = [EXTERNAL, TWO, "--ports=sequential"];
    let lab = Lab::up("one-nat").nat("N1", "symmetric-sequential").nat_args("N1", &flags).start()?;
    let (reflector, a) = (reflector(&lab)?, lab.host("A")?);
    let local = IpAddr::from(a.addr());
    for class in [
        a.run(|| probe::udp(reflector.endpoints(), local))??,
        a.run(|| probe::tcp(reflector.endpoints(), local))??,
    ] {
        assert_eq!(class.ports, PortAssignment::Sequential { step: 1 }, "{class}");
        assert_eq!(class.external, [IpAddr::from(OWN)], "{class}");
    }
    Ok(())
}

fn hairpin_is_the_same() -> Tested {
    let lab = Lab::up("hairpin").nat("N1", "port-restricted").nat_args("N1", &[TWO]).start()?;
    let reflector = reflector(&lab)?;
    let (a, b) = (lab.host("A")?, lab.host("B")?);
    for _ in 0..8 {
        let (from_a, from_b) = (udp(a, 0)?, udp(b, 0)?);
        let seen = probe::udp_hairpin(reflector.endpoints(), &from_a, &from_b)?;
        assert_eq!(seen, Hairpin::ExternalSource);
    }
    let seen = a.run(|| probe::tcp(reflector.endpoints(), a.addr().into()))??;
    assert_eq!(seen.hairpin, Hairpin::ExternalSource, "{seen}");
    Ok(())
}

/// A limit is the NAT's, not each worker's.
fn a_limit_holds_for_all() -> Tested {
    let flags = [EXTERNAL, TWO, "--subscriber-mappings=100"];
    let lab = Lab::up("one-nat").nat("N1", "full-cone").nat_args("N1", &flags).start()?;
    let (a, s, nat) = (lab.host("A")?, lab.host("S")?, lab.nat("N1")?);
    let sockets = (0..300).map(|_| udp(a, 0)).collect::<Result<Vec<_>, _>>()?;
    for socket in &sockets {
        // Those beyond the limit are told, by an ICMP error that may come before the next one is sent.
        let _ = socket.send_to(b"x", endpoint(s.addr(), 9));
    }
    assert!(wait_until(PATIENCE, || common::drops(nat, "subscriber-mappings").is_ok_and(|it| it == 200)));
    assert_eq!(mappings(nat)?.len(), 100);
    Ok(())
}

fn the_end_undoes_everything(end: fn(&Nat) -> Result<(), netns_lab::LabError>) -> Tested {
    let lab = Lab::up("one-nat").nat("N1", "home").nat_args("N1", &["--workers=4"]).start()?;
    let (a, n1, s, nat) = (lab.host("A")?, lab.host("N1")?, lab.host("S")?, lab.nat("N1")?);
    nat.stop()?;
    let clean = (state(a)?, state(n1)?);
    let _echo = Echo::start(s, 7)?;
    for round in 1..=3 {
        nat.start()?;
        // While it works: connections in the middle of their talk.
        let mut streams =
            (0..16).map(|_| connect(a, endpoint(s.addr(), 7))).collect::<Result<Vec<_>, _>>()?;
        for stream in &mut streams {
            exchange(stream, b"hello")?;
        }
        end(nat)?;
        for (host, before) in [(a, &clean.0), (n1, &clean.1)] {
            let mut now = String::new();
            wait_until(PATIENCE, || {
                now = state(host).unwrap_or_default();
                now == *before
            });
            assert!(now == *before, "round {round}: left in {}:{}", host.name(), difference(before, &now));
        }
    }
    Ok(())
}

/// It says so once, whoever of the workers notices.
fn a_removed_uplink_ends_all_of_it() -> Tested {
    let lab = Lab::up("one-nat").nat("N1", "home").start()?;
    let (n1, nat) = (lab.host("N1")?, lab.nat("N1")?);
    let arguments = ["--inside=tun0", "--outside=eth0", "--workers=4"];
    let mut natbox = common::instead_of(nat, n1, &arguments)?;
    text(n1, "ip", &["link", "del", "eth0"])?;
    let status = natbox.wait(PATIENCE)?;
    let said = natbox.said();
    assert_eq!(status.code(), Some(1), "{said}");
    assert_eq!(said.matches("eth0 no longer exists").count(), 1, "{said}");
    Ok(())
}
