//! What happens to a call when something breaks: real peers, a real supernode, real natboxes.

mod common;

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use common::peers::{Meeting, PORT, succeeds, told, wait_event};
use common::sniffer::{Sniffer, What};
use common::tools::text;
use common::{PATIENCE, Tested};
use netns_lab::harness::{self, Test};
use netns_lab::{Host, Lab, Process, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn main() -> ExitCode {
    harness::main(vec![
        Test::new("a_nat_becomes_symmetric_in_mid_call", a_nat_becomes_symmetric_in_mid_call),
        Test::new("a_nat_is_killed_in_mid_call", a_nat_is_killed_in_mid_call),
        Test::new("the_supernode_is_killed_in_mid_call", the_supernode_is_killed_in_mid_call),
        Test::new("a_peer_is_killed", a_peer_is_killed),
        Test::new("udp_is_blocked_and_comes_back", udp_is_blocked_and_comes_back),
        Test::new("a_gigabyte_across_switches", a_gigabyte_across_switches),
        Test::new("the_supernode_sees_nothing", the_supernode_sees_nothing),
    ])
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Between two round trips of a call.
const INTERVAL: &str = "0.05";

/// A behind N1 calls S behind N2; P introduces them.
struct Call {
    lab: Lab,
    meeting: Meeting,
    listener: Process,
    caller: Process,
}

impl Call {
    /// `traverse ping` from A to S, for as long as this lives.
    fn start(n1: &str, n2: &str) -> Result<Call, Failure> {
        let lab = Lab::up("two-nats").nat("N1", n1).nat("N2", n2).start()?;
        let meeting = Meeting::start(&lab, "P")?;
        let (listener, id) = meeting.listen(lab.host("S")?, "s", &["--keep"])?;
        let caller = ping(&meeting, lab.host("A")?, "a", &id)?;
        Ok(Call { lab, meeting, listener, caller })
    }

    /// The round trips so far.
    fn trips(&self) -> Vec<Value> {
        told(&self.caller).into_iter().filter(|event| event["event"] == "round-trip").collect()
    }

    fn latest(&self) -> Option<String> {
        Some(self.trips().last()?["path"]["kind"].as_str()?.to_owned())
    }

    /// Waits until the call goes this way, and then on.
    fn is_by(&self, kind: &str, limit: Duration) -> Tested {
        let reached = wait_until(limit, || self.latest().is_some_and(|latest| latest == kind));
        assert!(reached, "not by {kind}: {}", tail(&self.caller));
        self.goes_on()
    }

    /// Waits for another ten round trips, and looks whether one is missing.
    fn goes_on(&self) -> Tested {
        let before = self.trips().len();
        let more = wait_until(PATIENCE * 2, || self.trips().len() >= before + 10);
        assert!(more, "the call stands still: {}\nS: {}", tail(&self.caller), tail(&self.listener));
        for (number, trip) in (1u64..).zip(self.trips()) {
            assert_eq!(trip["sequence"], number, "a round trip is missing");
        }
        Ok(())
    }
}

fn ping(meeting: &Meeting, host: &Host, who: &str, id: &str) -> Result<Process, Failure> {
    // Ping speaks on standard output: to the pipe that the process's guard listens to.
    meeting.run(
        host,
        who,
        "ping",
        &["--interval", INTERVAL, id],
        (Path::new("/dev/null"), Path::new("/dev/stderr")),
    )
}

/// The last lines that a program told.
fn tail(process: &Process) -> String {
    let said = process.said();
    let lines: Vec<_> = said.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

fn a_nat_becomes_symmetric_in_mid_call() -> Tested {
    let call = Call::start("port-restricted", "port-restricted")?;
    call.is_by("direct", PATIENCE)?;
    let nat = call.lab.nat("N1")?;
    nat.set(&["--mapping=apdm", "--filtering=apdf", "--ports=random"])?;
    nat.flush()?;
    call.is_by("relay", PATIENCE)?;
    nat.set(&["--mapping=eim"])?;
    nat.flush()?;
    call.is_by("direct", PATIENCE * 2)
}

fn a_nat_is_killed_in_mid_call() -> Tested {
    let call = Call::start("full-cone", "port-restricted")?;
    call.is_by("direct", PATIENCE)?;
    let nat = call.lab.nat("N1")?;
    nat.kill()?;
    nat.start()?;
    call.goes_on()?;
    call.is_by("direct", PATIENCE * 2)
}

fn the_supernode_is_killed_in_mid_call() -> Tested {
    let mut call = Call::start("port-restricted", "port-restricted")?;
    call.is_by("direct", PATIENCE)?;
    kill(Pid::from_raw(call.meeting.supernode.id().cast_signed()), Signal::SIGKILL)?;
    call.goes_on()?;
    assert_eq!(call.latest().as_deref(), Some("direct"), "a direct call needs no supernode");
    call.meeting.restart(call.lab.host("P")?)?;
    // It knows nobody: the peers come back by themselves, and so does their way over it.
    let nat = call.lab.nat("N1")?;
    nat.set(&["--mapping=apdm", "--filtering=apdf", "--ports=random"])?;
    nat.flush()?;
    call.is_by("relay", PATIENCE * 3)
}

fn a_peer_is_killed() -> Tested {
    let mut call = Call::start("full-cone", "full-cone")?;
    call.is_by("direct", PATIENCE)?;
    kill(Pid::from_raw(call.listener.id().cast_signed()), Signal::SIGKILL)?;
    call.listener.wait(PATIENCE)?;
    // The same peer again: the old connection is over at once, and a new one can be made.
    let (listener, id) = call.meeting.listen(call.lab.host("S")?, "s", &["--keep"])?;
    call.listener = listener;
    let status = call.caller.wait(PATIENCE * 3)?;
    assert!(!status.success(), "the call goes on without a peer");
    assert!(call.caller.said().contains("traverse: "), "no word about it: {}", tail(&call.caller));
    call.caller = ping(&call.meeting, call.lab.host("A")?, "a", &id)?;
    call.is_by("direct", PATIENCE)
}

fn udp_is_blocked_and_comes_back() -> Tested {
    let call = Call::start("port-restricted,--allow-udp=53", "port-restricted")?;
    call.is_by("relay", PATIENCE)?;
    let nat = call.lab.nat("N1")?;
    nat.set(&["--allow-udp=all"])?;
    call.is_by("direct", PATIENCE * 6)?;
    nat.set(&["--allow-udp=53"])?;
    nat.flush()?;
    call.is_by("relay", PATIENCE * 6)
}

/// From the relay to a direct path, back, and to a direct path again, while a gigabyte goes through.
fn a_gigabyte_across_switches() -> Tested {
    const LENGTH: usize = 1 << 30;
    let lab = Lab::up("two-nats").nat("N1", "port-restricted").nat("N2", "port-restricted").start()?;
    let meeting = Meeting::start(&lab, "P")?;
    let (s, a) = (lab.host("S")?, lab.host("A")?);
    let (mut listener, id) = meeting.listen(s, "s", &[])?;
    let payload = meeting.scratch.path("payload");
    fs::File::create(&payload)?.set_len(0)?;
    text(a, "sh", &["-c", &format!("head -c {LENGTH} /dev/urandom > {}", payload.display())])?;
    let mut caller = meeting.run(a, "a", "connect", &[&id], (&payload, Path::new("/dev/null")))?;

    wait_event(&mut caller, "connected", PATIENCE)?;
    let arrived = || fs::metadata(meeting.scratch.path("s.out")).map_or(0, |file| file.len());
    let nat = lab.nat("N1")?;
    for (part, mapping) in [(8, "apdm"), (4, "eim")] {
        let reached = wait_until(PATIENCE * 10, || arrived() > (LENGTH / part) as u64);
        assert!(reached, "{} bytes of {LENGTH} arrived: {}", arrived(), tail(&caller));
        nat.set(&[&format!("--mapping={mapping}")])?;
        nat.flush()?;
    }
    succeeds(&mut caller, PATIENCE * 20)?;
    succeeds(&mut listener, PATIENCE)?;
    let hash = |path: &Path| text(s, "sha256sum", &["--", &path.display().to_string()]);
    let word = |line: String| line.split(' ').next().map(str::to_owned);
    assert_eq!(word(hash(&payload)?), word(hash(&meeting.scratch.path("s.out"))?), "the bytes have changed");

    let switches = told(&caller).iter().filter(|event| event["path"]["event"] == "switched").count();
    assert!(switches >= 3, "{switches} switches: {}", tail(&caller));
    Ok(())
}

/// What crosses P has neither the payload nor an address that the peers told each other.
fn the_supernode_sees_nothing() -> Tested {
    const WORDS: &[u8] = b"meet me behind the old mill at midnight. ";
    let lab = Lab::up("two-nats").nat("N1", "symmetric").nat("N2", "symmetric").start()?;
    let p = lab.host("P")?;
    let sniffer = Sniffer::start(p, "eth0")?;
    let meeting = Meeting::start(&lab, "P")?;
    let (mut listener, id) = meeting.listen(lab.host("S")?, "s", &[])?;
    let letter = meeting.scratch.path("letter");
    fs::write(&letter, WORDS.repeat(500))?;
    let output = meeting.scratch.path("a.out");
    let arguments = [id.as_str(), "--wait-direct", "1"];
    let mut caller = meeting.run(lab.host("A")?, "a", "connect", &arguments, (&letter, &output))?;
    succeeds(&mut caller, PATIENCE)?;
    succeeds(&mut listener, PATIENCE)?;
    assert_eq!(meeting.received("s"), WORDS.repeat(500));

    let mut crossed = Vec::new();
    for heard in sniffer.heard() {
        if let What::Udp { from, to, payload } = heard.what
            && (from == PORT || to == PORT)
        {
            crossed.extend(payload);
        }
    }
    assert!(crossed.len() > 2 * WORDS.len() * 500, "{} bytes: the relay was not used", crossed.len());
    assert!(!contains(&crossed, &WORDS[..16]), "P sees the letter");
    for host in ["A", "S"] {
        for form in forms(lab.host(host)?.addr()) {
            assert!(!contains(&crossed, &form), "P sees {host}'s address as {form:02x?}");
        }
    }
    // The same search finds them where they are.
    let plain = [&WORDS.repeat(2)[..], &lab.host("A")?.addr().octets()].concat();
    assert!(contains(&plain, &WORDS[..16]) && contains(&plain, &forms(lab.host("A")?.addr())[0]));
    Ok(())
}

/// An address as four bytes, as text, and as STUN hides it (RFC 8489 §14.2).
fn forms(address: Ipv4Addr) -> [Vec<u8>; 3] {
    let xored = (address.to_bits() ^ 0x2112_a442).to_be_bytes();
    [address.octets().to_vec(), address.to_string().into_bytes(), xored.to_vec()]
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
