//! Ends that need no words: by a signal, or because nobody reads what is written.

use std::{fmt, future::Future, io};

use anyhow::{Context, Result};
use tokio::sync::watch;

/// Why the program ends although nothing has failed. The exit code is what a shell makes of a signal: 128 and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Ended {
    /// SIGHUP: the terminal is closed.
    HungUp = 129,
    /// Ctrl-C.
    Interrupted = 130,
    /// Standard output is closed: whoever read it has had enough.
    OutputClosed = 141,
    /// SIGTERM.
    Terminated = 143,
}

impl Ended {
    pub(crate) fn code(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ended::HungUp => "the terminal was closed",
            Ended::Interrupted => "interrupted",
            Ended::OutputClosed => "standard output is closed",
            Ended::Terminated => "terminated",
        })
    }
}

impl std::error::Error for Ended {}

/// Tells of the first signal that asks this process to end. The second one ends it at once.
#[derive(Clone, Debug)]
pub(crate) struct Stop(watch::Receiver<Option<Ended>>);

impl Stop {
    /// Takes the signals from here on; only in a runtime.
    pub(crate) fn at_signals() -> Result<Stop> {
        let mut signals = Signals::new().context("cannot wait for signals")?;
        let (first, stop) = watch::channel(None);
        tokio::spawn(async move {
            first.send_replace(Some(signals.next().await));
            let again = signals.next().await;
            std::process::exit(again.code().into());
        });
        Ok(Stop(stop))
    }

    /// What comes of `work`; an [`Ended`] if a signal comes first.
    pub(crate) async fn or<T, E: Into<anyhow::Error>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T> {
        let mut stop = self.0.clone();
        tokio::select! {
            biased;
            result = work => result.map_err(Into::into),
            Ok(Some(ended)) = async { stop.wait_for(Option::is_some).await.map(|ended| *ended) } => Err(ended.into()),
        }
    }
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    /// `None`: it was to be ignored from the beginning, as by `nohup`.
    hang_up: Option<tokio::signal::unix::Signal>,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: if outlives_terminal()? { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    async fn next(&mut self) -> Ended {
        tokio::select! {
            _ = self.interrupt.recv() => Ended::Interrupted,
            _ = self.terminate.recv() => Ended::Terminated,
            Some(_) = async { self.hang_up.as_mut()?.recv().await } => Ended::HungUp,
        }
    }
}

/// Whether who started this program wants it to go on without its terminal.
#[cfg(unix)]
fn outlives_terminal() -> io::Result<bool> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler is installed. It stays ignored, or gets its handler right after.
    let before = unsafe { sigaction(Signal::SIGHUP, &ignore) }?;
    Ok(matches!(before.handler(), SigHandler::SigIgn))
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals)
    }

    async fn next(&mut self) -> Ended {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        Ended::Interrupted
    }
}
