//! From a wish to a connection: channel, handshake, path.

use std::time::Duration;

use quinn::VarInt;
use traversal_proto::{
    Time,
    peer::{PeerKey, Role},
    wire::{PeerId, message::Code, message::Supernode, peer::CHECK_LABEL, stun::CheckKey},
};

use super::{
    Driver, Established,
    handshakes::{MAX_ANSWERING, SLOW},
    peers::{Reply, Stage, Waiting},
    punching::is_punch,
    timers::Timer,
};
use crate::{ConnectError, Connection, Policy, routes::peer_at};

/// A channel is kept for so long after its connection: the last packets still have to cross it.
const LINGER: Duration = Duration::from_secs(5);
/// A channel that somebody has opened is kept for so long without a handshake.
const UNUSED: Duration = Duration::from_secs(20);

impl Driver {
    /// `policy`: `None` leaves a connection that stands as it is, and gives a new one the builder's.
    pub(super) fn connect(&mut self, peer: PeerId, policy: Option<Policy>, reply: Reply, now: Time) {
        let key = self.peers.key_for(peer, self.policy);
        let Some(slot) = self.peers.get_mut(key) else { return };
        if let Some(current) = &slot.current
            && current.quic.close_reason().is_none()
            && let Some(inner) = current.handle.upgrade()
        {
            return self.share(key, Connection(inner), policy, reply, now);
        }
        // Who has given up does not count: its time is over sooner.
        slot.waiting.retain(|waiting| !waiting.reply.is_closed());
        if slot.waiting.is_empty() {
            slot.begin_with(policy, self.policy);
            self.timers.set(now + self.connect_timeout, Timer::Connect(key));
        } else {
            slot.wish(policy);
        }
        slot.waiting.push(Waiting { policy, reply });
        self.advance(key, now);
    }

    /// Takes the next step towards a connection, if somebody waits for one and nothing is under way.
    pub(super) fn advance(&mut self, key: PeerKey, now: Time) {
        let has_channel = self.relay_home(key).is_some();
        let Some(slot) = self.peers.get_mut(key) else { return };
        if slot.waiting.is_empty() || slot.calling.is_some() {
            return;
        }
        if let Some(answered) = slot.answering.iter().map(|answering| answering.since + SLOW).max()
            && answered > now
        {
            return self.timers.set(answered, Timer::Slow(key));
        }
        if has_channel {
            self.call(key);
            // The supernode of that channel may have gone, unnoticed until now.
            return self.ensure_relay(key, now);
        }
        if matches!(slot.stage, Stage::Idle | Stage::Supernode) && !self.ask_next(key, Vec::new(), now) {
            self.wait_for_supernode(key);
        }
    }

    /// Asks the next supernode that was not asked yet for a channel. False: there is none.
    fn ask_next(&mut self, key: PeerKey, mut asked: Vec<usize>, now: Time) -> bool {
        let mut homes = self.homes.iter_mut().enumerate();
        let next = homes.find(|(at, home)| home.is_ready() && !asked.contains(at));
        let (Some((at, home)), Some(slot)) = (next, self.peers.get_mut(key)) else { return false };
        asked.push(at);
        slot.stage = Stage::Channel(asked);
        home.client.connect(slot.peer, now);
        true
    }

    fn wait_for_supernode(&mut self, key: PeerKey) {
        if let Some(slot) = self.peers.get_mut(key) {
            slot.stage = Stage::Supernode;
        }
    }

    /// Whether this supernode's answer is waited for.
    pub(super) fn is_asked(&self, key: PeerKey, home: usize) -> bool {
        let stage = self.peers.get(key).map(|slot| &slot.stage);
        matches!(stage, Some(Stage::Channel(asked)) if asked.last() == Some(&home))
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
        self.relay_back(key, now);
    }

    /// A supernode has become able to relay.
    pub(super) fn relay_ready(&mut self, _home: usize, now: Time) {
        for key in self.peers.keys() {
            self.advance(key, now);
            self.ensure_relay(key, now);
            self.relay_back(key, now);
        }
    }

    pub(super) fn channel_refused(
        &mut self,
        home: usize,
        peer: PeerId,
        code: Code,
        elsewhere: Option<&Supernode>,
        now: Time,
    ) {
        let Some(key) = self.peers.key_of(&peer).filter(|key| self.is_asked(*key, home)) else { return };
        let Some(Stage::Channel(asked)) = self.peers.get(key).map(|slot| slot.stage.clone()) else { return };
        let may_be_there = elsewhere.is_some_and(|other| {
            let has_refused = asked.iter().any(|at| self.homes[*at].id() == Some(other.id));
            !has_refused && self.named(home, other, now)
        });
        if self.ask_next(key, asked, now) {
            return;
        }
        if may_be_there {
            return self.wait_for_supernode(key);
        }
        self.fail(key, &ConnectError::refused(peer, code));
    }

    /// A channel is gone. `retrying`: it is asked for again already.
    pub(super) fn channel_closed(&mut self, home: usize, peer: PeerId, retrying: bool, now: Time) {
        let Some(key) = self.peers.key_of(&peer) else { return };
        self.refresh_route(key);
        self.ensure_relay(key, now);
        if self.relay_home(key).is_some() {
            return;
        }
        // What our handshake says goes nowhere.
        let Some(slot) = self.peers.get_mut(key) else { return };
        if slot.calling.take().is_none() {
            return;
        }
        if retrying {
            slot.stage = Stage::Channel(vec![home]);
            self.ask_next(key, vec![home], now);
        } else {
            self.advance(key, now);
        }
    }

    /// A connection, or a call, without a relay that can be counted on asks the supernodes that are there for one.
    pub(super) fn ensure_relay(&mut self, key: PeerKey, now: Time) {
        let Some(slot) = self.peers.get(key) else { return };
        if slot.current.is_none() && slot.calling.is_none() {
            return;
        }
        let peer = slot.peer;
        let relays = |home: &super::Home| home.is_ready() && home.client.channel(&peer).is_some();
        if self.homes.iter().any(relays) {
            return;
        }
        for home in self.homes.iter_mut().filter(|home| home.is_ready()) {
            home.client.connect(peer, now);
        }
    }

    /// A supernode does not answer any more: its peers look for another one, and so do those who wait for its answer.
    pub(super) fn relay_gone(&mut self, home: usize, now: Time) {
        self.refresh_routes();
        let is_there = self.homes.get(home).is_some_and(|home| home.client.is_registered());
        for key in self.peers.keys() {
            self.ensure_relay(key, now);
            if !is_there && self.is_asked(key, home) {
                let asked = self.peers.get(key).map(|slot| slot.stage.clone());
                let Some(Stage::Channel(asked)) = asked else { continue };
                if !self.ask_next(key, asked, now) {
                    self.wait_for_supernode(key);
                }
            }
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
            self.counts.add(|counts| &counts.connections_not_admitted);
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
        if slot.answering.len() >= MAX_ANSWERING {
            self.counts.add(|counts| &counts.handshakes_put_off);
            return incoming.ignore();
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
        let is_known = match role {
            Role::Initiator => slot.calling.take_if(|calling| calling.attempt == attempt).is_some(),
            Role::Acceptor => {
                let before = slot.answering.len();
                slot.answering.retain(|answering| answering.attempt != attempt);
                slot.answering.len() < before
            }
        };
        if !is_known {
            if let Ok(established) = result {
                established.connection.close(VarInt::from_u32(0), b"another connection was made");
            }
            return;
        }
        match result {
            Ok(established) if role == Role::Acceptor && is_punch(&established.connection) => {
                self.answer_punch(key, established.connection);
                self.advance(key, now);
                self.linger(key, now);
            }
            Ok(established) => self.connected(key, (role, attempt), established, now),
            Err(error) if role == Role::Initiator => self.fail(key, &error),
            Err(error) => {
                tracing::debug!(peer = %slot.peer, %error, "an incoming handshake failed");
                self.advance(key, now);
                self.linger(key, now);
            }
        }
    }

    fn connected(&mut self, key: PeerKey, (role, attempt): (Role, u64), established: Established, now: Time) {
        let mut secret = [0; 32];
        let quic = established.connection.clone();
        // Only fails for absurd lengths.
        let exported = quic.export_keying_material(&mut secret, CHECK_LABEL, b"");
        let Some(life) = self.held.upgrade().filter(|_| exported.is_ok()) else {
            return quic.close(VarInt::from_u32(0), b"node closed");
        };
        self.timers.clear(Timer::Connect(key));
        self.timers.clear(Timer::DirectLost(key));
        if let Some(slot) = self.peers.get_mut(key)
            && slot.waiting.iter().all(|waiting| waiting.reply.is_closed())
        {
            slot.begin_with(None, self.policy);
        }
        self.install(key, (role, attempt), established, life);
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
        let Some(slot) = self.peers.get_mut(key) else { return };
        slot.relay_told = None;
        if let Some(over) = slot.current.take() {
            self.part(key, over.quic, now);
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
        self.timers.clear(Timer::Parting(key));
        self.routes.remove(key);
        self.peers.remove(key);
    }
}
