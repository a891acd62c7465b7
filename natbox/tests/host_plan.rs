//! What natbox finds out about a machine before it changes anything, and what it says where it cannot do what it was
//! asked for.

#![allow(clippy::unwrap_used)] // a test fails by a panic

mod host_space;

use std::{
    net::{Ipv4Addr, TcpListener},
    process::ExitCode,
};

use host_space::{Net, Space, actor, cable, play, settings, succeeds, trial, with_inside};
use libtest_mimic::Arguments;
use natbox::{
    host::{InsideDevice, Plan},
    settings::{Forward, Settings},
};
use natbox_core::{PortRange, Protocol};

/// The actor that has no privilege.
const UNPRIVILEGED: &str = "plan-without-privilege";

fn main() -> ExitCode {
    if actor().as_deref() == Some(UNPRIVILEGED) {
        return plan_without_privilege();
    }
    let tests: [(&str, fn()); 9] = [
        ("a plan changes nothing", a_plan_changes_nothing),
        ("workers", workers),
        ("interfaces that will not do", bad_interfaces),
        ("namespaces that will not do", bad_namespaces),
        ("addresses that will not do", bad_addresses),
        ("external addresses", external_addresses),
        ("LANs", lans),
        ("missing privileges", missing_privileges),
        ("ports of a shared address", ports_of_a_shared_address),
    ];
    let tests = tests.into_iter().map(|(name, test)| trial(name, test)).collect();
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn a_plan_changes_nothing() {
    let (net, inside) = (Net::new(), Space::new());
    let before = (net.host.state(), inside.state());
    let settings = with_inside(&["tun0", &format!("tun1@{}", inside.path())]);
    let plan = net.plan(&settings).unwrap();
    let text = plan.to_string();
    assert_eq!((net.host.state(), inside.state()), before);
    for part in [
        "outside: eth0, 192.0.2.10/24, MTU 1500, default route by 192.0.2.1",
        "external address: 192.0.2.10, shared with the host",
        "external ports: 1024-32767, the larger part of 1-65535 outside the host's ephemeral 32768-60999",
        "+ guard on eth0: a tcx program, or an nf_tables table",
        "+ TUN device tun0 in this namespace: 10.64.0.2/24, up, MTU 1500",
        "+ TUN device tun1 in namespace /proc/",
        "+ default route by 10.64.1.1 on tun1",
        "use: one program through the NAT: curl --interface tun0",
        "use: behind the NAT: nsenter --net=/proc/",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    assert!(!text.contains("default route by 10.64.0.1"), "{text}");
    assert!(plan.obstacles().is_empty(), "{text}");
    assert!(!text.contains("missing:"), "{text}");
}

fn workers() {
    let net = Net::new();
    for (workers, fact, queues) in [
        ("1", None, "queue 8192,"),
        ("2", Some("workers: 2, among which flows are shared out"), "2 queues of 8192,"),
        ("auto", None, "queue"),
    ] {
        let settings = Settings { workers: workers.parse().unwrap(), ..with_inside(&["tun0"]) };
        let text = net.plan(&settings).unwrap().to_string();
        assert!(text.contains(queues) && fact.is_none_or(|fact| text.contains(fact)), "{workers}: {text}");
        assert_eq!(text.contains("workers:"), settings.workers.count() > 1, "{workers}: {text}");
    }
}

fn bad_interfaces() {
    let net = Net::new();
    let spare = Space::new();
    cable((&net.host, "eth1", ""), (&net.router, "eth1", ""));
    cable((&net.host, "eth2", "10.2.0.1/24"), (&spare, "eth0", ""));
    net.host.ip("link set eth2 down");
    let outside = |name: &str| Settings { outside: name.to_owned(), ..with_inside(&["tun0"]) };
    for (settings, expected) in [
        (outside("eth9"), "there is no interface \"eth9\" here; there are: eth0, eth1, eth2, lo"),
        (outside("eth1"), "eth1 has no IPv4 address to share"),
        (outside("eth2"), "eth2 is down: bring it up with `ip link set eth2 up`"),
        (outside("lo"), "lo is not an Ethernet interface"),
        (with_inside(&["eth1"]), "there is an interface eth1 already in this namespace"),
        (with_inside(&["tun0", "tun0"]), "there is an interface tun0 already in this namespace"),
        (settings("eth0"), "nobody is behind this NAT"),
    ] {
        let refusal = net.refusal(&settings);
        assert!(refusal.contains(expected), "{refusal}");
    }
}

fn bad_namespaces() {
    let (net, taken) = (Net::new(), Space::new());
    taken.ip("link add tun0 type bridge");
    for (inside, expected) in [
        (
            "tun0@no-such-namespace".to_owned(),
            "there is no network namespace \"no-such-namespace\"; there are: ",
        ),
        ("tun0@pid:4194305".to_owned(), "there is no network namespace \"pid:4194305\""),
        ("tun0@/proc/self/ns/user".to_owned(), "\"/proc/self/ns/user\" is not a network namespace"),
        ("tun0@/etc/hostname".to_owned(), "\"/etc/hostname\" is not a network namespace"),
        (format!("tun0@{}", taken.path()), "there is an interface tun0 already in namespace /proc/"),
    ] {
        let refusal = net.refusal(&with_inside(&[&inside]));
        assert!(refusal.contains(expected), "{refusal}");
    }
}

fn bad_addresses() {
    let net = Net::new();
    for (inside, expected) in [
        (
            &["tun0=192.0.2.20/24"][..],
            "the address 192.0.2.20/24 is in use: it is in the network of eth0 in this",
        ),
        (&["tun0=192.0.0.0/16"], "192.0.0.0/16 is the network or broadcast address"),
        (&["tun0=10.0.0.2/24", "tun1=10.0.0.3/24"], "is in use: it is in the network of tun0"),
        (&["tun0=10.0.0.255/24"], "10.0.0.255/24 is the network or broadcast address"),
    ] {
        let refusal = net.refusal(&with_inside(inside));
        assert!(refusal.contains(expected), "{refusal}");
    }
    let listener = net.host.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).unwrap());
    let forward = |protocol, port| {
        let forwards = vec![Forward {
            protocol,
            external_port: port,
            inside: ([10, 64, 0, 2].into(), 80),
            inside_port: None,
        }];
        Settings { forwards, ..with_inside(&["tun0"]) }
    };
    let refusal = net.refusal(&forward(Protocol::Tcp, 8080));
    assert!(
        refusal.contains("tcp port 8080 cannot be forwarded: a socket of this host holds it"),
        "{refusal}"
    );
    net.plan(&forward(Protocol::Udp, 8080)).unwrap();
    let astray = |change: fn(&mut Forward)| {
        let mut settings = forward(Protocol::Udp, 8080);
        settings.forwards.iter_mut().for_each(change);
        net.refusal(&settings)
    };
    let refusal = astray(|forward| forward.inside.0 = [10, 99, 0, 2].into());
    assert!(
        refusal.contains("cannot forward udp:8080=10.99.0.2:80: no inside device has the network"),
        "{refusal}"
    );
    let refusal = astray(|forward| forward.inside_port = Some(1));
    assert!(refusal.contains("no inside device has"), "{refusal}");
    drop(listener);
}

fn external_addresses() {
    let net = Net::new();
    let with = |external: &[([u8; 4], u8)]| {
        let external = external.iter().map(|(address, len)| (Ipv4Addr::from(*address), *len)).collect();
        Settings { external, ..with_inside(&["tun0"]) }
    };
    for (settings, expected) in [
        (
            with(&[([192, 0, 2, 10], 32)]),
            "the address 192.0.2.10 is in use: it is the host's own on eth0; leave --external",
        ),
        (with(&[([192, 0, 2, 8], 29)]), "the address 192.0.2.10 is in use"),
        (
            with(&[([198, 51, 100, 9], 29)]),
            "has host bits: write 198.51.100.9 for the one address or 198.51.100.8/29",
        ),
        (with(&[([10, 0, 0, 0], 8)]), "--external asks for 16777216 addresses: natbox takes 4096"),
        (with(&[([192, 0, 2, 255], 32)]), "192.0.2.255/32 is the network or broadcast address"),
    ] {
        let refusal = net.refusal(&settings);
        assert!(refusal.contains(expected), "{refusal}");
    }
    let wiring =
        net.apply(&with(&[([192, 0, 2, 252], 30), ([198, 51, 100, 8], 31), ([198, 51, 100, 9], 32)]));
    let addresses =
        [[192, 0, 2, 252], [192, 0, 2, 253], [192, 0, 2, 254], [198, 51, 100, 8], [198, 51, 100, 9]];
    assert_eq!(
        wiring.external,
        addresses.map(Ipv4Addr::from),
        "without the link's broadcast address, each once"
    );
    assert_eq!(wiring.owned.len(), 3);
    assert!(!wiring.shared && wiring.port_range.is_none());
    // An interface without an address will do then.
    net.host.ip("addr flush dev eth0");
    let settings = Settings { inside: with_inside(&["tun1"]).inside, ..with(&[([192, 0, 2, 10], 32)]) };
    assert_eq!(net.apply(&settings).external, [Ipv4Addr::new(192, 0, 2, 10)]);
}

fn lans() {
    let (net, lan, bare) = (Net::new(), Space::new(), Space::new());
    cable((&net.host, "eth1", "10.1.0.1/24"), (&lan, "eth0", "10.1.0.2/24"));
    cable((&net.host, "eth2", ""), (&bare, "eth0", ""));
    let with = |lans: &[&str]| Settings {
        lan: lans.iter().map(|lan| lan.parse().unwrap()).collect(),
        ..settings("eth0")
    };
    for (settings, expected) in [
        (with(&["eth0"]), "eth0 is given twice: as --outside and as --lan"),
        (with(&["eth1", "eth1"]), "eth1 is given twice"),
        (
            with(&["eth2"]),
            "eth2 has no IPv4 address to share: give it one with `ip addr add ADDR/LEN dev eth2`",
        ),
        (with(&["eth1=10.1.0.1/24"]), "write --lan without =ADDR/LEN to share"),
        (with(&["eth1=192.0.2.10/24"]), "it is the host's own on eth0"),
        (with(&["eth1=10.1.0.255/24"]), "network or broadcast address"),
    ] {
        let refusal = net.refusal(&settings);
        assert!(refusal.contains(expected), "{refusal}");
    }
    let before = net.host.state();
    let wiring = net.apply(&with(&["eth1", "eth2=10.2.0.1/24"]));
    let sides: Vec<_> = wiring
        .inside
        .iter()
        .map(|device| match device {
            InsideDevice::Lan { interface, gateway, shared, prefix_len } => {
                (interface.name.as_str(), gateway.octets(), *shared, *prefix_len)
            }
            InsideDevice::Tun { .. } => panic!("{device:?}"),
        })
        .collect();
    assert_eq!(sides, [("eth1", [10, 1, 0, 1], true, 24), ("eth2", [10, 2, 0, 1], false, 24)]);
    assert_eq!(net.host.state(), before, "a LAN needs no change of the host");
    assert!(wiring.usage[0].contains("ip route add default via 10.1.0.1"));
}

fn missing_privileges() {
    let net = Net::new();
    // Root of a user namespace that the network namespace does not belong to.
    let mut command = net.host.command("unshare");
    command.args(["--user", "--map-root-user"]).arg(std::env::current_exe().unwrap());
    succeeds(play(command, UNPRIVILEGED));
    // Nobody special.
    let mut command = net.host.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(std::env::current_exe().unwrap());
    succeeds(play(command, UNPRIVILEGED));
}

fn plan_without_privilege() -> ExitCode {
    // Anybody may ask for the plan; nobody may carry it out.
    let plan = Plan::new(&with_inside(&["tun0"])).unwrap();
    let text = plan.to_string();
    assert!(
        text.contains("missing: natbox lacks CAP_NET_ADMIN, CAP_NET_RAW over this network namespace"),
        "{text}"
    );
    let error = plan.apply().unwrap_err().to_string();
    assert!(error.ends_with("run it with sudo"), "{error}");
    let error = Plan::new(&with_inside(&["tun0@/proc/1/ns/net"])).unwrap_err().to_string();
    assert!(error.contains("no permission to enter the network namespace \"/proc/1/ns/net\""), "{error}");
    ExitCode::SUCCESS
}

fn ports_of_a_shared_address() {
    let net = Net::new();
    let mut number = 0;
    let mut range = |low: &str, configured: (u16, u16)| {
        net.host.sysctl("net/ipv4/ip_local_port_range", low);
        number += 1;
        let mut settings = with_inside(&[&format!("tun{number}")]);
        settings.behavior.port_range = PortRange::new(configured.0, configured.1).unwrap();
        let wiring = net.apply(&settings);
        (wiring.port_range.map(|range| (range.first(), range.last())), wiring.warnings.concat())
    };
    assert_eq!(range("32768 60999", (1, 65535)).0, Some((1024, 32767)));
    assert_eq!(range("10000 20000", (1, 65535)).0, Some((20001, 65535)));
    assert_eq!(range("32768 60999", (50000, 62000)).0, Some((61000, 62000)));
    let (none, warning) = range("1024 65535", (1, 65535));
    assert_eq!(none, None);
    assert!(warning.contains("leaves none of 1-65535"), "{warning}");
}
