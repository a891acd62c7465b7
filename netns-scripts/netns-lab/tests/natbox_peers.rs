//! Programs that others wrote, through natbox: iperf3, curl, traceroute, and coturn's idea of what a NAT is.

mod common;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

use common::tools::{Content, Scratch, run, text, traceroute};
use common::{EXTERNAL, PATIENCE, Tested, endpoint};
use netns_lab::harness::{self, Test};
use netns_lab::probe::{self, Filtering, Mapping, Reflector};
use netns_lab::{Lab, LabError, Nat, Process, wait_until};
use serde_json::Value;

const MAPPINGS: [Mapping; 3] =
    [Mapping::EndpointIndependent, Mapping::AddressDependent, Mapping::AddressAndPortDependent];
const FILTERINGS: [Filtering; 3] =
    [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent];

fn main() -> ExitCode {
    let mut tests = vec![
        Test::new("iperf3_tcp_down", || iperf3_tcp(&["-R"])),
        Test::new("iperf3_tcp_up", || iperf3_tcp(&[])),
        Test::new("iperf3_tcp_four_flows", || iperf3_tcp(&["-R", "-P", "4"])),
        Test::new("iperf3_udp", iperf3_udp),
        Test::new("curl_fetches_what_is_there", curl_fetches_what_is_there),
        Test::new("traceroute_sees_what_it_sees_through_the_kernel", traceroute_as_through_the_kernel),
        Test::new("natdiscovery_cannot_see_behind_a_preserved_port", natdiscovery_and_a_preserved_port),
        Test::new("natdiscovery_sees_hairpinning_only_without_a_filter", natdiscovery_and_hairpinning),
        Test::new("natdiscovery_takes_a_lost_datagram_for_a_filter", natdiscovery_and_a_lost_datagram),
    ];
    for mapping in MAPPINGS {
        for filtering in FILTERINGS {
            let name = format!("natdiscovery_agrees_on_{}_{}", mapping.short(), filtering.short());
            tests.push(Test::new(name, move || natdiscovery_agrees(mapping, filtering)));
        }
    }
    harness::main(tests)
}

/// A counter of natbox's: packets, or bytes of IP packets.
fn counted(nat: &Nat, counter: &str) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
    Ok(nat.show()?["counters"][counter].as_u64().ok_or(format!("no counter {counter}"))?)
}

/// A server in S and its client in A, which reports in JSON.
fn iperf3(lab: &Lab, arguments: &[&str]) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
    let s = lab.host("S")?;
    let mut server = s.spawn("iperf3", &["-s", "-1", "--forceflush"])?;
    server.wait_for("Server listening", PATIENCE)?;
    let to = s.addr().to_string();
    let said = text(lab.host("A")?, "iperf3", &[&["-J", "-c", to.as_str()], arguments].concat())?;
    Ok(serde_json::from_str(&said)?)
}

/// With `-R` the client receives, and knows all that came. The other way round the server ends the test as soon as the
/// client says that it is done, while the last bytes are still under way (without any NAT, too): what it has counted by
/// then must have crossed natbox. That nothing is missing or changed is for `natbox_offload` to show.
fn iperf3_tcp(arguments: &[&str]) -> Tested {
    const LENGTH: u64 = 64 << 20;
    let lab = Lab::up("one-nat").nat("N1", "symmetric").start()?;
    let nat = lab.nat("N1")?;
    let report = iperf3(&lab, &[&["-n", "64M"], arguments].concat())?;
    let sum = |which: &str| report["end"][which]["bytes"].as_u64().unwrap_or_default();
    let (sent, received) = (sum("sum_sent"), sum("sum_received"));
    let (least, counter) =
        if arguments.contains(&"-R") { (LENGTH, "inbound-bytes") } else { (LENGTH / 2, "outbound-bytes") };
    assert!(sent >= LENGTH && (least..=sent).contains(&received), "{received} of {sent} bytes");
    // Headers and retransmissions come on top; super-frames have one header for many segments.
    let counted = counted(nat, counter)?;
    assert!(
        (received..LENGTH + LENGTH / 5).contains(&counted),
        "{received} bytes arrived, natbox counted {counted}"
    );
    assert_eq!(dropped(nat)?, 0, "{}", nat.control(&["show", "--ports"])?);
    Ok(())
}

/// Packets that the engine dropped, for whatever reason.
fn dropped(nat: &Nat) -> Result<u64, LabError> {
    let state = nat.show()?;
    Ok(state["drops"].as_object().map_or(0, |drops| drops.values().filter_map(Value::as_u64).sum()))
}

/// What a receiver that is held up loses is its own loss; natbox passes on every datagram.
fn iperf3_udp() -> Tested {
    for (direction, counter) in [(&[][..], "outbound-packets"), (&["-R"][..], "inbound-packets")] {
        let lab = Lab::up("one-nat").nat("N1", "symmetric").start()?;
        let nat = lab.nat("N1")?;
        let report = iperf3(&lab, &[&["-u", "-b", "20M", "-l", "1200", "-n", "2M"], direction].concat())?;
        let of = |which: &str, what: &str| report["end"][which][what].as_u64().unwrap_or_default();
        let sent = of("sum_sent", "packets");
        let arrived = of("sum_received", "packets") - of("sum_received", "lost_packets");
        assert!(sent * 1200 >= 2 << 20 && arrived > sent / 2 && arrived <= sent, "{arrived} of {sent}");
        // The last ones may still be on their way to natbox.
        let passed = wait_until(PATIENCE, || counted(nat, counter).is_ok_and(|count| count >= sent));
        assert!(passed, "{sent} sent: {}", nat.control(&["show", "--ports"])?);
        assert_eq!(dropped(nat)?, 0, "{}", nat.control(&["show", "--ports"])?);
    }
    Ok(())
}

fn curl_fetches_what_is_there() -> Tested {
    let lab = Lab::up("lan-gateway").nat("N1", "home").start()?;
    let (a, s) = (lab.host("A")?, lab.host("S")?);
    let scratch = Scratch::new()?;
    fs::create_dir(scratch.path("served"))?;
    for (number, length) in [(1, 20 << 20), (2, 1), (3, 1_000_003), (4, 65_536)] {
        let mut content = vec![0; length];
        Content::new(number).fill(&mut content);
        fs::write(scratch.path(&format!("served/{number}")), content)?;
    }
    let served = scratch.argument("served");
    let to = s.addr().to_string();
    let _server =
        s.spawn("python3", &["-m", "http.server", "--bind", &to, "--directory", &served, "8000"])?;
    let up = s.run(|| wait_until(PATIENCE, || std::net::TcpStream::connect((s.addr(), 8000)).is_ok()))?;
    assert!(up, "python's server doesn't start");

    // One after the other, and all four at once.
    fs::create_dir(scratch.path("fetched"))?;
    let (pattern, url) = (scratch.argument("fetched/#1"), format!("http://{to}:8000/[1-4]"));
    for way in [&[][..], &["--parallel"]] {
        let flags = ["--silent", "--show-error", "--fail", "--max-time", "60", "--output", &pattern, &url];
        text(a, "curl", &[way, &flags].concat())?;
        let sums = |which: &str| {
            let files = ["1", "2", "3", "4"];
            let mut sum = std::process::Command::new("sha256sum");
            let output = sum.args(files).current_dir(scratch.path(which)).output()?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        assert_eq!(sums("fetched")?, sums("served")?, "curl {}", way.join(" "));
        assert_eq!(sums("fetched")?.lines().count(), 4);
    }
    Ok(())
}

fn traceroute_as_through_the_kernel() -> Tested {
    let topology = |nat: &str| Lab::up("double-nat").nat("N1", nat).nat("N2", nat).start();
    let (natbox, kernel) = (topology("home")?, topology("kernel")?);
    let hops = |lab: &Lab, method: &[&str]| -> Result<Vec<Option<Ipv4Addr>>, LabError> {
        traceroute(lab.host("A")?, lab.host("S")?.addr(), method)
    };
    for method in [&[][..], &["-I"], &["-T", "-p", "80"], &["-U", "-p", "53"]] {
        let expected = hops(&kernel, method)?;
        assert_eq!(expected.len(), 4, "{expected:?}");
        assert_eq!(hops(&natbox, method)?, expected, "traceroute {}", method.join(" "));
    }
    Ok(())
}

/// coturn's server on both addresses of P.
struct Coturn {
    _server: Process,
    _scratch: Scratch,
}

fn coturn(lab: &Lab) -> Result<Coturn, Box<dyn std::error::Error + Send + Sync>> {
    let p = lab.host("P")?;
    let scratch = Scratch::new()?;
    let (first, second) = (p.addrs()[0].to_string(), p.addrs()[1].to_string());
    let (pid, database) = (scratch.argument("pid"), scratch.argument("db"));
    let fixed = ["-n", "--no-auth", "--no-cli", "--no-tls", "--no-dtls", "--log-file", "stdout"];
    let ours = ["--pidfile", &pid, "--userdb", &database, "-L", &first, "-L", &second];
    let server = p.spawn("turnserver", &[&fixed[..], &ours].concat())?;
    for address in p.addrs() {
        for port in common::PORTS {
            let at = endpoint(*address, port);
            let answers = p.run(|| wait_until(PATIENCE, || answers_binding(at)))?;
            assert!(answers, "coturn doesn't answer at {at}: {}", server.said());
        }
    }
    Ok(Coturn { _server: server, _scratch: scratch })
}

/// Asks for a STUN binding (RFC 8489 §5).
fn answers_binding(server: SocketAddr) -> bool {
    let request = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], b"natbox tests"].concat();
    let socket = UdpSocket::bind((server.ip(), 0)).expect("a free port");
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout can be set");
    let mut answer = [0; 512];
    socket.send_to(&request, server).is_ok()
        && matches!(socket.recv_from(&mut answer), Ok((20.., from)) if from == server && answer[..2] == [1, 1])
}

/// What `turnutils_natdiscovery` says in A.
fn natdiscovery(lab: &Lab, question: &str) -> Result<String, LabError> {
    let server = lab.host("P")?.addr().to_string();
    let output = run(lab.host("A")?, "turnutils_natdiscovery", &[question, &server])?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

/// coturn's words for a class of RFC 4787.
fn class(name: &str) -> &'static str {
    match name {
        "endpoint-independent" => "Endpoint Independent",
        "address-dependent" => "Address Dependent",
        _ => "Address and Port Dependent",
    }
}

fn says_mapping(said: &str, mapping: Mapping) -> bool {
    said.contains(&format!("NAT with {} Mapping!", class(&mapping.to_string())))
}

fn says_filtering(said: &str, filtering: Filtering) -> bool {
    said.contains(&format!("NAT with {} Filtering!", class(&filtering.to_string())))
}

/// With random ports, and with a fresh socket for each question, which is what the program does when it may choose its
/// ports itself.
fn natdiscovery_agrees(mapping: Mapping, filtering: Filtering) -> Tested {
    let axes = [format!("--mapping={}", mapping.short()), format!("--filtering={}", filtering.short())];
    let lab = Lab::up("one-nat").nat("N1", "symmetric").nat_args("N1", &axes).start()?;
    let _coturn = coturn(&lab)?;
    let said = natdiscovery(&lab, "-m")?;
    assert!(says_mapping(&said, mapping), "{said}");
    let said = natdiscovery(&lab, "-f")?;
    assert!(says_filtering(&said, filtering), "{said}");
    Ok(())
}

/// docs/limitations.md, "What a probe can't see": a NAT that makes a mapping for each destination but gives all of them
/// the port that they want.
fn natdiscovery_and_a_preserved_port() -> Tested {
    let flags = [EXTERNAL, "--ports=preserve", "--port-range=1024-65535"];
    let lab = Lab::up("one-nat").nat("N1", "symmetric").nat_args("N1", &flags).start()?;
    let said = {
        let _coturn = coturn(&lab)?;
        natdiscovery(&lab, "-m")?
    };
    // Mappings to several destinations share a port only with overloading.
    assert!(says_mapping(&said, Mapping::AddressAndPortDependent), "{said}");
    lab.nat("N1")?.set(&["--overloading", "on"])?;
    lab.nat("N1")?.flush()?;
    let said = {
        let _coturn = coturn(&lab)?;
        natdiscovery(&lab, "-m")?
    };
    assert!(says_mapping(&said, Mapping::EndpointIndependent), "{said}");
    // So does our own probe.
    let (reflector, a) = (common::reflector(&lab)?, lab.host("A")?);
    let class = a.run(|| probe::udp(reflector.endpoints(), a.addr().into()))??;
    assert_eq!(class.mapping, Mapping::EndpointIndependent, "{class}");
    Ok(())
}

/// docs/limitations.md, "coturn's natdiscovery": it sends from a second socket to the first one's external endpoint and
/// opens no filter before; and a host takes its own address as a source for a forgery.
fn natdiscovery_and_hairpinning() -> Tested {
    let cases = [
        ("off", "eif", false),
        ("external", "eif", true),
        ("external", "adf", false),
        ("external", "apdf", false),
        ("internal", "eif", false),
    ];
    // The program waits six seconds for what doesn't come: let it do that in all labs at once.
    std::thread::scope(|scope| {
        let judge =
            |(hairpin, filtering, seen)| scope.spawn(move || natdiscovery_hairpins(hairpin, filtering, seen));
        let judges = cases.map(judge);
        judges
            .into_iter()
            .try_for_each(|judge| judge.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn natdiscovery_hairpins(hairpin: &str, filtering: &str, seen: bool) -> Tested {
    let flags = [format!("--hairpin={hairpin}"), format!("--filtering={filtering}")];
    let lab = Lab::up("one-nat").nat("N1", "full-cone").nat_args("N1", &flags).start()?;
    let said = {
        let _coturn = coturn(&lab)?;
        natdiscovery(&lab, "-H")?
    };
    assert_eq!(said.contains("maybe a successful hairpinning"), seen, "{hairpin}, {filtering}: {said}");
    // Our own probe opens the filter first, and looks at the wire.
    let (reflector, a) = (common::reflector(&lab)?, lab.host("A")?);
    let class = a.run(|| probe::udp(reflector.endpoints(), a.addr().into()))??;
    assert_eq!(class.hairpin.to_string().split(' ').next(), Some(hairpin), "{class}");
    Ok(())
}

/// docs/limitations.md, "coturn's natdiscovery": it asks once for each answer that may be filtered.
fn natdiscovery_and_a_lost_datagram() -> Tested {
    let lab = Lab::up("one-nat").nat("N1", "full-cone").nat_args("N1", &["--ports=random"]).start()?;
    let (a, p) = (lab.host("A")?, lab.host("P")?);
    // The first answer from the other address and port is lost, every later one arrives.
    let rules = "table ip lossy { chain output { type filter hook output priority 0; \
                 ip saddr 198.51.100.11 udp sport 3479 numgen inc mod 1000000 0 drop; }; }";
    let lossy = |on: bool| -> Result<(), LabError> {
        let arguments: &[&str] = if on { &[rules] } else { &["delete table ip lossy"] };
        text(p, "nft", arguments).map(drop)
    };
    let said = {
        let _coturn = coturn(&lab)?;
        lossy(true)?;
        natdiscovery(&lab, "-f")?
    };
    lossy(false)?;
    assert!(says_filtering(&said, Filtering::AddressDependent), "{said}");

    let reflector: Reflector = common::reflector(&lab)?;
    lossy(true)?;
    let class = a.run(|| probe::udp(reflector.endpoints(), a.addr().into()))??;
    assert_eq!(class.filtering, Filtering::EndpointIndependent, "{class}");
    Ok(())
}
