//! A handle on one NAT of a lab.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::LabError;
use crate::script::{self, lab};

/// What does the translating.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatKind {
    /// A natbox process.
    Natbox,
    /// nftables masquerade in the NAT's namespace.
    Kernel,
    /// pasta or slirp4netns: a process that ends each flow in a socket of its own.
    Sockets,
}

/// A NAT of a [`Lab`](crate::Lab).
#[derive(Debug, Clone)]
pub struct Nat {
    pub(crate) lab: String,
    pub(crate) name: String,
    pub(crate) kind: NatKind,
    pub(crate) address: Ipv4Addr,
    pub(crate) control: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) natbox: PathBuf,
}

impl Nat {
    /// Its name in the drawing.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What does the translating.
    pub fn kind(&self) -> NatKind {
        self.kind
    }

    /// The address of its outside interface.
    pub fn addr(&self) -> Ipv4Addr {
        self.address
    }

    /// natbox's control socket.
    pub fn control_path(&self) -> &Path {
        &self.control
    }

    /// The file with everything that natbox has printed since the lab came up; with a line for each packet if it was
    /// given `--log-packets`.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// `natbox show --json`: status with the behaviour, counters, drops and mappings.
    ///
    /// # Errors
    /// [`LabError::NotNatbox`] for any other NAT; [`LabError::Natbox`] when it doesn't run.
    pub fn show(&self) -> Result<serde_json::Value, LabError> {
        let answer = self.control(&["show", "--json"])?;
        serde_json::from_str(&answer)
            .map_err(|source| LabError::Answer { program: "natbox show".to_owned(), source })
    }

    /// `natbox set ARGUMENTS…`: changes the behaviour of the running NAT, for example `["--filtering", "apdf"]`.
    ///
    /// # Errors
    /// As [`Nat::show`].
    pub fn set(&self, arguments: &[&str]) -> Result<(), LabError> {
        self.control(&[&["set"], arguments].concat()).map(drop)
    }

    /// `natbox flush`: forgets all mappings.
    ///
    /// # Errors
    /// As [`Nat::show`].
    pub fn flush(&self) -> Result<(), LabError> {
        self.control(&["flush"]).map(drop)
    }

    /// Any command for the running natbox, for example `["show", "--sessions", "--json"]`; returns what it printed.
    ///
    /// # Errors
    /// As [`Nat::show`].
    pub fn control(&self, arguments: &[&str]) -> Result<String, LabError> {
        if self.kind != NatKind::Natbox {
            return Err(LabError::NotNatbox { nat: self.name.clone(), wanted: script::shown(arguments) });
        }
        let mut command = Command::new(&self.natbox);
        command.args(arguments).arg("--control").arg(&self.control);
        let output =
            command.output().map_err(LabError::io(format!("can't run {}", self.natbox.display())))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(LabError::Natbox { arguments: script::shown(arguments), message: script::failure(&output) })
    }

    /// Starts it, as what it was; does nothing when it runs. Returns when it is at work.
    ///
    /// # Errors
    /// [`LabError::Script`].
    pub fn start(&self) -> Result<(), LabError> {
        self.handle(&["start"])
    }

    /// Stops it as its user would (SIGTERM) and waits for its end. A kernel NAT loses its uplink, rules and table.
    ///
    /// # Errors
    /// [`LabError::Script`].
    pub fn stop(&self) -> Result<(), LabError> {
        self.handle(&["stop"])
    }

    /// Stops it and starts it again, with an empty table.
    ///
    /// # Errors
    /// [`LabError::Script`].
    pub fn restart(&self) -> Result<(), LabError> {
        self.handle(&["restart"])
    }

    /// Stops it and starts it as another NAT: a spec as for [`Builder::nat`](crate::Builder::nat).
    ///
    /// # Errors
    /// [`LabError::Script`].
    pub fn restart_as(&self, spec: &str) -> Result<(), LabError> {
        self.handle(&["restart", spec])
    }

    /// Kills it by SIGKILL and waits for its end.
    ///
    /// # Errors
    /// [`LabError::Script`].
    pub fn kill(&self) -> Result<(), LabError> {
        self.handle(&["kill"])
    }

    fn handle(&self, arguments: &[&str]) -> Result<(), LabError> {
        lab(&[&["nat", &self.lab, &self.name], arguments].concat()).map(drop)
    }
}
