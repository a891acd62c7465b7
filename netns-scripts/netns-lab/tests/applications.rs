//! The applications in `examples/` between real NATs: in a call what is heard is what was said, whichever way its packets
//! go; in a chat room everybody hears everybody.

mod common;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::process::ExitCode;

use common::peers::{Meeting, block, told, wait_event};
use common::{PATIENCE, Tested};
use netns_lab::harness::{self, Test};
use netns_lab::{Host, Lab, Process, example, wait_until};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

fn main() -> ExitCode {
    harness::main(vec![
        Test::new("a_call_over_the_relay", a_call_over_the_relay),
        Test::new("a_call_over_a_punched_path", a_call_over_a_punched_path),
        Test::new("a_call_that_loses_its_direct_path", a_call_that_loses_its_direct_path),
        Test::new("a_room_of_three", a_room_of_three),
    ])
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

const SECONDS: &str = "8";
/// A syllable. On a quiet machine no gap is longer than 60 ms, even where a path is lost; the figures are printed.
const LONGEST_GAP_MS: f64 = 250.0;

/// A behind N1 calls S behind N2, each with a voice of its own, and each compares what it hears with what the other says.
struct Call {
    lab: Lab,
    _meeting: Meeting,
    caller: Process,
    called: Process,
}

impl Call {
    fn start(nat: &str) -> Result<Call, Failure> {
        let lab = Lab::up("two-nats").nat("N1", nat).nat("N2", nat).start()?;
        let meeting = Meeting::start(&lab, "P")?;
        let mut called = call(&meeting, lab.host("S")?, &["--speak", "voice:2", "--compare", "voice:1"])?;
        let waiting = wait_event(&mut called, "waiting", PATIENCE)?;
        let id = waiting["id"].as_str().ok_or("an id")?.to_owned();
        let words = ["--seconds", SECONDS, "--speak", "voice:1", "--compare", "voice:2", &id];
        let caller = call(&meeting, lab.host("A")?, &words)?;
        Ok(Call { lab, _meeting: meeting, caller, called })
    }

    /// Waits until the caller's packets go this way.
    fn switches_to(&self, kind: &str) {
        let is_by = |event: &Value| event["event"] == "path" && event["path"]["to"]["kind"] == kind;
        let switched = wait_until(PATIENCE, || told(&self.caller).iter().any(is_by));
        assert!(switched, "never by {kind}: {}", self.caller.said());
    }

    /// Waits until so many seconds of the call are over.
    fn lasts(&self, seconds: u64) {
        let is_old = |event: &Value| event["event"] == "status" && event["seconds"].as_u64() >= Some(seconds);
        let lasted = wait_until(PATIENCE, || told(&self.caller).iter().any(is_old));
        assert!(lasted, "no {seconds} s: {}", self.caller.said());
    }

    /// Waits for the end; both sides must have heard what the other said, with no long gap. What each tells of the call is
    /// returned.
    fn ends(mut self) -> Result<[Value; 2], Failure> {
        let mut summaries = [Value::Null, Value::Null];
        for (process, summary) in [&mut self.caller, &mut self.called].into_iter().zip(&mut summaries) {
            let status = process.wait(PATIENCE * 2)?;
            // 4: what was heard is not the reference.
            assert!(status.success(), "{status}: {}", process.said());
            *summary =
                told(process).into_iter().find(|event| event["event"] == "summary").ok_or("no summary")?;
            let figure = |name: &str| summary[name].as_f64().unwrap_or(f64::MAX);
            let heard = |name: &str| summary["comparison"][name].as_f64().unwrap_or(f64::MAX);
            println!(
                "      gap {:.0} ms, segmental SNR {:.1} dB, found {:.1} %, mouth to ear {:.0} ms, stalled {:.0} ms",
                figure("longest_gap_ms"),
                heard("segmental_snr_db"),
                heard("found_percent"),
                figure("mouth_to_ear_ms"),
                figure("stall_ms"),
            );
            assert!(heard("compared_seconds") >= 3.0, "hardly anything was compared: {summary}");
            // While other programs have the processor nobody listens: that is not the path's.
            assert!(
                figure("longest_gap_ms") <= LONGEST_GAP_MS + figure("stall_ms"),
                "too long a gap: {summary}"
            );
        }
        Ok(summaries)
    }
}

fn call(meeting: &Meeting, host: &Host, arguments: &[&str]) -> Result<Process, Failure> {
    let mut shell = host.command("sh")?;
    // It tells on standard output; what the guard listens to is standard error.
    shell.args(["-c", "exec \"$0\" \"$@\" >&2"]).arg(example("call")?);
    shell.arg("--json").arg(meeting.address()).args(arguments);
    Ok(Process::spawn(shell)?)
}

fn a_call_over_the_relay() -> Tested {
    let call = Call::start("symmetric")?;
    for summary in call.ends()? {
        assert_eq!((&summary["path"], &summary["switches"]), (&"relay".into(), &0.into()), "{summary}");
    }
    Ok(())
}

fn a_call_over_a_punched_path() -> Tested {
    let call = Call::start("port-restricted")?;
    call.switches_to("direct");
    for summary in call.ends()? {
        assert_eq!(summary["path"], "direct", "{summary}");
    }
    Ok(())
}

fn a_call_that_loses_its_direct_path() -> Tested {
    let call = Call::start("port-restricted")?;
    call.switches_to("direct");
    call.lasts(3);
    block(&call.lab, true)?;
    call.switches_to("relay");
    for summary in call.ends()? {
        assert_eq!(summary["path"], "relay", "{summary}");
    }
    Ok(())
}

/// Somebody in a chat room, whose lines come from here.
struct Member {
    process: Process,
    keyboard: File,
}

impl Member {
    fn start(meeting: &Meeting, host: &Host, name: &str, room: &[&str]) -> Result<Member, Failure> {
        let keyboard = meeting.scratch.path(&format!("{name}.keys"));
        mkfifo(&keyboard, Mode::S_IRWXU)?;
        let mut shell = host.command("sh")?;
        shell.args(["-c", &format!("exec \"$0\" \"$@\" <'{}' >&2", keyboard.display())]);
        shell.arg(example("chat")?).arg(meeting.address()).arg(name).args(room);
        let process = Process::spawn(shell)?;
        // For reading, too: opening does not wait for the other end then.
        let keyboard = OpenOptions::new().read(true).write(true).open(keyboard)?;
        Ok(Member { process, keyboard })
    }

    fn types(&mut self, line: &str) -> Tested {
        Ok(writeln!(self.keyboard, "{line}")?)
    }

    fn sees(&mut self, words: &str) -> Tested {
        Ok(self.process.wait_for(words, PATIENCE)?)
    }
}

/// One at a public address, two behind a NAT each; the two are told of each other by the first.
fn a_room_of_three() -> Tested {
    let lab = Lab::up("two-nats").nat("N1", "port-restricted").nat("N2", "full-cone").start()?;
    let meeting = Meeting::start(&lab, "P")?;
    let mut carol = Member::start(&meeting, lab.host("P2")?, "carol", &[])?;
    carol.sees("THEIR-NAME ")?;
    let said = carol.process.said();
    let id =
        said.split("THEIR-NAME ").nth(1).and_then(|rest| rest.split_whitespace().next()).ok_or("an id")?;
    let mut alice = Member::start(&meeting, lab.host("A")?, "alice", &[id])?;
    carol.sees("* alice is here")?;
    let mut sam = Member::start(&meeting, lab.host("S")?, "sam", &[id])?;
    for name in ["alice", "carol"] {
        sam.sees(&format!("* {name} is here"))?;
    }
    alice.sees("* sam is here")?;
    let mut room = [("alice", &mut alice), ("sam", &mut sam), ("carol", &mut carol)];
    for _ in 0..3 {
        let [(name, speaker), others @ ..] = &mut room;
        speaker.types(&format!("hello from {name}"))?;
        for (_, other) in others {
            other.sees(&format!("{name}: hello from {name}"))?;
        }
        room.rotate_left(1);
    }
    // Each pair has the best path of its own.
    let all_direct = wait_until(PATIENCE, || {
        alice.types("/who").is_ok() && {
            let said = alice.process.said();
            ["sam", "carol"].iter().all(|name| {
                said.lines().any(|line| line.starts_with(&format!("* {name} ")) && line.contains(": direct "))
            })
        }
    });
    assert!(all_direct, "not all are direct: {}", alice.process.said());
    sam.types("/quit")?;
    for member in [&mut alice, &mut carol] {
        member.sees("* sam has left")?;
    }
    assert!(sam.process.wait(PATIENCE)?.success());
    Ok(())
}
