//! Supernodes that nobody has configured: others have named them.

use std::{net::SocketAddr, time::Duration};

use traversal_proto::{Time, path::safety::is_server, wire::message::Supernode};

use super::{Driver, Timer, homes::Home, peers::Stage};
use crate::SupernodeAddress;

/// Supernodes at the same time, with those that others have named: each costs a control connection.
const MAX_HOMES: usize = 8;
/// One that was named stays at least so long: time to be reached and used, and whoever names others all the time does not
/// make us dial all the time.
const LEAST_STAY: Duration = Duration::from_secs(60);

impl Driver {
    /// The supernode goes away, or has no room: the alternatives that it names are added, as far as there is room.
    pub(super) fn draining(&mut self, at: usize, leave_in: Duration, alternatives: &[Supernode], now: Time) {
        tracing::info!(supernode = %self.homes[at].address, ?leave_in, "the supernode is going away");
        for alternative in alternatives {
            self.named(at, alternative, now);
        }
        self.use_other_homes(at, now);
    }

    /// Supernode `by` names another one. True: it is among ours.
    pub(super) fn named(&mut self, by: usize, other: &Supernode, now: Time) -> bool {
        if self.homes.iter().any(|home| home.id() == Some(other.id)) {
            return true;
        }
        let remote = self.homes.get(by).and_then(Home::remote);
        let may_be_dialled = |to: &&SocketAddr| remote.is_some_and(|remote| is_server(**to, remote));
        let Some(address) = other.addresses.iter().find(may_be_dialled) else { return false };
        let address = SupernodeAddress { id: Some(other.id), address: address.to_string() };
        if self.homes.len() < MAX_HOMES {
            self.add_home(address, false, now);
            return true;
        }
        let Some(useless) = self.useless_home(by, now) else {
            tracing::info!(supernode = %address, most = MAX_HOMES, "no room for another supernode");
            self.counts.add(|counts| &counts.supernodes_not_added);
            return false;
        };
        self.replace_home(useless, address, now);
        true
    }

    /// One that was named, has had its time, and serves nobody; rather one that cannot be reached.
    fn useless_home(&self, except: usize, now: Time) -> Option<usize> {
        let is_useless = |(at, home): &(usize, &Home)| {
            let is_old = home.added().is_some_and(|added| now.since(added) >= LEAST_STAY);
            *at != except && is_old && !home.client.has_channels() && !self.waits_for(*at)
        };
        let useless = self.homes.iter().enumerate().filter(is_useless);
        useless.min_by_key(|(_, home)| (home.is_ready(), home.added())).map(|(at, _)| at)
    }

    /// Whether some attempt to connect has asked this supernode.
    fn waits_for(&self, home: usize) -> bool {
        let stages = self.peers.keys().into_iter().filter_map(|key| Some(&self.peers.get(key)?.stage));
        stages.into_iter().any(|stage| matches!(stage, Stage::Channel(asked) if asked.contains(&home)))
    }

    /// Another supernode in the place of one that is told goodbye.
    fn replace_home(&mut self, at: usize, address: SupernodeAddress, now: Time) {
        tracing::info!(old = %self.homes[at].address, new = %address, "a supernode makes room for another");
        self.homes[at].client.unregister(now);
        self.drain_home(at, now);
        self.timers.clear(Timer::RetryQuic(at));
        self.timers.clear(Timer::Unwritten(at));
        self.homes[at] = self.new_home(address, false, now);
        self.publish_homes();
    }
}
