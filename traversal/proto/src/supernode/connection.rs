//! Control connections: who is let in, and what they say.

use std::{collections::hash_map::Entry, net::SocketAddr};

use super::{Admission, Outgoing, Supernode, Verdict, deadlines::Deadline, registry::Unverified};
use crate::{
    Time,
    address::{Prefix, canonical},
    rate::{Bucket, Meter},
    wire::{
        Kind, List, MAX_HOPS, PeerId, demultiplex,
        message::{Code, FromSupernode, Hello, ToSupernode},
    },
};

/// A control connection of the caller's: its number is the caller's choice, and is not used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

pub(super) struct Connection {
    pub(super) peer: PeerId,
    network: Prefix,
    pub(super) session: Option<u32>,
    requests: Bucket,
    pub(super) registrations: Bucket,
    /// When it is closed if it has not registered.
    silent_until: Option<Time>,
}

impl Supernode {
    /// A control connection from `remote` is up; the caller has verified that `peer` holds its key.
    pub fn handle_connected(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        remote: SocketAddr,
        now: Time,
    ) {
        let now = self.at(now);
        // Should the caller use a number twice, the earlier connection is gone.
        self.forget(connection, Code::PeerGone, now);
        let remote = canonical(remote);
        let network = Prefix::of(remote.ip());
        if let Some(code) = self.refusal(peer, network) {
            return self.turn_away(connection, code);
        }
        self.counters.connections_accepted += 1;
        *self.networks.entry(network).or_default() += 1;
        let (requests, registrations) = (Bucket::default(), Bucket::default());
        let new = Connection { peer, network, session: None, requests, registrations, silent_until: None };
        self.connections.insert(connection, new);
        self.expect_registration(connection, now);
        let hello = Hello {
            time: self.unix_time(now),
            observed: remote,
            reflectors: List::first_of(self.config.listen.iter().map(|listen| listen.address)),
            max_lifetime: u32::try_from(self.config.timing.lifetime.as_secs()).unwrap_or(u32::MAX),
            max_channels: self.config.limits.channels_per_registration as u32,
            max_watches: self.config.limits.watches_per_registration as u32,
        };
        self.send(connection, FromSupernode::Hello(hello));
    }

    /// The connection is gone, and with it all that its peer has here.
    pub fn handle_disconnected(&mut self, connection: ConnectionId, now: Time) {
        let now = self.at(now);
        self.forget(connection, Code::PeerGone, now);
    }

    /// The body of one frame of a control connection: a message, or a relayed packet.
    pub fn handle_frame(&mut self, connection: ConnectionId, body: &mut [u8], now: Time) -> Verdict {
        if body.first().is_some_and(|first| demultiplex(*first) == Kind::Relay) {
            return self.handle_relay_frame(connection, body, now);
        }
        match ToSupernode::decode(body) {
            Ok(message) => {
                if let Some(unverified) = self.take_message(connection, message, now) {
                    return Verdict::Verify(Box::new(unverified));
                }
            }
            Err(_) => {
                let now = self.at(now);
                self.counters.messages_malformed += 1;
                self.end(connection, Code::Malformed, now);
            }
        }
        Verdict::Handled
    }

    /// A message on a control connection; a signature is verified at once. From an unknown connection it is ignored: it was
    /// closed a moment ago.
    pub fn handle_message(&mut self, connection: ConnectionId, message: ToSupernode, now: Time) {
        if let Some(unverified) = self.take_message(connection, message, now) {
            self.handle_verified(unverified.verify(), now);
        }
    }

    /// Does what a message asks for, but for a registration whose signature has to be looked at first.
    fn take_message(
        &mut self,
        connection: ConnectionId,
        message: ToSupernode,
        now: Time,
    ) -> Option<Unverified> {
        let now = self.at(now);
        let requests = Meter::new(Some(self.config.rates.requests));
        let sender = self.connections.get_mut(&connection)?;
        if !sender.requests.take(&requests, 1, now) {
            self.counters.messages_too_fast += 1;
            self.complain(connection, &message, Code::TooFast);
            return None;
        }
        self.counters.messages += 1;
        let session = sender.session;
        match (message, session) {
            (ToSupernode::Ping { nonce }, _) => self.send(connection, FromSupernode::Pong { nonce }),
            (ToSupernode::Register { record, accepting, resume }, _) => {
                return self.asks_to_register(Unverified { connection, record, accepting, resume }, now);
            }
            (message, Some(session)) => self.serve(connection, session, message, now),
            (message, None) => self.complain(connection, &message, Code::NotRegistered),
        }
        None
    }

    /// What only a registered peer may ask for.
    fn serve(&mut self, connection: ConnectionId, session: u32, message: ToSupernode, now: Time) {
        match message {
            ToSupernode::Lookup { request, hops, .. } | ToSupernode::Connect { request, hops, .. }
                if hops >= MAX_HOPS =>
            {
                self.refuse(connection, request, Code::HopLimit);
            }
            ToSupernode::Lookup { request, peer, .. } => self.lookup(connection, request, peer, now),
            ToSupernode::Connect { request, peer, .. } => self.connect(connection, request, peer, now),
            ToSupernode::Close { channel } => self.close(connection, session, channel),
            ToSupernode::Watch { peers } => self.watch(connection, session, &peers),
            ToSupernode::Unwatch { peers } => self.unwatch(session, &peers),
            ToSupernode::Attach => self.attach(connection, session),
            ToSupernode::Unregister => {
                self.release(session, Code::ClosedByPeer, now);
                self.expect_registration(connection, now);
            }
            ToSupernode::Ping { .. } | ToSupernode::Register { .. } => {}
        }
    }

    /// Tells the sender that its message was not carried out, by its request if it has one.
    fn complain(&mut self, connection: ConnectionId, message: &ToSupernode, code: Code) {
        match message {
            ToSupernode::Lookup { request, .. } | ToSupernode::Connect { request, .. } => {
                self.refuse(connection, *request, code);
            }
            ToSupernode::Register { .. } => self.refuse(connection, 0, code),
            _ => self.send(connection, FromSupernode::Error { code }),
        }
    }

    /// Gives the connection its time to register in.
    pub(super) fn expect_registration(&mut self, connection: ConnectionId, now: Time) {
        let until = now + self.config.timing.register_within;
        if let Some(silent) = self.connections.get_mut(&connection) {
            silent.silent_until = Some(until);
            self.deadlines.set(until, Deadline::Silent(connection.0));
        }
    }

    /// It has registered.
    pub(super) fn registered(&mut self, connection: ConnectionId, session: u32) {
        if let Some(registered) = self.connections.get_mut(&connection) {
            registered.session = Some(session);
            if let Some(until) = registered.silent_until.take() {
                self.deadlines.clear(until, Deadline::Silent(connection.0));
            }
        }
    }

    pub(super) fn still_silent(&mut self, connection: u64, now: Time) {
        self.end(ConnectionId(connection), Code::NotRegistered, now);
    }

    /// Says why, and closes the connection.
    pub(super) fn end(&mut self, connection: ConnectionId, code: Code, now: Time) {
        self.send(connection, FromSupernode::Error { code });
        if self.forget(connection, code, now) {
            self.out.message(Outgoing::Close(connection, code), &mut self.counters);
        }
    }

    /// Lets go of everything that hangs on the connection.
    pub(super) fn forget(&mut self, connection: ConnectionId, code: Code, now: Time) -> bool {
        let Some(gone) = self.connections.remove(&connection) else { return false };
        if let Some(until) = gone.silent_until {
            self.deadlines.clear(until, Deadline::Silent(connection.0));
        }
        if let Some(session) = gone.session {
            self.release(session, code, now);
        }
        if let Entry::Occupied(mut count) = self.networks.entry(gone.network) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        true
    }

    /// Why a new connection cannot stay.
    fn refusal(&self, peer: PeerId, network: Prefix) -> Option<Code> {
        let limits = &self.config.limits;
        if let Admission::Only(peers) = &self.config.admission
            && !peers.contains(&peer)
        {
            return Some(Code::NotAdmitted);
        }
        if !self.load.admits() {
            return Some(Code::Draining);
        }
        if self.connections.len() >= limits.connections {
            return Some(Code::Full);
        }
        let here = self.networks.get(&network).map_or(0, |count| *count as usize);
        (here >= limits.connections_per_network).then_some(Code::TooManyFromNetwork)
    }

    /// Sends a connection away that was never let in; elsewhere, where that helps.
    fn turn_away(&mut self, connection: ConnectionId, code: Code) {
        self.counters.connections_refused += 1;
        let alternatives = self.alternatives();
        let helps = matches!(code, Code::Full | Code::Draining) && !alternatives.is_empty();
        let message =
            if helps { FromSupernode::Redirect { alternatives } } else { FromSupernode::Error { code } };
        self.out.message(Outgoing::Message(connection, message), &mut self.counters);
        self.out.message(Outgoing::Close(connection, code), &mut self.counters);
    }
}
