//! Who is here.

use rand_core::Rng;

use super::{ConnectionId, Event, Query, Supernode, deadlines::Deadline, relay::Binding};
use crate::{
    Time, UnixTime,
    rate::{Bucket, Meter},
    wire::{
        PeerId, RelayToken, SignedRecord,
        frame::SessionId,
        message::{Code, FromSupernode, RelayMode},
    },
};

/// A registered peer.
pub(super) struct Session {
    pub(super) peer: PeerId,
    pub(super) connection: ConnectionId,
    pub(super) account: u32,
    pub(super) record: SignedRecord,
    /// When it ends, unless it is renewed.
    until: Time,
    /// Others may find it and connect to it.
    pub(super) accepting: bool,
    pub(super) token: RelayToken,
    /// Where its relay frames come from and go to.
    pub(super) binding: Option<Binding>,
    /// Of the Bind in force.
    pub(super) bind_sequence: u32,
    /// Its ends of channels.
    pub(super) channels: Vec<u32>,
    /// Whom it watches.
    pub(super) watching: Vec<PeerId>,
    /// How often others may connect to it.
    pub(super) incoming: Bucket,
    /// Challenges that its own Binds have a claim to.
    pub(super) challenges: Bucket,
}

/// A registration that may be made if its record's signature is good. Looking costs as much as hundreds of relayed
/// packets, so it is the caller's to do, wherever it holds nobody up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unverified {
    pub(super) connection: ConnectionId,
    pub(super) record: SignedRecord,
    pub(super) accepting: bool,
    pub(super) resume: bool,
}

/// An [`Unverified`] that was looked at: for [`Supernode::handle_verified`].
#[derive(Clone, Debug)]
pub struct Verified {
    registration: Unverified,
    signed: bool,
}

impl Unverified {
    /// Looks at the signature.
    pub fn verify(self) -> Verified {
        // Whether it has expired is known to the engine, which has the clock.
        Verified { signed: self.record.verify(UnixTime(0)).is_ok(), registration: self }
    }
}

impl Supernode {
    /// Register: refused at once, or to be verified.
    pub(super) fn asks_to_register(&mut self, asked: Unverified, now: Time) -> Option<Unverified> {
        let rate = Meter::new(Some(self.config.rates.registrations));
        let sender = self.connections.get_mut(&asked.connection)?;
        let believed = match sender.registrations.take(&rate, 1, now) {
            true => self.believe(&asked, now),
            false => Err(Code::TooFast),
        };
        match believed {
            Ok(()) => Some(asked),
            Err(code) => {
                self.refuse_registration(&asked, code);
                None
            }
        }
    }

    /// A record's signature was looked at: the registration is made, anew, again on the same connection, or taken over from
    /// another connection of the same peer.
    pub fn handle_verified(&mut self, verified: Verified, now: Time) {
        let now = self.at(now);
        let Verified { registration: asked, signed } = verified;
        if !self.connections.contains_key(&asked.connection) {
            return;
        }
        // A newer record may have come meanwhile.
        let believed = if signed { self.believe(&asked, now) } else { Err(Code::BadSignature) };
        match believed.and_then(|()| self.try_register(&asked, now)) {
            Ok(session) => {
                self.counters.registrations += 1;
                self.confirm(asked.connection, session, now);
            }
            Err(code) => self.refuse_registration(&asked, code),
        }
    }

    fn refuse_registration(&mut self, asked: &Unverified, code: Code) {
        self.counters.registrations_refused += 1;
        let known = self.accounts.sequence(&asked.record.claims().peer);
        let detail = known.filter(|_| code == Code::StaleSequence).unwrap_or(0);
        let elsewhere = (code == Code::Full).then(|| self.alternatives().first().cloned()).flatten();
        self.send(asked.connection, FromSupernode::Refused { request: 0, code, detail, elsewhere });
    }

    fn try_register(&mut self, asked: &Unverified, now: Time) -> Result<u32, Code> {
        let Unverified { connection, record, accepting, resume } = *asked;
        let peer = record.claims().peer;
        let known = self.peers.get(&peer).copied();
        if known.is_none() && self.sessions.len() >= self.config.limits.registrations {
            return Err(Code::Full);
        }
        let handle = match known {
            Some(handle) => {
                self.take_over(handle, connection, resume, now);
                handle
            }
            None => self.new_session(peer, connection, record).ok_or(Code::Full)?,
        };
        let claims = record.claims();
        let until = now + self.lifetime(claims.expires, now);
        let Some(session) = self.sessions.get_mut(handle) else { return Err(Code::Full) };
        self.deadlines.clear(session.until, Deadline::Expiry(handle));
        self.deadlines.set(until, Deadline::Expiry(handle));
        let was_online = known.is_some() && session.accepting;
        (session.record, session.until, session.accepting) = (record, until, accepting);
        self.accounts.set_sequence(session.account, claims.sequence);
        self.registered(connection, handle);
        if accepting != was_online {
            self.announce(peer, accepting);
        }
        if accepting {
            self.publish(Query::Publish(record));
        } else if was_online {
            self.publish(Query::Withdraw { peer, sequence: claims.sequence });
        }
        Ok(handle)
    }

    /// Whether the record, if it is signed, may be acted upon.
    fn believe(&self, asked: &Unverified, now: Time) -> Result<(), Code> {
        let claims = asked.record.claims();
        let sender = self.connections.get(&asked.connection).ok_or(Code::NotRegistered)?;
        if claims.peer != sender.peer {
            return Err(Code::WrongPeer);
        }
        if claims.supernode != self.config.id {
            return Err(Code::WrongSupernode);
        }
        if self.accounts.sequence(&claims.peer).is_some_and(|known| claims.sequence <= known) {
            return Err(Code::StaleSequence);
        }
        let unix = self.unix_time(now);
        let latest = unix + self.config.timing.lifetime + self.config.timing.clock_skew;
        if claims.expires <= unix || claims.expires > latest {
            return Err(Code::BadExpiry);
        }
        Ok(())
    }

    fn new_session(&mut self, peer: PeerId, connection: ConnectionId, record: SignedRecord) -> Option<u32> {
        let (random, token) = (self.random(), self.new_token());
        let account = self.accounts.acquire(peer, random)?;
        let session = Session {
            peer,
            connection,
            account,
            record,
            until: Time::NEVER,
            accepting: false,
            token,
            binding: None,
            bind_sequence: 0,
            channels: Vec::new(),
            watching: Vec::new(),
            incoming: Bucket::default(),
            challenges: Bucket::default(),
        };
        let random = self.random();
        let handle = self.sessions.insert(random, session);
        self.peers.insert(peer, handle);
        self.event(Event::Registered(peer));
        Some(handle)
    }

    /// The session goes on with `connection`. On another one it gets a new token; the old connection is told and closed.
    fn take_over(&mut self, handle: u32, connection: ConnectionId, resume: bool, now: Time) {
        let token = self.new_token();
        let Some(session) = self.sessions.get_mut(handle) else { return };
        let previous = session.connection;
        if previous == connection {
            return;
        }
        (session.connection, session.token, session.bind_sequence) = (connection, token, 0);
        let stream_gone = matches!(session.binding, Some(binding) if binding.is_stream(previous));
        if stream_gone || !resume {
            session.binding = None;
        }
        if let Some(previous) = self.connections.get_mut(&previous) {
            previous.session = None;
        }
        self.end(previous, Code::Replaced, now);
        if !resume {
            self.close_channels(handle, Code::PeerGone);
            self.drop_watches(handle);
        }
    }

    fn confirm(&mut self, connection: ConnectionId, handle: u32, now: Time) {
        let Some(session) = self.sessions.get(handle) else { return };
        let message = FromSupernode::Registered {
            session: SessionId(handle),
            token: session.token,
            lifetime: u32::try_from(session.until.since(now).as_secs()).unwrap_or(u32::MAX),
            relay: self.relay_mode(session.account),
        };
        self.send(connection, message);
    }

    /// Ends a registration and all that hangs on it. The connection, if there is one still, is told by the caller.
    pub(super) fn release(&mut self, handle: u32, code: Code, now: Time) {
        self.close_channels(handle, Code::PeerGone);
        self.drop_watches(handle);
        let Some(session) = self.sessions.remove(handle) else { return };
        self.deadlines.clear(session.until, Deadline::Expiry(handle));
        self.peers.remove(&session.peer);
        self.accounts.release(session.account, now);
        if let Some(connection) = self.connections.get_mut(&session.connection) {
            connection.session = None;
        }
        self.counters.registrations_ended += 1;
        if session.accepting {
            self.announce(session.peer, false);
            let sequence = session.record.claims().sequence;
            self.publish(Query::Withdraw { peer: session.peer, sequence });
        }
        self.event(Event::Released(session.peer, code));
    }

    /// A registration was not renewed in time.
    pub(super) fn expired(&mut self, handle: u32, now: Time) {
        let Some(connection) = self.connection_of(handle) else { return };
        self.release(handle, Code::Expired, now);
        self.send(connection, FromSupernode::Error { code: Code::Expired });
        self.expect_registration(connection, now);
    }

    pub(super) fn connection_of(&self, session: u32) -> Option<ConnectionId> {
        self.sessions.get(session).map(|session| session.connection)
    }

    pub(super) fn is_online(&self, peer: &PeerId) -> bool {
        let session = self.peers.get(peer).and_then(|handle| self.sessions.get(*handle));
        session.is_some_and(|session| session.accepting)
    }

    pub(super) fn relay_mode(&self, account: u32) -> RelayMode {
        if self.accounts.relays(account) {
            return RelayMode::Full;
        }
        let rate = self.config.quotas.signalling;
        let word = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        RelayMode::SignallingOnly { burst: word(rate.burst), rate: word(rate.per_second) }
    }

    fn drop_watches(&mut self, handle: u32) {
        let watching = self.sessions.get(handle).map(|session| session.watching.clone()).unwrap_or_default();
        self.unwatch(handle, &watching);
    }

    /// How long a registration lasts: until the record expires, and no longer than we allow.
    fn lifetime(&self, expires: UnixTime, now: Time) -> std::time::Duration {
        let left = expires.0.saturating_sub(self.unix_time(now).0);
        std::time::Duration::from_secs(left).min(self.config.timing.lifetime)
    }

    fn new_token(&mut self) -> RelayToken {
        let mut token = [0; 16];
        self.rng.fill_bytes(&mut token);
        RelayToken(token)
    }
}
