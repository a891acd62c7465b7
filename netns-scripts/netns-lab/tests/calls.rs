//! The call of `examples/call` between real NATs: what is heard is what was said, whichever way its packets go.

mod common;

use std::process::ExitCode;

use common::peers::{Meeting, told, wait_event};
use common::tools::text;
use common::{PATIENCE, Tested};
use netns_lab::harness::{self, Test};
use netns_lab::{Host, Lab, Process, example, wait_until};
use serde_json::Value;

fn main() -> ExitCode {
    harness::main(vec![
        Test::new("over_the_relay", over_the_relay),
        Test::new("over_a_punched_path", over_a_punched_path),
        Test::new("from_the_relay_to_a_direct_path_and_back", from_the_relay_to_a_direct_path_and_back),
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

/// Loses what goes between the two NATs' public addresses, and nothing else; or no more.
fn block(lab: &Lab, is_blocked: bool) -> Tested {
    let rules = match is_blocked {
        true => {
            "add table ip hole; add chain ip hole way { type filter hook forward priority 0; }; \
             add rule ip hole way ip saddr 203.0.113.11 ip daddr 203.0.113.12 drop; \
             add rule ip hole way ip saddr 203.0.113.12 ip daddr 203.0.113.11 drop"
        }
        false => "delete table ip hole",
    };
    text(lab.host("internet")?, "nft", &[rules])?;
    Ok(())
}

fn over_the_relay() -> Tested {
    let call = Call::start("symmetric")?;
    for summary in call.ends()? {
        assert_eq!((&summary["path"], &summary["switches"]), (&"relay".into(), &0.into()), "{summary}");
    }
    Ok(())
}

fn over_a_punched_path() -> Tested {
    let call = Call::start("port-restricted")?;
    call.switches_to("direct");
    for summary in call.ends()? {
        assert_eq!(summary["path"], "direct", "{summary}");
    }
    Ok(())
}

fn from_the_relay_to_a_direct_path_and_back() -> Tested {
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
