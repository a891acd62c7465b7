//! What QUIC sends to addresses that have proved nothing, to the byte.
//!
//! QUIC itself keeps to three times what came in (RFC 9000 §8.1), but quinn begins a datagram as long as there is one byte
//! left, and so goes beyond by nearly one datagram. Here, beneath it, that datagram is dropped.
//!
//! Not all that quinn says belongs to a handshake that we know of. It answers unknown versions, tokens that are not of this
//! address and ids that are too short by itself, each with one datagram that is no longer; with the Retry and the
//! refusal that we ask for these are all the packets with a long header that go to addresses without an account, and each
//! of them comes out of the engine's budget for such addresses.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use traversal_net::{Transmit, socket::Sink};
use traversal_proto::{SocketId, address::canonical};

use crate::{core::Shared, counters::add};

/// RFC 9000 §8.1.
const FACTOR: usize = 3;
/// The least that a first packet has (RFC 9000 §14.1): it has come before anything is known of its sender.
const FIRST: usize = 1200;

/// Who has proved nothing yet, and how much may be sent there. As many entries as there are handshakes and connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    entries: Mutex<HashMap<SocketAddr, Entry>>,
    /// Handshakes from addresses that have proved nothing: mostly there are none, and nothing has to be looked up.
    unproven: AtomicUsize,
}

#[derive(Debug, Default)]
struct Entry {
    unproven: u32,
    proven: u32,
    /// Bytes that may be sent, while nothing is proved.
    allowance: usize,
}

/// A handshake or a connection with an address, until it is dropped.
#[derive(Debug)]
pub(crate) struct Account {
    ledger: Ledger,
    remote: SocketAddr,
    proven: bool,
}

impl Ledger {
    /// A handshake with this address begins, or, if the address has proved itself, a connection.
    pub(crate) fn open(&self, remote: SocketAddr, proven: bool) -> Account {
        let fresh = Entry { allowance: FACTOR * FIRST, ..Entry::default() };
        let mut entries = self.entries();
        let entry = entries.entry(remote).or_insert(fresh);
        match proven {
            true => entry.proven += 1,
            false => {
                entry.unproven += 1;
                self.0.unproven.fetch_add(1, Ordering::Relaxed);
            }
        }
        Account { ledger: self.clone(), remote, proven }
    }

    /// So much has come from there, for QUIC.
    pub(crate) fn received(&self, from: SocketAddr, bytes: usize) {
        if self.is_empty() {
            return;
        }
        if let Some(entry) = self.entries().get_mut(&canonical(from)) {
            entry.allowance = entry.allowance.saturating_add(FACTOR * bytes);
        }
    }

    /// Whether so many bytes may be sent; if so they are taken. `None`: there is no account.
    fn take(&self, to: SocketAddr, bytes: usize) -> Option<bool> {
        let mut entries = self.entries();
        let entry = entries.get_mut(&canonical(to))?;
        if entry.proven > 0 {
            return Some(true);
        }
        let left = entry.allowance.checked_sub(bytes);
        entry.allowance = left.unwrap_or(entry.allowance);
        Some(left.is_some())
    }

    /// What was taken was not sent.
    fn give_back(&self, to: SocketAddr, bytes: usize) {
        if let Some(entry) = self.entries().get_mut(&canonical(to)) {
            entry.allowance = entry.allowance.saturating_add(bytes);
        }
    }

    fn is_empty(&self) -> bool {
        self.0.unproven.load(Ordering::Relaxed) == 0
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<SocketAddr, Entry>> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    /// The handshake is over: the address receives what is sent to it.
    pub(crate) fn prove(&mut self) {
        if !self.proven {
            *self = self.ledger.open(self.remote, true);
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let mut entries = self.ledger.entries();
        if !self.proven {
            self.ledger.0.unproven.fetch_sub(1, Ordering::Relaxed);
        }
        let Some(entry) = entries.get_mut(&self.remote) else { return };
        match self.proven {
            true => entry.proven -= 1,
            false => entry.unproven -= 1,
        }
        if (entry.unproven, entry.proven) == (0, 0) {
            entries.remove(&self.remote);
        }
    }
}

/// The way out of QUIC's datagrams: one of our sockets, for as long as the supernode has it. QUIC's own tasks end a moment
/// later, and a successor may want the address at once.
pub(crate) struct Bounded {
    pub(crate) shared: Weak<Shared>,
    pub(crate) socket: SocketId,
    pub(crate) ledger: Ledger,
}

impl Bounded {
    fn open(&self) -> io::Result<Arc<Shared>> {
        self.shared.upgrade().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn may_send(&self, shared: &Shared, transmit: &Transmit<'_>) -> bool {
        // A header with a version (RFC 9000 §17.2): all that is sent outside of connections that are up.
        let is_long = transmit.contents.first().is_some_and(|first| first & 0x80 != 0);
        if self.ledger.is_empty() && !is_long {
            return true;
        }
        let taken = self.ledger.take(transmit.destination, transmit.contents.len());
        taken.unwrap_or_else(|| {
            let allowed = !is_long || shared.may_answer(transmit.destination);
            if !allowed {
                add(&shared.counters.handshakes_ignored, 1);
            }
            allowed
        })
    }
}

impl Sink for Bounded {
    /// What may not be sent is lost, as any datagram may be.
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let shared = self.open()?;
        let socket = shared.socket(self.socket, 0).ok_or(io::ErrorKind::NotConnected)?;
        if !self.may_send(&shared, transmit) {
            return Ok(());
        }
        let sent = socket.try_send(transmit);
        // It comes again.
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            self.ledger.give_back(transmit.destination, transmit.contents.len());
        }
        sent
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shared = self.open()?;
        let socket = shared.socket(self.socket, 0).ok_or(io::ErrorKind::NotConnected)?;
        socket.poll_writable(cx)
    }

    fn max_transmit_segments(&self) -> usize {
        self.open().map_or(1, |shared| shared.segments(self.socket, 0))
    }
}

impl std::fmt::Debug for Bounded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bounded").field("socket", &self.socket).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_times_until_it_is_proved() {
        let ledger = Ledger::default();
        let at: SocketAddr = "192.0.2.1:5".parse().unwrap();
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:5".parse().unwrap();
        assert!(ledger.is_empty() && ledger.take(at, 1 << 20).is_none(), "nobody is known who has not begun");
        let mut account = ledger.open(at, false);
        let takes = |bytes| ledger.take(at, bytes).unwrap();
        assert_eq!(ledger.take(mapped, 3600), Some(true));
        assert!(!takes(1));
        ledger.give_back(mapped, 100);
        assert!(takes(100) && !takes(1));
        assert_eq!(ledger.take("192.0.2.1:6".parse().unwrap(), 5000), None, "another address");
        ledger.received(mapped, 10);
        assert!(!takes(31) && takes(30) && !takes(1));
        // A second handshake from there has no allowance of its own.
        let second = ledger.open(at, false);
        assert!(!takes(1));
        account.prove();
        assert!(takes(5000), "who has a connection there is not held up by others' handshakes");
        drop(account);
        assert!(!takes(1));
        drop(second);
        assert!(ledger.is_empty() && ledger.entries().is_empty());
    }
}
