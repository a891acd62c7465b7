//! Steps about what is not simply passed on: packets to the gateway's own external address, and flows whose time is over.
//!
//! Nobody waits. All timers stand at an hour, in both; for the last packet of a flow they stand at nothing, so that what
//! the packet sets runs out at once, whichever it is.

use std::time::Duration;

use natbox_core::{Behavior, Endpoint, Protocol};

use super::{
    EXTERNAL, Sequence, Tally,
    compare::{Outcome, Pair},
    packets::{RST, udp},
    script::{Flow, Inward, Segment},
    tcp,
};

/// A timer that runs out in no sequence.
pub(crate) const STOPPED: Duration = Duration::from_secs(3600);
/// One that is over with the next packet.
const OVER: Duration = Duration::from_millis(1);

/// The behaviour with every timer set to `time`.
pub(crate) fn timers(behavior: Behavior, time: Duration) -> Behavior {
    Behavior {
        udp_timeout: time,
        udp_replied_timeout: time,
        tcp_opening_timeout: time,
        tcp_established_timeout: time,
        tcp_closing_timeout: time,
        tcp_reset_timeout: time,
        icmp_timeout: time,
        ..behavior
    }
}

impl Sequence<'_> {
    /// A host sends to the gateway's external address: to a port that a flow has, or to another one. Masquerade does not
    /// hairpin: nobody inside gets it.
    pub(crate) fn hairpin(&mut self, tally: &mut Tally) -> Result<(), String> {
        let known = (!self.externals.is_empty()).then(|| self.known_flow());
        let from = self.cast.flow(&mut self.random);
        let protocol = if from.protocol == Protocol::Icmp { Protocol::Udp } else { from.protocol };
        let ports = known.and_then(|flow| self.externals.get(&flow)).copied().unwrap_or((7777, 7777));
        let to = |port| Endpoint::v4(EXTERNAL, port);
        let flags = self.random.choose(&[super::SYN, super::SYN, super::ACK, RST]);
        let segment = Segment { flags, sequence: 7, acknowledgement: 0, length: 0 };
        let packet = |port| match protocol {
            Protocol::Tcp => tcp(from.inside, to(port), &segment),
            _ => udp(from.inside, to(port), b"hairpin"),
        };
        let pair = Pair { engine: packet(ports.0), kernel: packet(ports.1) };
        tally.hairpins += 1;
        match self.compare(Inward::Outbound, &pair, None, tally)? {
            Outcome::Same(None) => Ok(()),
            _ => Err("a packet comes back in".to_owned()),
        }
    }

    /// The last packet of a known flow, from its host: behind it the flow is over, and nobody outside gets in by it.
    pub(crate) fn last_packet(&mut self, tally: &mut Tally) -> Result<(), String> {
        if self.externals.is_empty() {
            return Ok(());
        }
        let flow = self.known_flow();
        // What opens or has closed is renewed by one of them and not by the other (docs/limitations.md).
        let is_renewed = self.connections.get(&flow).is_none_or(|(_, tracked)| tracked.is_under_way());
        if self.is_over(&flow) || !is_renewed {
            return Ok(());
        }
        let running = self.nat.behavior().clone();
        self.nat.set_behavior(timers(running.clone(), OVER));
        self.router.set_timers(0);
        let passed = self.outbound_of(flow, tally);
        self.router.set_timers(STOPPED.as_secs());
        self.nat.set_behavior(running);
        let (true, Some(ports), false) = (passed?, self.externals.get(&flow).copied(), self.is_over(&flow))
        else {
            // The engine has taken for the last one what the kernel did not look at: their ways part here.
            self.done = true;
            return Ok(());
        };
        self.now = self.now + Duration::from_secs(1);
        if ports.1 != flow.inside.port {
            // Or masquerade would find the source of what is over, and give its port once more.
            self.router.forget_expired();
        }
        self.externals.remove(&flow);
        self.connections.remove(&flow);
        tally.expired += 1;
        self.story += "    and its time is over\n";
        self.too_late(flow, ports, tally)
    }

    fn too_late(&mut self, flow: Flow, ports: (u16, u16), tally: &mut Tally) -> Result<(), String> {
        let answer = |port| super::packets::visitor(flow.protocol, flow.remote, Endpoint::v4(EXTERNAL, port));
        // Without a firewall a datagram would take the tuple, and nobody would see whether it is free.
        if self.open && flow.protocol == Protocol::Udp {
            return Ok(());
        }
        let pair = Pair { engine: answer(ports.0), kernel: answer(ports.1) };
        match self.compare(Inward::Inbound, &pair, None, tally)? {
            Outcome::Same(None) => Ok(()),
            _ => Err("what is over lets somebody in".to_owned()),
        }
    }
}
