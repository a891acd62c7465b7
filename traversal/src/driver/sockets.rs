//! The node's UDP sockets, by number.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use traversal_net::socket::DatagramSocket;
use traversal_proto::SocketId;

use super::MAIN;

/// Sockets that the engines may have open at the same time; each costs a file descriptor.
const MAX_SOCKETS: usize = 1024;

pub(super) struct Sockets {
    open: BTreeMap<SocketId, Arc<dyn DatagramSocket>>,
    last: u16,
}

impl Sockets {
    pub(super) fn new(main: Arc<dyn DatagramSocket>) -> Sockets {
        Sockets { open: BTreeMap::from([(MAIN, main)]), last: MAIN.0 }
    }

    pub(super) fn get(&self, socket: SocketId) -> Option<&Arc<dyn DatagramSocket>> {
        self.open.get(&socket)
    }

    /// All but the main one, which is received from by QUIC.
    pub(super) fn others(&self) -> Vec<(SocketId, Arc<dyn DatagramSocket>)> {
        let others = self.open.iter().filter(|(id, _)| **id != MAIN);
        others.map(|(id, socket)| (*id, Arc::clone(socket))).collect()
    }

    /// Where a socket is bound; unspecified if that cannot be told.
    pub(super) fn local(&self, socket: SocketId) -> SocketAddr {
        let local = self.open.get(&socket).and_then(|socket| socket.local_addr().ok());
        local.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)))
    }

    /// Gives a socket a number; `None`: there are too many.
    pub(super) fn insert(&mut self, socket: Arc<dyn DatagramSocket>) -> Option<SocketId> {
        if self.open.len() >= MAX_SOCKETS {
            return None;
        }
        let id = (1..=u16::MAX).map(|step| SocketId(self.last.wrapping_add(step)));
        let id = id.into_iter().find(|id| !self.open.contains_key(id))?;
        self.last = id.0;
        self.open.insert(id, socket);
        Some(id)
    }

    pub(super) fn remove(&mut self, socket: SocketId) {
        if socket != MAIN {
            self.open.remove(&socket);
        }
    }
}
