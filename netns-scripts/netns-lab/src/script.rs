//! Running `netns-scripts/lab`, and what it says about a lab.

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde::Deserialize;

use crate::LabError;

/// `lab up --json`.
#[derive(Debug, Deserialize)]
pub(crate) struct Description {
    pub(crate) id: String,
    pub(crate) hosts: Vec<HostDescription>,
    pub(crate) nats: Vec<NatDescription>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct HostDescription {
    pub(crate) name: String,
    pub(crate) netns: String,
    pub(crate) addresses: Vec<Ipv4Addr>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct NatDescription {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) control: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) natbox: PathBuf,
}

/// Where labs are written down, when this process has moved into a user namespace and must say so.
pub(crate) static STATE_ROOT: OnceLock<PathBuf> = OnceLock::new();

/// The folder of the scripts.
pub(crate) fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Runs `lab ARGUMENTS…` and returns what it printed.
pub(crate) fn lab<S: AsRef<OsStr>>(arguments: &[S]) -> Result<String, LabError> {
    let program = folder().join("lab");
    let mut command = Command::new(&program);
    command.args(arguments).stdin(Stdio::null());
    if let Some(root) = STATE_ROOT.get() {
        command.env("NATBOX_LAB_STATE", root);
    }
    let output = command.output().map_err(LabError::io(format!("can't run {}", program.display())))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(LabError::Script { arguments: shown(arguments), message: failure(&output) })
}

/// Arguments as a person would type them.
pub(crate) fn shown<S: AsRef<OsStr>>(arguments: &[S]) -> String {
    arguments.iter().map(|argument| argument.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// What a failed program said, or at least how it ended.
pub(crate) fn failure(output: &std::process::Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    match said.trim() {
        "" => output.status.to_string(),
        said => said.to_owned(),
    }
}

/// The NATs of a topology, as its script declares them.
pub(crate) fn nats_of(topology: &str) -> Result<Vec<String>, LabError> {
    let file = folder().join("topologies").join(format!("{topology}.sh"));
    let text = std::fs::read_to_string(file).map_err(|_| LabError::NoTopology(topology.to_owned()))?;
    let declared = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        matches!(words.next(), Some("gateway" | "carried")).then(|| words.next()).flatten()
    });
    Ok(declared.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nats_are_read_from_the_topology() {
        assert_eq!(nats_of("one-nat").unwrap(), ["N1"]);
        assert_eq!(nats_of("double-nat").unwrap(), ["N2", "N1"]);
        assert_eq!(nats_of("shared-address").unwrap(), ["H"]);
        assert!(matches!(nats_of("none"), Err(LabError::NoTopology(_))));
    }
}
