//! Files between two machines behind NATs, while paths switch, programs die and disks fill: real peers, a real supernode,
//! real natboxes.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use common::peers::{Meeting, block, succeeds, told, wait_event};
use common::tools::{Content, text};
use common::{PATIENCE, Tested};
use netns_lab::harness::{self, Test};
use netns_lab::{Host, Lab, Process, program, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn main() -> ExitCode {
    harness::main(vec![
        Test::new("a_folder_arrives_whoever_dies", a_folder_arrives_whoever_dies),
        Test::new("a_full_disk_is_told_at_both_ends", a_full_disk_is_told_at_both_ends),
    ])
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Bytes of the large file: some seconds of a debug build.
const LARGE: u64 = 192 << 20;
const SMALL: u64 = 300;

/// A on the way to S, each behind a NAT; P introduces them.
struct Move {
    lab: Lab,
    meeting: Meeting,
    there: PathBuf,
    here: PathBuf,
}

impl Move {
    fn new() -> Result<Move, Failure> {
        let lab = Lab::up("two-nats").nat("N1", "port-restricted").nat("N2", "port-restricted").start()?;
        let meeting = Meeting::start(&lab, "P")?;
        let (there, here) = (meeting.scratch.path("there"), meeting.scratch.path("here"));
        for folder in [&there, &here] {
            fs::create_dir_all(folder.join("tree"))?;
        }
        Ok(Move { lab, meeting, there: there.join("tree"), here })
    }

    /// `traverse receive`; returns when it is registered, with its id.
    fn receive(&self) -> Result<(Process, String), Failure> {
        let here = self.here.display().to_string();
        let nothing = Path::new("/dev/null");
        let mut process =
            self.meeting.run(self.lab.host("S")?, "s", "receive", &["--yes", &here], (nothing, nothing))?;
        let id = listening(&mut process)?;
        Ok((process, id))
    }

    /// `traverse send`, which tries again for half a minute.
    fn send(&self, id: &str) -> Result<Process, Failure> {
        let there = self.there.display().to_string();
        let nothing = Path::new("/dev/null");
        self.meeting.run(self.lab.host("A")?, "a", "send", &["--retry", "30", id, &there], (nothing, nothing))
    }

    /// Bytes of the large file that are here, before it is whole.
    fn arrived(&self) -> u64 {
        let entries = fs::read_dir(self.here.join("tree")).into_iter().flatten().flatten();
        let is_partial = |name: &str| name.starts_with(".traverse-") && name.ends_with(".part");
        let partials = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_partial));
        partials.filter_map(|entry| entry.metadata().ok()).map(|partial| partial.len()).max().unwrap_or(0)
    }

    /// Waits until so much of it is.
    fn has_arrived(&self, bytes: u64, sender: &Process) {
        let reached = wait_until(PATIENCE * 3, || self.arrived() >= bytes);
        assert!(reached, "{} of {bytes} bytes: {}", self.arrived(), sender.said());
    }
}

fn listening(process: &mut Process) -> Result<String, Failure> {
    let listening = wait_event(process, "listening", PATIENCE)?;
    Ok(listening["id"].as_str().ok_or("an id")?.to_owned())
}

fn dies(process: &mut Process) -> Tested {
    kill(Pid::from_raw(process.id().cast_signed()), Signal::SIGKILL)?;
    process.wait(PATIENCE)?;
    Ok(())
}

fn events(process: &Process, kind: &str) -> Vec<Value> {
    told(process).into_iter().filter(|event| event["event"] == kind).collect()
}

fn file(path: &Path, length: u64) -> Tested {
    let mut bytes = vec![0; usize::try_from(length)?];
    Content::new(length).fill(&mut bytes);
    Ok(fs::write(path, bytes)?)
}

/// Where a transfer went on, as the last one told by this program.
fn resumed(process: &Process) -> u64 {
    events(process, "resumed").last().and_then(|event| event["from"].as_u64()).unwrap_or(0)
}

/// Begun over the relay, continued directly; the sender is killed, then the receiver. What had arrived is not sent again.
fn a_folder_arrives_whoever_dies() -> Tested {
    let moving = Move::new()?;
    block(&moving.lab, true)?;
    file(&moving.there.join("large"), LARGE)?;
    fs::create_dir(moving.there.join("small"))?;
    for number in 1..=SMALL {
        file(&moving.there.join(format!("small/{number}")), number)?;
    }
    let (mut receiver, id) = moving.receive()?;
    let mut sender = moving.send(&id)?;
    moving.has_arrived(1, &sender);
    let connected = wait_event(&mut sender, "connected", PATIENCE)?;
    assert_eq!(connected["path"]["kind"], "relay", "{connected}");
    block(&moving.lab, false)?;
    let is_direct =
        |event: &Value| event["path"]["event"] == "switched" && event["path"]["to"]["kind"] == "direct";
    let switched = wait_until(PATIENCE * 2, || told(&sender).iter().any(is_direct));
    assert!(switched, "never direct: {}", sender.said());
    let before = moving.arrived();
    assert!(before > 0, "it was over before the switch");
    moving.has_arrived(before + LARGE / 32, &sender);

    let seen = moving.arrived();
    dies(&mut sender)?;
    let mut sender = moving.send(&id)?;
    wait_event(&mut sender, "resumed", PATIENCE * 2)?;
    let first = resumed(&sender);
    assert!(first >= seen, "{seen} bytes had arrived, and it went on at {first}");
    moving.has_arrived(first + LARGE / 16, &sender);

    let seen = moving.arrived();
    dies(&mut receiver)?;
    let (mut receiver, same) = moving.receive()?;
    assert_eq!(same, id);
    // The sender tries again by itself.
    succeeds(&mut sender, PATIENCE * 6)?;
    succeeds(&mut receiver, PATIENCE)?;
    let second = resumed(&sender);
    assert!(
        second >= seen && seen > first,
        "{first}, then {seen} bytes had arrived, and it went on at {second}"
    );
    let done = events(&sender, "done").pop().unwrap_or_default();
    let small: u64 = (1..=SMALL).sum();
    let number = |field: &str| done[field].as_u64().unwrap_or(0);
    // Some of the small files may have come before somebody died.
    assert_eq!(number("files") + number("present"), SMALL + 1, "{done}");
    let of_small = number("transferred").checked_sub(LARGE - second);
    assert!(of_small.is_some_and(|bytes| bytes <= small), "the rest of the large file and no more: {done}");
    let [there, here] = [&moving.there, &moving.here.join("tree")].map(|path| path.display().to_string());
    text(moving.lab.host("S")?, "diff", &["--recursive", &there, &here])?;
    println!("      went on at {} and {} of {} MiB", first >> 20, second >> 20, LARGE >> 20);
    Ok(())
}

/// On a disk of its own that has no room for it.
fn a_full_disk_is_told_at_both_ends() -> Tested {
    let moving = Move::new()?;
    file(&moving.there.join("large"), 8 << 20)?;
    let host: &Host = moving.lab.host("S")?;
    let mut shell = host.command("unshare")?;
    let script = "mount -t tmpfs -o size=4m none \"$1\" && shift && exec \"$@\"";
    let here = moving.here.display().to_string();
    shell.args(["--mount", "sh", "-c", script, "sh", &here]).arg(program("traverse")?);
    shell.args(moving.meeting.traverse("s", "receive")).args(["--yes", &here]);
    let mut receiver = Process::spawn(shell)?;
    let id = listening(&mut receiver)?;
    let mut sender = moving.send(&id)?;
    for (process, words) in [
        (&mut sender, "the peer cannot go on: the disk is full"),
        (&mut receiver, "tree/large: the disk is full; make room and run it again"),
    ] {
        let status = process.wait(PATIENCE * 2)?;
        assert_eq!(status.code(), Some(1), "{}", process.said());
        assert!(process.said().contains(words), "{}", process.said());
    }
    Ok(())
}
