//! The probe against NATs whose behaviour is known beforehand: the kernel's own, by nftables rules.
//!
//! ```text
//!   C ──────────── G ──────────── S
//!   10.0.0.2       │   203.0.113.1, 203.0.113.2 (reflector)
//!           10.0.0.1, 203.0.113.9
//! ```
//!
//! Without rules G only routes. Needs root, ip and nft.
#![allow(clippy::unwrap_used, reason = "all of this file is test code, its helpers too")]

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use netns_lab::probe::{
    self, Classification, Endpoints, Filtering, Hairpin, Mapping, Outcome, PortAssignment, ProbeError,
    Reflector, Source,
};

const CLIENT: &str = "10.0.0.2";
const OUTSIDE: &str = "203.0.113.9";
const PORTS: [u16; 2] = [3478, 3479];

const MASQUERADE: &str = "table ip t {
    chain post { type nat hook postrouting priority srcnat; oifname wan masquerade; }
}";

const MASQUERADE_RANDOM: &str = "table ip t {
    chain post { type nat hook postrouting priority srcnat; oifname wan masquerade random,fully-random; }
}";

/// As [`MASQUERADE`], and everything that is new from outside goes to the client.
const FULL_CONE: &str = "table ip t {
    chain pre { type nat hook prerouting priority dstnat; iifname wan dnat to 10.0.0.2; }
    chain post { type nat hook postrouting priority srcnat; oifname wan masquerade; }
}";

/// The local port is kept, so address and local port are all that address-dependent filtering needs to know.
const ADDRESS_RESTRICTED: &str = "table ip t {
    set sent_to { type ipv4_addr . inet_proto . inet_service; flags dynamic; size 65535; }
    chain pre {
        type nat hook prerouting priority dstnat;
        iifname wan ip saddr . ip protocol . th dport @sent_to dnat to 10.0.0.2
    }
    chain forwarded {
        type filter hook forward priority filter;
        oifname wan add @sent_to { ip daddr . ip protocol . th sport }
    }
    chain post { type nat hook postrouting priority srcnat; oifname wan masquerade; }
}";

/// The kernel reuses a source mapping when it fits the range, and the ranges differ by address.
const BY_ADDRESS: &str = "table ip t {
    chain post {
        type nat hook postrouting priority srcnat;
        ip daddr 203.0.113.1 meta l4proto { tcp, udp } snat to 203.0.113.9:10000-19999
        ip daddr 203.0.113.2 meta l4proto { tcp, udp } snat to 203.0.113.9:20000-29999
    }
}";

const HAIRPIN_EXTERNAL: &str = "table ip t {
    chain pre { type nat hook prerouting priority dstnat; ip daddr 203.0.113.9 dnat to 10.0.0.2; }
    chain post {
        type nat hook postrouting priority srcnat;
        oifname wan masquerade
        oifname lan ip saddr 10.0.0.2 snat to 203.0.113.9
    }
}";

const HAIRPIN_INTERNAL: &str = "table ip t {
    chain pre { type nat hook prerouting priority dstnat; ip daddr 203.0.113.9 dnat to 10.0.0.2; }
    chain post { type nat hook postrouting priority srcnat; oifname wan masquerade; }
}";

const SILENT: &str = "table ip guard {
    chain input {
        type filter hook input priority filter;
        iifname wan ct state new drop
    }
}";

#[test]
fn without_a_nat_everything_is_endpoint_independent() {
    for class in classify_both("") {
        assert_class(&class, Mapping::EndpointIndependent, Filtering::EndpointIndependent);
        assert!(!class.translated, "{class}");
        assert_eq!(class.ports, PortAssignment::Preserve, "{class}");
        assert_eq!(class.hairpin, Hairpin::Unobservable, "{class}");
        assert_eq!(class.external, [ip(CLIENT)], "{class}");
    }
}

#[test]
fn masquerade_keeps_ports_and_filters_by_address_and_port() {
    let [udp, tcp] = classify_both(MASQUERADE);
    for class in [&udp, &tcp] {
        assert_class(class, Mapping::EndpointIndependent, Filtering::AddressAndPortDependent);
        assert!(class.translated && class.parity_kept, "{class}");
        assert_eq!(class.ports, PortAssignment::Preserve, "{class}");
        assert_eq!(class.hairpin, Hairpin::Off, "{class}");
        assert_eq!(class.external, [ip(OUTSIDE)], "{class}");
    }
    // The gateway's own stack answers what the NAT does not know.
    assert!(tcp.evidence.foreign.iter().all(|(_, outcome)| *outcome == Outcome::Refused), "{tcp}");
}

#[test]
fn a_gateway_without_an_answer_drops_foreign_connects() {
    let lab = Lab::new(&format!("{MASQUERADE}\n{SILENT}"));
    let tcp = lab.tcp().unwrap();
    assert_class(&tcp, Mapping::EndpointIndependent, Filtering::AddressAndPortDependent);
    assert!(tcp.evidence.foreign.iter().all(|(_, outcome)| *outcome == Outcome::Dropped), "{tcp}");
    assert_eq!(tcp.hairpin, Hairpin::Off, "{tcp}");
}

#[test]
fn masquerade_fully_random_maps_by_address_and_port() {
    for class in classify_both(MASQUERADE_RANDOM) {
        assert_class(&class, Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent);
        assert_eq!(class.ports, PortAssignment::Random, "{class}");
        assert_eq!(class.hairpin, Hairpin::Unobservable, "{class}");
    }
}

#[test]
fn forwarding_all_filters_nothing() {
    for class in classify_both(FULL_CONE) {
        assert_class(&class, Mapping::EndpointIndependent, Filtering::EndpointIndependent);
        assert_eq!(class.hairpin, Hairpin::Off, "{class}");
    }
}

#[test]
fn forwarding_by_address_is_address_dependent_filtering() {
    for class in classify_both(ADDRESS_RESTRICTED) {
        assert_class(&class, Mapping::EndpointIndependent, Filtering::AddressDependent);
    }
}

#[test]
fn a_port_range_for_each_address_is_address_dependent_mapping() {
    for class in classify_both(BY_ADDRESS) {
        assert_class(&class, Mapping::AddressDependent, Filtering::AddressAndPortDependent);
        assert_ne!(class.ports, PortAssignment::Preserve, "{class}");
    }
}

#[test]
fn hairpin_with_external_source() {
    for class in classify_both(HAIRPIN_EXTERNAL) {
        assert_class(&class, Mapping::EndpointIndependent, Filtering::EndpointIndependent);
        assert_eq!(class.hairpin, Hairpin::ExternalSource, "{class}");
    }
}

#[test]
fn hairpin_with_internal_source_is_seen_although_the_kernel_drops_it() {
    for class in classify_both(HAIRPIN_INTERNAL) {
        assert_eq!(class.hairpin, Hairpin::InternalSource, "{class}");
    }
}

#[test]
fn hairpin_between_sockets_of_the_caller() {
    for (rules, expected) in
        [(HAIRPIN_EXTERNAL, Hairpin::ExternalSource), (MASQUERADE, Hairpin::Off), ("", Hairpin::Unobservable)]
    {
        let lab = Lab::new(rules);
        let [a, b] = [(); 2].map(|()| lab.run("c", || UdpSocket::bind((CLIENT, 0)).unwrap()));
        // Sockets carry their namespace with them: asked from outside of it.
        assert_eq!(probe::udp_hairpin(lab.endpoints(), &a, &b).unwrap(), expected, "{rules}");
        let external = probe::udp_mapping(lab.endpoints(), &a, Source::Both).unwrap();
        let address = if rules.is_empty() { CLIENT } else { OUTSIDE };
        assert_eq!(external, SocketAddr::new(ip(address), a.local_addr().unwrap().port()));
    }
}

#[test]
fn a_reflector_that_is_not_there_is_an_error_within_the_deadline() {
    let lab = Lab::new(MASQUERADE);
    let nowhere = Endpoints::new([ip("203.0.113.1"), ip("203.0.113.2")], [9, 10]).unwrap();
    let timing = probe::Timing { answer: Duration::from_millis(300), ..Default::default() };
    let begun = Instant::now();
    let udp = lab.run("c", || probe::udp_with(nowhere, ip(CLIENT), timing)).unwrap_err();
    assert!(matches!(udp, ProbeError::NoAnswer { .. }), "{udp}");
    let tcp = lab.run("c", || probe::tcp_with(nowhere, ip(CLIENT), timing)).unwrap_err();
    assert!(matches!(tcp, ProbeError::Socket { .. }), "{tcp}");
    assert!(begun.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_reflector_frees_its_endpoints_when_dropped() {
    let mut lab = Lab::new("");
    for _ in 0..3 {
        lab.reflector = None;
        lab.reflector = Some(lab.run("s", || Reflector::start(public(), PORTS)).unwrap());
    }
    let taken = lab.run("s", || Reflector::start(public(), PORTS)).unwrap_err();
    assert!(taken.to_string().contains("cannot bind a UDP socket to 203.0.113.1:3478"), "{taken}");
    let absent = lab.run("c", || Reflector::start(public(), PORTS)).unwrap_err();
    assert!(matches!(absent, ProbeError::Socket { .. }), "{absent}");
}

#[test]
fn simultaneous_open_between_a_natted_and_a_public_host() {
    let lab = Lab::new(&format!("{MASQUERADE}\n{SILENT}"));
    let mapping = lab.run("c", || probe::tcp_mapping(lab.endpoints(), ip(CLIENT))).unwrap();
    assert_eq!(mapping.external.ip(), ip(OUTSIDE));
    let public = SocketAddr::new(ip("203.0.113.1"), 40_000);
    assert_meet(&lab, ("c", mapping.local, mapping.external), ("s", public, public));
}

/// Neither side listens, and each NAT drops the SYN that comes before its own host's.
#[test]
fn simultaneous_open_through_two_nats() {
    let rules = format!("{MASQUERADE}\n{SILENT}");
    let lab = Lab::new(&rules);
    lab.add_second_nat(&rules);
    let learn = |host, local| lab.run(host, || probe::tcp_mapping(lab.endpoints(), ip(local)).unwrap());
    let (near, far) = (learn("c", CLIENT), learn("d", "10.0.1.2"));
    assert_eq!((near.external.ip(), far.external.ip()), (ip(OUTSIDE), ip("198.51.100.9")));
    assert_meet(&lab, ("c", near.local, near.external), ("d", far.local, far.external));
    let nobody = SocketAddr::new(ip("203.0.113.1"), 9);
    let within = Duration::from_millis(100);
    let refused = lab.run("c", || probe::tcp_simultaneous_open(near.local, nobody, within)).unwrap_err();
    assert!(refused.to_string().contains("refused"), "{refused}");
}

#[test]
fn one_packet_lost_in_twenty_changes_no_verdict() {
    let loss = "table ip loss {
        chain forward { type filter hook forward priority filter; numgen random mod 20 == 0 drop; }
    }";
    // A positive is missed when it is lost in every round, and TCP takes whole seconds for some losses: five rounds and
    // ten seconds make a wrong verdict rarer than one in 10,000 runs.
    let timing =
        probe::Timing { rounds: 5, samples: 4, answer: Duration::from_secs(10), ..Default::default() };
    for (rules, filtering) in
        [(FULL_CONE, Filtering::EndpointIndependent), (MASQUERADE, Filtering::AddressAndPortDependent)]
    {
        let lab = Lab::new(&format!("{rules}\n{loss}"));
        let classes = lab.run("c", || {
            let (at, local) = (lab.endpoints(), ip(CLIENT));
            [probe::udp_with(at, local, timing).unwrap(), probe::tcp_with(at, local, timing).unwrap()]
        });
        for class in classes {
            assert_class(&class, Mapping::EndpointIndependent, filtering);
        }
    }
}

#[test]
fn fifty_thousand_flows_stay_open() {
    let lab = Lab::new(MASQUERADE);
    const COUNT: usize = 50_000;
    let report = lab.run("c", || probe::flows(lab.endpoints(), ip(CLIENT), COUNT)).unwrap();
    assert_eq!(report.to_string(), "50000 flows: 50000 opened, 50000 answered again, 0 moved");
    let kept = report.flows.iter().filter(|f| f.opened_as.unwrap().port() == f.local.port()).count();
    assert_eq!(kept, COUNT);
    let impossible = lab.run("c", || probe::flows(lab.endpoints(), ip(CLIENT), 70_000)).unwrap_err();
    assert!(matches!(impossible, ProbeError::TooFewPorts { .. }), "{impossible}");
}

#[test]
fn flows_that_are_cut_off_are_counted() {
    let lab = Lab::new(MASQUERADE);
    let report = lab.run("c", || {
        let mut flows = probe::Flows::open(lab.endpoints(), ip(CLIENT), 100).unwrap();
        run_command("ip", &["-n", &lab.name("g"), "link", "set", "wan", "down"], "");
        flows.check().unwrap()
    });
    assert_eq!((report.opened, report.answered_again), (100, 0), "{report}");
}

fn classify_both(rules: &str) -> [Classification; 2] {
    let lab = Lab::new(rules);
    [lab.udp().unwrap(), lab.tcp().unwrap()]
}

/// Each end is a host, its local and its external endpoint.
fn assert_meet(lab: &Lab, one: (&str, SocketAddr, SocketAddr), other: (&str, SocketAddr, SocketAddr)) {
    let open = |host, local, remote| {
        lab.run(host, || probe::tcp_simultaneous_open(local, remote, Duration::from_secs(20))).unwrap()
    };
    std::thread::scope(|scope| {
        let far = scope.spawn(|| open(other.0, other.1, one.2));
        let mut near = open(one.0, one.1, other.2);
        near.write_all(b"over").unwrap();
        drop(near);
        assert_eq!(std::io::read_to_string(far.join().unwrap()).unwrap(), "over");
    });
}

#[track_caller]
fn assert_class(class: &Classification, mapping: Mapping, filtering: Filtering) {
    assert_eq!((class.mapping, class.filtering), (mapping, filtering), "{class}\n{:?}", class.evidence);
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn public() -> [IpAddr; 2] {
    [ip("203.0.113.1"), ip("203.0.113.2")]
}

/// The three namespaces, and the reflector in S. All gone when dropped.
struct Lab {
    prefix: String,
    reflector: Option<Reflector>,
}

impl Lab {
    fn new(rules: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces: run it as root");
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("probe-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut lab = Self { prefix, reflector: None };
        let (c, g, s) = (lab.name("c"), lab.name("g"), lab.name("s"));
        for host in [&c, &g, &s] {
            run_command("ip", &["netns", "add", host], "");
        }
        ip_batch(
            &g,
            &format!(
                "link add lan type veth peer name eth0 netns {c}\nlink add wan type veth peer name eth0 netns {s}\n\
             addr add 10.0.0.1/24 dev lan\naddr add 203.0.113.9/24 dev wan\n\
             link set lo up\nlink set lan up\nlink set wan up"
            ),
        );
        ip_batch(
            &c,
            "addr add 10.0.0.2/24 dev eth0\nlink set lo up\nlink set eth0 up\nroute add default via 10.0.0.1",
        );
        ip_batch(
            &s,
            "addr add 203.0.113.1/24 dev eth0\naddr add 203.0.113.2/24 dev eth0\n\
             link set lo up\nlink set eth0 up\nroute add 10.0.0.0/24 via 203.0.113.9",
        );
        lab.run("g", || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
        if !rules.is_empty() {
            run_command("ip", &["netns", "exec", &g, "nft", "-f", "-"], rules);
        }
        lab.reflector = Some(lab.run("s", || Reflector::start(public(), PORTS)).unwrap());
        lab
    }

    /// D — H beside C — G: S routes between the two NATs, D is 10.0.1.2 behind 198.51.100.9.
    fn add_second_nat(&self, rules: &str) {
        let (d, h, s) = (self.name("d"), self.name("h"), self.name("s"));
        for host in [&d, &h] {
            run_command("ip", &["netns", "add", host], "");
        }
        ip_batch(
            &h,
            &format!(
                "link add lan type veth peer name eth0 netns {d}\nlink add wan type veth peer name eth1 netns {s}\n\
                 addr add 10.0.1.1/24 dev lan\naddr add 198.51.100.9/24 dev wan\n\
                 link set lan up\nlink set wan up\nroute add default via 198.51.100.1"
            ),
        );
        ip_batch(&d, "addr add 10.0.1.2/24 dev eth0\nlink set eth0 up\nroute add default via 10.0.1.1");
        ip_batch(&s, "addr add 198.51.100.1/24 dev eth1\nlink set eth1 up");
        ip_batch(&self.name("g"), "route add default via 203.0.113.1");
        for router in ["h", "s"] {
            self.run(router, || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
        }
        run_command("ip", &["netns", "exec", &h, "nft", "-f", "-"], rules);
    }

    fn name(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    fn endpoints(&self) -> Endpoints {
        self.reflector.as_ref().unwrap().endpoints()
    }

    fn udp(&self) -> Result<Classification, ProbeError> {
        self.run("c", || probe::udp(self.endpoints(), ip(CLIENT)))
    }

    fn tcp(&self) -> Result<Classification, ProbeError> {
        self.run("c", || probe::tcp(self.endpoints(), ip(CLIENT)))
    }

    /// Runs `work` on a thread in the host's namespace.
    fn run<T: Send>(&self, host: &str, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.name(host));
        let (send, receive) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                nix::sched::setns(File::open(path).unwrap(), nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                send.send(work()).unwrap();
            });
            receive.recv().unwrap()
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.reflector = None;
        for host in ["c", "g", "s", "d", "h"] {
            // Two belong to one test only, and others may be missing if making them failed.
            let _ =
                Command::new("ip").args(["netns", "del", &self.name(host)]).stderr(Stdio::null()).status();
        }
    }
}

fn ip_batch(host: &str, lines: &str) {
    run_command("ip", &["-n", host, "-batch", "-"], lines);
}

fn run_command(program: &str, args: &[&str], input: &str) {
    let mut child = Command::new(program).args(args).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let status = child.wait().unwrap();
    assert!(status.success(), "{program} {}: {status}\n{input}", args.join(" "));
}
