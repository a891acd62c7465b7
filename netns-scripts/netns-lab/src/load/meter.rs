//! Processor time between two instants.

use std::fs;
use std::io;
use std::time::Instant;

use super::{LoadError, Plan, failed};

/// `/proc` counts in ticks of 10 ms, whatever the kernel's own rate is (`USER_HZ`, fixed for every architecture that
/// this runs on).
const TICKS_PER_SECOND: f64 = 100.0;

/// What passed between [`Meter::start`] and [`Meter::stop`].
#[derive(Debug)]
pub(super) struct Window {
    pub(super) seconds: f64,
    pub(super) machine_cpu: f64,
    pub(super) nat_cpu: Option<f64>,
}

/// An open window.
#[derive(Debug)]
pub(super) struct Meter {
    nat: Option<u32>,
    at: Instant,
    machine: f64,
    process: Option<f64>,
}

impl Meter {
    pub(super) fn start(nat: Option<u32>) -> Result<Self, LoadError> {
        let process = nat.map(process_seconds).transpose()?;
        Ok(Self { nat, machine: machine_seconds()?, process, at: Instant::now() })
    }

    pub(super) fn stop(self) -> Result<Window, LoadError> {
        let seconds = self.at.elapsed().as_secs_f64();
        let machine_cpu = machine_seconds()? - self.machine;
        let process = self.nat.map(process_seconds).transpose()?;
        let nat_cpu = process.zip(self.process).map(|(after, before)| after - before);
        Ok(Window { seconds, machine_cpu, nat_cpu })
    }
}

/// Lets a load that is running warm up, opens a window over it, and says what `read` counted meanwhile.
pub(super) fn measure<const N: usize>(
    plan: &Plan,
    read: impl Fn() -> [u64; N],
) -> Result<([u64; N], Window), LoadError> {
    std::thread::sleep(plan.warm_up);
    let before = read();
    let meter = Meter::start(plan.nat)?;
    std::thread::sleep(plan.window);
    let after = read();
    let window = meter.stop()?;
    Ok((std::array::from_fn(|i| after[i].saturating_sub(before[i])), window))
}

fn machine_seconds() -> Result<f64, LoadError> {
    let stat = fs::read_to_string("/proc/stat").map_err(failed("can't read /proc/stat"))?;
    machine_ticks(&stat)
        .map(|ticks| ticks as f64 / TICKS_PER_SECOND)
        .ok_or_else(|| failed("/proc/stat")(io::Error::other("not of the expected form")))
}

fn process_seconds(pid: u32) -> Result<f64, LoadError> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|_| LoadError::NatGone(pid))?;
    process_ticks(&stat).map(|ticks| ticks as f64 / TICKS_PER_SECOND).ok_or(LoadError::NatGone(pid))
}

/// user, nice, system, irq and softirq of all processors: proc_stat(5).
fn machine_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().map(str::parse::<u64>);
    let mut next = || fields.next()?.ok();
    let (user, nice, system, _idle, _iowait, irq, softirq) =
        (next()?, next()?, next()?, next()?, next()?, next()?, next()?);
    Some(user + nice + system + irq + softirq)
}

/// utime and stime of a process with all its threads, fields 14 and 15 of proc_pid_stat(5); `None` for a zombie. The
/// name before them may hold spaces and brackets.
fn process_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let mut ticks = fields.skip(10).map(str::parse::<u64>);
    (state != "Z" && state != "X").then_some(ticks.next()?.ok()? + ticks.next()?.ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_read_as_the_manual_has_them() {
        assert_eq!(machine_ticks("cpu  1 2 3 1000 500 6 7 8 9 10\ncpu0 1 2\n"), Some(19));
        assert_eq!(machine_ticks("intr 5\n"), None);
        let stat = "42 (a b) c) S 1 42 42 0 -1 4194560 100 0 0 0 30 12 0 0 20 0 1 0 5000 1 1";
        assert_eq!(process_ticks(stat), Some(42));
        assert_eq!(process_ticks(&stat.replace(") S", ") Z")), None);
        assert!(machine_seconds().unwrap() > 0.0);
        assert!(process_seconds(std::process::id()).is_ok());
    }
}
