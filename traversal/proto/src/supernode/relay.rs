//! The relay: datagrams in, datagrams out, renumbered in place.

use std::{net::SocketAddr, ops::Range};

use super::{ConnectionId, DropReason, Event, Supernode, registry::Unverified, unproven};
use crate::{
    SocketId, Time, Transmit,
    address::{can_answer, canonical},
    rate::{Meter, Rate},
    wire::{
        Kind, MAX_HOPS, demultiplex,
        frame::{BOUND_LEN, Bind, DATA, DATA_HEADER, Frame, FrameError, SessionId},
        message::{FromSupernode, Resource},
        same,
        stream::MAX_FRAME,
    },
};

/// Where relayed packets come from and go to: an address that has proved itself, or a control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// By UDP.
    Datagram {
        /// From this socket of ours.
        socket: SocketId,
        /// To this address.
        to: SocketAddr,
    },
    /// As a frame on this connection. What its peer does not read fast enough is to be dropped, as a network would.
    Stream(ConnectionId),
}

/// What is to be done with the packet that was just handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send these bytes of it there.
    Relay {
        /// Where to.
        to: Target,
        /// Which bytes of the buffer.
        range: Range<usize>,
    },
    /// Nothing; answers, if any, come from `poll_transmit` and `poll_message`.
    Handled,
    /// Nothing; counted under this reason.
    Drop(DropReason),
    /// Not for this engine: QUIC.
    NotOurs,
    /// A registration: verify it, and hand it to [`Supernode::handle_verified`].
    Verify(Box<Unverified>),
}

/// A peer that keeps changing its address binds a few times a second at the most. A copied Bind, sent from other addresses,
/// gets no further than this either.
const CHALLENGES: Rate = Rate { per_second: 5, burst: 10 };

/// One end of a channel.
pub(super) struct End {
    pub(super) session: u32,
    pub(super) other: u32,
}

/// Where a session's frames come from and go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Binding {
    target: Target,
    /// Until then, unless it is confirmed.
    until: Time,
}

impl Binding {
    pub(super) fn is_stream(&self, connection: ConnectionId) -> bool {
        self.target == Target::Stream(connection)
    }
}

impl Supernode {
    /// A datagram that came to one of our sockets. A relayed one is renumbered in place and is to be sent on; STUN and
    /// Binds are answered through `poll_transmit`.
    pub fn handle_datagram(
        &mut self,
        socket: SocketId,
        from: SocketAddr,
        datagram: &mut [u8],
        now: Time,
    ) -> Verdict {
        let now = self.at(now);
        let from = canonical(from);
        let Some(first) = datagram.first() else { return self.drop(DropReason::Malformed) };
        match demultiplex(*first) {
            Kind::Relay if *first == DATA => self.relay(Target::Datagram { socket, to: from }, datagram, now),
            Kind::Quic => self.quic(from),
            Kind::Unknown => self.drop(DropReason::Malformed),
            Kind::Relay | Kind::Stun if !can_answer(from) => self.drop(DropReason::BadSource),
            Kind::Stun => self.reflect(socket, from, datagram, now),
            Kind::Relay => match Frame::decode(datagram) {
                Ok(Frame::Bind(bind)) => self.bind(socket, from, bind, datagram.len(), now),
                // Supernodes are linked by control connections; a bare datagram of this kind is nobody's.
                Ok(Frame::Forward { hops, .. }) if hops >= MAX_HOPS => self.drop(DropReason::HopLimit),
                Ok(_) => self.drop(DropReason::Unexpected),
                Err(_) => self.drop(DropReason::Malformed),
            },
        }
    }

    /// A relay frame on a control connection.
    pub(super) fn handle_relay_frame(
        &mut self,
        connection: ConnectionId,
        body: &mut [u8],
        now: Time,
    ) -> Verdict {
        let now = self.at(now);
        if body.first() != Some(&DATA) {
            return self.drop(DropReason::Unexpected);
        }
        self.relay(Target::Stream(connection), body, now)
    }

    /// A Data frame: from the end that it names to the other one.
    fn relay(&mut self, from: Target, frame: &mut [u8], now: Time) -> Verdict {
        let Some(&[_, a, b, c, d]) = frame.first_chunk::<DATA_HEADER>() else {
            return self.drop(DropReason::Malformed);
        };
        let id = u32::from_be_bytes([a, b, c, d]);
        let Some(end) = self.ends.get(id) else {
            return self.object(from, FrameError::NoChannel, id, frame.len(), DropReason::NoChannel, now);
        };
        let other = end.other;
        let bound = |session: u32| {
            let session = self.sessions.get(session)?;
            let binding = session.binding.filter(|binding| binding.until > now)?;
            Some((binding.target, session.account))
        };
        let Some((_, account)) = bound(end.session).filter(|(target, _)| *target == from) else {
            return self.object(from, FrameError::NotBound, id, frame.len(), DropReason::NotBound, now);
        };
        let Some((to, _)) = self.ends.get(other).and_then(|far| bound(far.session)) else {
            return self.drop(DropReason::PeerNotBound);
        };
        if matches!(to, Target::Stream(_)) && frame.len() > MAX_FRAME {
            return self.drop(DropReason::TooLong);
        }
        if let Err(reason) = self.charge(account, end.session, frame.len(), now) {
            return self.drop(reason);
        }
        frame[1..DATA_HEADER].copy_from_slice(&other.to_be_bytes());
        self.counters.relayed_packets += 1;
        self.counters.relayed_bytes += frame.len() as u64;
        Verdict::Relay { to, range: 0..frame.len() }
    }

    fn charge(&mut self, account: u32, session: u32, bytes: usize, now: Time) -> Result<(), DropReason> {
        let charged = self.accounts.charge(account, bytes as u64, now, self.config.timing.warn_every);
        if let Some(warning) = charged.warning
            && let Some((connection, peer)) = self.sessions.get(session).map(|s| (s.connection, s.peer))
        {
            let volume = warning.resource == Resource::Volume;
            if volume && warning.used >= warning.limit {
                self.event(Event::VolumeExhausted(peer));
            }
            self.counters.quota_warnings += 1;
            let resets_in = if volume { self.period_left() } else { 0 };
            let (resource, used, limit) = (warning.resource, warning.used, warning.limit);
            self.send(connection, FromSupernode::Quota { resource, used, limit, resets_in });
        }
        charged.result
    }

    /// A Bind: a challenge for who has not seen the cookie, and for who has, the address for the session.
    fn bind(
        &mut self,
        socket: SocketId,
        from: SocketAddr,
        bind: Bind,
        received: usize,
        now: Time,
    ) -> Verdict {
        let Bind { session, sequence, cookie, proof } = bind;
        if !self.cookies.check(&cookie, socket, from, session, now) {
            return self.challenge(socket, from, &bind, received, now);
        }
        let from = Target::Datagram { socket, to: from };
        let Some(holder) = self.sessions.get_mut(session.0) else {
            return self.object(from, FrameError::NoSession, session.0, received, DropReason::NoSession, now);
        };
        if !same(&holder.token.bind(session, sequence, &cookie), &proof) {
            return self.drop(DropReason::BadProof);
        }
        let refreshes = holder.binding.is_some_and(|binding| binding.target == from);
        let keeps = refreshes && sequence == holder.bind_sequence;
        if sequence <= holder.bind_sequence && !keeps {
            return self.drop(DropReason::StaleBind);
        }
        let lifetime = self.config.timing.binding;
        holder.binding = Some(Binding { target: from, until: now + lifetime });
        holder.bind_sequence = sequence;
        let proof = holder.token.bound(session, sequence, &cookie);
        match refreshes {
            true => self.counters.bind_refreshes += 1,
            false => self.counters.binds += 1,
        }
        self.confirm_binding(
            from,
            session,
            sequence,
            u16::try_from(lifetime.as_secs()).unwrap_or(u16::MAX),
            proof,
        );
        Verdict::Handled
    }

    /// Asks for the cookie. Nothing is remembered of the address; but a Bind whose proof was made with the session's token
    /// has a claim of its own to an answer, so that a flood of made-up Binds does not lock the peers out.
    fn challenge(
        &mut self,
        socket: SocketId,
        from: SocketAddr,
        bind: &Bind,
        received: usize,
        now: Time,
    ) -> Verdict {
        let Bind { session, sequence, cookie, proof } = *bind;
        let holder = self.sessions.get_mut(session.0);
        let holder = holder.filter(|holder| same(&holder.token.bind(session, sequence, &cookie), &proof));
        let known =
            holder.is_some_and(|holder| holder.challenges.take(&Meter::new(Some(CHALLENGES)), 1, now));
        let cookie = self.cookies.make(socket, from, session, now);
        let bytes = Frame::Challenge { session, sequence, cookie }.to_vec();
        if !known && !self.unproven.allows(from, received, bytes.len(), unproven::OWN, now) {
            return self.drop(DropReason::Unproven);
        }
        self.counters.challenges += 1;
        self.out.transmit(Transmit { socket, to: from, bytes, hops: None }, &mut self.counters);
        Verdict::Handled
    }

    /// To an address that has just proved itself; shorter than the Bind all the same.
    fn confirm_binding(
        &mut self,
        to: Target,
        session: SessionId,
        sequence: u32,
        lifetime: u16,
        proof: [u8; 16],
    ) {
        let Target::Datagram { socket, to } = to else { return };
        let bytes = Frame::Bound { session, sequence, lifetime, proof }.to_vec();
        debug_assert_eq!(bytes.len(), BOUND_LEN);
        self.out.transmit(Transmit { socket, to, bytes, hops: None }, &mut self.counters);
    }

    /// Attach: the control connection is the session's path from now on.
    pub(super) fn attach(&mut self, connection: ConnectionId, session: u32) {
        if let Some(session) = self.sessions.get_mut(session) {
            session.binding = Some(Binding { target: Target::Stream(connection), until: Time::NEVER });
            self.send(connection, FromSupernode::Attached);
        }
    }

    /// Drops a frame and tells its sender why, within what an unproven address may be told.
    fn object(
        &mut self,
        from: Target,
        code: FrameError,
        id: u32,
        received: usize,
        reason: DropReason,
        now: Time,
    ) -> Verdict {
        let verdict = self.drop(reason);
        if let Target::Datagram { socket, to } = from
            && can_answer(to)
        {
            let error = Frame::Error { code, id }.to_vec();
            if self.unproven.allows(to, received, error.len(), unproven::OWN, now) {
                self.counters.frame_errors += 1;
                self.out.transmit(Transmit { socket, to, bytes: error, hops: None }, &mut self.counters);
            }
        }
        verdict
    }

    pub(super) fn drop(&mut self, reason: DropReason) -> Verdict {
        self.counters.dropped[reason as usize] += 1;
        Verdict::Drop(reason)
    }
}
