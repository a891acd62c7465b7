//! A NAT under virtual time with everything around it: hosts, remotes, and a checker behind every packet.
#![allow(dead_code, unused_imports, unreachable_pub, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

pub mod check;
pub mod packets;
pub mod random;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::Duration,
};

use natbox_core::{
    Behavior, Config, DropReason, Ended, Endpoint, Event, External, Inside, InsideId, InsidePort,
    MappingInfo, MappingRequest, Nat, Protocol, Side, Time, Transmit, Verdict,
    behavior::{Filtering, Mapping, PortAssignment, PortClass},
};

pub use check::{View, look, look_at_the_outside};
pub use packets::*;

/// The NAT's external address.
pub const N: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The NAT's address inside.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The first inside port.
pub const TUN: InsideId = InsideId(0);

/// Two inside hosts.
pub const A: Endpoint = Endpoint::v4(Ipv4Addr::new(10, 0, 0, 2), 4242);
pub const B: Endpoint = Endpoint::v4(Ipv4Addr::new(10, 0, 0, 3), 5353);
/// A remote, the same on another port, and two others.
pub const S: Endpoint = Endpoint::v4(Ipv4Addr::new(203, 0, 113, 5), 53);
pub const S2: Endpoint = Endpoint::v4(Ipv4Addr::new(203, 0, 113, 5), 3478);
pub const P: Endpoint = Endpoint::v4(Ipv4Addr::new(203, 0, 113, 9), 53);
pub const Q: Endpoint = Endpoint::v4(Ipv4Addr::new(192, 0, 2, 77), 9);

pub fn v4(endpoint: Endpoint) -> Ipv4Addr {
    match endpoint.addr {
        IpAddr::V4(addr) => addr,
        IpAddr::V6(addr) => panic!("{addr} is IPv6"),
    }
}

/// An endpoint in writing.
pub fn ep(text: &str) -> Endpoint {
    text.parse::<SocketAddr>().unwrap().into()
}

pub fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub fn at(endpoint: Endpoint, port: u16) -> Endpoint {
    Endpoint::new(endpoint.addr, port)
}

/// The behaviour that the RFCs ask for, otherwise in these fields.
pub fn rfc(change: impl FnOnce(&mut Behavior)) -> Behavior {
    let mut behavior = Behavior::RFC;
    change(&mut behavior);
    behavior
}

/// Fails a test whose requirement is not met; [`violated`] waits for just this.
#[track_caller]
pub fn met(requirement: bool, text: &str) {
    assert!(requirement, "not met: {text}");
}

/// Runs a test's body with one axis violated: the body must see that its requirement is not met any more.
#[track_caller]
pub fn violated(change: impl FnOnce(&mut Behavior), body: impl FnOnce(Behavior)) {
    let behavior = rfc(change);
    assert_ne!(behavior, Behavior::RFC, "nothing is violated");
    let described = format!("{behavior:?}");
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(behavior))) else {
        panic!("the test does not see the violation: {described}");
    };
    let text = panic.downcast_ref::<String>().map_or("", String::as_str);
    if !text.starts_with("not met: ") {
        resume_unwind(panic);
    }
}

/// The NAT, its clock, and what came out of it.
pub struct Net {
    pub nat: Nat,
    pub now: Time,
    /// Packets of the NAT's own making, as the checker read them.
    pub sent: Vec<(Side, View)>,
    /// Fragments that came out behind others.
    pub followers: Vec<(Side, Raw)>,
    pub events: Vec<Event>,
    /// The latest time that the NAT has heard of.
    pub latest: Time,
    handed: u64,
}

impl Net {
    /// One inside port, 10.0.0.1/24, and one external address of the NAT's own.
    pub fn new(behavior: Behavior) -> Net {
        Net::with(Config { behavior, ..Config::new(N.into()) })
    }

    pub fn with(config: Config) -> Net {
        let config = Config { report_events: true, report_claims: true, ..config };
        let mut nat = Nat::new(config, 7).unwrap();
        nat.add_inside(InsidePort { gateway: GATEWAY.into(), prefix_len: 24, mtu: 1500, shared: false })
            .unwrap();
        let (now, latest) = (Time::ZERO, Time::ZERO);
        Net { nat, now, latest, sent: Vec::new(), followers: Vec::new(), events: Vec::new(), handed: 0 }
    }

    /// Adds an inside port 10.`third`.0.1/24.
    pub fn add_inside(&mut self, third: u8, mtu: u16) -> InsideId {
        let gateway = Ipv4Addr::new(10, third, 0, 1).into();
        self.nat.add_inside(InsidePort { gateway, prefix_len: 24, mtu, shared: false }).unwrap()
    }

    // ---- Packets ----

    /// A packet comes from the hosts behind the first inside port.
    #[track_caller]
    pub fn out(&mut self, raw: &mut Raw) -> Verdict {
        self.out_via(TUN, raw)
    }

    #[track_caller]
    pub fn out_via(&mut self, from: InsideId, raw: &mut Raw) -> Verdict {
        let (before, now) = (raw.clone(), self.now);
        let verdict = raw.through(|packet| self.nat.outbound(from, packet, now));
        self.examine(&before, raw, verdict);
        verdict
    }

    /// A packet comes from outside.
    #[track_caller]
    pub fn inn(&mut self, raw: &mut Raw) -> Verdict {
        let (before, now) = (raw.clone(), self.now);
        let verdict = raw.through(|packet| self.nat.inbound(packet, now));
        self.examine(&before, raw, verdict);
        verdict
    }

    #[track_caller]
    fn examine(&mut self, before: &Raw, after: &Raw, verdict: Verdict) {
        self.handed += 1;
        self.drain();
        assert_eq!(total(&self.nat), self.handed, "every packet is counted once");
        match verdict {
            Verdict::Forward(_) | Verdict::Hairpin(_) if is_fragment(after) => {
                assert_eq!(after.header().time_to_live, before.header().time_to_live - 1, "TTL");
            }
            Verdict::Forward(_) | Verdict::Hairpin(_) => {
                let (old, new) = (look(before), look(after));
                assert_eq!(new.header.time_to_live, old.header.time_to_live - 1, "TTL");
                assert_eq!(new.protocol, old.protocol);
                assert_eq!((new.flags, new.icmp), (old.flags, old.icmp));
                assert_eq!((new.sequence, new.acknowledgement), (old.sequence, old.acknowledgement));
                if old.header.dont_fragment {
                    assert_eq!(new.header.identification, old.header.identification);
                }
                assert!(
                    new.quote.is_some() || new.payload == old.payload,
                    "the payload is nobody's business"
                );
            }
            Verdict::Reply if is_fragment(after) => drop(after.header()),
            Verdict::Reply => drop(look(after)),
            Verdict::Held => assert!(is_fragment(before)),
            Verdict::Local => {
                assert_eq!(before.bytes[..after.bytes.len()], after.bytes, "what is local is unchanged");
            }
            Verdict::Drop(_) => {}
        }
    }

    fn drain(&mut self) {
        self.latest = self.latest.max(self.now);
        while self.nat.poll_claim().is_some() {}
        while let Some(Transmit { to, packet }) = self.nat.poll_transmit() {
            let raw = Raw::new(packet.into_vec());
            if is_fragment(&raw) {
                self.followers.push((to, raw));
            } else {
                self.sent.push((to, look(&raw)));
            }
        }
        while let Some(event) = self.nat.poll_event() {
            self.events.push(event);
        }
    }

    /// What the NAT has made since the last call.
    pub fn take_sent(&mut self) -> Vec<(Side, View)> {
        std::mem::take(&mut self.sent)
    }

    /// Sends fragments out of the first inside port; returns what comes out and where, in that order.
    #[track_caller]
    pub fn out_pieces(&mut self, pieces: &[Raw]) -> Vec<(Side, Raw)> {
        self.pieces(Side::Inside(TUN), pieces)
    }

    /// The same from outside.
    #[track_caller]
    pub fn in_pieces(&mut self, pieces: &[Raw]) -> Vec<(Side, Raw)> {
        self.pieces(Side::Outside, pieces)
    }

    #[track_caller]
    fn pieces(&mut self, from: Side, pieces: &[Raw]) -> Vec<(Side, Raw)> {
        let mut came = Vec::new();
        for piece in pieces {
            let mut raw = piece.clone();
            let verdict = match from {
                Side::Inside(id) => self.out_via(id, &mut raw),
                Side::Outside => self.inn(&mut raw),
            };
            match verdict {
                Verdict::Forward(to) => came.push((to, raw)),
                Verdict::Hairpin(id) => came.push((Side::Inside(id), raw)),
                Verdict::Reply => came.push((from, raw)),
                Verdict::Held | Verdict::Drop(_) | Verdict::Local => {}
            }
            came.append(&mut self.followers);
        }
        came
    }

    // ---- Flows ----

    /// A host sends the first packet of a flow; returns the external endpoint that `to` sees.
    #[track_caller]
    pub fn try_out(
        &mut self,
        protocol: Protocol,
        from: Endpoint,
        to: Endpoint,
    ) -> Result<Endpoint, DropReason> {
        self.forwarded(&mut opener(protocol, from, to))
    }

    #[track_caller]
    pub fn send_out(&mut self, protocol: Protocol, from: Endpoint, to: Endpoint) -> Endpoint {
        self.try_out(protocol, from, to).unwrap_or_else(|why| panic!("{from} → {to} was dropped: {why}"))
    }

    /// Sends a packet out; returns the external endpoint that its receiver sees.
    #[track_caller]
    pub fn forwarded(&mut self, raw: &mut Raw) -> Result<Endpoint, DropReason> {
        let to = look(raw).to;
        match self.out(raw) {
            Verdict::Forward(Side::Outside) => {
                let view = look(raw);
                assert_eq!(view.to, to, "the destination is left alone");
                assert!(self.nat.external().any(|addr| addr == view.from.addr), "the source is ours");
                Ok(view.from)
            }
            Verdict::Drop(why) => Err(why),
            other => panic!("{other:?}"),
        }
    }

    /// Sends a packet out; returns the source that its receiver sees, translated or not.
    #[track_caller]
    pub fn forwarded_from(&mut self, raw: &mut Raw) -> Option<Endpoint> {
        (self.out(raw) == Verdict::Forward(Side::Outside)).then(|| look(raw).from)
    }

    /// A remote sends to an external endpoint; returns the inside endpoint that gets it.
    #[track_caller]
    pub fn try_in(
        &mut self,
        protocol: Protocol,
        from: Endpoint,
        to: Endpoint,
    ) -> Result<Endpoint, DropReason> {
        self.delivered(&mut visitor(protocol, from, to))
    }

    #[track_caller]
    pub fn send_in(&mut self, protocol: Protocol, from: Endpoint, to: Endpoint) -> Option<Endpoint> {
        self.try_in(protocol, from, to).ok()
    }

    /// Sends a packet in; returns the inside endpoint that gets it.
    #[track_caller]
    pub fn delivered(&mut self, raw: &mut Raw) -> Result<Endpoint, DropReason> {
        let from = look(raw).from;
        match self.inn(raw) {
            Verdict::Forward(Side::Inside(_)) => {
                let view = look(raw);
                assert_eq!(view.from, from, "the source is left alone");
                Ok(view.to)
            }
            Verdict::Drop(why) => Err(why),
            other => panic!("{other:?}"),
        }
    }

    /// A host sends to one of the NAT's external endpoints; returns what the receiver sees: from whom, and to whom.
    #[track_caller]
    pub fn hairpin(&mut self, raw: &mut Raw) -> Result<(Endpoint, Endpoint), DropReason> {
        match self.out(raw) {
            Verdict::Hairpin(_) => {
                let view = look(raw);
                Ok((view.from, view.to))
            }
            Verdict::Drop(why) => Err(why),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub fn tcp_out(&mut self, from: Endpoint, to: Endpoint, flags: u8) -> Result<Endpoint, DropReason> {
        self.forwarded(&mut tcp(from, to, flags, b""))
    }

    #[track_caller]
    pub fn tcp_in(&mut self, from: Endpoint, to: Endpoint, flags: u8) -> Result<Endpoint, DropReason> {
        self.delivered(&mut tcp(from, to, flags, b""))
    }

    /// A three-way handshake; returns the external endpoint.
    #[track_caller]
    pub fn connect(&mut self, from: Endpoint, to: Endpoint) -> Endpoint {
        let external = self.tcp_out(from, to, SYN).unwrap();
        assert_eq!(self.tcp_in(to, external, SYN_ACK), Ok(from));
        assert_eq!(self.tcp_out(from, to, ACK), Ok(external));
        external
    }

    // ---- Time and state ----

    /// Lets time pass: the NAT is called whenever it asks to be.
    pub fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(due) = self.nat.poll_timeout().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.nat.handle_timeout(self.now);
            self.drain();
        }
        self.now = until;
        self.nat.handle_timeout(until);
        self.drain();
    }

    /// Makes a mapping by name.
    pub fn forward(&mut self, protocol: Protocol, inside: Endpoint, port: u16) -> Endpoint {
        let inside = Inside { port: TUN, endpoint: inside };
        let request = MappingRequest { protocol, inside, address: None, port, until: Time::NEVER };
        self.nat.add_mapping(request, self.now).unwrap().0
    }

    pub fn mappings(&self) -> Vec<MappingInfo> {
        let mut mappings: Vec<_> = self.nat.mappings().collect();
        mappings.sort_by_key(|mapping| (mapping.protocol, mapping.inside, mapping.external));
        mappings
    }

    /// The states of all sessions.
    pub fn states(&self) -> Vec<&'static str> {
        let mut states: Vec<_> = self.nat.sessions().map(|session| session.state).collect();
        states.sort_unstable();
        states
    }

    /// How many mappings have ended because nobody used them.
    pub fn expired(&self) -> usize {
        let ended = |event: &&Event| matches!(event, Event::MappingEnded { why: Ended::Expired, .. });
        self.events.iter().filter(ended).count()
    }

    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.nat.counters().dropped(reason)
    }
}

/// Packets that were handed over, by the counters.
pub fn total(nat: &Nat) -> u64 {
    let counters = nat.counters();
    let drops: u64 = counters.drops().map(|(_, count)| count).sum();
    drops
        + counters.outbound_packets
        + counters.inbound_packets
        + counters.hairpin_packets
        + counters.routed_packets
        + counters.replies
        + counters.local_packets
        + nat.fragments_held() as u64
}

/// The datagram that these fragments make, wherever they went; `None` when one is missing.
#[track_caller]
pub fn whole(pieces: &[(Side, Raw)]) -> Option<View> {
    let raws: Vec<_> = pieces.iter().map(|(_, raw)| raw.clone()).collect();
    assert!(pieces.windows(2).all(|pair| pair[0].0 == pair[1].0), "all go the same way");
    reassembled(&raws).map(|raw| look(&raw))
}

/// The nine pairs of mapping and filtering.
pub fn pairs() -> impl Iterator<Item = (Mapping, Filtering)> {
    Mapping::ALL.iter().flat_map(|mapping| Filtering::ALL.iter().map(move |filtering| (*mapping, *filtering)))
}
