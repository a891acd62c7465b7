//! Waiting: which ports have input, and sleeping when none has.

use std::{io, os::fd::RawFd, time::Duration};

use natbox_core::Time;
use nix::errno::Errno;

/// Up to so many ports are simply asked for input in every turn in which there is work: that costs less than to ask
/// which of them have some.
const FEW: usize = 4;

/// Why the loop is awake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// A port has input, or a deadline has come.
    Port,
    /// There is a control job, or news.
    Errand,
    /// The end.
    Stop,
}

#[derive(Debug)]
pub(super) struct Waiter {
    /// The ports, then what ends the loop, then its errands. They belong to others, who keep them open for longer than
    /// any call of `wait`.
    fds: Vec<libc::pollfd>,
    ports: usize,
    ends: usize,
    /// Which ports may have input.
    ready: Vec<bool>,
    failed: Vec<usize>,
}

impl Waiter {
    pub(super) fn new(ports: impl Iterator<Item = RawFd>, ends: &[RawFd], errands: &[RawFd]) -> Waiter {
        let fds: Vec<_> = ports.chain(ends.iter().copied()).chain(errands.iter().copied()).collect();
        let (count, ends) = (fds.len() - ends.len() - errands.len(), ends.len());
        let fds = fds.into_iter().map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
        Waiter { fds: fds.collect(), ports: count, ends, ready: vec![true; count], failed: Vec::new() }
    }

    /// Whether a port may have input.
    pub(super) fn is_ready(&self, side: usize) -> bool {
        self.ready[side]
    }

    /// A port gave so many frames; one that gave none has no more for now.
    pub(super) fn received(&mut self, side: usize, frames: usize) {
        self.ready[side] = frames > 0;
    }

    /// A turn had work: there may be more.
    pub(super) fn worked(&mut self) -> io::Result<()> {
        if self.ports <= FEW {
            self.ready.fill(true);
            return Ok(());
        }
        self.poll(Some(Duration::ZERO))
    }

    /// Never mind this port any more.
    pub(super) fn forget(&mut self, side: usize) {
        self.fds[side].fd = -1;
        self.ready[side] = false;
    }

    /// A port that has an error to tell.
    pub(super) fn take_failed(&mut self) -> Option<usize> {
        self.failed.pop()
    }

    /// Waits for input, an errand, the end, or `deadline`.
    pub(super) fn wait(&mut self, now: Time, deadline: Time) -> io::Result<Woken> {
        self.poll((deadline != Time::NEVER).then(|| deadline.since(now)))?;
        Ok(self.why())
    }

    /// The same without waiting.
    pub(super) fn look(&mut self) -> io::Result<Woken> {
        self.poll(Some(Duration::ZERO))?;
        Ok(self.why())
    }

    fn why(&self) -> Woken {
        let (ends, errands) = self.fds[self.ports..].split_at(self.ends);
        let is_there = |fd: &libc::pollfd| fd.revents != 0;
        if ends.iter().any(is_there) {
            return Woken::Stop;
        }
        if errands.iter().any(is_there) { Woken::Errand } else { Woken::Port }
    }

    fn poll(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), |timeout| &raw const *timeout);
        // SAFETY: the array is ours and as long as said; the timeout outlives the call; no signal mask is given.
        let result = unsafe {
            libc::ppoll(self.fds.as_mut_ptr(), self.fds.len() as libc::nfds_t, timeout, std::ptr::null())
        };
        match Errno::result(result) {
            Ok(_) => {}
            Err(Errno::EINTR) => self.fds.iter_mut().for_each(|fd| fd.revents = 0),
            Err(error) => return Err(error.into()),
        }
        for (side, fd) in self.fds[..self.ports].iter().enumerate() {
            self.ready[side] |= fd.revents & libc::POLLIN != 0;
            if fd.revents & !libc::POLLIN != 0 {
                self.failed.push(side);
            }
        }
        Ok(())
    }
}
