//! Channels: which are wanted, which are open.

use std::{collections::BTreeMap, time::Duration};

use super::{Client, Control, Event, timers::Timer};
use crate::{
    Time,
    wire::{
        PeerId, SignedRecord,
        frame::ChannelId,
        message::{Code, RelayMode, RequestId, Supernode, ToSupernode},
    },
};

/// An answer is waited for so long: the supernode itself waits two seconds for a directory's.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// A lost channel is asked for again after so long, then twice as long, and so on.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// The other peer may need a while to find its way back; asking costs little.
const RAREST: Duration = Duration::from_secs(15);
/// Lookups whose answers are waited for.
const MAX_LOOKUPS: usize = 64;

/// A channel that is wanted.
struct Channel {
    /// Our end, while it is open.
    open: Option<ChannelId>,
    /// It was open once: then it is asked for until it is wanted no more, and before that only once.
    was_open: bool,
    /// We asked for it first.
    ours: bool,
    /// The Connect that waits for its answer.
    asked: Option<RequestId>,
    /// When it is asked for again, or the answer is waited for no more.
    due: Time,
    /// How often it was asked for in vain since it was open last.
    tries: u32,
}

impl Channel {
    fn new(ours: bool) -> Channel {
        Channel { open: None, was_open: false, ours, asked: None, due: Time::NEVER, tries: 0 }
    }
}

#[derive(Default)]
pub(super) struct Channels {
    wanted: BTreeMap<PeerId, Channel>,
    open: BTreeMap<ChannelId, PeerId>,
    lookups: BTreeMap<RequestId, PeerId>,
    last_request: RequestId,
}

impl Channels {
    pub(super) fn open_to(&self, peer: &PeerId) -> Option<ChannelId> {
        self.wanted.get(peer)?.open
    }

    pub(super) fn peer_of(&self, channel: ChannelId) -> Option<PeerId> {
        self.open.get(&channel).copied()
    }

    /// Nothing is answered any more. What is open stays so, because the registration may be resumed.
    pub(super) fn interrupted(&mut self) {
        self.lookups.clear();
        for channel in self.wanted.values_mut() {
            (channel.asked, channel.due, channel.tries) = (None, Time::NEVER, 0);
        }
    }

    /// The supernode has let go of all of them.
    pub(super) fn lost(&mut self) {
        self.interrupted();
        self.open.clear();
        for channel in self.wanted.values_mut() {
            channel.open = None;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    fn next_request(&mut self) -> RequestId {
        // 0 stands for Register.
        self.last_request = self.last_request.wrapping_add(1).max(1);
        self.last_request
    }

    fn due(&self) -> Time {
        self.wanted.values().map(|channel| channel.due).min().unwrap_or(Time::NEVER)
    }
}

impl Client {
    pub(super) fn want(&mut self, peer: PeerId, now: Time) {
        if let Some(channel) = self.channels.open_to(&peer)
            && let Some(relay) = self.registration.relay
        {
            return self.event(Event::Opened { peer, channel, relay, incoming: false });
        }
        if !self.channels.wanted.contains_key(&peer) {
            if self.channels.wanted.len() >= self.config.max_channels {
                let code = Code::TooManyChannels;
                return self.event(Event::Refused { peer, code, elsewhere: None });
            }
            self.channels.wanted.insert(peer, Channel::new(true));
        }
        let waits = self.channels.wanted.get(&peer).is_some_and(|channel| channel.asked.is_some());
        if !waits {
            self.ask(peer, now);
        }
    }

    /// Sends the Connect, if anybody would answer it.
    fn ask(&mut self, peer: PeerId, now: Time) {
        if self.control != Control::Registered {
            return;
        }
        let request = self.channels.next_request();
        let Some(channel) = self.channels.wanted.get_mut(&peer) else { return };
        (channel.asked, channel.due) = (Some(request), now + ANSWER_WITHIN);
        self.message(ToSupernode::Connect { request, peer, hops: 0 });
        self.watch_channels();
    }

    /// After a registration on a new connection: every channel is asked for again, and if it is open still, named.
    pub(super) fn reopen(&mut self, now: Time) {
        let peers: Vec<_> = self.channels.wanted.keys().copied().collect();
        for peer in peers {
            self.ask(peer, now);
        }
    }

    pub(super) fn opened(&mut self, peer: PeerId, id: ChannelId, relay: RelayMode) {
        let count = self.channels.wanted.len();
        if !self.channels.wanted.contains_key(&peer) && count >= self.config.max_channels {
            return self.message(ToSupernode::Close { channel: id });
        }
        let channel = self.channels.wanted.entry(peer).or_insert_with(|| Channel::new(false));
        let incoming = !channel.ours;
        (channel.was_open, channel.asked, channel.due, channel.tries) = (true, None, Time::NEVER, 0);
        let previous = channel.open.replace(id);
        if let Some(previous) = previous {
            self.channels.open.remove(&previous);
        }
        self.channels.open.insert(id, peer);
        self.early.opened(id, peer, self.now);
        self.watch_channels();
        if previous != Some(id) {
            self.event(Event::Opened { peer, channel: id, relay, incoming });
        }
    }

    pub(super) fn refused(&mut self, request: RequestId, code: Code, to: Option<Supernode>, now: Time) {
        if let Some(peer) = self.channels.lookups.remove(&request) {
            return self.event(Event::Refused { peer, code, elsewhere: to });
        }
        let asked = self.channels.wanted.iter().find(|(_, channel)| channel.asked == Some(request));
        if let Some(peer) = asked.map(|(peer, _)| *peer) {
            self.not_opened(peer, code, to, now);
        }
    }

    /// A Connect came to nothing.
    fn not_opened(&mut self, peer: PeerId, code: Code, elsewhere: Option<Supernode>, now: Time) {
        let Some(channel) = self.channels.wanted.get_mut(&peer) else { return };
        if !channel.was_open {
            self.channels.wanted.remove(&peer);
            self.watch_channels();
            return self.event(Event::Refused { peer, code, elsewhere });
        }
        let gone = channel.open.take();
        let wait = (FIRST_RETRY * (1 << channel.tries.min(8))).min(RAREST);
        (channel.asked, channel.tries) = (None, channel.tries.saturating_add(1));
        let wait = self.jittered(wait);
        if let Some(channel) = self.channels.wanted.get_mut(&peer) {
            channel.due = now + wait;
        }
        self.watch_channels();
        match gone {
            Some(gone) => {
                self.channels.open.remove(&gone);
                self.event(Event::Closed { peer, code, retrying: true });
            }
            // Whoever waits for it looks elsewhere; it is asked for again all the same.
            None => self.event(Event::Refused { peer, code, elsewhere }),
        }
    }

    pub(super) fn closed(&mut self, id: ChannelId, code: Code, now: Time) {
        let Some(peer) = self.channels.open.remove(&id) else { return };
        let Some(channel) = self.channels.wanted.get_mut(&peer) else { return };
        channel.open = None;
        // Whoever closed it wanted to. Anything else is an accident, of the other peer's connection as a rule.
        let retrying = code != Code::ClosedByPeer;
        if !retrying {
            self.channels.wanted.remove(&peer);
        } else if channel.asked.is_none() {
            channel.due = now + FIRST_RETRY;
        }
        self.watch_channels();
        self.event(Event::Closed { peer, code, retrying });
    }

    pub(super) fn channels_due(&mut self, now: Time) {
        let due = |channel: &Channel| channel.due <= now;
        let peers: Vec<_> =
            self.channels.wanted.iter().filter(|(_, channel)| due(channel)).map(|(peer, _)| *peer).collect();
        for peer in peers {
            let unanswered = self.channels.wanted.get(&peer).is_some_and(|channel| channel.asked.is_some());
            if unanswered { self.not_opened(peer, Code::Timeout, None, now) } else { self.ask(peer, now) }
        }
        self.watch_channels();
    }

    pub(super) fn drop_channel(&mut self, peer: &PeerId) {
        let Some(channel) = self.channels.wanted.remove(peer) else { return };
        if let Some(id) = channel.open {
            self.channels.open.remove(&id);
            if self.control == Control::Registered {
                self.message(ToSupernode::Close { channel: id });
            }
        }
        self.watch_channels();
    }

    /// Somebody says that this channel is gone: the supernode names the one that is there, or opens one.
    pub(super) fn recheck_channel(&mut self, id: ChannelId, now: Time) {
        let Some(peer) = self.channels.peer_of(id) else { return };
        if self.channels.wanted.get(&peer).is_some_and(|channel| channel.asked.is_none()) {
            self.ask(peer, now);
        }
    }

    pub(super) fn ask_where(&mut self, peer: PeerId) -> bool {
        let possible = self.control == Control::Registered && self.channels.lookups.len() < MAX_LOOKUPS;
        if possible {
            let request = self.channels.next_request();
            self.channels.lookups.insert(request, peer);
            self.message(ToSupernode::Lookup { request, peer, hops: 0 });
        }
        possible
    }

    pub(super) fn found(&mut self, request: RequestId, record: &SignedRecord, to: Option<Supernode>) {
        let Some(peer) = self.channels.lookups.remove(&request) else { return };
        // Whoever passes the record on may be wrong about it, or lie: the peer's signature tells.
        let there = to.as_ref().map(|supernode| supernode.id).or(self.registration.supernode);
        let good = record
            .verify(self.clock.unix(self.now))
            .is_ok_and(|claims| claims.peer == peer && Some(claims.supernode) == there);
        match good {
            true => self.event(Event::Found { peer, elsewhere: to }),
            false => self.event(Event::Refused { peer, code: Code::BadSignature, elsewhere: None }),
        }
    }

    fn watch_channels(&mut self) {
        let due = self.channels.due();
        self.timers.set(Timer::Channels, due);
    }
}
