//! What natbox is, judged from outside: every behaviour that can be configured is found again by a probe that knows
//! nothing of the configuration.

mod common;

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use common::{EXTERNAL, OWN, PATIENCE, Tested, endpoint, mappings, reflector, udp};
use netns_lab::harness::{self, Test};
use netns_lab::probe::{self, Classification, Filtering, Hairpin, Mapping, PortAssignment, Source, Timing};
use netns_lab::{Host, Lab};

const MAPPINGS: [Mapping; 3] =
    [Mapping::EndpointIndependent, Mapping::AddressDependent, Mapping::AddressAndPortDependent];
const FILTERINGS: [Filtering; 3] =
    [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent];

fn main() -> ExitCode {
    let mut tests = Vec::new();
    for mapping in MAPPINGS {
        for filtering in FILTERINGS {
            let name = format!("pair_{}_{}_is_seen", mapping.short(), filtering.short());
            tests.push(Test::new(name, move || pair_is_seen(mapping, filtering)));
        }
    }
    for hairpin in [Hairpin::Off, Hairpin::InternalSource, Hairpin::ExternalSource] {
        let name = format!("hairpin_{}_is_seen", word(hairpin));
        tests.push(Test::new(name, move || hairpin_is_seen(hairpin)));
    }
    tests.push(Test::new("a_preserved_port_is_seen", || port_policy_is_seen("preserve")));
    tests.push(Test::new("sequential_ports_are_seen", || port_policy_is_seen("sequential")));
    tests.push(Test::new("random_ports_are_seen", || port_policy_is_seen("random")));
    tests.push(Test::new("parity_and_range_are_kept", parity_and_range_are_kept));
    tests.push(Test::new("two_hosts_that_want_one_port", two_hosts_that_want_one_port));
    tests.push(Test::new("linux_looks_like_the_kernel", linux_looks_like_the_kernel));
    tests.push(
        Test::new("a_fully_random_kernel_is_symmetric", a_fully_random_kernel_is_symmetric).without_tun(),
    );
    harness::main(tests)
}

fn word(hairpin: Hairpin) -> &'static str {
    match hairpin {
        Hairpin::Off => "off",
        Hairpin::InternalSource => "internal",
        Hairpin::ExternalSource => "external",
        Hairpin::Unobservable => unreachable!("no NAT is configured so"),
    }
}

/// Both protocols, from A.
fn classify(lab: &Lab) -> Result<[Classification; 2], Box<dyn std::error::Error + Send + Sync>> {
    let reflector = reflector(lab)?;
    let (a, endpoints) = (lab.host("A")?, reflector.endpoints());
    let local = IpAddr::from(a.addr());
    let udp = a.run(|| probe::udp(endpoints, local))??;
    let tcp = a.run(|| probe::tcp(endpoints, local))??;
    Ok([udp, tcp])
}

/// With random and then with sequential ports: a preserved port would make every mapping look endpoint-independent.
/// The first NAT starts as what it is to be, the second becomes it while it runs.
fn pair_is_seen(mapping: Mapping, filtering: Filtering) -> Tested {
    let axes = [format!("--mapping={}", mapping.short()), format!("--filtering={}", filtering.short())];
    let lab = Lab::up("one-nat")
        .nat("N1", "full-cone")
        .nat_args("N1", &["--ports=random", "--port-class=off"])
        .nat_args("N1", &axes)
        .start()?;
    let nat = lab.nat("N1")?;
    let judge = |class: &Classification, ports: fn(PortAssignment) -> bool| {
        assert_eq!((class.mapping, class.filtering), (mapping, filtering), "{class}");
        assert!(class.translated && ports(class.ports), "{class}");
        assert_eq!(class.external, [IpAddr::from(nat.addr())], "{class}");
    };
    for class in classify(&lab)? {
        judge(&class, |ports| ports == PortAssignment::Random);
    }
    nat.set(&["--nat", "symmetric-sequential"])?;
    nat.set(&axes.each_ref().map(String::as_str))?;
    nat.flush()?;
    for class in classify(&lab)? {
        judge(&class, |ports| ports == PortAssignment::Sequential { step: 1 });
    }
    Ok(())
}

/// By two hosts behind one NAT, and by the probe's own two sockets on one host.
fn hairpin_is_seen(hairpin: Hairpin) -> Tested {
    let flag = format!("--hairpin={}", word(hairpin));
    let lab = Lab::up("hairpin").nat("N1", "port-restricted").nat_args("N1", &[flag]).start()?;
    let reflector = reflector(&lab)?;
    let (a, b) = (lab.host("A")?, lab.host("B")?);
    let (from_a, from_b) = (udp(a, 0)?, udp(b, 0)?);
    assert_eq!(probe::udp_hairpin(reflector.endpoints(), &from_a, &from_b)?, hairpin, "UDP, two hosts");

    let local = |host: &Host| IpAddr::from(host.addr());
    let seen = a.run(|| probe::udp(reflector.endpoints(), local(a)))??;
    assert_eq!(seen.hairpin, hairpin, "{seen}");
    let seen = b.run(|| probe::tcp(reflector.endpoints(), local(b)))??;
    assert_eq!(seen.hairpin, hairpin, "{seen}");

    // Two hosts call each other's external endpoint at once. With the internal source each call is answered by a
    // stranger, so that nothing comes of it.
    let mapping = |host: &Host| host.run(|| probe::tcp_mapping(reflector.endpoints(), local(host)));
    let (at_a, at_b) = (mapping(a)??, mapping(b)??);
    let (within, to_b) =
        (if hairpin == Hairpin::ExternalSource { PATIENCE } else { common::SECOND }, at_b.external);
    let local_a = at_a.local;
    let calling = a.start(move || probe::tcp_simultaneous_open(local_a, to_b, within))?;
    let called = b.run(|| probe::tcp_simultaneous_open(at_b.local, at_a.external, within))?;
    let met = calling.join().is_ok() && called.is_ok();
    assert_eq!(met, hairpin == Hairpin::ExternalSource, "TCP, two hosts: {called:?}");
    Ok(())
}

/// On an address of natbox's own: a shared one would leave the host's ephemeral range out, from which A draws its ports.
fn port_policy_is_seen(policy: &str) -> Tested {
    let ports = format!("--ports={policy}");
    let lab = Lab::up("one-nat").nat("N1", "full-cone").nat_args("N1", &[EXTERNAL, &ports]).start()?;
    for class in classify(&lab)? {
        let as_configured = match (policy, class.ports) {
            ("preserve", PortAssignment::Preserve) | ("random", PortAssignment::Random) => true,
            ("sequential", PortAssignment::Sequential { step }) => step == 1,
            _ => false,
        };
        assert!(as_configured, "{policy}: {class}");
        assert_eq!(class.external, [IpAddr::from(OWN)], "{class}");
    }
    let nat = lab.nat("N1")?;
    nat.set(&["--ports", "sequential", "--port-step", "7", "--nat", "symmetric"])?;
    for class in classify(&lab)? {
        assert_eq!(class.ports, PortAssignment::Sequential { step: 7 }, "{class}");
    }
    Ok(())
}

fn parity_and_range_are_kept() -> Tested {
    let lab = Lab::up("one-nat")
        .nat("N1", "symmetric")
        .nat_args("N1", &["--port-parity=on", "--port-range=20000-20999"])
        .start()?;
    let reflector = reflector(&lab)?;
    let a = lab.host("A")?;
    let timing = Timing { samples: 40, ..Timing::default() };
    let local = a.addr().into();
    for class in [
        a.run(|| probe::udp_with(reflector.endpoints(), local, timing))??,
        a.run(|| probe::tcp_with(reflector.endpoints(), local, timing))??,
    ] {
        assert!(class.parity_kept, "{class} {:?}", class.evidence.ports);
        let outside = class.evidence.ports.iter().find(|(_, external)| !(20_000..=20_999).contains(external));
        assert_eq!(outside, None, "{class}");
    }
    Ok(())
}

/// A and B both send from port 5000.
fn two_hosts_that_want_one_port() -> Tested {
    type Second = fn(u16) -> bool;
    let policies: [(&str, Second); 2] =
        [("preserve", |port| port == 5001), ("preserve-or-random", |port| port != 5000)];
    for (policy, second) in policies {
        let flags = [EXTERNAL, &format!("--ports={policy}")];
        let lab = Lab::up("hairpin").nat("N1", "full-cone").nat_args("N1", &flags).start()?;
        let reflector = reflector(&lab)?;
        let seen = |host: &Host| -> Result<SocketAddr, Box<dyn std::error::Error + Send + Sync>> {
            Ok(probe::udp_mapping(reflector.endpoints(), &udp(host, 5000)?, Source::Same)?)
        };
        assert_eq!(seen(lab.host("A")?)?, endpoint(OWN, 5000), "{policy}");
        let other = seen(lab.host("B")?)?;
        assert!(other.ip() == IpAddr::from(OWN) && second(other.port()), "{policy}: B became {other}");
        assert_eq!(mappings(lab.nat("N1")?)?.len(), 2);
    }
    Ok(())
}

/// The same probe judges the kernel's masquerade as it is known to be, and the preset that is named after it no
/// differently.
fn linux_looks_like_the_kernel() -> Tested {
    let kernel = classify(&Lab::up("one-nat").nat("N1", "kernel").start()?)?;
    let natbox = classify(&Lab::up("one-nat").nat("N1", "linux").nat_args("N1", &[EXTERNAL]).start()?)?;
    for (kernel, natbox) in kernel.iter().zip(&natbox) {
        // A mapping for each destination, which nobody can see while every one of them keeps the port.
        assert_eq!(kernel.mapping, Mapping::EndpointIndependent, "{kernel}");
        assert_eq!(kernel.filtering, Filtering::AddressAndPortDependent, "{kernel}");
        assert_eq!(kernel.ports, PortAssignment::Preserve, "{kernel}");
        assert_eq!(kernel.hairpin, Hairpin::Off, "{kernel}");
        let all = |class: &Classification| (class.mapping, class.filtering, class.ports, class.hairpin);
        assert_eq!(all(natbox), all(kernel), "natbox: {natbox}\nkernel: {kernel}");
    }
    Ok(())
}

fn a_fully_random_kernel_is_symmetric() -> Tested {
    for class in classify(&Lab::up("one-nat").nat("N1", "kernel,fully-random").start()?)? {
        assert_eq!(class.mapping, Mapping::AddressAndPortDependent, "{class}");
        assert_eq!(class.filtering, Filtering::AddressAndPortDependent, "{class}");
        assert_eq!(class.ports, PortAssignment::Random, "{class}");
    }
    Ok(())
}
