//! Channels: how two registered peers are brought together.

use super::{ConnectionId, Event, Supernode, directory::Purpose, relay::End};
use crate::{
    Time,
    rate::Meter,
    wire::{
        PeerId,
        frame::ChannelId,
        message::{Code, FromSupernode, RequestId},
    },
};

impl Supernode {
    /// Connect.
    pub(super) fn connect(&mut self, connection: ConnectionId, request: RequestId, peer: PeerId, now: Time) {
        if !self.connect_locally(connection, request, peer, now) {
            self.ask(connection, request, peer, Purpose::Connect, now);
        }
    }

    /// Opens a channel, or says why not; false if the other peer is not here.
    pub(super) fn connect_locally(
        &mut self,
        connection: ConnectionId,
        request: RequestId,
        peer: PeerId,
        now: Time,
    ) -> bool {
        // Whoever asked may be gone by now, and then nobody needs an answer.
        let Some(caller) = self.connections.get(&connection).and_then(|sender| sender.session) else {
            return true;
        };
        let Some(&callee) = self.peers.get(&peer) else { return false };
        match self.open(caller, callee, now) {
            Ok(channel) => self.tell_opened(channel, Some(request)),
            Err(code) => {
                self.counters.connects_refused += 1;
                self.refuse(connection, request, code);
            }
        }
        true
    }

    /// The caller's end of the channel between two sessions; there is at most one between any two.
    fn open(&mut self, caller: u32, callee: u32, now: Time) -> Result<u32, Code> {
        if caller == callee {
            return Err(Code::SelfConnect);
        }
        if let Some(open) = self.channel_between(caller, callee) {
            return Ok(open);
        }
        let limits = self.config.limits;
        if self.ends.len() + 2 > 2 * limits.channels {
            return Err(Code::Full);
        }
        let from = self.sessions.get(caller).ok_or(Code::NotRegistered)?;
        if from.channels.len() >= limits.channels_per_registration {
            return Err(Code::TooManyChannels);
        }
        let from = from.peer;
        let incoming = Meter::new(Some(self.config.rates.incoming));
        let to = self.sessions.get_mut(callee).ok_or(Code::UnknownPeer)?;
        if !to.accepting {
            return Err(Code::NotAccepting);
        }
        if to.channels.len() >= limits.channels_per_registration || !to.incoming.take(&incoming, 1, now) {
            return Err(Code::PeerBusy);
        }
        let to = to.peer;
        let random = self.random();
        let near = self.ends.insert(random, End { session: caller, other: 0 });
        let random = self.random();
        let far = self.ends.insert(random, End { session: callee, other: near });
        if let Some(end) = self.ends.get_mut(near) {
            end.other = far;
        }
        for (session, end) in [(caller, near), (callee, far)] {
            if let Some(session) = self.sessions.get_mut(session) {
                session.channels.push(end);
            }
        }
        self.counters.channels_opened += 1;
        self.event(Event::ChannelOpened { from, to });
        // The callee first: what the caller sends finds it informed.
        self.tell_opened(far, None);
        Ok(near)
    }

    /// Searches the shorter of the two lists.
    fn channel_between(&self, caller: u32, callee: u32) -> Option<u32> {
        let (ours, theirs) = (&self.sessions.get(caller)?.channels, &self.sessions.get(callee)?.channels);
        let leads_to = |end: &u32, session: u32| {
            self.ends
                .get(*end)
                .and_then(|end| self.ends.get(end.other))
                .is_some_and(|far| far.session == session)
        };
        if ours.len() <= theirs.len() {
            return ours.iter().copied().find(|end| leads_to(end, callee));
        }
        let theirs = theirs.iter().find(|end| leads_to(end, caller))?;
        self.ends.get(*theirs).map(|end| end.other)
    }

    fn tell_opened(&mut self, end: u32, request: Option<RequestId>) {
        let Some(near) = self.ends.get(end) else { return };
        let far = self.ends.get(near.other).and_then(|far| self.sessions.get(far.session));
        let (Some(session), Some(far)) = (self.sessions.get(near.session), far) else { return };
        let (connection, relay) = (session.connection, self.relay_mode(session.account));
        let opened = FromSupernode::Opened { request, peer: far.peer, channel: ChannelId(end), relay };
        self.send(connection, opened);
    }

    /// Close, by the peer at this end.
    pub(super) fn close(&mut self, connection: ConnectionId, session: u32, channel: ChannelId) {
        match self.ends.get(channel.0) {
            Some(end) if end.session == session => self.close_channel(channel.0, Code::ClosedByPeer),
            _ => self.send(connection, FromSupernode::Error { code: Code::NoChannel }),
        }
    }

    /// Ends all channels of a session.
    pub(super) fn close_channels(&mut self, session: u32, code: Code) {
        while let Some(end) = self.sessions.get(session).and_then(|session| session.channels.last().copied())
        {
            self.close_channel(end, code);
        }
    }

    /// Ends a channel; the peer at the other end is told why.
    fn close_channel(&mut self, end: u32, code: Code) {
        let Some(near) = self.ends.remove(end) else { return };
        self.take_off(near.session, end);
        if let Some(far) = self.ends.remove(near.other) {
            self.take_off(far.session, near.other);
            if let Some(connection) = self.connection_of(far.session) {
                self.send(connection, FromSupernode::Closed { channel: ChannelId(near.other), code });
            }
        }
        self.counters.channels_closed += 1;
    }

    fn take_off(&mut self, session: u32, end: u32) {
        if let Some(session) = self.sessions.get_mut(session)
            && let Some(at) = session.channels.iter().rposition(|channel| *channel == end)
        {
            session.channels.swap_remove(at);
        }
    }
}
