//! Lifetimes, shortened by configuration. What must live is kept busy and watched; what must die is waited for.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::tools::{Echo, connect, exchange, ping};
use common::{PATIENCE, SECOND, Tested, count, drops, mappings, reflector, udp};
use netns_lab::harness::{self, Test};
use netns_lab::probe::{self, Reflector, Source};
use netns_lab::{Lab, LabError, Nat, wait_until};

fn main() -> ExitCode {
    harness::main(vec![
        Test::new("an_idle_udp_mapping_dies", an_idle_udp_mapping_dies),
        Test::new("a_busy_udp_mapping_lives", a_busy_udp_mapping_lives),
        Test::new("inbound_packets_refresh_where_they_may", inbound_packets_refresh_where_they_may),
        Test::new("a_replied_session_lives_longer", a_replied_session_lives_longer),
        Test::new("no_mapping_gets_older_than_its_lifetime", no_mapping_gets_older_than_its_lifetime),
        Test::new("an_idle_connection_is_reset", an_idle_connection_is_reset),
        Test::new("closed_and_failed_connections_are_forgotten", closed_and_failed_connections_are_forgotten),
        Test::new("pings_are_forgotten", pings_are_forgotten),
    ])
}

/// Returns when the natbox has no mapping of this protocol any more, neither to show nor in memory, where it would hold
/// its port.
fn forgets(nat: &Nat, protocol: &str) -> Tested {
    let left = || Ok::<_, LabError>((count(nat, protocol)?, nat.show()?["status"]["mappings"].as_u64()));
    let forgotten = wait_until(PATIENCE, || left().is_ok_and(|left| left == (0, Some(0))));
    assert!(forgotten, "{protocol} mappings shown, and all in memory: {:?}", left()?);
    Ok(())
}

fn external(reflector: &Reflector, socket: &UdpSocket) -> Result<SocketAddr, probe::ProbeError> {
    probe::udp_mapping(reflector.endpoints(), socket, Source::Same)
}

fn an_idle_udp_mapping_dies() -> Tested {
    // Random ports: a new mapping is seen to be a new one.
    let flags = ["--ports=random", "--udp-timeout=300ms", "--udp-replied-timeout=300ms"];
    let lab = Lab::up("one-nat").nat("N1", "full-cone").nat_args("N1", &flags).start()?;
    let (reflector, nat, client) = (reflector(&lab)?, lab.nat("N1")?, udp(lab.host("A")?, 0)?);
    let born = Instant::now();
    let before = external(&reflector, &client)?;
    let there = mappings(nat)?;
    if born.elapsed() < Duration::from_millis(200) {
        assert_eq!(there.len(), 1, "{there:?}");
        assert!(there[0]["expires_in_ms"].as_u64().is_some_and(|left| left <= 300), "{there:?}");
    }
    forgets(nat, "udp")?;
    assert!(born.elapsed() >= Duration::from_millis(300), "dead after {:?}", born.elapsed());
    // Full cone, but nobody is there any more.
    let server = udp(lab.host("S")?, 53)?;
    server.send_to(b"anybody?", before)?;
    assert_ne!(external(&reflector, &client)?, before, "the same port of 60,000 again");
    Ok(())
}

/// How a mapping fared under traffic.
enum Fate {
    /// It was the same one for the whole time.
    Lived,
    /// It changed after this long.
    Changed(Duration),
    /// This test was held up for so long that the mapping may have died rightly.
    Stalled,
}

/// Sends by `beat` every 50 ms, for `age`, and looks at the external endpoint by `look`.
fn keep_busy(
    age: Duration,
    timeout: Duration,
    mut beat: impl FnMut(),
    mut alive: impl FnMut() -> Result<bool, LabError>,
) -> Result<Fate, LabError> {
    let born = Instant::now();
    let mut last = born;
    loop {
        beat();
        if last.elapsed() > timeout / 2 {
            return Ok(Fate::Stalled);
        }
        last = Instant::now();
        if !alive()? {
            return Ok(Fate::Changed(born.elapsed()));
        }
        if born.elapsed() > age {
            return Ok(Fate::Lived);
        }
    }
}

/// Whether the natbox still has exactly the mapping with this external endpoint.
fn has(nat: &Nat, external: SocketAddr) -> Result<bool, LabError> {
    Ok(mappings(nat)?.iter().any(|mapping| mapping["external"] == external.to_string()))
}

const SHORT: Duration = Duration::from_millis(600);
const SHORT_FLAGS: [&str; 3] = ["--ports=random", "--udp-timeout=600ms", "--udp-replied-timeout=600ms"];

fn a_busy_udp_mapping_lives() -> Tested {
    let lab = Lab::up("one-nat").nat("N1", "full-cone").nat_args("N1", &SHORT_FLAGS).start()?;
    let (reflector, nat, client) = (reflector(&lab)?, lab.nat("N1")?, udp(lab.host("A")?, 0)?);
    for _ in 0..5 {
        let first = external(&reflector, &client)?;
        let fate = keep_busy(3 * SHORT, SHORT, || drop(external(&reflector, &client)), || has(nat, first))?;
        match fate {
            Fate::Lived => return Ok(()),
            Fate::Changed(after) => panic!("a busy mapping died after {after:?}"),
            Fate::Stalled => {}
        }
    }
    Err("this machine is too busy: packets every 300 ms can't be kept up".into())
}

/// S sends to A's mapping, A is silent.
fn inbound_packets_refresh_where_they_may() -> Tested {
    for (refresh, lives) in [("outbound", false), ("inbound", true), ("both", true)] {
        let refresh_flag = format!("--refresh={refresh}");
        let lab = Lab::up("one-nat")
            .nat("N1", "full-cone")
            .nat_args("N1", &SHORT_FLAGS)
            .nat_args("N1", &[refresh_flag])
            .start()?;
        let (nat, client, server) = (lab.nat("N1")?, udp(lab.host("A")?, 0)?, udp(lab.host("P")?, 53)?);
        let to = common::endpoint(lab.host("P")?.addr(), 53);
        let mut judged = false;
        for _ in 0..5 {
            let external = common::seen(&client, to, &server, b"hello")?;
            let beat = || {
                server.send_to(b"still there?", external).expect("a route");
            };
            match keep_busy(3 * SHORT, SHORT, beat, || has(nat, external))? {
                Fate::Stalled => continue,
                Fate::Lived => assert!(lives, "refresh {refresh}: inbound packets kept it alive"),
                Fate::Changed(after) => {
                    assert!(!lives && after >= SHORT / 2, "refresh {refresh}: dead after {after:?}");
                }
            }
            judged = true;
            break;
        }
        assert!(judged, "this machine is too busy: packets every 300 ms can't be kept up");
    }
    Ok(())
}

fn a_replied_session_lives_longer() -> Tested {
    let flags = ["--udp-timeout=300ms", "--udp-replied-timeout=1h"];
    let lab = Lab::up("one-nat").nat("N1", "symmetric").nat_args("N1", &flags).start()?;
    let (reflector, nat, client) = (reflector(&lab)?, lab.nat("N1")?, udp(lab.host("A")?, 0)?);
    let replied = external(&reflector, &client)?;
    // Nobody answers there.
    client.send_to(b"anybody?", common::endpoint(lab.host("S")?.addr(), 9999))?;
    let left =
        || Ok::<_, LabError>(mappings(nat)?.iter().map(|it| it["external"].to_string()).collect::<Vec<_>>());
    assert!(wait_until(PATIENCE, || left().is_ok_and(|left| left.len() == 1)), "{:?}", left()?);
    assert!(has(nat, replied)?, "the wrong one died: {:?}", left()?);
    Ok(())
}

fn no_mapping_gets_older_than_its_lifetime() -> Tested {
    const LIFETIME: Duration = SECOND;
    let flags = ["--ports=random", "--mapping-lifetime=1s"];
    let lab = Lab::up("one-nat").nat("N1", "full-cone").nat_args("N1", &flags).start()?;
    let (reflector, client) = (reflector(&lab)?, udp(lab.host("A")?, 0)?);
    let mut ages = Vec::new();
    let (mut born, mut now) = (Instant::now(), external(&reflector, &client)?);
    while ages.len() < 3 {
        let asked = Instant::now();
        let then = external(&reflector, &client)?;
        if then != now {
            ages.push((born.elapsed(), born.elapsed() - (Instant::now() - asked)));
            (born, now) = (asked, then);
        }
        assert!(born.elapsed() < PATIENCE, "{now} never dies");
    }
    for (age, _) in ages {
        assert!(age >= LIFETIME, "dead at {age:?}, before its time");
    }
    Ok(())
}

/// What cloud gateways do: silence when the timer ends, a reset for the next segment.
fn an_idle_connection_is_reset() -> Tested {
    for stray in ["reset", "drop", "forward"] {
        let flag = format!("--stray-tcp={stray}");
        // A mapping lives as long as an opening that fails, whatever becomes of its connection.
        let flags = ["--tcp-opening-timeout=300ms", "--tcp-established-timeout=300ms", &flag];
        let lab = Lab::up("one-nat").nat("N1", "symmetric").nat_args("N1", &flags).start()?;
        let (a, s, nat) = (lab.host("A")?, lab.host("S")?, lab.nat("N1")?);
        let _echo = Echo::start(s, 7)?;
        let mut stream = connect(a, common::endpoint(s.addr(), 7))?;
        exchange(&mut stream, b"established")?;
        forgets(nat, "tcp")?;
        let mut buffer = [0; 16];
        stream.write_all(b"after the timeout")?;
        match stray {
            "reset" => {
                let error = stream.read(&mut buffer).expect_err("a reset");
                assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            }
            "drop" => {
                assert!(
                    wait_until(PATIENCE, || drops(nat, "stray-tcp").is_ok_and(|count| count > 0)),
                    "{}",
                    nat.show()?["drops"]
                );
            }
            // With a random port: S knows no such connection, and says so.
            _ => {
                let error = stream.read(&mut buffer).expect_err("a reset from S");
                assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
                assert_eq!(count(nat, "tcp")?, 1);
            }
        }
    }
    Ok(())
}

fn closed_and_failed_connections_are_forgotten() -> Tested {
    let flags = [
        "--tcp-opening-timeout=300ms",
        "--tcp-closing-timeout=300ms",
        "--tcp-reset-timeout=300ms",
        "--tcp-established-timeout=1h",
    ];
    let lab = Lab::up("one-nat").nat("N1", "symmetric").nat_args("N1", &flags).start()?;
    let (a, s, nat) = (lab.host("A")?, lab.host("S")?, lab.nat("N1")?);
    let _echo = Echo::start(s, 7)?;
    let to = common::endpoint(s.addr(), 7);
    let mut stream = connect(a, to)?;
    exchange(&mut stream, b"hello")?;
    assert_eq!(count(nat, "tcp")?, 1);
    drop(stream);
    forgets(nat, "tcp")?;

    // Established for so long that its timer is the long one by now.
    let mut stream = connect(a, to)?;
    let since = Instant::now();
    while since.elapsed() < SECOND {
        exchange(&mut stream, b"still here")?;
    }
    drop(stream);
    forgets(nat, "tcp")?;

    // Reset by S: nobody listens there.
    assert!(connect(a, common::endpoint(s.addr(), 9)).is_err());
    forgets(nat, "tcp")?;

    // One side has closed, the other one still speaks: as long as it does, the connection is there.
    let mut half = connect(a, to)?;
    exchange(&mut half, b"hello")?;
    assert_eq!(count(nat, "tcp")?, 1);
    Ok(())
}

fn pings_are_forgotten() -> Tested {
    let lab = Lab::up("one-nat").nat("N1", "symmetric").nat_args("N1", &["--icmp-timeout=500ms"]).start()?;
    let nat = lab.nat("N1")?;
    assert!(ping(lab.host("A")?, lab.host("S")?.addr(), &[])?);
    forgets(nat, "icmp")?;
    assert!(ping(lab.host("A")?, lab.host("S")?.addr(), &[])?);
    Ok(())
}
