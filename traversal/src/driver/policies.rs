//! Which paths a connection may take, when it belongs to several.
//!
//! Everybody who asks for a connection to a peer gets the same one. Who names no policy changes none; who names one
//! changes it for all. [`Policy::DirectOnly`] is on trial until there is a direct path: if none comes, the call fails and
//! the connection is under the policy it had before, or closed if nobody else has it.

use std::sync::Arc;

use traversal_proto::{Time, peer::PeerKey};

use super::{
    Command, Driver,
    peers::{Reply, Slot},
    timers::Timer,
};
use crate::{ConnectError, Connection, NotDirect, Path, PathKind, Policy};

/// The code of a close for want of a direct path.
const NO_DIRECT_PATH: u32 = 0;

/// Who gets a connection.
pub(crate) enum Taker {
    /// Who asked for it.
    Caller(Reply),
    /// Whoever accepts.
    Acceptor,
}

/// A connection that was to become direct.
pub(crate) struct Trial {
    peer: PeerKey,
    generation: u64,
    connection: Connection,
    policy: Policy,
    taker: Taker,
    /// `None`: the caller has given up.
    result: Option<Result<(), NotDirect>>,
}

impl Slot {
    /// Takes over what the next connection's first caller wants; `default` is the builder's.
    pub(super) fn begin_with(&mut self, policy: Option<Policy>, default: Policy) {
        (self.policy, self.settled) = (default, default);
        self.wish(policy);
    }

    /// Takes over what another caller wants.
    pub(super) fn wish(&mut self, policy: Option<Policy>) {
        let Some(policy) = policy else { return };
        self.policy = policy;
        if !is_on_trial(policy) {
            self.settled = policy;
        }
    }
}

fn is_on_trial(policy: Policy) -> bool {
    matches!(policy, Policy::DirectOnly(_))
}

impl Driver {
    /// Gives out a connection that stands already.
    pub(super) fn share(
        &mut self,
        key: PeerKey,
        connection: Connection,
        policy: Option<Policy>,
        reply: Reply,
        now: Time,
    ) {
        if let Some(policy) = policy {
            self.set_policy(key, policy, now);
        }
        let Some(slot) = self.peers.get_mut(key) else { return };
        slot.wish(policy);
        let policy = policy.unwrap_or(slot.settled);
        self.hand_over(key, connection, policy, Taker::Caller(reply));
    }

    /// Hands a connection to whom it is for; when it may only be direct, once it is.
    pub(super) fn hand_over(&self, key: PeerKey, connection: Connection, policy: Policy, mut taker: Taker) {
        let Policy::DirectOnly(deadline) = policy else { return self.give(connection, taker) };
        let generation = self.peers.get(key).map_or(0, |slot| slot.generation);
        let commands = self.sender.clone();
        tokio::spawn(async move {
            let result = tokio::select! {
                biased;
                result = connection.wait_direct(deadline) => Some(result.map(drop)),
                () = taker.gives_up() => None,
            };
            let trial = Trial { peer: key, generation, connection, policy, taker, result };
            // The driver may have ended: then nobody gets anything.
            let _ = commands.send(Command::Tried(Box::new(trial))).await;
        });
    }

    /// A trial is over.
    pub(super) fn tried(&mut self, trial: Trial, now: Time) {
        let Trial { peer: key, generation, connection, policy, taker, result } = trial;
        let slot = self.peers.get(key).filter(|_| self.peers.is_current(key, generation));
        let before = slot.filter(|slot| slot.policy == policy).map(|slot| slot.settled);
        if let Some(Ok(())) = result {
            if slot.is_some() {
                self.set_policy(key, policy, now);
            }
            if let Some(slot) = self.peers.get_mut(key).filter(|slot| slot.generation == generation) {
                slot.settled = policy;
            }
            return self.give(connection, taker);
        }
        // Nobody can come to share it meanwhile: only this task gives out connections.
        if Arc::strong_count(&connection.0) == 1 {
            connection.close(NO_DIRECT_PATH, b"no direct path");
        } else if let Some(before) = before {
            self.set_policy(key, before, now);
        }
        if let (Taker::Caller(reply), Some(Err(error))) = (taker, result) {
            // Who asked may have given up.
            let _ = reply.send(Err(ConnectError::from(error)));
        }
    }

    fn give(&self, connection: Connection, taker: Taker) {
        match taker {
            // Who asked may have given up; the connection ends when nobody holds it.
            Taker::Caller(reply) => drop(reply.send(Ok(connection))),
            Taker::Acceptor => self.unaccepted.put(connection),
        }
    }

    fn set_policy(&mut self, key: PeerKey, policy: Policy, now: Time) {
        let Some(slot) = self.peers.get_mut(key) else { return };
        let old = std::mem::replace(&mut slot.policy, policy);
        if old == policy {
            return;
        }
        if let Some(current) = slot.current.as_mut().filter(|_| !is_on_trial(old)) {
            current.was_direct = false;
        }
        self.agent.set_policy(key, policy.engine(), now);
        let path = self.path_of(key, self.agent.route(key).map(|route| route.primary));
        self.mind_policy(key, &path, now);
        self.refresh_route(key);
    }

    /// Packets take another path: whoever may only go directly waits for a direct one, for a while.
    pub(super) fn mind_policy(&mut self, key: PeerKey, path: &Path, now: Time) {
        let Some(slot) = self.peers.get_mut(key) else { return };
        let Policy::DirectOnly(deadline) = slot.policy else {
            return self.timers.clear(Timer::DirectLost(key));
        };
        let Some(current) = &mut slot.current else { return };
        if path.kind == PathKind::Direct {
            current.was_direct = true;
            self.timers.clear(Timer::DirectLost(key));
        } else if current.was_direct {
            self.timers.set_first(now + deadline, Timer::DirectLost(key));
        }
    }

    pub(super) fn direct_lost(&mut self, key: PeerKey) {
        self.close(key, NO_DIRECT_PATH, b"the direct path is lost");
    }

    /// Whether the relay must not carry this peer's packets.
    pub(super) fn is_barred_from_relay(&self, key: PeerKey) -> bool {
        self.peers.get(key).is_some_and(|slot| {
            is_on_trial(slot.policy) && slot.current.as_ref().is_some_and(|current| current.was_direct)
        })
    }
}

impl Taker {
    async fn gives_up(&mut self) {
        match self {
            Taker::Caller(reply) => reply.closed().await,
            Taker::Acceptor => std::future::pending().await,
        }
    }
}
