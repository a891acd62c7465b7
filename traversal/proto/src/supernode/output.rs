//! What waits to be taken by the caller.

use std::collections::VecDeque;

use super::{Config, ConnectionId, Counters, Event, Query, Supernode};
use crate::{
    Transmit,
    wire::message::{Code, FromSupernode, RequestId},
};

/// Something to be done with a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "short-lived, and nearly all are messages")]
pub enum Outgoing {
    /// Write this message to it. A connection whose peer does not read is the caller's to close.
    Message(ConnectionId, FromSupernode),
    /// Close it, after what has been written to it is sent. The engine has forgotten it already.
    Close(ConnectionId, Code),
}

/// Queues. They are drained after every input, so their bounds are reached only by a caller that does not drain: one
/// input makes at most one message for each connection (a drain, a presence) and some.
pub(super) struct Outputs {
    pub(super) transmits: VecDeque<Transmit>,
    pub(super) messages: VecDeque<Outgoing>,
    pub(super) queries: VecDeque<Query>,
    pub(super) events: VecDeque<Event>,
    most: usize,
    report_events: bool,
}

impl Outputs {
    pub(super) fn new(config: &Config) -> Outputs {
        Outputs {
            transmits: VecDeque::new(),
            messages: VecDeque::new(),
            queries: VecDeque::new(),
            events: VecDeque::new(),
            most: 4 * config.limits.connections + config.limits.channels_per_registration + 1024,
            report_events: config.report_events,
        }
    }

    pub(super) fn transmit(&mut self, transmit: Transmit, counters: &mut Counters) {
        push(&mut self.transmits, transmit, self.most, counters);
    }

    pub(super) fn message(&mut self, outgoing: Outgoing, counters: &mut Counters) {
        push(&mut self.messages, outgoing, self.most, counters);
    }

    pub(super) fn query(&mut self, query: Query, counters: &mut Counters) {
        push(&mut self.queries, query, self.most, counters);
    }

    pub(super) fn event(&mut self, event: Event, counters: &mut Counters) {
        if self.report_events {
            push(&mut self.events, event, self.most, counters);
        }
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T, most: usize, counters: &mut Counters) {
    if queue.len() < most {
        queue.push_back(item);
    } else {
        counters.outputs_lost += 1;
    }
}

impl Supernode {
    /// Sends a message, if the connection is still there.
    pub(super) fn send(&mut self, connection: ConnectionId, message: FromSupernode) {
        if self.connections.contains_key(&connection) {
            self.out.message(Outgoing::Message(connection, message), &mut self.counters);
        }
    }

    pub(super) fn refuse(&mut self, connection: ConnectionId, request: RequestId, code: Code) {
        self.send(connection, FromSupernode::Refused { request, code, detail: 0, elsewhere: None });
    }

    pub(super) fn event(&mut self, event: Event) {
        self.out.event(event, &mut self.counters);
    }
}
