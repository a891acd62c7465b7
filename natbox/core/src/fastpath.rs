//! Flows that something faster than the engine moves.
//!
//! Most packets of a flow change nothing but its timer. Whoever can rewrite such packets on a shorter way, a program in the
//! kernel for example, asks for the flow as a plain rule ([`Nat::export`]) and from then on leaves to the engine what the
//! rule does not cover: everything that may change the flow's state or that needs an answer.
//!
//! Such a packet moves the rule's deadline, of which the engine knows nothing. So before the engine is handed anything at
//! a time at which it would take an exported flow for expired it must be told how long the flow lives by now
//! ([`Nat::renew`]). The engine in turn says which rules hold no longer ([`Nat::poll_recall`]): their flows have ended, or
//! are in another state.
//!
//! ```text
//!           export                      renew*
//!   flow ───────────▶ rule in force ──────────────▶ poll_recall, or whoever has it wants it no longer
//!                          ▲                              │
//!                          └───────── export ◀──── take_back
//! ```

use std::{collections::VecDeque, time::Duration};

use crate::{
    External, Inside, Nat, Protocol, Remote, Time,
    behavior::{Identification, Refresh},
    index::NONE,
    packet::tcp::Flags,
    tcp::State,
    translate::keeps_alive,
};

/// A flow that the engine knows, until it ends: then another one may get the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey(u32);

impl FlowKey {
    /// A number below the number of sessions that the NAT has ever had at once.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One export of a flow; never given twice, so that what is said of a flow that has ended is not taken for another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowId {
    slot: u32,
    serial: u32,
}

/// A flow as a rewrite rule. Outbound packets go from `inside` to `remote` and get `external` as their source, inbound ones
/// from `remote` to `external` and get `inside` as their destination; either loses a hop of its TTL.
///
/// The rule is for whole packets with a TTL above 1 and an IP header that is valid and has no options; of TCP for segments
/// without SYN, FIN and RST; and only as long as its deadline lies ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRule {
    /// What to call it by.
    pub flow: FlowId,
    /// UDP or TCP.
    pub protocol: Protocol,
    /// The inside host.
    pub inside: Inside,
    /// What stands for it outside.
    pub external: External,
    /// The far end.
    pub remote: Remote,
    /// How packets from inside go; `None`: by the engine.
    pub outbound: Option<FlowWay>,
    /// How packets from outside go; `None`: by the engine.
    pub inbound: Option<FlowWay>,
    /// The deadline of the flow as long as no packet moves it.
    pub expires: Time,
    /// What no packet moves it beyond.
    pub limit: Time,
}

/// What holds in one direction of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowWay {
    /// Puts the deadline this far from now; `None`: packets of this direction do not move it.
    pub refresh: Option<Duration>,
    /// Largest packet, or segment of a super-frame, in bytes.
    pub mtu: u16,
    /// Only packets with DF: others get an identification from the engine (RFC 7857 §10).
    pub needs_df: bool,
}

/// Packets that a rule has moved in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// A super-frame is one.
    pub packets: u64,
    /// From the IP header on.
    pub bytes: u64,
}

/// Which sessions are exported.
pub(crate) struct Exports {
    /// None before the first.
    ledger: Option<Box<Ledger>>,
    /// The session of the packet in hand; [`NONE`] when it is of none that was known.
    pub(crate) known: u32,
}

#[derive(Default)]
struct Ledger {
    /// The serial of each session's export, by slot; 0 where there is none. As long as the last exported slot wants it.
    serials: Vec<u32>,
    last: u32,
    /// May name one twice.
    recalled: VecDeque<FlowId>,
}

impl Exports {
    pub(crate) fn new() -> Exports {
        Exports { ledger: None, known: NONE }
    }

    fn add(&mut self, slot: u32) -> FlowId {
        let ledger = self.ledger.get_or_insert_default();
        let index = slot as usize;
        if index >= ledger.serials.len() {
            ledger.serials.resize(index + 1, 0);
        }
        ledger.last = ledger.last.checked_add(1).unwrap_or(1);
        ledger.serials[index] = ledger.last;
        FlowId { slot, serial: ledger.last }
    }

    /// Whether a session is exported.
    pub(crate) fn holds_any(&self, slot: u32) -> bool {
        self.ledger.as_ref().is_some_and(|ledger| ledger.of(slot).is_some())
    }

    fn holds(&self, flow: FlowId) -> bool {
        self.ledger.as_ref().is_some_and(|ledger| ledger.of(flow.slot) == Some(flow))
    }

    fn remove(&mut self, flow: FlowId) {
        if let Some(ledger) = self.ledger.as_mut().filter(|ledger| ledger.of(flow.slot) == Some(flow)) {
            ledger.serials[flow.slot as usize] = 0;
        }
    }

    /// The rule holds no longer, and what it knows of the deadline is void: the session has ended, or its timer has just
    /// been set.
    #[inline]
    pub(crate) fn recall(&mut self, slot: u32) {
        if let Some(ledger) = &mut self.ledger {
            ledger.replace(slot);
            if let Some(serial) = ledger.serials.get_mut(slot as usize) {
                *serial = 0;
            }
        }
    }

    /// The rule holds no longer; its deadline does.
    pub(crate) fn replace(&mut self, slot: u32) {
        if let Some(ledger) = &mut self.ledger {
            ledger.replace(slot);
        }
    }

    /// No rule holds any longer; their deadlines do.
    pub(crate) fn replace_all(&mut self) {
        if let Some(ledger) = &mut self.ledger {
            (0..ledger.serials.len() as u32).for_each(|slot| ledger.replace(slot));
        }
    }
}

impl Ledger {
    fn of(&self, slot: u32) -> Option<FlowId> {
        let serial = self.serials.get(slot as usize).copied().filter(|serial| *serial != 0)?;
        Some(FlowId { slot, serial })
    }

    fn replace(&mut self, slot: u32) {
        self.recalled.extend(self.of(slot));
    }
}

impl Nat {
    /// The flow of the packet that was handed over last, if that was one of a flow that had begun before: what to
    /// [`export`](Nat::export) when there are many.
    #[inline]
    pub fn known_flow(&self) -> Option<FlowKey> {
        let known = self.table.exports.known;
        (known != NONE).then_some(FlowKey(known))
    }

    /// Gives a flow out of hand: the rule that moves its packets. `None` when there is nothing to give: it has ended, is
    /// exported, every packet may change its state, or its deadline is still that of a state with a longer timer.
    pub fn export(&mut self, key: FlowKey, now: Time) -> Option<FlowRule> {
        let now = self.advance(now);
        let FlowKey(slot) = key;
        if self.table.exports.holds_any(slot) {
            return None;
        }
        let session = *self.table.live_session(slot, now)?;
        let limit = self.table.limit(&session);
        let protocol = session.remote.protocol();
        let is_hairpin = self.table.is_external(session.remote.spot().addr);
        if protocol == Protocol::Icmp || is_hairpin {
            return None;
        }
        let (outbound, inbound) =
            (self.steady_way(slot, session.state, true), self.steady_way(slot, session.state, false));
        // Of two packets the later one then puts the deadline further away, whoever moves which.
        let soonest = [outbound, inbound].into_iter().flatten().filter_map(|way| way.refresh).min();
        let is_of_before = soonest.is_some_and(|soonest| session.expires() > now + soonest);
        if is_of_before || outbound.is_none() && inbound.is_none() {
            return None;
        }
        Some(FlowRule {
            flow: self.table.exports.add(slot),
            protocol,
            inside: session.inner.public(),
            external: External(session.external.public()),
            remote: Remote(session.remote.public()),
            outbound,
            inbound,
            expires: session.expires(),
            limit,
        })
    }

    /// What packets of a session in this state may do without the engine: nothing that changes the state.
    fn steady_way(&self, slot: u32, state: State, outbound: bool) -> Option<FlowWay> {
        let session = self.table.session(slot);
        if outbound && !self.table.is_permitted(slot) {
            return None;
        }
        let refresh = match session.remote.protocol() {
            Protocol::Tcp => {
                let is_steady = state.after(outbound, Flags(Flags::ACK)) == state;
                (is_steady && keeps_alive(state, state)).then(|| Some(state.tcp_timeout(&self.behavior)))?
            }
            _ if !outbound && state == State::New => return None,
            _ => {
                let counts =
                    self.behavior.refresh != if outbound { Refresh::Inbound } else { Refresh::Outbound };
                counts.then(|| self.udp_timeout(state, session.remote))
            }
        };
        let mtu = if outbound { self.outside_mtu } else { self.mtu_of(session.inner.inside_port()) };
        let needs_df = outbound && self.behavior.identification != Identification::Keep;
        Some(FlowWay { refresh, mtu, needs_df })
    }

    /// An exported flow that holds no more: take its rule out of force, then [`take_back`](Nat::take_back) the flow.
    /// To be drained before packets leave. Empty unless flows are exported.
    pub fn poll_recall(&mut self) -> Option<FlowId> {
        self.table.exports.ledger.as_mut()?.recalled.pop_front()
    }

    /// Packets of an exported flow have put its deadline there.
    pub fn renew(&mut self, flow: FlowId, expires: Time) {
        if self.table.exports.holds(flow) {
            self.table.renew(flow.slot, expires);
        }
    }

    /// The rule is out of force, with this deadline: from now on the engine moves the flow's packets.
    pub fn take_back(&mut self, flow: FlowId, expires: Time) {
        self.renew(flow, expires);
        self.table.exports.remove(flow);
    }

    /// Counts packets that rules have moved.
    pub fn count_moved(&mut self, outbound: Moved, inbound: Moved) {
        let counters = &mut self.reports.counters;
        counters.outbound_packets += outbound.packets;
        counters.outbound_bytes += outbound.bytes;
        counters.inbound_packets += inbound.packets;
        counters.inbound_bytes += inbound.bytes;
    }
}
