//! From a wish to a connection: channel, handshake, path.

use std::time::Duration;

use quinn::VarInt;
use tokio::sync::oneshot;
use traversal_proto::{
    Time,
    peer::{PeerKey, Role},
    wire::{PeerId, message::Code, peer::CHECK_LABEL, stun::CheckKey},
};

use super::{Driver, Established, peers::Stage, punching::is_punch, timers::Timer};
use crate::{ConnectError, Connection, Path, PathKind, Policy, routes::peer_at};

/// A channel is kept for so long after its connection: the last packets still have to cross it.
const LINGER: Duration = Duration::from_secs(5);
/// A channel that somebody has opened is kept for so long without a handshake.
const UNUSED: Duration = Duration::from_secs(20);
/// The code of a close for want of a direct path.
const NO_DIRECT_PATH: u32 = 0;

impl Driver {
    pub(super) fn connect(
        &mut self,
        peer: PeerId,
        policy: Policy,
        reply: oneshot::Sender<Result<Connection, ConnectError>>,
        now: Time,
    ) {
        let key = self.peers.key_for(peer, policy);
        let Some(slot) = self.peers.get_mut(key) else { return };
        if let Some(current) = &slot.current
            && current.quic.close_reason().is_none()
            && let Some(inner) = current.handle.upgrade()
        {
            if slot.policy != policy {
                slot.policy = policy;
                self.agent.set_policy(key, policy.engine(), now);
                let path = self.path_of(key, self.agent.route(key).map(|route| route.primary));
                self.mind_policy(key, &path, now);
                self.refresh_route(key);
            }
            // Who asked may have given up.
            let _ = reply.send(Ok(Connection(inner)));
            return;
        }
        slot.policy = policy;
        // Who has given up does not count: its time is over sooner.
        slot.waiting.retain(|reply| !reply.is_closed());
        let first = slot.waiting.is_empty();
        slot.waiting.push(reply);
        if first {
            self.timers.set(now + self.connect_timeout, Timer::Connect(key));
        }
        self.advance(key, now);
    }

    /// Takes the next step towards a connection, if somebody waits for one and nothing is under way.
    fn advance(&mut self, key: PeerKey, now: Time) {
        let has_channel = self.relay_home(key).is_some();
        let Some(slot) = self.peers.get_mut(key) else { return };
        if slot.waiting.is_empty() || slot.calling.is_some() || slot.answering.is_some() {
            return;
        }
        if has_channel {
            return self.call(key);
        }
        if matches!(slot.stage, Stage::Idle | Stage::Supernode) {
            self.ask_next(key, Vec::new(), now);
        }
    }

    /// Asks the next supernode that was not asked yet for a channel. False: there is none.
    fn ask_next(&mut self, key: PeerKey, mut asked: Vec<usize>, now: Time) -> bool {
        let Some(slot) = self.peers.get_mut(key) else { return false };
        let peer = slot.peer;
        let next = self.homes.iter().position(super::Home::is_ready);
        let next = next
            .and_then(|_| (0..self.homes.len()).find(|at| self.homes[*at].is_ready() && !asked.contains(at)));
        match next {
            Some(at) => {
                asked.push(at);
                slot.stage = Stage::Channel(asked);
                self.homes[at].client.connect(peer, now);
                true
            }
            None if asked.is_empty() => {
                slot.stage = Stage::Supernode;
                true
            }
            None => false,
        }
    }

    // ---- What supernodes say ----

    pub(super) fn channel_open(&mut self, _home: usize, peer: PeerId, now: Time) {
        let known = self.peers.key_of(&peer).is_some();
        let key = self.peers.key_for(peer, self.policy);
        if !known {
            self.timers.set(now + UNUSED, Timer::Linger(key));
        }
        self.refresh_route(key);
        self.advance(key, now);
    }

    /// A supernode has become able to relay.
    pub(super) fn relay_ready(&mut self, _home: usize, now: Time) {
        for key in self.peers.keys() {
            self.advance(key, now);
            self.ensure_relay(key, now);
        }
    }

    pub(super) fn channel_refused(&mut self, home: usize, peer: PeerId, code: Code, now: Time) {
        let Some(key) = self.peers.key_of(&peer) else { return };
        let Some(slot) = self.peers.get_mut(key) else { return };
        let Stage::Channel(asked) = &slot.stage else { return };
        if asked.last() != Some(&home) {
            return;
        }
        let asked = asked.clone();
        if self.ask_next(key, asked, now) {
            return;
        }
        self.fail(key, &ConnectError::refused(peer, code));
    }

    pub(super) fn channel_closed(
        &mut self,
        _home: usize,
        peer: PeerId,
        _code: Code,
        _retry: bool,
        now: Time,
    ) {
        let Some(key) = self.peers.key_of(&peer) else { return };
        self.refresh_route(key);
        self.ensure_relay(key, now);
    }

    /// A connection without a relay that can be counted on asks the supernodes that are there for one.
    pub(super) fn ensure_relay(&mut self, key: PeerKey, now: Time) {
        let Some(slot) = self.peers.get(key).filter(|slot| slot.current.is_some()) else { return };
        let peer = slot.peer;
        let relays = |home: &super::Home| home.is_ready() && home.client.channel(&peer).is_some();
        if self.homes.iter().any(relays) {
            return;
        }
        for home in self.homes.iter_mut().filter(|home| home.is_ready()) {
            home.client.connect(peer, now);
        }
    }

    /// A supernode does not answer any more: its peers look for another one.
    pub(super) fn relay_gone(&mut self, now: Time) {
        self.refresh_routes();
        for key in self.peers.keys() {
            self.ensure_relay(key, now);
        }
    }

    /// Whoever is relayed by this supernode asks another one, too.
    pub(super) fn use_other_homes(&mut self, leaving: usize, now: Time) {
        for key in self.peers.keys() {
            let Some(slot) = self.peers.get(key).filter(|slot| slot.current.is_some()) else { continue };
            let peer = slot.peer;
            let others = self.homes.iter_mut().enumerate().filter(|(at, _)| *at != leaving);
            if let Some((_, home)) = others.into_iter().find(|(_, home)| home.is_ready()) {
                home.client.connect(peer, now);
            }
        }
    }

    // ---- Handshakes ----

    pub(super) fn incoming(&mut self, incoming: quinn::Incoming, _now: Time) {
        let Some(key) = peer_at(incoming.remote_address()) else { return incoming.ignore() };
        let Some(slot) = self.peers.get_mut(key) else { return incoming.ignore() };
        if !self.admission.admits(slot.peer) {
            return incoming.refuse();
        }
        // Both call at once: the call of the lower id counts. The other side's is not refused but left alone: should ours
        // fail, its next packet is taken.
        if slot.calling.is_some() {
            if self.id < slot.peer {
                return incoming.ignore();
            }
            slot.calling = None;
        }
        self.answer(key, incoming);
    }

    pub(super) fn handshake_over(
        &mut self,
        key: PeerKey,
        attempt: u64,
        role: Role,
        result: Result<Established, ConnectError>,
        now: Time,
    ) {
        let Some(slot) = self.peers.get_mut(key) else { return };
        let current = match role {
            Role::Initiator => &mut slot.calling,
            Role::Acceptor => &mut slot.answering,
        };
        if current.as_ref().is_none_or(|handshake| handshake.attempt != attempt) {
            if let Ok(established) = result {
                established.connection.close(VarInt::from_u32(0), b"another connection was made");
            }
            return;
        }
        *current = None;
        match result {
            Ok(established) if role == Role::Acceptor && is_punch(&established.connection) => {
                self.answer_punch(key, established.connection);
            }
            Ok(established) => self.connected(key, role, established, now),
            Err(error) if role == Role::Initiator => self.fail(key, &error),
            Err(error) => {
                tracing::debug!(peer = %slot.peer, %error, "an incoming handshake failed");
                self.advance(key, now);
                self.linger(key, now);
            }
        }
    }

    fn connected(&mut self, key: PeerKey, role: Role, established: Established, now: Time) {
        let mut secret = [0; 32];
        let quic = established.connection.clone();
        // Only fails for absurd lengths.
        let exported = quic.export_keying_material(&mut secret, CHECK_LABEL, b"");
        let Some(life) = self.held.upgrade().filter(|_| exported.is_ok()) else {
            return quic.close(VarInt::from_u32(0), b"node closed");
        };
        self.timers.clear(Timer::Connect(key));
        self.install(key, role, established, life);
        let Some(slot) = self.peers.get_mut(key) else { return };
        let policy = slot.policy.engine();
        self.agent.handle_peer(key, role, CheckKey::new(&secret), policy, now);
        let path = self.path_of(key, Some(traversal_proto::peer::Hop::Relay));
        self.peers.set_path(key, path);
        self.refresh_route(key);
    }

    fn fail(&mut self, key: PeerKey, error: &ConnectError) {
        let now = self.now();
        self.timers.clear(Timer::Connect(key));
        if let Some(slot) = self.peers.get_mut(key) {
            slot.fail(error);
        }
        self.linger(key, now);
    }

    pub(super) fn connect_timed_out(&mut self, key: PeerKey, _now: Time) {
        let detail = self.homes_problem();
        let Some(slot) = self.peers.get(key) else { return };
        let (peer, step, after) = (slot.peer, slot.step(), self.connect_timeout);
        self.fail(key, &ConnectError::Timeout { peer, step, after, detail });
    }

    // ---- The end of a connection ----

    pub(super) fn connection_over(&mut self, key: PeerKey, generation: u64, now: Time) {
        if !self.peers.is_current(key, generation) {
            return;
        }
        if let Some(slot) = self.peers.get_mut(key) {
            slot.current = None;
            slot.relay_told = None;
        }
        self.timers.clear(Timer::DirectLost(key));
        self.agent.handle_peer_closed(key, now);
        self.refresh_route(key);
        self.linger(key, now);
    }

    fn linger(&mut self, key: PeerKey, now: Time) {
        if self.peers.get(key).is_some_and(super::peers::Slot::is_idle) {
            self.timers.set(now + LINGER, Timer::Linger(key));
        }
    }

    pub(super) fn linger_over(&mut self, key: PeerKey, now: Time) {
        let Some(slot) = self.peers.get(key).filter(|slot| slot.is_idle()) else { return };
        let peer = slot.peer;
        for home in &mut self.homes {
            home.client.close(&peer, now);
        }
        self.routes.remove(key);
        self.peers.remove(key);
    }

    // ---- Connections that may only be direct ----

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
        if let Some(quic) = self.peers.get(key).and_then(super::peers::Slot::connection) {
            quic.close(VarInt::from_u32(NO_DIRECT_PATH), b"the direct path is lost");
        }
    }

    /// Whether the relay must not carry this peer's packets.
    pub(super) fn is_barred_from_relay(&self, key: PeerKey) -> bool {
        self.peers.get(key).is_some_and(|slot| {
            matches!(slot.policy, Policy::DirectOnly(_))
                && slot.current.as_ref().is_some_and(|current| current.was_direct)
        })
    }
}
