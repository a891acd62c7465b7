//! The real programs in the lab: a supernode at P, and traverse in two hosts.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use netns_lab::{Host, Lab, LabError, Process, program};
use serde_json::Value;

use super::tools::{Content, Scratch, text};
use super::{PATIENCE, Tested};

/// The supernode's port. It has a second one behind it: with two addresses and two ports a NAT can be examined in full.
pub(crate) const PORT: u16 = 3478;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A supernode on the addresses of a host, and the folder with everybody's keys and files.
pub(crate) struct Meeting {
    pub(crate) supernode: Process,
    pub(crate) scratch: Scratch,
    address: Ipv4Addr,
}

impl Meeting {
    /// Starts it; returns when it serves.
    pub(crate) fn start(lab: &Lab, at: &str) -> Result<Meeting, Failure> {
        let (host, scratch) = (lab.host(at)?, Scratch::new()?);
        let supernode = supernode(host, &scratch)?;
        Ok(Meeting { supernode, scratch, address: host.addr() })
    }

    /// Starts it again, with the same key, after its process was killed.
    pub(crate) fn restart(&mut self, host: &Host) -> Result<(), Failure> {
        self.supernode = supernode(host, &self.scratch)?;
        Ok(())
    }

    /// The arguments that every traverse here begins with: the command, its own key, the supernode, JSON.
    pub(crate) fn traverse(&self, who: &str, command: &str) -> Vec<String> {
        let key = self.scratch.argument(&format!("{who}.key"));
        vec![command.into(), "--json".into(), "--key".into(), key, "--supernode".into(), self.address()]
    }

    /// The supernode's address, as the programs take it.
    pub(crate) fn address(&self) -> String {
        format!("{}:{PORT}", self.address)
    }

    /// A program of `who`'s at `host`, its input from one file and its output to another; what it tells is kept.
    pub(crate) fn run(
        &self,
        host: &Host,
        who: &str,
        command: &str,
        arguments: &[&str],
        (input, output): (&Path, &Path),
    ) -> Result<Process, Failure> {
        let mut shell = host.command("sh")?;
        let redirect = format!("exec \"$0\" \"$@\" < '{}' > '{}'", input.display(), output.display());
        shell.arg("-c").arg(redirect).arg(program("traverse")?);
        shell.args(self.traverse(who, command)).args(arguments);
        Ok(Process::spawn(shell)?)
    }

    /// `traverse listen`; returns when it is registered, with its id.
    pub(crate) fn listen(
        &self,
        host: &Host,
        who: &str,
        arguments: &[&str],
    ) -> Result<(Process, String), Failure> {
        let (input, output) = (Path::new("/dev/null"), self.scratch.path(&format!("{who}.out")));
        let mut process = self.run(host, who, "listen", arguments, (input, &output))?;
        let listening = wait_event(&mut process, "listening", PATIENCE)?;
        let id = listening["id"].as_str().ok_or("an id")?.to_owned();
        Ok((process, id))
    }

    /// What `who` has put on its standard output so far.
    pub(crate) fn received(&self, who: &str) -> Vec<u8> {
        fs::read(self.scratch.path(&format!("{who}.out"))).unwrap_or_default()
    }

    /// A file of `length` bytes that look random.
    pub(crate) fn payload(&self, length: usize) -> Result<(PathBuf, Vec<u8>), Failure> {
        let mut bytes = vec![0; length];
        Content::new(length as u64).fill(&mut bytes);
        let path = self.scratch.path("payload");
        fs::write(&path, &bytes)?;
        Ok((path, bytes))
    }
}

fn supernode(host: &Host, scratch: &Scratch) -> Result<Process, Failure> {
    let mut command = host.command(program("supernode")?)?;
    command.args(["--key", &scratch.argument("supernode.key")]);
    for address in host.addrs() {
        for port in [PORT, PORT + 1] {
            command.args(["--listen", &format!("{address}:{port}")]);
        }
    }
    let mut process = Process::spawn(command)?;
    process.wait_for("listening", PATIENCE)?;
    Ok(process)
}

/// Everything a program has told as JSON so far.
pub(crate) fn told(process: &Process) -> Vec<Value> {
    process.said().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Waits until a program has told `event`.
pub(crate) fn wait_event(process: &mut Process, event: &str, limit: Duration) -> Result<Value, LabError> {
    process.wait_for(&format!("\"event\":\"{event}\""), limit)?;
    Ok(told(process).into_iter().find(|value| value["event"] == event).unwrap_or_default())
}

/// Bytes that a host has received and sent on all of its interfaces but the loopback.
pub(crate) fn traffic(host: &Host) -> Result<u64, Failure> {
    let table = host.run(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
    let bytes = table.lines().skip(2).filter(|line| !line.trim_start().starts_with("lo:")).map(|line| {
        let fields: Vec<_> = line.split(':').nth(1).unwrap_or("").split_whitespace().collect();
        let field = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        field(0) + field(8)
    });
    Ok(bytes.sum())
}

/// Waits for the end of a program that must succeed.
pub(crate) fn succeeds(process: &mut Process, limit: Duration) -> Tested {
    let status = process.wait(limit)?;
    if status.success() { Ok(()) } else { Err(format!("{status}: {}", process.said()).into()) }
}

/// Loses what goes between the two NATs' public addresses, and nothing else; or no more.
pub(crate) fn block(lab: &Lab, is_blocked: bool) -> Tested {
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
