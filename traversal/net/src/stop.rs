//! Waiting for a socket on a thread of one's own, until told to stop.

use std::{io, sync::Arc};

use crate::udp::KernelSocket;

/// Tells threads that wait in [`wait_readable`](Self::wait_readable) to end. Clones are the same.
#[derive(Clone, Debug)]
pub struct Stop(Arc<Inner>);

#[cfg(unix)]
#[derive(Debug)]
struct Inner {
    /// Readable once the other end is shut down.
    told: std::os::unix::net::UnixStream,
    tell: std::os::unix::net::UnixStream,
}

#[cfg(not(unix))]
#[derive(Debug)]
struct Inner;

#[cfg(unix)]
impl Stop {
    /// # Errors
    /// The system's: no more file descriptors.
    pub fn new() -> io::Result<Stop> {
        let (told, tell) = std::os::unix::net::UnixStream::pair()?;
        Ok(Stop(Arc::new(Inner { told, tell })))
    }

    /// Everybody who waits, now or later, is told to stop.
    pub fn signal(&self) {
        // It can fail only where it was shut down before.
        let _ = self.0.tell.shutdown(std::net::Shutdown::Both);
    }

    /// Blocks until there is something to receive: true, or until [`signal`](Self::signal): false.
    ///
    /// # Errors
    /// The system's.
    pub fn wait_readable(&self, socket: &KernelSocket) -> io::Result<bool> {
        use std::os::fd::AsFd;

        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

        let wanted = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut both = [wanted(self.0.told.as_fd()), wanted(socket.as_fd())];
        loop {
            match poll(&mut both, PollTimeout::NONE) {
                Ok(_) => return Ok(!both[0].any().unwrap_or(true)),
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(not(unix))]
impl Stop {
    /// # Errors
    /// None here.
    pub fn new() -> io::Result<Stop> {
        Ok(Stop(Arc::new(Inner)))
    }

    /// Nobody waits here.
    pub fn signal(&self) {
        let Inner = *self.0;
    }

    /// # Errors
    /// `Unsupported`: sockets are received from in tasks here.
    pub fn wait_readable(&self, _: &KernelSocket) -> io::Result<bool> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
