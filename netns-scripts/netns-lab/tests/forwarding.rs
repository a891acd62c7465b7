//! `traverse forward` and `traverse expose` between two NATs, with the programs that people use: a web server and curl, a DNS
//! server and dig, iperf3, ssh. What goes through goes on when the direct path is taken away, and when it comes back.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;

use common::peers::{Meeting, block, told, wait_event};
use common::tools::{run, text};
use common::{PATIENCE, Tested};
use netns_lab::harness::{self, Test};
use netns_lab::{Host, Lab, Process, wait_until};
use serde_json::Value;

fn main() -> ExitCode {
    harness::main(vec![
        Test::new("a_web_page_across_switches", a_web_page_across_switches).needs("curl").needs("python3"),
        Test::new("names_are_looked_up", names_are_looked_up).needs("dig").needs("dnsmasq"),
        Test::new("iperf_tcp_and_udp_across_switches", iperf_tcp_and_udp_across_switches).needs("iperf3"),
        Test::new("a_shell_the_other_way_round", a_shell_the_other_way_round)
            .needs("ssh")
            .wants("sshd")
            .needs_root(),
        Test::new("targets_that_cannot_be_reached", targets_that_cannot_be_reached).needs("curl"),
    ])
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A behind N1 forwards to S behind N2.
struct Forwarding {
    lab: Lab,
    meeting: Meeting,
    _exposing: Process,
    forwarding: Process,
}

impl Forwarding {
    /// `exposed`: the arguments of `traverse expose` at S; `ports`: those of `traverse forward` at A before the peer.
    fn start(exposed: &[&str], ports: &[&str]) -> Result<Forwarding, Failure> {
        let lab = Lab::up("two-nats").nat("N1", "port-restricted").nat("N2", "port-restricted").start()?;
        let meeting = Meeting::start(&lab, "P")?;
        let null = (Path::new("/dev/null"), Path::new("/dev/null"));
        let mut exposing = meeting.run(lab.host("S")?, "s", "expose", exposed, null)?;
        let told_id = wait_event(&mut exposing, "exposing", PATIENCE)?;
        let id = told_id["id"].as_str().ok_or("an id")?.to_owned();
        let arguments = [ports, &[&id]].concat();
        let mut forwarding = meeting.run(lab.host("A")?, "a", "forward", &arguments, null)?;
        wait_event(&mut forwarding, "forwarding", PATIENCE)?;
        let forwarding = Forwarding { lab, meeting, _exposing: exposing, forwarding };
        forwarding.is_by("direct");
        Ok(forwarding)
    }

    /// Waits until packets go this way.
    fn is_by(&self, kind: &str) {
        let is_by = || {
            let all = told(&self.forwarding);
            let switched = all.iter().rev().find(|event| event["path"]["event"] == "switched");
            switched.is_some_and(|event| event["path"]["to"]["kind"] == kind)
        };
        assert!(wait_until(PATIENCE * 3, is_by), "not by {kind}: {}", self.forwarding.said());
    }

    /// Waits until this many bytes more have gone through.
    fn goes_on(&self) {
        let bytes = || {
            let all = told(&self.forwarding);
            let status = all.iter().rev().find(|event| event["event"] == "status");
            let count = |name| status.and_then(|status| status[name].as_u64()).unwrap_or(0);
            count("sent") + count("received")
        };
        let before = bytes();
        assert!(
            wait_until(PATIENCE, || bytes() > before + 10_000),
            "it stands still: {}",
            self.forwarding.said()
        );
    }

    /// From the direct path to the relay and back, with something going through all the time.
    fn switches(&self) -> Tested {
        self.goes_on();
        block(&self.lab, true)?;
        self.is_by("relay");
        self.goes_on();
        block(&self.lab, false)?;
        self.is_by("direct");
        self.goes_on();
        Ok(())
    }
}

/// A server at a host, when it takes connections.
fn server(host: &Host, port: u16, program: &str, arguments: &[&str]) -> Result<Process, Failure> {
    let process = host.spawn(program, arguments)?;
    let listens = || {
        let table = text(host, "ss", &["-Htuln"]).unwrap_or_default();
        table.contains(&format!(":{port} "))
    };
    assert!(wait_until(PATIENCE, listens), "{program} does not listen: {}", process.said());
    Ok(process)
}

fn a_web_page_across_switches() -> Tested {
    let call = Forwarding::start(&["80"], &["--local", "8080=80"])?;
    let (a, s) = (call.lab.host("A")?, call.lab.host("S")?);
    let (payload, bytes) = call.meeting.payload(80 << 20)?;
    let folder = payload.parent().ok_or("a folder")?.display().to_string();
    let _server = server(
        s,
        80,
        "python3",
        &["-m", "http.server", "80", "--bind", "127.0.0.1", "--directory", &folder],
    )?;

    let page = text(a, "curl", &["--silent", "--fail", "--max-time", "15", "http://127.0.0.1:8080/"])?;
    assert!(page.contains("payload"), "{page}");
    // Slowly enough for both switches to come in the middle of it.
    let copy = call.meeting.scratch.argument("copy");
    let url = "http://127.0.0.1:8080/payload";
    let arguments = ["--silent", "--fail", "--show-error", "--limit-rate", "6M", "--output", &copy, url];
    let mut curl = a.spawn("curl", &arguments)?;
    call.switches()?;
    let status = curl.wait(PATIENCE * 3)?;
    assert!(status.success(), "{status}: {}", curl.said());
    assert!(fs::read(&copy)? == bytes, "the page has changed");
    Ok(())
}

fn names_are_looked_up() -> Tested {
    let call = Forwarding::start(&["udp:53", "53"], &["--local", "udp:5353=53", "--local", "5353=53"])?;
    let (a, s) = (call.lab.host("A")?, call.lab.host("S")?);
    // An answer of more than a QUIC datagram takes.
    let long: Vec<_> =
        (0..12).map(|at| format!("--txt-record=long.test,{}", format!("{at:x}").repeat(250))).collect();
    let mut arguments = vec![
        "--no-daemon",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--listen-address=127.0.0.1",
        "--user=root",
        "--pid-file=",
        "--edns-packet-max=4096",
        "--address=/home.test/192.0.2.77",
    ];
    arguments.extend(long.iter().map(String::as_str));
    let _dns = server(s, 53, "dnsmasq", &arguments)?;
    let dig = |extra: &[&str]| {
        let fixed = ["@127.0.0.1", "-p", "5353", "+tries=5", "+time=3"];
        text(a, "dig", &[&fixed[..], extra].concat())
    };
    let ask = || -> Tested {
        for _ in 0..5 {
            assert_eq!(dig(&["+short", "home.test"])?.trim(), "192.0.2.77");
        }
        let answer = dig(&["+bufsize=4096", "+ignore", "long.test", "TXT"])?;
        assert!(answer.contains("(UDP)") && !answer.contains(" tc"), "cut off: {answer}");
        assert!(
            (0..12).all(|at| answer.contains(&format!("\"{}", format!("{at:x}").repeat(250)))),
            "{answer}"
        );
        Ok(())
    };
    ask()?;
    block(&call.lab, true)?;
    call.is_by("relay");
    ask()?;
    block(&call.lab, false)?;
    call.is_by("direct");
    ask()?;
    assert_eq!(dig(&["+tcp", "+short", "home.test"])?.trim(), "192.0.2.77");
    Ok(())
}

fn iperf_tcp_and_udp_across_switches() -> Tested {
    let call =
        Forwarding::start(&["5201", "udp:5201"], &["--local", "5201=5201", "--local", "udp:5201=5201"])?;
    let (a, s) = (call.lab.host("A")?, call.lab.host("S")?);
    let _server = server(s, 5201, "iperf3", &["--server", "--bind", "127.0.0.1"])?;
    let client = |arguments: &[&str]| -> Result<Process, Failure> {
        let fixed = ["--client", "127.0.0.1", "--json", "--get-server-output"];
        Ok(a.spawn("iperf3", &[&fixed[..], arguments].concat())?)
    };
    let ended = |process: &mut Process| -> Result<Value, Failure> {
        let status = process.wait(PATIENCE * 3)?;
        assert!(status.success(), "{status}: {}", process.said());
        // Until everything that was printed has been heard.
        let mut report = Value::Null;
        wait_until(PATIENCE, || {
            report = serde_json::from_str(&process.said()).unwrap_or_default();
            !report.is_null()
        });
        Ok(report)
    };
    for direction in [&[][..], &["--reverse"]] {
        let mut tcp = client(&[&["--time", "2", "--parallel", "4"], direction].concat())?;
        let report = ended(&mut tcp)?;
        let bytes = report["end"]["sum_received"]["bytes"].as_u64().unwrap_or(0);
        assert!(bytes > 1_000_000, "{bytes} bytes: {report}");
    }
    // Packets that fit a datagram, and some that do not.
    for length in ["1000", "4000"] {
        let mut udp = client(&["--udp", "--time", "2", "--bitrate", "4M", "--length", length])?;
        let report = ended(&mut udp)?;
        let lost = report["end"]["sum"]["lost_percent"].as_f64().unwrap_or(100.0);
        assert!(lost < 5.0, "{lost} % of the packets of {length} bytes are lost: {report}");
    }
    let mut tcp = client(&["--time", "10", "--bitrate", "20M"])?;
    call.switches()?;
    let report = ended(&mut tcp)?;
    assert!(report["end"]["sum_received"]["bytes"].as_u64() > Some(1_000_000), "{report}");
    let mut udp = client(&["--udp", "--time", "10", "--bitrate", "4M", "--length", "1000"])?;
    call.switches()?;
    let report = ended(&mut udp)?;
    // What is on its way when a path dies is lost, as UDP loses it.
    let lost = report["end"]["sum"]["lost_percent"].as_f64().unwrap_or(100.0);
    assert!(lost < 50.0, "{lost} % of the packets are lost across switches: {report}");
    Ok(())
}

/// S may log in at A, through a port at S that A has asked for.
fn a_shell_the_other_way_round() -> Tested {
    let call = Forwarding::start(&["--listen", "2222"], &["--remote", "2222=22"])?;
    let (a, s) = (call.lab.host("A")?, call.lab.host("S")?);
    let scratch = |name: &str| call.meeting.scratch.argument(name);
    for key in ["host.key", "user.key"] {
        text(a, "ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &scratch(key)])?;
    }
    fs::copy(scratch("user.key.pub"), scratch("authorized"))?;
    fs::set_permissions(scratch("authorized"), fs::Permissions::from_mode(0o600))?;
    let options = [
        "ListenAddress=127.0.0.1:22".to_owned(),
        format!("HostKey={}", scratch("host.key")),
        format!("AuthorizedKeysFile={}", scratch("authorized")),
        "StrictModes=no".into(),
        "UsePAM=no".into(),
        "PidFile=none".into(),
        "PermitRootLogin=yes".into(),
    ];
    let sshd = text(a, "sh", &["-c", "command -v sshd"])?;
    // It wants a folder that is there only where it is a service: it gets a /run that nobody else sees, and that ends with it.
    let in_its_own_run = "mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec \"$0\" \"$@\"";
    let mut arguments =
        vec!["--mount", "sh", "-c", in_its_own_run, sshd.trim(), "-D", "-e", "-f", "/dev/null"];
    options.iter().for_each(|option| arguments.extend(["-o", option]));
    let _server = server(a, 22, "unshare", &arguments)?;

    let known = format!("UserKnownHostsFile={}", scratch("known"));
    let identity = scratch("user.key");
    let user = text(a, "id", &["-un"])?;
    let to = format!("{}@127.0.0.1", user.trim());
    let fixed = [
        "-p",
        "2222",
        "-i",
        &identity,
        "-o",
        &known,
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "BatchMode=yes",
        "-F",
        "/dev/null",
        &to,
    ];
    let here = text(s, "ssh", &[&fixed[..], &["ip -4 -o address"]].concat())?;
    assert!(here.contains(&a.addr().to_string()), "not at A: {here}");
    // A session that goes on while the way changes.
    let counting = "i=0; while [ $i -lt 150 ]; do echo line $i ................................; \
                    head -c 3000 /dev/zero | tr '\\0' x; echo; i=$((i+1)); sleep 0.1; done; echo the end";
    let mut session = s.spawn("ssh", &[&fixed[..], &[counting]].concat())?;
    call.switches()?;
    let status = session.wait(PATIENCE * 2)?;
    assert!(status.success(), "{status}: {}", session.said());
    let said = || session.said();
    assert!(wait_until(PATIENCE, || said().contains("the end")), "{}", said());
    assert!((0..150).all(|line| said().contains(&format!("line {line} ."))), "a line is missing: {}", said());
    Ok(())
}

fn targets_that_cannot_be_reached() -> Tested {
    // Nobody at the port; no way to the host; a firewall that says nothing.
    let cases = [
        ("1081", "127.0.0.1:81", "refused"),
        ("1082", "198.51.100.99:81", "unreachable"),
        ("1083", "10.64.2.250:81", "timed-out"),
    ];
    let ports: Vec<_> = cases.iter().map(|(port, target, _)| format!("--local={port}={target}")).collect();
    let ports: Vec<_> = ports.iter().map(String::as_str).collect();
    let call = Forwarding::start(&["*:81"], &ports)?;
    let (a, s) = (call.lab.host("A")?, call.lab.host("S")?);
    text(s, "ip", &["route", "add", "unreachable", "198.51.100.99"])?;
    let wall = "add table ip wall; add chain ip wall out { type filter hook output priority 0; }; \
                add rule ip wall out ip daddr 10.64.2.250 drop";
    text(s, "nft", &[wall])?;
    for (port, target, why) in cases {
        let url = format!("http://127.0.0.1:{port}/");
        let output = run(a, "curl", &["--silent", "--max-time", "20", &url])?;
        // 56: the connection was reset while it was read; 55: while it was written.
        assert!(matches!(output.status.code(), Some(55 | 56)), "{target}: {}", output.status);
        let is_told = || {
            told(&call.forwarding)
                .iter()
                .any(|event| event["event"] == "refused" && event["what"] == target && event["why"] == why)
        };
        assert!(wait_until(PATIENCE, is_told), "{target} is not {why}: {}", call.forwarding.said());
    }
    Ok(())
}
