//! A host of a lab: a namespace, and ways to do something in it.

use std::ffi::OsStr;
use std::fs::File;
use std::future::Future;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::process::Command;
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, setns};

use crate::{LabError, Process};

/// A host of a [`Lab`](crate::Lab). It is only a name: a clone that outlives the lab can do nothing more.
#[derive(Debug, Clone)]
pub struct Host {
    pub(crate) name: String,
    pub(crate) netns: String,
    pub(crate) addresses: Vec<Ipv4Addr>,
}

impl Host {
    /// The host's name in the drawing.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its namespace, as `ip netns` shows it.
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// Its first address.
    ///
    /// # Panics
    /// Never for a host of the drawings; the switch of a LAN has no address.
    pub fn addr(&self) -> Ipv4Addr {
        self.addresses[0]
    }

    /// All its addresses, the first one first. A NAT's public address comes before its private ones.
    pub fn addrs(&self) -> &[Ipv4Addr] {
        &self.addresses
    }

    /// Runs `work` on a thread inside this host and waits for it. A panic in `work` goes on in the caller.
    ///
    /// The thread is in the host's network namespace only: `/sys` is still the caller's.
    ///
    /// # Errors
    /// [`LabError::Io`] when the namespace can't be entered, for example after the lab was taken down.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        let netns = self.open()?;
        let joined = thread::scope(|scope| {
            let worker = move || enter(&netns).map(|()| work());
            thread::Builder::new()
                .name(format!("in {}", self.name))
                .spawn_scoped(scope, worker)
                .map(|it| it.join())
        });
        match joined.map_err(LabError::io("can't start a thread"))? {
            Ok(entered) => entered.map_err(LabError::io(format!("can't enter {}", self.netns))),
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Starts `work` on a thread inside this host and returns at once.
    ///
    /// # Errors
    /// As [`Host::run`].
    pub fn start<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Worker<T>, LabError> {
        let netns = self.open()?;
        let (entered, outcome) = std::sync::mpsc::sync_channel(1);
        let body = move || {
            let result = enter(&netns);
            let ok = result.is_ok();
            // The starter waits for this word, so it can't be gone.
            let _ = entered.send(result);
            ok.then(work)
        };
        let thread = thread::Builder::new()
            .name(format!("in {}", self.name))
            .spawn(body)
            .map_err(LabError::io("can't start a thread"))?;
        let failed = |source| LabError::Io { what: format!("can't enter {}", self.netns), source };
        match outcome.recv() {
            Ok(Ok(())) => Ok(Worker { thread }),
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Err(failed(std::io::Error::other("the thread died"))),
        }
    }

    /// Runs a future to its end, on a thread inside this host with a current-thread tokio runtime of its own (sockets
    /// and timers enabled). The thread moves before the runtime exists, so the runtime's helper threads are in the host
    /// too. A panic goes on in the caller.
    ///
    /// # Errors
    /// As [`Host::run`], or when the runtime can't be made.
    pub fn block_on<F>(&self, future: F) -> Result<F::Output, LabError>
    where
        F: Future + Send,
        F::Output: Send,
    {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(future))
        })?
        .map_err(LabError::io("can't make a tokio runtime"))
    }

    /// A command that will run inside this host; add arguments, redirect it, and run it as any other.
    ///
    /// # Errors
    /// As [`Host::run`].
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command, LabError> {
        let netns = self.open()?;
        let mut command = Command::new(program);
        // SAFETY: between fork and exec only async-signal-safe work is allowed. `setns` is one system call on a
        // descriptor that was opened beforehand; it allocates nothing and takes no lock.
        unsafe { command.pre_exec(move || enter(&netns)) };
        Ok(command)
    }

    /// Starts a program inside this host. It is killed when the guard is dropped, and when this process dies.
    ///
    /// # Errors
    /// As [`Host::run`], or when the program can't be started.
    pub fn spawn<S: AsRef<OsStr>>(&self, program: S, arguments: &[S]) -> Result<Process, LabError> {
        let mut command = self.command(program)?;
        command.args(arguments);
        Process::spawn(command)
    }

    fn open(&self) -> Result<File, LabError> {
        let path = PathBuf::from("/run/netns").join(&self.netns);
        File::open(&path).map_err(LabError::io(format!("host {}: can't open {}", self.name, path.display())))
    }
}

fn enter(netns: &File) -> std::io::Result<()> {
    Ok(setns(netns, CloneFlags::CLONE_NEWNET)?)
}

/// Work that goes on inside a host; see [`Host::start`].
#[derive(Debug)]
pub struct Worker<T> {
    thread: JoinHandle<Option<T>>,
}

impl<T> Worker<T> {
    /// Waits for the work to end. A panic in it goes on in the caller.
    pub fn join(self) -> T {
        match self.thread.join() {
            Ok(Some(value)) => value,
            Ok(None) => unreachable!("a worker exists only if its thread entered the namespace"),
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Whether the work has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}
