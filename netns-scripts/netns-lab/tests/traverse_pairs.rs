//! Every pair of NAT behaviours, with real natboxes, a real supernode and real peers: all connect, and those that can be
//! punched are direct. Direct is judged at P: what crosses it while 100 KB go from peer to peer.

mod common;

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use common::peers::{Meeting, succeeds, told, traffic};
use common::{PATIENCE, Tested};
use netns_lab::harness::{self, Test};
use netns_lab::{Lab, Process, example, program};

/// Mapping and filtering, by natbox's names.
const KINDS: [&str; 9] =
    ["eim/eif", "eim/adf", "eim/apdf", "adm/eif", "adm/adf", "adm/apdf", "apdm/eif", "apdm/adf", "apdm/apdf"];

/// Bytes from peer to peer.
const PAYLOAD: usize = 100_000;

/// What may cross P besides: two control connections, the peers' handshake over the relay, both counted coming and going.
const SIGNALLING: u64 = 80_000;

/// Labs at a time: most of a pair's time is waiting.
const LABS: usize = 8;

fn main() -> ExitCode {
    harness::main(vec![
        Test::new("all_pairs_with_random_ports", all_pairs_with_random_ports),
        Test::new("kernel_masquerade", || kernel("kernel", "kernel")),
        Test::new("kernel_masquerade_and_a_full_cone", || kernel("kernel", "full-cone")),
        Test::new("kernel_masquerade_without_a_firewall", || kernel("kernel-open", "kernel")),
        Test::new("both_without_a_firewall", || kernel("kernel-open", "kernel-open")),
        Test::new("doctor_knows_all_nine", doctor_knows_all_nine),
        Test::new("the_echo_example", the_echo_example),
    ])
}

/// How a pair was connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Direct,
    Relay,
}

/// Two peers behind these NATs: connects them, sends the payload, and tells which way it went.
fn connect(n1: &str, n2: &str) -> Result<Verdict, Box<dyn std::error::Error + Send + Sync>> {
    let lab = Lab::up("two-nats").nat("N1", n1).nat("N2", n2).start()?;
    let p = lab.host("P")?;
    let meeting = Meeting::start(&lab, "P")?;
    let (mut listener, id) = meeting.listen(lab.host("S")?, "s", &[])?;
    let (payload, bytes) = meeting.payload(PAYLOAD)?;
    let before = traffic(p)?;
    let output = meeting.scratch.path("a.out");
    let arguments = [id.as_str(), "--wait-direct", "3"];
    let mut caller = meeting.run(lab.host("A")?, "a", "connect", &arguments, (&payload, &output))?;
    succeeds(&mut caller, PATIENCE * 2)?;
    succeeds(&mut listener, PATIENCE)?;
    assert!(meeting.received("s") == bytes, "{} bytes of {PAYLOAD} arrived", meeting.received("s").len());

    let crossed = traffic(p)? - before;
    let seen = if crossed < SIGNALLING { Verdict::Direct } else { Verdict::Relay };
    let last = told(&caller).pop().unwrap_or_default();
    let said = if last["path"]["kind"] == "direct" { Verdict::Direct } else { Verdict::Relay };
    assert!(
        seen == said && (seen == Verdict::Direct || crossed > 2 * PAYLOAD as u64),
        "traverse says {said:?}, and {crossed} bytes crossed P\n{}",
        caller.said()
    );
    Ok(seen)
}

fn all_pairs_with_random_ports() -> Tested {
    let pairs: Vec<_> = (0..KINDS.len()).flat_map(|row| (0..=row).map(move |column| (row, column))).collect();
    let (next, seen) = (AtomicUsize::new(0), Mutex::new(vec![vec![None; KINDS.len()]; KINDS.len()]));
    let spec = |kind: &str| {
        let (mapping, filtering) = kind.split_once('/').unwrap_or((kind, kind));
        format!("rfc,--mapping={mapping},--filtering={filtering},--ports=random")
    };
    let failures = Mutex::new(String::new());
    thread::scope(|scope| {
        for _ in 0..LABS {
            scope.spawn(|| {
                while let Some((row, column)) = pairs.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
                    let result = connect(&spec(KINDS[row]), &spec(KINDS[column]));
                    match result {
                        Ok(verdict) => seen.lock().expect("no panic")[row][column] = Some(verdict),
                        Err(error) => {
                            let mut failures = failures.lock().expect("no panic");
                            let _ = writeln!(failures, "{} and {}: {error}", KINDS[row], KINDS[column]);
                        }
                    }
                }
            });
        }
    });
    let failures = failures.into_inner()?;
    assert!(failures.is_empty(), "{failures}");
    common::matrix::compare("lab", &table(&seen.into_inner()?))
}

/// `traverse doctor` behind each of the nine.
fn doctor_knows_all_nine() -> Tested {
    let lab = Lab::up("one-nat").nat("N1", "rfc,--ports=random").start()?;
    let (meeting, nat) = (Meeting::start(&lab, "P")?, lab.nat("N1")?);
    for kind in KINDS {
        let (mapping, filtering) = kind.split_once('/').ok_or(kind)?;
        nat.set(&[&format!("--mapping={mapping}"), &format!("--filtering={filtering}")])?;
        nat.flush()?;
        let mut doctor = lab.host("A")?.command(program("traverse")?)?;
        let output = doctor.args(meeting.traverse("a", "doctor")).output()?;
        let told = String::from_utf8_lossy(&output.stdout);
        let report: serde_json::Value = serde_json::from_str(&told)
            .map_err(|error| format!("{kind}: {error}: {told}{}", String::from_utf8_lossy(&output.stderr)))?;
        assert_eq!(report["nat"]["mapping"], spelled(mapping), "{kind}: {told}");
        assert_eq!(report["nat"]["filtering"], spelled(filtering), "{kind}: {told}");
    }
    Ok(())
}

/// The README's program, as both sides of it.
fn the_echo_example() -> Tested {
    let lab = Lab::up("two-nats").nat("N1", "port-restricted").nat("N2", "port-restricted").start()?;
    let meeting = Meeting::start(&lab, "P")?;
    let supernode = meeting.address();
    let mut echo = lab.host("S")?.command(example("echo")?)?;
    echo.arg(&supernode);
    let mut echo = Process::spawn(echo)?;
    echo.wait_for("\n", PATIENCE)?;
    let mut caller = lab.host("A")?.command(example("echo")?)?;
    caller.args([&supernode, echo.said().trim()]);
    let mut caller = Process::spawn(caller)?;
    succeeds(&mut caller, PATIENCE)?;
    caller.wait_for("hello by ", PATIENCE)?;
    Ok(())
}

/// natbox's short name of a behaviour as traverse spells it.
fn spelled(short: &str) -> &'static str {
    match &short[..short.len() - 1] {
        "ei" => "EndpointIndependent",
        "ad" => "AddressDependent",
        _ => "AddressAndPortDependent",
    }
}

/// The verdicts as docs/matrix.md shows them.
fn table(seen: &[Vec<Option<Verdict>>]) -> String {
    let mut text = format!("{:10}", "");
    KINDS.iter().for_each(|kind| write!(text, " {kind:>9}").expect("a string takes everything"));
    for (row, kind) in KINDS.iter().enumerate() {
        let _ = write!(text, "\n{kind:10}");
        for verdict in &seen[row][..=row] {
            let word = match verdict {
                Some(Verdict::Direct) => "direct",
                Some(Verdict::Relay) => "relay",
                None => "?",
            };
            let _ = write!(text, " {word:>9}");
        }
    }
    let count = |wanted| seen.iter().flatten().filter(|verdict| **verdict == Some(wanted)).count();
    let _ = writeln!(text, "\n\ndirect {}, relay {}", count(Verdict::Direct), count(Verdict::Relay));
    text
}

fn kernel(n1: &str, n2: &str) -> Tested {
    assert_eq!(connect(n1, n2)?, Verdict::Direct, "{n1} and {n2}");
    Ok(())
}
