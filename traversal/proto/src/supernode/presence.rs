//! Who wants to know about whom.

use std::collections::HashMap;

use super::{ConnectionId, Supernode, slots::Keyed};
use crate::wire::{
    PeerId,
    message::{Code, FromSupernode},
};

/// Watchers by the peer that they watch. The watched need not be here.
pub(super) struct Presence {
    watchers: HashMap<PeerId, Vec<u32>, Keyed>,
    watches: usize,
}

impl Presence {
    pub(super) fn new(hash: Keyed) -> Presence {
        Presence { watchers: HashMap::with_hasher(hash), watches: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.watches
    }

    fn of(&self, peer: &PeerId) -> &[u32] {
        self.watchers.get(peer).map_or(&[], Vec::as_slice)
    }

    fn add(&mut self, peer: PeerId, session: u32) {
        self.watchers.entry(peer).or_default().push(session);
        self.watches += 1;
    }

    fn remove(&mut self, peer: &PeerId, session: u32) {
        let Some(watchers) = self.watchers.get_mut(peer) else { return };
        if let Some(at) = watchers.iter().position(|watcher| *watcher == session) {
            watchers.swap_remove(at);
            self.watches -= 1;
        }
        if watchers.is_empty() {
            self.watchers.remove(peer);
        }
    }
}

impl Supernode {
    /// Watch: the state now, and every change from now on.
    pub(super) fn watch(&mut self, connection: ConnectionId, session: u32, peers: &[PeerId]) {
        for peer in peers {
            let Some(watching) = self.sessions.get(session).map(|session| &session.watching) else { return };
            if !watching.contains(peer) {
                let limits = &self.config.limits;
                let refused = watching.len() >= limits.watches_per_registration
                    || self.presence.len() >= limits.watches
                    || self.presence.of(peer).len() >= limits.watchers_per_peer;
                if refused {
                    self.send(connection, FromSupernode::Error { code: Code::TooManyWatches });
                    return;
                }
                self.presence.add(*peer, session);
                if let Some(session) = self.sessions.get_mut(session) {
                    session.watching.push(*peer);
                }
            }
            self.send(connection, FromSupernode::Presence { peer: *peer, online: self.is_online(peer) });
        }
    }

    /// Unwatch.
    pub(super) fn unwatch(&mut self, session: u32, peers: &[PeerId]) {
        let Some(watcher) = self.sessions.get_mut(session) else { return };
        for peer in peers {
            if let Some(at) = watcher.watching.iter().position(|watched| watched == peer) {
                watcher.watching.swap_remove(at);
                self.presence.remove(peer, session);
            }
        }
    }

    /// Tells whoever watches `peer`.
    pub(super) fn announce(&mut self, peer: PeerId, online: bool) {
        for at in 0..self.presence.of(&peer).len() {
            let watcher = self.presence.of(&peer)[at];
            if let Some(connection) = self.connection_of(watcher) {
                self.send(connection, FromSupernode::Presence { peer, online });
            }
        }
    }
}
