//! Work inside a host of a lab, and what the kernel says about a process.

use std::{
    fs::{self, File},
    future::Future,
    panic::resume_unwind,
    path::Path,
    thread,
};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// A network namespace, by the name that `ip netns` shows.
#[derive(Clone, Debug)]
pub(crate) struct Place(String);

impl Place {
    /// Runs `work` on a thread inside, and waits for it.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = Path::new("/run/netns").join(&self.0);
        let netns = File::open(&path).with_context(|| format!("no namespace {}", path.display()))?;
        let inside = move || {
            setns(&netns, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {}", self.0))?;
            work()
        };
        let joined = thread::scope(|scope| scope.spawn(inside).join());
        joined.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Runs what `make` makes to its end, in a current-thread runtime of its own inside: as `traverse` runs.
    pub(crate) fn block_on<T, F>(&self, make: impl FnOnce() -> F + Send) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>>,
    {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let result = runtime.block_on(make());
            runtime.shutdown_background();
            result
        })
    }
}

impl std::str::FromStr for Place {
    type Err = String;

    fn from_str(name: &str) -> Result<Place, String> {
        match name.is_empty() || name.contains('/') {
            true => Err(format!("'{name}' is no name of a namespace")),
            false => Ok(Place(name.to_owned())),
        }
    }
}

/// `/proc` counts in ticks of 10 ms, whatever the kernel's own rate is (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor time that a process has used so far, in seconds: user and system (proc(5), fields 14 and 15).
pub(crate) fn cpu_of(pid: u32) -> Result<f64> {
    let stat =
        fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    // The name, in brackets, may hold anything; two more fields are before the times.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: Vec<f64> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    let [user, system] = ticks[..] else { bail!("/proc/{pid}/stat is not understood: {stat}") };
    Ok((user + system) / TICKS_PER_SECOND)
}

/// Processor time of the whole machine so far, in seconds: user, nice, system, irq and softirq.
pub(crate) fn cpu_of_machine() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let first = stat.lines().next().unwrap_or_default();
    let fields: Vec<f64> = first.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    let [user, nice, system, _idle, _wait, irq, softirq, ..] = fields[..] else {
        bail!("/proc/stat is not understood: {first}")
    };
    Ok((user + nice + system + irq + softirq) / TICKS_PER_SECOND)
}

/// Memory that a process has in RAM, in bytes.
pub(crate) fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} is gone"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("/proc/{pid}/status tells no VmRSS"))? * 1024.0)
}
