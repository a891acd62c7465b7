//! The call's datagrams over a connection of the traversal crate: all that the call needs of it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use traversal::{CloseReason, Connection, DatagramError};

use crate::session::{Closed, Datagrams, Route};

/// A connection, and how often its path has changed.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    connection: Connection,
    switches: Arc<AtomicU64>,
}

impl Link {
    pub(crate) fn new(connection: Connection) -> Link {
        Link { connection, switches: Arc::default() }
    }

    pub(crate) fn count_switch(&self) {
        self.switches.fetch_add(1, Ordering::Relaxed);
    }
}

impl Datagrams for Link {
    fn send(&self, datagram: Vec<u8>) -> Result<(), Closed> {
        match self.connection.send_datagram(datagram) {
            Err(DatagramError::Closed(reason)) => Err(reason.into()),
            // Too long for the path at the moment: lost, as others are.
            _ => Ok(()),
        }
    }

    async fn receive(&self) -> Result<Vec<u8>, Closed> {
        Ok(self.connection.read_datagram().await?.to_vec())
    }

    fn route(&self) -> Route {
        let path = self.connection.path();
        let switches = self.switches.load(Ordering::Relaxed);
        Route { path: path.kind.to_string(), rtt: path.rtt, switches }
    }
}

impl From<CloseReason> for Closed {
    fn from(reason: CloseReason) -> Closed {
        Closed { by_peer: matches!(reason, CloseReason::Peer { code: 0, .. }), why: reason.to_string() }
    }
}
