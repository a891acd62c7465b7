//! How much QUIC sends to addresses that have proved nothing, to the byte.
//!
//! QUIC itself keeps to three times what came in (RFC 9000 §8.1), but quinn begins a datagram as long as there is one byte
//! left, and so goes beyond by nearly one datagram. Here, beneath it, that datagram is dropped.

use std::{
    collections::HashMap,
    io::{self, IoSliceMut},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use traversal_net::{
    RecvMeta, Transmit,
    socket::{DatagramSocket, Sink, VirtualSocket},
};
use traversal_proto::address::canonical;

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

    fn received(&self, from: SocketAddr, bytes: usize) {
        if let Some(entry) = self.entries().get_mut(&canonical(from)) {
            entry.allowance = entry.allowance.saturating_add(FACTOR * bytes);
        }
    }

    /// Whether so many bytes may be sent; if so they are taken.
    fn take(&self, to: SocketAddr, bytes: usize) -> bool {
        match self.entries().get_mut(&canonical(to)) {
            Some(entry) if entry.proven == 0 => match entry.allowance.checked_sub(bytes) {
                Some(left) => {
                    entry.allowance = left;
                    true
                }
                None => false,
            },
            _ => true,
        }
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

/// A socket that sends no more than the ledger allows.
#[derive(Debug)]
pub(crate) struct Bounded {
    pub(crate) socket: VirtualSocket,
    pub(crate) ledger: Ledger,
}

impl Sink for Bounded {
    /// What may not be sent is lost, as any datagram may be.
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let (to, bytes) = (transmit.destination, transmit.contents.len());
        if !self.ledger.is_empty() && !self.ledger.take(to, bytes) {
            return Ok(());
        }
        let sent = self.socket.try_send(transmit);
        // It comes again.
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            self.ledger.give_back(to, bytes);
        }
        sent
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_writable(cx)
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }
}

impl DatagramSocket for Bounded {
    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = self.socket.poll_recv(cx, buffers, metas);
        if let Poll::Ready(Ok(count)) = received
            && !self.ledger.is_empty()
        {
            metas.iter().take(count).for_each(|meta| self.ledger.received(meta.addr, meta.len));
        }
        received
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
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
        assert!(ledger.is_empty() && ledger.take(at, 1 << 20), "nobody is limited who has not begun");
        let mut account = ledger.open(at, false);
        assert!(ledger.take(mapped, 3600));
        assert!(!ledger.take(at, 1));
        ledger.give_back(mapped, 100);
        assert!(ledger.take(at, 100) && !ledger.take(at, 1));
        assert!(ledger.take("192.0.2.1:6".parse().unwrap(), 5000), "another address");
        ledger.received(mapped, 10);
        assert!(!ledger.take(at, 31) && ledger.take(at, 30) && !ledger.take(at, 1));
        // A second handshake from there has no allowance of its own.
        let second = ledger.open(at, false);
        assert!(!ledger.take(at, 1));
        account.prove();
        assert!(ledger.take(at, 5000), "who has a connection there is not held up by others' handshakes");
        drop(account);
        assert!(!ledger.take(at, 1));
        drop(second);
        assert!(ledger.is_empty() && ledger.entries().is_empty());
    }
}
