//! Questions to a directory, and what its answers mean. The engine never waits: a question is an output, its answer an
//! input, and whatever has happened in between is looked at afresh.

use super::{ConnectionId, Supernode, deadlines::Deadline};
use crate::{
    Time,
    wire::{
        PeerId, SignedRecord,
        message::{Code, FromSupernode, RequestId, Supernode as Other},
    },
};

/// A question's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryId(pub(super) u32);

/// What the directory is asked or told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// Where is this peer? To be answered by [`Supernode::handle_answer`].
    Locate {
        /// For the answer.
        id: QueryId,
        /// Who is sought.
        peer: PeerId,
    },
    /// This peer is here. Wants no answer.
    Publish(SignedRecord),
    /// This peer is here no more, unless a record with a higher sequence number says otherwise. Wants no answer.
    Withdraw {
        /// Who.
        peer: PeerId,
        /// Of the last record.
        sequence: u64,
    },
}

/// Where a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// At this supernode.
    Local,
    /// At another one. The directory is not trusted: the record has to verify, and to name that supernode.
    Remote {
        /// The peer's own statement.
        record: SignedRecord,
        /// Where that is.
        supernode: Other,
    },
}

/// Why somebody is sought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Lookup,
    Connect,
}

pub(super) struct Pending {
    connection: ConnectionId,
    request: RequestId,
    peer: PeerId,
    purpose: Purpose,
    until: Time,
}

impl Supernode {
    /// Lookup.
    pub(super) fn lookup(&mut self, connection: ConnectionId, request: RequestId, peer: PeerId, now: Time) {
        self.counters.lookups += 1;
        if !self.answer_locally(connection, request, peer) {
            self.ask(connection, request, peer, Purpose::Lookup, now);
        }
    }

    /// Asks the directory, if there is one; if not, nobody knows the peer.
    pub(super) fn ask(
        &mut self,
        connection: ConnectionId,
        request: RequestId,
        peer: PeerId,
        purpose: Purpose,
        now: Time,
    ) {
        if !self.config.directory {
            return self.refuse(connection, request, Code::UnknownPeer);
        }
        if self.queries.len() >= self.config.limits.queries {
            return self.refuse(connection, request, Code::Full);
        }
        let until = now + self.config.timing.query;
        let random = self.random();
        let query = self.queries.insert(random, Pending { connection, request, peer, purpose, until });
        self.deadlines.set(until, Deadline::Query(query));
        self.counters.queries += 1;
        self.out.query(Query::Locate { id: QueryId(query), peer }, &mut self.counters);
    }

    /// The directory's answer; `None`: it knows of nobody. An answer to what is no longer asked is ignored.
    pub fn handle_answer(&mut self, query: QueryId, location: Option<Location>, now: Time) {
        let now = self.at(now);
        let Some(pending) = self.queries.remove(query.0) else { return };
        self.deadlines.clear(pending.until, Deadline::Query(query.0));
        let Pending { connection, request, peer, purpose, .. } = pending;
        // The peer may have come here in the meantime.
        let answered = match purpose {
            Purpose::Lookup => self.answer_locally(connection, request, peer),
            Purpose::Connect => self.connect_locally(connection, request, peer, now),
        };
        if answered {
            return;
        }
        let Some(Location::Remote { record, supernode }) = location else {
            return self.refuse(connection, request, Code::UnknownPeer);
        };
        let claims = record.claims();
        let names_it = claims.peer == peer && claims.supernode == supernode.id;
        if !names_it || record.verify(self.unix_time(now)).is_err() {
            self.counters.answers_forged += 1;
            return self.refuse(connection, request, Code::UnknownPeer);
        }
        let elsewhere = Some(supernode);
        match purpose {
            Purpose::Lookup => self.send(connection, FromSupernode::Found { request, record, elsewhere }),
            Purpose::Connect => {
                self.counters.connects_refused += 1;
                let code = Code::Elsewhere;
                self.send(connection, FromSupernode::Refused { request, code, detail: 0, elsewhere });
            }
        }
    }

    /// Tells the directory, if there is one.
    pub(super) fn publish(&mut self, news: Query) {
        if self.config.directory {
            self.out.query(news, &mut self.counters);
        }
    }

    pub(super) fn query_timed_out(&mut self, query: u32) {
        if let Some(pending) = self.queries.remove(query) {
            self.counters.query_timeouts += 1;
            self.refuse(pending.connection, pending.request, Code::Timeout);
        }
    }

    /// Answers a lookup from the registry, if the peer is here and wants to be found.
    fn answer_locally(&mut self, connection: ConnectionId, request: RequestId, peer: PeerId) -> bool {
        let session = self.peers.get(&peer).and_then(|handle| self.sessions.get(*handle));
        let Some(record) = session.filter(|session| session.accepting).map(|session| session.record) else {
            return false;
        };
        self.send(connection, FromSupernode::Found { request, record, elsewhere: None });
        true
    }
}
