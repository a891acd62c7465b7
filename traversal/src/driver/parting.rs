//! The end of a connection: a peer is told until it has answered, or for a moment.

use std::time::Duration;

use quinn::{ConnectionError, VarInt};
use tokio::time::{Instant, sleep, timeout_at};
use traversal_proto::{Time, peer::PeerKey};

use super::{Driver, peers::Slot, timers::Timer};

/// The pause before the close is said again, at first: as long as what peers are told last needs to get as far as the
/// supernodes, which drop it once this node has left. Each later one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The last pause: by then it was said six times in two thirds of a second, which a full queue on the way has not.
const LAST_PAUSE: Duration = Duration::from_millis(320);
/// Time for peers and supernodes to hear of the end of a node.
const FAREWELL: Duration = Duration::from_secs(2);

/// A connection that was closed here, and whose peer may not know.
pub(super) struct Parting {
    quic: quinn::Connection,
    /// Until it is told again.
    pause: Duration,
}

/// The peer has closed its side, too, which is its answer to a close (RFC 9000 §10.2.2).
fn has_answered(quic: &quinn::Connection) -> bool {
    quic.stats().frame_rx.connection_close > 0
}

impl Driver {
    /// Closes a peer's connection; it is told until it knows.
    pub(super) fn close(&self, key: PeerKey, code: u32, reason: &[u8]) {
        if let Some(quic) = self.peers.get(key).and_then(Slot::connection) {
            self.routes.last_words().begin(key);
            quic.close(VarInt::from_u32(code), reason);
        }
    }

    /// A peer's connection is over, for whatever reason.
    pub(super) fn part(&mut self, key: PeerKey, quic: quinn::Connection, now: Time) {
        let Some(slot) = self.peers.get_mut(key) else { return };
        if quic.close_reason() == Some(ConnectionError::LocallyClosed) {
            slot.parting = Some(Parting { quic, pause: FIRST_PAUSE });
            self.timers.set(now + FIRST_PAUSE, Timer::Parting(key));
        } else {
            self.forget_parting(key);
        }
    }

    /// A peer that was told may not know yet.
    pub(super) fn part_again(&mut self, key: PeerKey, now: Time) {
        let Some(parting) = self.peers.get_mut(key).and_then(|slot| slot.parting.as_mut()) else { return };
        if has_answered(&parting.quic) || parting.pause > LAST_PAUSE {
            return self.forget_parting(key);
        }
        parting.pause *= 2;
        let next = now + parting.pause;
        self.routes.repeat(key);
        self.timers.set(next, Timer::Parting(key));
    }

    /// There is a new connection, or nothing more to be told about the old one.
    pub(super) fn forget_parting(&mut self, key: PeerKey) {
        if let Some(slot) = self.peers.get_mut(key) {
            slot.parting = None;
        }
        self.timers.clear(Timer::Parting(key));
        self.routes.last_words().end(key);
    }

    /// Ends in order: peers are told, by way of the supernodes where need be, then the supernodes, and what they are told
    /// is sent.
    pub(super) async fn say_goodbye(mut self) {
        let end = Instant::now() + FAREWELL;
        let peers = self.peers.keys();
        for key in &peers {
            self.close(*key, 0, b"node closed");
        }
        if !peers.is_empty() {
            self.part_with(&peers).await;
        }
        // The commands that are left would be answered by nobody.
        self.commands.close();
        while self.commands.try_recv().is_ok() {}
        let now = self.now();
        self.endpoint.close(VarInt::from_u32(0), b"node closed");
        self.unregister(now);
        self.settle(now);
        let endpoint = self.endpoint.clone();
        self.hear_until(timeout_at(end, endpoint.wait_idle())).await;
        self.intake.inbound().close();
    }

    /// Tells peers until they know, or there is no more time.
    async fn part_with(&mut self, peers: &[PeerKey]) {
        let is_told = |quic: &quinn::Connection| quic.close_reason() == Some(ConnectionError::LocallyClosed);
        let closed = |key: &PeerKey| {
            let slot = self.peers.get(*key)?;
            let quic = slot.connection().or(slot.parting.as_ref().map(|parting| &parting.quic))?;
            is_told(quic).then(|| (*key, quic.clone()))
        };
        let mut left: Vec<_> = peers.iter().filter_map(closed).collect();
        let mut pause = FIRST_PAUSE;
        loop {
            self.hear_until(sleep(pause)).await;
            left.retain(|(_, quic)| !has_answered(quic));
            if left.is_empty() {
                return;
            }
            left.iter().for_each(|(key, _)| self.routes.repeat(*key));
            if pause > LAST_PAUSE {
                // As far as the supernodes.
                return self.hear_until(sleep(FIRST_PAUSE)).await;
            }
            pause *= 2;
        }
    }
}
