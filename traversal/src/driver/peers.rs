//! Who is connected, who is being connected.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Weak},
    time::Duration,
};

use quinn::VarInt;
use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
};
use traversal_proto::{
    Time,
    path::NatProfile,
    peer::PeerKey,
    wire::{PeerId, peer::PeerMessage},
};

use super::{Driver, parting::Parting};
use crate::{
    ConnectError, Connection, Path, PathEvent, Policy, Step,
    congestion::Epoch,
    connection::{Inner, Paths},
    routes::{Entry, Way},
};

/// After so long without a packet of a peer's the way to it was interrupted, and what was sent meanwhile is lost: longer than
/// the slowest links' round trip.
const INTERRUPTION: Duration = Duration::from_secs(1);
/// No path takes so long. A clock that has leapt while packets were on their way makes QUIC believe it, and wait for hours.
const ABSURD_RTT: Duration = Duration::from_secs(10);
/// Bytes of streams that wait for an acknowledgement: QUIC's own default, a tenth of a second at a gigabit.
pub(super) const SEND_WINDOW: u64 = 10_000_000;

/// A peer that is connected, is being connected, or has a channel to us.
pub(super) struct Slot {
    pub(super) peer: PeerId,
    pub(super) stage: Stage,
    /// Our own handshake, if one is under way.
    pub(super) calling: Option<Handshake>,
    /// The peer's: for a connection, and for punches. At most [`MAX_ANSWERING`](super::handshakes::MAX_ANSWERING).
    pub(super) answering: Vec<Handshake>,
    /// The connection before, of whose end the peer may not know.
    pub(super) parting: Option<Parting>,
    /// Who waits for the connection.
    pub(super) waiting: Vec<Waiting>,
    /// In force; see [`policies`](super::policies).
    pub(super) policy: Policy,
    /// In force when a trial has failed.
    pub(super) settled: Policy,
    /// Held by every punch of the peer's that is under way, too.
    pub(super) punches: Arc<()>,
    pub(super) current: Option<Current>,
    /// Counts connections, so that news of an earlier one is known as such.
    pub(super) generation: u64,
    pub(super) entry: Option<Arc<Entry>>,
    pub(super) epoch: Epoch,
    /// When a packet of the peer's came last.
    heard: Time,
    /// What the agent has been told of the relay.
    pub(super) relay_told: Option<bool>,
}

/// What an attempt to connect waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing: there is no attempt, or a handshake is under way.
    #[default]
    Idle,
    /// A supernode that can be asked.
    Supernode,
    /// The answer of one of these supernodes, the last one's.
    Channel(Vec<usize>),
}

pub(super) struct Handshake {
    pub(super) attempt: u64,
    pub(super) since: Time,
    pub(super) task: AbortHandle,
}

/// To whoever asked for a connection.
pub(crate) type Reply = oneshot::Sender<Result<Connection, ConnectError>>;

/// Somebody who waits for a connection.
pub(super) struct Waiting {
    /// `None`: whichever the connection has.
    pub(super) policy: Option<Policy>,
    pub(super) reply: Reply,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A connection that stands.
pub(super) struct Current {
    pub(super) quic: quinn::Connection,
    pub(super) handle: Weak<Inner>,
    pub(super) messages: mpsc::Sender<PeerMessage>,
    pub(super) paths: Arc<Paths>,
    /// Packets have gone directly.
    pub(super) was_direct: bool,
}

impl Slot {
    fn new(peer: PeerId, policy: Policy) -> Slot {
        Slot {
            peer,
            stage: Stage::Idle,
            calling: None,
            answering: Vec::new(),
            parting: None,
            waiting: Vec::new(),
            policy,
            settled: policy,
            punches: Arc::default(),
            current: None,
            generation: 0,
            entry: None,
            epoch: Epoch::default(),
            heard: Time::ZERO,
            relay_told: None,
        }
    }

    pub(super) fn connection(&self) -> Option<&quinn::Connection> {
        self.current.as_ref().map(|current| &current.quic)
    }

    /// There is room to send, and what QUIC waits for is perhaps lost: lets it look, and changes nothing.
    pub(super) fn wake(&self) {
        if let Some(quic) = self.connection() {
            quic.set_send_window(SEND_WINDOW);
        }
    }

    pub(super) fn has_ways(&self, (primary, also): &(Way, Option<Way>)) -> bool {
        self.entry.as_ref().is_some_and(|entry| {
            let same_also = match (&entry.also, also) {
                (None, None) => true,
                (Some(a), Some(b)) => a.is_same(b),
                _ => false,
            };
            same_also && entry.primary.is_same(primary)
        })
    }

    /// Nothing is under way and nothing stands.
    pub(super) fn is_idle(&self) -> bool {
        self.stage == Stage::Idle
            && self.calling.is_none()
            && self.answering.is_empty()
            && self.waiting.is_empty()
            && self.current.is_none()
    }

    /// Answers everybody who waits.
    pub(super) fn fail(&mut self, error: &ConnectError) {
        (self.stage, self.calling) = (Stage::Idle, None);
        for waiting in self.waiting.drain(..) {
            // Who asked may have given up.
            let _ = waiting.reply.send(Err(error.clone()));
        }
    }

    pub(super) fn step(&self) -> Step {
        match self.stage {
            Stage::Supernode => Step::Supernode,
            Stage::Channel(_) => Step::Channel,
            Stage::Idle => Step::Handshake,
        }
    }
}

/// All peers, by number and by id.
#[derive(Default)]
pub(super) struct Peers {
    slots: BTreeMap<PeerKey, Slot>,
    keys: HashMap<PeerId, PeerKey>,
    last: u32,
    own_profile: NatProfile,
}

impl Peers {
    pub(super) fn key_of(&self, peer: &PeerId) -> Option<PeerKey> {
        self.keys.get(peer).copied()
    }

    /// The peer's slot, made now if there is none. Numbers are not used again soon, so a late packet for an earlier peer
    /// meets nobody.
    pub(super) fn key_for(&mut self, peer: PeerId, policy: Policy) -> PeerKey {
        if let Some(key) = self.key_of(&peer) {
            return key;
        }
        let key = loop {
            self.last = self.last.wrapping_add(1);
            if !self.slots.contains_key(&PeerKey(self.last)) {
                break PeerKey(self.last);
            }
        };
        self.slots.insert(key, Slot::new(peer, policy));
        self.keys.insert(peer, key);
        key
    }

    pub(super) fn get(&self, peer: PeerKey) -> Option<&Slot> {
        self.slots.get(&peer)
    }

    pub(super) fn get_mut(&mut self, peer: PeerKey) -> Option<&mut Slot> {
        self.slots.get_mut(&peer)
    }

    pub(super) fn remove(&mut self, peer: PeerKey) {
        if let Some(slot) = self.slots.remove(&peer) {
            self.keys.remove(&slot.peer);
        }
    }

    pub(super) fn keys(&self) -> Vec<PeerKey> {
        self.slots.keys().copied().collect()
    }

    /// Ends the connections that a leap of the clock has made useless: nothing else would, as their timeouts are as long.
    pub(super) fn close_absurd(&self) {
        let all = self.slots.values().filter_map(Slot::connection);
        for quic in all.filter(|quic| quic.rtt() > ABSURD_RTT) {
            quic.close(VarInt::from_u32(0), b"the clock has leapt");
        }
    }

    pub(super) fn is_current(&self, peer: PeerKey, generation: u64) -> bool {
        self.get(peer).is_some_and(|slot| slot.current.is_some() && slot.generation == generation)
    }

    /// A message for the peer. False: it is lost, because the stream does not take it.
    pub(super) fn say(&self, peer: PeerKey, message: PeerMessage) -> bool {
        let current = self.get(peer).and_then(|slot| slot.current.as_ref());
        current.is_none_or(|current| current.messages.try_send(message).is_ok())
    }

    pub(super) fn tell(&self, peer: PeerKey, event: PathEvent) {
        if let Some(current) = self.get(peer).and_then(|slot| slot.current.as_ref()) {
            // Nobody may be listening.
            let _ = current.paths.events.send(event);
        }
    }

    pub(super) fn set_path(&mut self, peer: PeerKey, path: Path) {
        let ours = self.own_profile;
        if let Some(current) = self.get_mut(peer).and_then(|slot| slot.current.as_mut()) {
            current.paths.state.send_modify(|state| (state.path, state.ours) = (path, ours));
        }
    }

    pub(super) fn set_profiles(&mut self, peer: PeerKey, ours: NatProfile, theirs: NatProfile) {
        if let Some(current) = self.get(peer).and_then(|slot| slot.current.as_ref()) {
            current.paths.state.send_modify(|state| (state.ours, state.theirs) = (ours, Some(theirs)));
        }
    }

    pub(super) fn set_same_nat(&mut self, peer: PeerKey, same_nat: bool) {
        if let Some(current) = self.get(peer).and_then(|slot| slot.current.as_ref()) {
            current.paths.state.send_modify(|state| state.same_nat = same_nat);
        }
    }

    pub(super) fn set_own_profile(&mut self, profile: NatProfile) {
        self.own_profile = profile;
        for current in self.slots.values().filter_map(|slot| slot.current.as_ref()) {
            current.paths.state.send_modify(|state| state.ours = profile);
        }
    }
}

impl Driver {
    /// This supernode relays again: what was sent to peers meanwhile is lost.
    pub(super) fn wake_relayed(&mut self, home: usize, now: Time) {
        for key in self.peers.keys() {
            if self.relay_index(key) == Some(home) {
                self.relay_back(key, now);
            }
        }
    }

    /// A packet of the peer's has come. After an interruption QUIC would wait for a timeout that has doubled many times.
    pub(super) fn heard(&mut self, key: PeerKey, now: Time) {
        let Some(slot) = self.peers.get_mut(key) else { return };
        if now.since(std::mem::replace(&mut slot.heard, now)) >= INTERRUPTION {
            slot.epoch.doubt();
            slot.wake();
        }
    }

    /// There is a relay again: after an interruption it is tried at once, for the same reason.
    pub(super) fn relay_back(&mut self, key: PeerKey, now: Time) {
        let Some(slot) = self.peers.get(key) else { return };
        if now.since(slot.heard) >= INTERRUPTION {
            slot.epoch.doubt();
            slot.wake();
        }
    }
}
