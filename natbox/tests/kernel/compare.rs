//! One packet through both NATs, and whether they made the same of it.

use std::{fmt::Write, net::IpAddr};

use natbox_core::{DropReason, Endpoint, Protocol, Side, Verdict};

use super::{
    EXTERNAL, INSIDE, Sequence, Tally,
    check::{View, look},
    line,
    packets::{RST, Raw},
    script::{Flow, Inward},
};

/// A packet that is about to be sent, for both NATs.
pub(crate) struct Pair {
    pub(crate) engine: Raw,
    pub(crate) kernel: Raw,
}

/// What two NATs made of one packet.
pub(crate) enum Outcome {
    /// The same: nothing, or a packet each.
    Same(Option<Pair>),
    /// The engine let it through.
    KernelDrops,
}

impl Outcome {
    pub(crate) fn agreed(self) -> Result<Option<Pair>, String> {
        match self {
            Outcome::Same(pair) => Ok(pair),
            Outcome::KernelDrops => Err("the engine forwards it, the kernel does not".to_owned()),
        }
    }
}

/// What the kernel did with a packet.
#[derive(Default)]
struct Came {
    forwarded: Vec<(Side, Raw)>,
    /// Sent back by the gateway's own stack.
    refused: Vec<Raw>,
    /// Forwarded without translation: connection tracking made nothing of it, and no firewall stopped it.
    leaked: usize,
}

impl Came {
    fn new(way: Inward, packets: Vec<(Side, Raw)>) -> Came {
        let back = if way == Inward::Outbound { Side::Inside(INSIDE) } else { Side::Outside };
        let mut came = Came::default();
        for (side, raw) in packets {
            let view = look(&raw);
            let refuses =
                view.icmp == Some((3, 3)) || view.protocol == Protocol::Tcp && view.flags & RST != 0;
            if side == back && refuses {
                came.refused.push(raw);
            } else if side == Side::Outside && view.from.addr != IpAddr::V4(EXTERNAL) {
                came.leaked += 1;
            } else {
                came.forwarded.push((side, raw));
            }
        }
        came
    }
}

impl Sequence<'_> {
    /// Hands a packet to both NATs. What came through; an error when they disagree about it.
    pub(crate) fn compare(
        &mut self,
        way: Inward,
        pair: &Pair,
        flow: Option<Flow>,
        tally: &mut Tally,
    ) -> Result<Outcome, String> {
        let (mut raw, now) = (pair.engine.clone(), self.now);
        let verdict = raw.through(|packet| match way {
            Inward::Outbound => self.nat.outbound(INSIDE, packet, now),
            Inward::Inbound => self.nat.inbound(packet, now),
        });
        let engine = match verdict {
            Verdict::Forward(side) => Some((side, raw)),
            Verdict::Drop(_) | Verdict::Local => None,
            other => return Err(format!("the engine says {other:?}")),
        };
        let kernel = self.router.handle(way, &pair.kernel);
        let _ = writeln!(self.story, "{way:?} {} ", line(&pair.kernel));
        let shown = engine.as_ref().map_or(String::new(), |(_, raw)| line(raw));
        let _ = writeln!(self.story, "    engine {verdict:?} {shown}");
        for (side, raw) in &kernel {
            let _ = writeln!(self.story, "    kernel {side:?} {}", line(raw));
        }
        let mut came = Came::new(way, kernel);
        self.compare_refusals(way, verdict, &came, &look(&pair.kernel))?;
        tally.refused += came.refused.len();
        tally.leaked += came.leaked;
        let (engine, kernel) = match (engine, came.forwarded.pop()) {
            (None, None) => return Ok(Outcome::Same(None)),
            (Some(_), None) => return Ok(Outcome::KernelDrops),
            (Some(engine), Some(other)) if came.forwarded.is_empty() => (engine, other),
            (engine, other) => {
                return Err(format!(
                    "the engine forwards: {}; the kernel: {}",
                    engine.is_some(),
                    other.is_some()
                ));
            }
        };
        let (side, engine) = engine;
        if let Some(flow) = flow {
            self.learn(flow, look(&engine).from.port, look(&kernel.1).from.port)?;
        }
        let expected = self.renamed(look(&engine));
        if (side, &expected) != (kernel.0, &comparable(look(&kernel.1))) {
            return Err(format!("the packets differ:\n  {expected:?}\n  {:?}", comparable(look(&kernel.1))));
        }
        Ok(Outcome::Same(Some(Pair { engine, kernel: kernel.1 })))
    }

    /// What each of them answers by itself. The engine refuses a SYN from outside where the kernel does, by the same
    /// reset; the gateway's own stack refuses more (docs/limitations.md).
    fn compare_refusals(
        &mut self,
        way: Inward,
        verdict: Verdict,
        came: &Came,
        about: &View,
    ) -> Result<(), String> {
        let mut own = Vec::new();
        while let Some(transmit) = self.nat.poll_transmit() {
            own.push(look(&Raw::new(transmit.packet.into_vec())));
        }
        let kernel: Vec<View> = came.refused.iter().map(look).collect();
        let to_gateway = about.to.addr == IpAddr::V4(EXTERNAL);
        if !kernel.is_empty() && !(to_gateway && (self.open || way == Inward::Outbound)) {
            return Err(format!("the kernel refuses it: {kernel:?}"));
        }
        if came.leaked > 0 && !self.open {
            return Err("the kernel forwards it untranslated".to_owned());
        }
        let refused_syn = verdict == Verdict::Drop(DropReason::UnsolicitedSyn) && self.open;
        let essence = |view: &View| (view.to, view.flags, view.sequence, view.acknowledgement);
        let (ours, theirs): (Vec<_>, Vec<_>) =
            (own.iter().map(essence).collect(), kernel.iter().map(essence).collect());
        if refused_syn && ours != theirs || !refused_syn && !ours.is_empty() {
            return Err(format!("the engine sends {own:?}, the kernel {kernel:?}"));
        }
        Ok(())
    }

    /// Two numbers for one external port: always the same two.
    fn learn(&mut self, flow: Flow, engine: u16, kernel: u16) -> Result<(), String> {
        let preserved = [engine, kernel].map(|port| port == flow.inside.port);
        let agree = |other: &Flow, ports: &(u16, u16)| {
            other.protocol != flow.protocol || (ports.0 == engine) == (ports.1 == kernel)
        };
        if preserved[0] != preserved[1] || !self.externals.iter().all(|(other, ports)| agree(other, ports)) {
            return Err(format!("{flow:?} has port {engine} from the engine, {kernel} from the kernel"));
        }
        if flow.protocol != Protocol::Icmp && class(engine) != class(kernel) {
            return Err(format!("{flow:?}: {engine} and {kernel} are of two classes"));
        }
        match self.externals.insert(flow, (engine, kernel)) {
            // A new mapping, of both.
            Some(was) if (was.0 == engine) != (was.1 == kernel) => {
                Err(format!("{flow:?} was at {was:?}, is at {engine}, {kernel}"))
            }
            _ => Ok(()),
        }
    }

    /// The engine's packet with the kernel's names of external ports.
    fn renamed(&self, view: View) -> View {
        let rename = |protocol: Protocol, endpoint: Endpoint| {
            let known = self.externals.iter().find(|(flow, ports)| {
                flow.protocol == protocol && ports.0 == endpoint.port && endpoint.addr == IpAddr::V4(EXTERNAL)
            });
            known.map_or(endpoint, |(_, ports)| Endpoint::new(endpoint.addr, ports.1))
        };
        let mut view = comparable(view);
        (view.from, view.to) = (rename(view.protocol, view.from), rename(view.protocol, view.to));
        if let Some(quote) = &mut view.quote {
            (quote.from, quote.to) = (rename(quote.protocol, quote.from), rename(quote.protocol, quote.to));
        }
        view
    }
}

/// Without what follows from the rest: checksums, which are verified, and the bytes of a quote.
fn comparable(mut view: View) -> View {
    view.header.header_checksum = 0;
    if let Some(quote) = &mut view.quote {
        quote.header.header_checksum = 0;
        view.payload.clear();
    }
    view
}

fn class(port: u16) -> u8 {
    match port {
        ..512 => 0,
        512..1024 => 1,
        _ => 2,
    }
}
