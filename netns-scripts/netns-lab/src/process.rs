//! A program that runs for as long as its guard lives.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::LabError;

/// A running program. Dropping it kills the program, and so does the end of this process, however it ends.
///
/// What the program prints (standard output and error, line by line) is kept and can be waited for.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    said: Arc<Said>,
}

#[derive(Debug, Default)]
struct Said {
    text: Mutex<String>,
    more: Condvar,
}

type Job = (Command, Sender<std::io::Result<Child>>);

/// The kernel sends the parent-death signal when the *thread* that forked ends, and tests start programs from threads
/// that come and go. So one thread that lives as long as the process forks for all.
fn spawner() -> &'static Mutex<Sender<Job>> {
    static SPAWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (jobs, queue) = channel::<Job>();
        thread::spawn(move || {
            for (mut command, answer) in queue {
                // Whoever asked waits for the answer.
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(jobs)
    })
}

impl Process {
    /// Starts `command`, usually one from [`Host::command`](crate::Host::command). Its input is empty.
    ///
    /// # Errors
    /// [`LabError::Io`] when it can't be started.
    pub fn spawn(mut command: Command) -> Result<Self, LabError> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: `prctl` is one system call, async-signal-safe, without memory of ours.
        unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };

        let (answer, child) = channel();
        let failed = LabError::io(format!("can't start {name}"));
        let gone = || std::io::Error::other("the thread that starts programs is gone");
        let sent = spawner().lock().unwrap_or_else(PoisonError::into_inner).send((command, answer));
        let child = sent.map_err(|_| gone()).and_then(|()| child.recv().map_err(|_| gone())?);
        let mut child = child.map_err(failed)?;

        let said = Arc::new(Said::default());
        if let Some(output) = child.stdout.take() {
            said.clone().listen(output);
        }
        if let Some(errors) = child.stderr.take() {
            said.clone().listen(errors);
        }
        Ok(Self { child, name, said })
    }

    /// The program's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has printed so far.
    pub fn said(&self) -> String {
        self.said.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it has printed `words`.
    ///
    /// # Errors
    /// [`LabError::Timeout`] when it has not within `limit`; at once when it has ended without.
    pub fn wait_for(&mut self, words: &str, limit: Duration) -> Result<(), LabError> {
        let deadline = Instant::now() + limit;
        loop {
            // In this order: a program that says the words and ends has said them.
            let ended = self
                .child
                .try_wait()
                .map_err(LabError::io(format!("can't wait for {}", self.name)))?
                .is_some();
            let text = self.said.text.lock().unwrap_or_else(PoisonError::into_inner);
            if text.contains(words) {
                return Ok(());
            }
            let now = Instant::now();
            if ended && Arc::strong_count(&self.said) == 1 || now >= deadline {
                let what = format!("'{words}' from {}", self.name);
                return Err(LabError::Timeout { what, limit, seen: text.clone() });
            }
            // A program may end without another word: look at it now and then.
            let pause = (deadline - now).min(Duration::from_millis(20));
            drop(self.said.more.wait_timeout(text, pause).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`LabError::Timeout`] when it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus, LabError> {
        let mut status = Ok(None);
        crate::wait_until(limit, || {
            status = self.child.try_wait();
            !matches!(status, Ok(None))
        });
        status.map_err(LabError::io(format!("can't wait for {}", self.name)))?.ok_or_else(|| {
            LabError::Timeout { what: format!("the end of {}", self.name), limit, seen: self.said() }
        })
    }
}

impl Said {
    /// Keeps what comes out of `pipe`, until the last writer has closed it.
    fn listen(self: Arc<Self>, pipe: impl Read + Send + 'static) {
        thread::spawn(move || {
            let mut lines = BufReader::new(pipe);
            let mut line = Vec::new();
            while matches!(lines.read_until(b'\n', &mut line), Ok(1..)) {
                let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
                text.push_str(&String::from_utf8_lossy(&line));
                line.clear();
                self.more.notify_all();
            }
        });
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a process that has ended and been waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
