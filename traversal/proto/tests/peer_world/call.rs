//! Registering at the hub, and calling a peer over it: what the handshakes of QUIC come to here, with their retries.
//!
//! The initiator's end stands after one round trip, the acceptor's half a round trip later; only then do the agents hear
//! of the peer.

use std::{collections::BTreeMap, time::Duration};

use traversal_proto::{
    Time,
    peer::{PeerKey, Policy, Role},
};

use super::{check_key, node::Peer};

/// To the hub, which sends it back.
pub(super) const REGISTER: u8 = 4;
const HELLO: u8 = 5;
const WELCOME: u8 = 6;
/// The last flight: the acceptor's end stands with it.
pub(super) const DONE: u8 = 7;

/// Before the first round trip is measured (RFC 9002 §6.2.2: 333 ms, and a probe timeout of three times that); then
/// twice as long each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const REGISTER_RETRY: Duration = Duration::from_millis(500);

/// One end of a connection.
struct Call {
    role: Role,
    /// When what is not answered is said again.
    due: Time,
    /// When it was said, time after time: an answer names the one that it is to, as QUIC's acknowledgements do.
    said: Vec<Time>,
    /// Which of the other end's came last.
    heard: u8,
    stands: Option<Time>,
    /// The other end is known to stand too.
    is_confirmed: bool,
}

impl Call {
    fn new(role: Role, now: Time) -> Call {
        Call { role, due: now, said: Vec::new(), heard: 0, stands: None, is_confirmed: false }
    }
}

/// The calls of a peer.
#[derive(Default)]
pub struct Calls {
    ends: BTreeMap<u8, Call>,
    register: Option<Time>,
    pub is_registered: bool,
}

impl Calls {
    /// When this end of the connection stood.
    pub fn stands(&self, with: usize) -> Option<Time> {
        self.ends.get(&(with as u8))?.stands
    }

    pub(super) fn is_under_way(&self, with: u8) -> bool {
        self.ends.get(&with).is_some_and(|call| call.stands.is_none())
    }

    fn hear(&mut self, from: u8, said: u8) {
        if let Some(call) = self.ends.get_mut(&from) {
            call.heard = said;
        }
    }

    pub(super) fn confirm(&mut self, with: u8) {
        if let Some(call) = self.ends.get_mut(&with) {
            call.is_confirmed = true;
        }
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        let calls = self.ends.values().filter(|call| !call.is_confirmed).map(|call| call.due);
        calls.chain(self.register).min()
    }
}

impl Peer {
    /// Tells the hub where this peer is, until it answers.
    pub fn register(&mut self, now: Time) {
        self.calls.register = Some(now);
        self.call_timeout(now);
    }

    /// Connects to another peer.
    pub fn call(&mut self, to: usize, now: Time) {
        self.calls.ends.insert(to as u8, Call::new(Role::Initiator, now));
        self.call_timeout(now);
    }

    /// `said` is the number of what came, `answered` that of what it is an answer to.
    pub(super) fn handle_call(&mut self, from: u8, kind: u8, [said, answered]: [u8; 2], now: Time) {
        match kind {
            REGISTER => (self.calls.is_registered, self.calls.register) = (true, None),
            HELLO => {
                let call = self.calls.ends.entry(from).or_insert_with(|| Call::new(Role::Acceptor, now));
                (call.due, call.heard) = (now, said);
                self.call_timeout(now);
            }
            WELCOME => {
                self.calls.hear(from, said);
                self.stand(from, answered, now);
                self.relay(from, DONE, &[0, said]);
            }
            _ => {
                self.stand(from, answered, now);
                self.calls.confirm(from);
            }
        }
    }

    /// This end of the connection stands.
    fn stand(&mut self, with: u8, answered: u8, now: Time) {
        let Some(call) = self.calls.ends.get_mut(&with).filter(|call| call.stands.is_none()) else { return };
        let Some(said) = call.said.get(usize::from(answered)) else { return };
        let rtt = now.since(*said);
        // A probe timeout after the first sample (RFC 9002 §6.2.1).
        self.retry = 3 * rtt;
        (call.stands, call.due) = (Some(now), now + self.retry);
        let key = match call.role {
            Role::Initiator => check_key(self.id, with),
            Role::Acceptor => check_key(with, self.id),
        };
        let (peer, role) = (PeerKey(with.into()), call.role);
        self.agent.handle_peer(peer, role, key, Policy::PreferDirect, now);
        self.agent.handle_relay(peer, true, Some(rtt), now);
    }

    pub(super) fn call_timeout(&mut self, now: Time) {
        let mut said = Vec::new();
        for (with, call) in self.calls.ends.iter_mut().filter(|(_, c)| c.due <= now && !c.is_confirmed) {
            let kind = match (call.role, call.stands) {
                (Role::Initiator, None) => HELLO,
                (Role::Initiator, Some(_)) => DONE,
                (Role::Acceptor, _) => WELCOME,
            };
            let first = FIRST_RETRY * (1 << call.said.len().min(3));
            call.due = now + if call.stands.is_some() { self.retry } else { first };
            said.push((*with, kind, [call.said.len() as u8, call.heard]));
            call.said.push(now);
        }
        said.into_iter().for_each(|(to, kind, numbers)| self.relay(to, kind, &numbers));
        if self.calls.register.is_some_and(|due| due <= now) {
            self.calls.register = Some(now + REGISTER_RETRY);
            self.relay(self.id, REGISTER, &[]);
        }
    }
}
