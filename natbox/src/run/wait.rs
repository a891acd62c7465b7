//! Waiting: which ports have input, and sleeping when none has.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use natbox_core::Time;
use nix::errno::Errno;

use super::{forward::Forwarder, watch::Watch};
use crate::control::Inbox;

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
    /// The ports, then stop, inbox and watch.
    fds: Vec<libc::pollfd>,
    ports: usize,
    /// Which ports may have input.
    ready: Vec<bool>,
    failed: Vec<usize>,
    /// Kept open as long as its number is in `fds`. The other descriptors belong to parts of the gateway, which lives
    /// longer than any call of `wait`.
    _stop: OwnedFd,
}

impl Waiter {
    pub(super) fn new(forwarder: &Forwarder, inbox: &Inbox, watch: &Watch, stop: OwnedFd) -> Waiter {
        let ports = forwarder.sides();
        let port_fds = (0..ports).map(|side| forwarder.port(side).fd().map_or(-1, |fd| fd.as_raw_fd()));
        let others = [stop.as_raw_fd(), inbox.fd().as_raw_fd(), watch.fd().as_raw_fd()];
        let fds = port_fds.chain(others).map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
        Waiter { fds: fds.collect(), ports, ready: vec![true; ports], failed: Vec::new(), _stop: stop }
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
        let [stop, errands @ ..] = &self.fds[self.ports..] else { return Woken::Port };
        if stop.revents != 0 {
            return Woken::Stop;
        }
        if errands.iter().any(|fd| fd.revents != 0) { Woken::Errand } else { Woken::Port }
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
