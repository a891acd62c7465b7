//! The lab itself, with the kernel's NAT: it comes up, its handles work, and it always goes away.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use netns_lab::harness::{self, Test};
use netns_lab::{Host, Lab, LabError, NatKind, Process, wait_until};

const SECOND: Duration = Duration::from_secs(1);

/// Set in the environment of a copy of this program that brings a lab up and then waits to be killed.
const VICTIM: &str = "NETNS_LAB_TEST_VICTIM";

type Tested = Result<(), LabError>;

fn main() -> ExitCode {
    if std::env::var_os(VICTIM).is_some() {
        return victim();
    }
    harness::main(vec![
        Test::new("every_topology_reaches_the_internet", every_topology_reaches_the_internet).without_tun(),
        Test::new("closures_run_inside_a_host", closures_run_inside_a_host).without_tun(),
        Test::new("futures_run_inside_a_host", futures_run_inside_a_host).without_tun(),
        Test::new("panics_inside_a_host_reach_the_test", panics_inside_a_host_reach_the_test).without_tun(),
        Test::new("commands_run_inside_a_host", commands_run_inside_a_host).without_tun(),
        Test::new("exec_leaves_the_input_to_the_command", exec_leaves_the_input_to_the_command).without_tun(),
        Test::new("a_guard_ends_its_process", a_guard_ends_its_process).without_tun(),
        Test::new("two_labs_at_once", two_labs_at_once).without_tun(),
        Test::new("drop_removes_everything", drop_removes_everything).without_tun(),
        Test::new("a_panic_removes_everything", a_panic_removes_everything).without_tun(),
        Test::new("a_killed_owner_leaves_nothing_for_long", a_killed_owner_leaves_nothing_for_long)
            .without_tun(),
        Test::new("a_stopped_kernel_nat_forgets", a_stopped_kernel_nat_forgets).without_tun(),
        Test::new("a_stray_packet_takes_its_tuple", a_stray_packet_takes_its_tuple).without_tun(),
        Test::new("mistakes_are_named", mistakes_are_named).without_tun(),
    ])
}

fn one_nat() -> Result<Lab, LabError> {
    Lab::up("one-nat").nat("N1", "kernel").start()
}

fn ping(from: &Host, to: &Host) -> Result<bool, LabError> {
    let address = to.addr().to_string();
    let output = from.command("ping")?.args(["-c", "1", "-W", "2", &address]).output();
    Ok(output.expect("ping is installed").status.success())
}

fn udp(host: &Host, port: u16) -> Result<UdpSocket, LabError> {
    let socket = host.run(|| UdpSocket::bind(("0.0.0.0", port)))?.expect("a free port");
    socket.set_read_timeout(Some(5 * SECOND)).expect("a timeout can be set");
    Ok(socket)
}

/// The source that `server` sees of a datagram that `client` sends it.
fn seen(client: &UdpSocket, server: &Host, listener: &UdpSocket) -> std::net::SocketAddr {
    let port = listener.local_addr().expect("bound").port();
    client.send_to(b"who am I?", (server.addr(), port)).expect("a route");
    listener.recv_from(&mut [0; 16]).expect("the datagram crosses the NAT").1
}

fn every_topology_reaches_the_internet() -> Tested {
    let topologies = [
        ("one-nat", "A"),
        ("two-nats", "S"),
        ("hairpin", "B"),
        ("double-nat", "A"),
        ("lan-gateway", "B"),
        ("shared-address", "A"),
    ];
    for (topology, inside) in topologies {
        let mut builder = Lab::up(topology);
        let nats: &[&str] = match topology {
            "two-nats" | "double-nat" => &["N1", "N2"],
            "shared-address" => &["H"],
            _ => &["N1"],
        };
        for nat in nats {
            builder = builder.nat(nat, "kernel");
        }
        let lab = builder.start()?;
        assert!(ping(lab.host(inside)?, lab.host("P")?)?, "{topology}: {inside} can't reach P");
        assert!(
            !ping(lab.host("P")?, lab.host(inside)?)?,
            "{topology}: P reaches {inside} at its private address"
        );

        // The outermost NAT's address is what P sees.
        let outermost = lab.nat(nats.last().expect("a NAT"))?;
        let listener = udp(lab.host("P")?, 3478)?;
        let client = udp(lab.host(inside)?, 4242)?;
        assert_eq!(seen(&client, lab.host("P")?, &listener).ip(), outermost.addr(), "{topology}");
        assert_eq!(outermost.kind(), NatKind::Kernel);
    }
    Ok(())
}

fn closures_run_inside_a_host() -> Tested {
    let lab = one_nat()?;
    let listener = lab.host("S")?.run(|| TcpListener::bind("0.0.0.0:80"))?.expect("a free port");
    let echo = lab.host("S")?.start(move || {
        let (mut stream, from) = listener.accept().expect("a connection");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("text");
        (text, from.ip())
    })?;
    let server = lab.host("S")?.addr();
    // Borrows what it likes: the caller waits for it.
    let greeting = String::from("hello");
    lab.host("A")?.run(|| {
        let mut stream = TcpStream::connect((server, 80)).expect("S listens");
        stream.write_all(greeting.as_bytes()).expect("S reads");
    })?;
    let (text, from) = echo.join();
    assert_eq!(text, greeting);
    assert_eq!(from, lab.nat("N1")?.addr());
    Ok(())
}

fn futures_run_inside_a_host() -> Tested {
    let lab = one_nat()?;
    let listener = udp(lab.host("S")?, 53)?;
    let server = lab.host("S")?.addr();
    let answering = lab.host("S")?.start(move || {
        let mut bytes = [0; 16];
        let (length, from) = listener.recv_from(&mut bytes).expect("a question");
        listener.send_to(&bytes[..length], from).expect("a way back");
    })?;
    let answer = lab.host("A")?.block_on(async move {
        let socket = tokio::net::UdpSocket::bind("0.0.0.0:0").await.expect("a free port");
        socket.send_to(b"echo", (server, 53)).await.expect("a route");
        let mut bytes = [0; 16];
        let answer =
            tokio::time::timeout(5 * SECOND, socket.recv(&mut bytes)).await.expect("an answer in time");
        bytes[..answer.expect("an answer")].to_vec()
    })?;
    answering.join();
    assert_eq!(answer, b"echo");
    Ok(())
}

fn panics_inside_a_host_reach_the_test() -> Tested {
    let lab = one_nat()?;
    let host = lab.host("A")?;
    let quiet = std::panic::AssertUnwindSafe(|| host.run(|| std::panic::resume_unwind(Box::new("inside"))));
    let panic: Result<Result<(), _>, _> = std::panic::catch_unwind(quiet);
    assert_eq!(panic.expect_err("a panic").downcast_ref::<&str>(), Some(&"inside"));
    Ok(())
}

fn commands_run_inside_a_host() -> Tested {
    let lab = one_nat()?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lab");
    assert!(script.exists());
    let output = lab.host("A")?.command("ip")?.args(["-brief", "address", "show", "dev", "eth0"]).output();
    let text = String::from_utf8(output.expect("ip runs").stdout).expect("text");
    assert!(text.contains("10.64.1.2/24"), "{text}");
    Ok(())
}

fn exec_leaves_the_input_to_the_command() -> Tested {
    let lab = one_nat()?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lab");
    let mut exec = Command::new(script);
    exec.args(["exec", lab.id(), "A", "--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = exec.spawn().expect("the script can be started");
    running.stdin.take().expect("a pipe").write_all(b"words").expect("cat reads");
    let output = running.wait_with_output().expect("it ends");
    assert_eq!((output.status.success(), &output.stdout[..]), (true, &b"words"[..]));
    Ok(())
}

fn a_guard_ends_its_process() -> Tested {
    let lab = one_nat()?;
    let mut said = lab.host("A")?.spawn("sh", &["-c", "echo ready; exec sleep 1000"])?;
    said.wait_for("ready", 5 * SECOND)?;
    let pid = said.id();
    assert!(runs(pid));
    assert!(matches!(said.wait(Duration::ZERO), Err(LabError::Timeout { .. })));
    drop(said);
    assert!(!runs(pid), "the guard left its process behind");

    let mut ended = lab.host("A")?.spawn("sh", &["-c", "echo bye"])?;
    let error = ended.wait_for("hello", 60 * SECOND).expect_err("it never says that");
    assert!(error.to_string().contains("bye"), "{error}");
    assert!(matches!(lab.host("A")?.spawn("/no/such/program", &[]), Err(LabError::Io { .. })));
    Ok(())
}

fn two_labs_at_once() -> Tested {
    let (one, two) = (one_nat()?, one_nat()?);
    assert_ne!(one.id(), two.id());
    for lab in [&one, &two] {
        assert!(ping(lab.host("A")?, lab.host("S")?)?);
    }
    one.down()?;
    assert!(ping(two.host("A")?, two.host("S")?)?, "the other lab went away too");
    Ok(())
}

fn names(id: &str) -> Vec<String> {
    let all =
        fs::read_dir("/run/netns").map(|entries| entries.flatten().collect::<Vec<_>>()).unwrap_or_default();
    let prefix = format!("{id}-");
    all.iter()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(&prefix))
        .collect()
}

fn drop_removes_everything() -> Tested {
    let lab = one_nat()?;
    let id = lab.id().to_owned();
    assert_eq!(names(&id).len(), 5);
    let host = lab.host("A")?.clone();
    // A program that nobody guards: it would keep its namespace alive for ever.
    let mut left = host.command("sleep")?.arg("1000").spawn().expect("sleep runs");
    drop(lab);
    assert!(names(&id).is_empty(), "{:?}", names(&id));
    assert!(left.try_wait().expect("our child").is_some(), "a program of the lab still runs");
    assert!(matches!(host.run(|| ()), Err(LabError::Io { .. })));
    Ok(())
}

fn a_panic_removes_everything() -> Tested {
    let lab = one_nat()?;
    let id = lab.id().to_owned();
    let test = std::panic::AssertUnwindSafe(move || {
        let _lab = lab;
        std::panic::resume_unwind(Box::new("a test fails"));
    });
    assert!(std::panic::catch_unwind(test).is_err());
    assert!(names(&id).is_empty(), "{:?}", names(&id));
    Ok(())
}

/// Brings a lab and a program in it up, says so, and waits.
fn victim() -> ExitCode {
    let lab = one_nat().expect("a lab");
    let process = lab.host("A").expect("A").spawn("sleep", &["1000"]).expect("sleep runs");
    println!("{} {}", lab.id(), process.id());
    loop {
        std::thread::park();
    }
}

fn a_killed_owner_leaves_nothing_for_long() -> Tested {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lab");
    let mut command = Command::new(std::env::current_exe().expect("our own path"));
    command.env(VICTIM, "1");
    let mut victim = Process::spawn(command)?;
    victim.wait_for("\n", 20 * SECOND)?;
    let said = victim.said();
    let (id, pid) = said.trim().split_once(' ').expect("a name and a pid");
    let pid: u32 = pid.parse().expect("a pid");
    assert_eq!(names(id).len(), 5);

    let down_stale = || {
        let done = Command::new(&script).args(["down", "--stale"]).stderr(Stdio::inherit()).status();
        assert!(done.expect("lab runs").success());
    };
    down_stale();
    assert_eq!(names(id).len(), 5, "a living process lost its lab");

    drop(victim); // SIGKILL
    assert!(wait_until(5 * SECOND, || !runs(pid)), "a guarded program outlived its owner");
    assert_eq!(names(id).len(), 5, "nobody was there to remove it");
    down_stale();
    assert!(names(id).is_empty(), "{:?}", names(id));
    Ok(())
}

/// Whether the process exists and is more than a zombie.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with(['Z', 'X']))
}

fn a_stopped_kernel_nat_forgets() -> Tested {
    let lab = one_nat()?;
    let (server, nat) = (lab.host("S")?, lab.nat("N1")?);
    let listener = udp(server, 53)?;
    let client = udp(lab.host("A")?, 4242)?;
    let before = seen(&client, server, &listener);

    nat.stop()?;
    assert!(!ping(lab.host("A")?, server)?, "a stopped NAT forwards");
    nat.start()?;
    listener.send_to(b"are you still there?", before).expect("a route");
    // Something that must arrive is sent after it, so silence proves that the first was dropped.
    assert_eq!(seen(&client, server, &listener), before, "the port is kept where nothing else has it");
    listener.send_to(b"now", before).expect("a route");
    let mut bytes = [0; 32];
    let length = client.recv(&mut bytes).expect("the mapping is there again");
    assert_eq!(&bytes[..length], b"now", "a mapping survived");
    assert!(matches!(nat.show(), Err(LabError::NotNatbox { .. })));
    Ok(())
}

/// What sets the two kernel NATs apart, and natbox's after them: a packet from S that comes before A's own takes the tuple
/// only where the gateway's stack accepts it.
fn a_stray_packet_takes_its_tuple() -> Tested {
    for (kind, kept) in [("kernel", true), ("kernel-open", false), ("linux", true), ("linux-open", false)] {
        let lab = Lab::up("one-nat").nat("N1", kind).start()?;
        let server = lab.host("S")?;
        let listener = udp(server, 53)?;
        listener.send_to(b"stray", (lab.nat("N1")?.addr(), 4242)).expect("a route");
        let client = udp(lab.host("A")?, 4242)?;
        let port = seen(&client, server, &listener).port();
        assert_eq!(port == 4242, kept, "{kind}: A's port 4242 became {port}");
    }
    Ok(())
}

fn mistakes_are_named() -> Tested {
    let error = |result: Result<Lab, LabError>| result.expect_err("a mistake").to_string();
    assert!(error(Lab::up("three-nats").start()).contains("three-nats"));
    assert!(error(Lab::up("one-nat").nat("N7", "kernel").start()).contains("N7"));
    assert!(error(Lab::up("one-nat").nat("N1", "kernel,shuffled").start()).contains("shuffled"));
    assert!(error(Lab::up("one-nat").nat("N1", "pasta,random").start()).contains("takes no flags"));
    assert!(error(Lab::up("lan-gateway").nat("N1", "pasta").start()).contains("one host's uplink"));
    let lab = one_nat()?;
    assert!(matches!(lab.host("Q"), Err(LabError::NoHost { .. })));
    assert!(matches!(lab.nat("N2"), Err(LabError::NoNat { .. })));
    Ok(())
}
