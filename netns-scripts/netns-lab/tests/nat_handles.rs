//! The handles on a natbox: what `netns_lab::Nat` promises, with the program itself.

use std::net::UdpSocket;
use std::process::{Command, ExitCode};
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
        Test::new("every_topology_reaches_the_internet", every_topology_reaches_the_internet),
        Test::new("a_natbox_stops_starts_and_changes", a_natbox_stops_starts_and_changes),
        Test::new("a_natbox_is_asked_and_told", a_natbox_is_asked_and_told),
        Test::new("a_killed_owners_natbox_is_ended", a_killed_owners_natbox_is_ended),
        Test::new("a_natbox_that_cannot_start_says_why", a_natbox_that_cannot_start_says_why),
    ])
}

fn ping(from: &Host, to: &Host) -> Result<bool, LabError> {
    let address = to.addr().to_string();
    let output = from.command("ping")?.args(["-c", "1", "-W", "2", &address]).output();
    Ok(output.expect("ping is installed").status.success())
}

fn every_topology_reaches_the_internet() -> Tested {
    for (topology, inside) in [
        ("one-nat", "A"),
        ("two-nats", "A"),
        ("two-nats", "S"),
        ("hairpin", "A"),
        ("hairpin", "B"),
        ("double-nat", "A"),
        ("lan-gateway", "A"),
        ("lan-gateway", "B"),
        ("shared-address", "A"),
    ] {
        let lab = Lab::up(topology).start()?;
        assert!(ping(lab.host(inside)?, lab.host("P")?)?, "{topology}: {inside} can't reach P");
    }
    Ok(())
}

fn a_natbox_stops_starts_and_changes() -> Tested {
    let lab = Lab::up("one-nat").nat("N1", "full-cone").start()?;
    let (a, s, nat) = (lab.host("A")?, lab.host("S")?, lab.nat("N1")?);
    assert_eq!(nat.kind(), NatKind::Natbox);
    assert!(ping(a, s)?);
    let stops: [fn(&netns_lab::Nat) -> Tested; 2] = [netns_lab::Nat::stop, netns_lab::Nat::kill];
    for stop in stops {
        stop(nat)?;
        assert!(!ping(a, s)?, "a dead NAT forwards");
        assert!(matches!(nat.show(), Err(LabError::Natbox { .. })));
        stop(nat)?; // once more does no harm
        nat.start()?;
        assert!(ping(a, s)?, "it doesn't come back");
        nat.start()?;
    }
    nat.restart()?;
    assert!(ping(a, s)?);
    let mapping =
        |nat: &netns_lab::Nat| nat.show().map(|state| state["status"]["behavior"]["mapping"].clone());
    let before = mapping(nat)?;
    nat.restart_as("symmetric")?;
    assert_ne!(mapping(nat)?, before);
    assert!(ping(a, s)?);
    for (spec, why) in [
        ("kernel", "wired"),
        ("symetric", "symmetric"),
        ("symmetric,--filtering=adp", "is not a value of filtering"),
        ("symmetric,--colour=red", "--colour"),
    ] {
        let refused = nat.restart_as(spec).expect_err(spec).to_string();
        assert!(refused.contains(why), "{spec}: {refused}");
        assert!(ping(a, s)?, "{spec}: it was stopped before anybody looked");
    }
    assert_ne!(mapping(nat)?, before, "and is what it was");
    Ok(())
}

fn mappings(nat: &netns_lab::Nat) -> Result<usize, LabError> {
    Ok(nat.show()?["mappings"].as_array().map_or(0, Vec::len))
}

fn a_natbox_is_asked_and_told() -> Tested {
    let lab = Lab::up("one-nat").nat("N1", "full-cone").nat_args("N1", &["--filtering=apdf"]).start()?;
    let nat = lab.nat("N1")?;
    assert_eq!(mappings(nat)?, 0);
    let server = lab.host("S")?.run(|| UdpSocket::bind("0.0.0.0:53"))?.expect("a free port");
    let client = lab.host("A")?.run(|| UdpSocket::bind("0.0.0.0:4242"))?.expect("a free port");
    server.set_read_timeout(Some(5 * SECOND)).expect("a timeout can be set");
    client.send_to(b"hello", (lab.host("S")?.addr(), 53)).expect("a route");
    let (_, from) = server.recv_from(&mut [0; 8]).expect("it crosses the NAT");
    assert_eq!(from.ip(), nat.addr());
    assert_eq!(mappings(nat)?, 1);
    nat.flush()?;
    assert_eq!(mappings(nat)?, 0);

    let filtering =
        |nat: &netns_lab::Nat| nat.show().map(|state| state["status"]["behavior"]["filtering"].clone());
    assert_eq!(filtering(nat)?, "address-and-port-dependent");
    nat.set(&["--filtering", "eif"])?;
    assert_eq!(filtering(nat)?, "endpoint-independent");
    assert!(matches!(nat.set(&["--filtering", "none"]), Err(LabError::Natbox { .. })));
    Ok(())
}

/// Brings a lab up, says so, and waits.
fn victim() -> ExitCode {
    let lab = Lab::up("one-nat").nat("N1", "symmetric").start().expect("a lab");
    println!("{}", lab.nat("N1").expect("N1").control_path().display());
    loop {
        std::thread::park();
    }
}

fn a_killed_owners_natbox_is_ended() -> Tested {
    let mut command = Command::new(std::env::current_exe().expect("our own path"));
    command.env(VICTIM, "1");
    let mut victim = Process::spawn(command)?;
    victim.wait_for("control\n", 60 * SECOND)?;
    let said = victim.said();
    let control = said.trim().to_owned();
    let answers = || std::os::unix::net::UnixStream::connect(&control).is_ok();
    assert!(answers());
    drop(victim); // SIGKILL
    assert!(answers(), "who told it to end?");
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../lab");
    assert!(Command::new(script).args(["down", "--stale"]).status().expect("lab runs").success());
    assert!(wait_until(SECOND, || !answers()));
    Ok(())
}

fn a_natbox_that_cannot_start_says_why() -> Tested {
    let error =
        Lab::up("one-nat").nat("N1", "no-such-preset").start().expect_err("an unknown preset").to_string();
    assert!(error.contains("no-such-preset"), "{error}");
    let error = Lab::up("one-nat").natbox("/no/such/natbox").start().expect_err("no program").to_string();
    assert!(error.contains("/no/such/natbox"), "{error}");
    Ok(())
}
