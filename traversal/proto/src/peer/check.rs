//! Checks that come in.

use std::net::SocketAddr;

use super::{
    Event, Policy, Why,
    pair::{Life, PairKey, SUSPECT},
    shared::Shared,
    state::Peer,
};
use crate::{
    SocketId, Time,
    address::{self, Scope},
    path::safety,
    wire::stun::{Check, TransactionId},
};

/// How old a path must be before a peer that shows another address has moved, rather than having several.
const SETTLED: std::time::Duration = std::time::Duration::from_secs(1);

impl Peer {
    /// A request with this peer's tag, not yet authenticated.
    pub(super) fn handle_request(
        &mut self,
        (socket, from): (SocketId, SocketAddr),
        bytes: &[u8],
        shared: &mut Shared,
        now: Time,
    ) {
        if self.policy == Policy::RelayOnly {
            shared.counters.not_wanted += 1;
            return;
        }
        if !safety::is_source(from, shared.config.loopback) {
            shared.counters.bad_source += 1;
            return;
        }
        if !self.may_ask(now) {
            shared.counters.requests_too_fast += 1;
            return;
        }
        let Ok(Check::Request { id, nominate }) = Check::decode(bytes, &self.key) else {
            shared.counters.bad_integrity += 1;
            return;
        };
        if self.is_replay(id, socket, from) {
            shared.counters.replayed += 1;
            return;
        }
        shared.counters.requests += 1;
        self.claim(socket, from, false, shared);
        self.respond(id, socket, from, shared);
        let key = PairKey { socket, remote: from };
        let is_wanted = nominate || self.is_worth_checking(from);
        let Some(pair) = self.reflexive_pair(key, shared) else { return };
        pair.heard = Some(pair.heard.map_or((now, now), |(first, _)| (first, now)));
        match &mut pair.life {
            None if is_wanted => self.trigger(key, now),
            // The peer gets through, so now may be better than the next turn.
            Some(life) if !life.works || life.unanswered > 0 => pair.due = now,
            None | Some(_) => {}
        }
    }

    /// Whether to check the address of a request that the peer does not send its data by. Behind NATs that map by
    /// destination every check of a new address shows the other side one more, without end: who has a sound path stops.
    fn is_worth_checking(&self, from: SocketAddr) -> bool {
        let Some(selected) = self.selected else { return true };
        let is_sound =
            self.pairs.get(&selected).and_then(|pair| pair.life).is_some_and(|life| life.unanswered == 0);
        let is_local = |at: SocketAddr| address::scope(at.ip()) != Scope::Global;
        !is_sound || is_local(from) && !is_local(selected.remote)
    }

    /// Answers where the request came from; and by our own path as well where that is another one: what the peer wants
    /// to know is whether *its* packets arrive, and the way back of its pair may be closed.
    fn respond(&mut self, id: TransactionId, socket: SocketId, from: SocketAddr, shared: &mut Shared) {
        let bytes = Check::Response { id, mapped: from }.encode(&self.key);
        let asked = PairKey { socket, remote: from };
        let is_open = self.pairs.get(&asked).is_some_and(|pair| pair.works());
        let other = self.selected.filter(|selected| *selected != asked && !is_open);
        if let Some(other) = other {
            shared.transmit(other.socket, other.remote, bytes.clone());
            shared.counters.responses += 1;
        }
        shared.transmit(socket, from, bytes);
        shared.counters.responses += 1;
    }

    /// A response to the check with this id, which went out by `key`; not yet authenticated. It counts from wherever it
    /// comes: the check has arrived.
    pub(super) fn handle_response(
        &mut self,
        key: PairKey,
        (socket, from): (SocketId, SocketAddr),
        bytes: &[u8],
        shared: &mut Shared,
        now: Time,
    ) {
        let Ok(Check::Response { id, .. }) = Check::decode(bytes, &self.key) else {
            shared.counters.bad_integrity += 1;
            return;
        };
        shared.asked.remove(&id);
        let Some(pair) = self.pairs.get_mut(&key) else { return };
        let Some(sent) = pair.arrive(id) else { return };
        shared.counters.answers += 1;
        let rtt = now.since(sent);
        let is_up = match &mut pair.life {
            Some(life) => life.handle_answer(rtt, now),
            None => {
                pair.life = Some(Life::new(rtt, now));
                true
            }
        };
        pair.due = now;
        let first_heard = pair.heard.map(|(first, _)| first);
        let is_where_it_went = (socket, from) == (key.socket, key.remote);
        self.claim(socket, from, is_where_it_went, shared);
        if !is_where_it_went && safety::is_source(from, shared.config.loopback) {
            self.reflexive_pair(PairKey { socket, remote: from }, shared);
        }
        self.handle_found(now);
        if is_up {
            shared.counters.paths_up += 1;
            shared.event(Event::PathUp { peer: self.id, hop: key.hop(), rtt });
            let why = if self.has_moved(first_heard, now) { Why::Moved } else { Why::FoundDirect };
            if why != Why::Moved {
                self.doubt_old(key, now);
            }
            self.reselect(why, Some(key), shared, now);
        } else if self.selected == Some(key) {
            self.set_also();
        }
        self.schedule(shared, now);
    }

    /// The peer answers at another port of the host that the path in use goes to: perhaps it is at the old one no more.
    /// The path is checked at once, and has to answer soon.
    fn doubt_old(&mut self, new: PairKey, now: Time) {
        let Some(old) = self.selected.filter(|old| *old != new && old.remote.ip() == new.remote.ip()) else {
            return;
        };
        if self.pairs.get(&new).is_some_and(|pair| pair.is_listed) {
            return;
        }
        if let Some(pair) = self.pairs.get_mut(&old)
            && let Some(life) = &mut pair.life
            && now.since(life.since) >= SETTLED
            && life.waiting.is_none()
        {
            life.unanswered = SUSPECT;
            pair.due = now;
        }
    }

    /// Whether the path in use has not answered since the peer was first heard at another address: then the peer is
    /// there now.
    fn has_moved(&self, first_heard: Option<Time>, now: Time) -> bool {
        let life = self.selected.and_then(|key| self.pairs.get(&key)?.life);
        match (life, first_heard) {
            (Some(life), Some(heard)) => now.since(life.since) >= SETTLED && life.answered < heard,
            _ => false,
        }
    }
}
