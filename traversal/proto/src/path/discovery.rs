//! NAT behaviour discovery (RFC 5780), with fresh sockets, so that no test spoils another: who tests filtering on a
//! socket that has asked two reflectors already has opened the very filter that he wants to see.
//!
//! First every socket asks the same reflector for its external address; from that the port assignment is seen. Then, all
//! at once: one socket asks the other reflectors (mapping); two ask the first one to answer from elsewhere (filtering);
//! two send to each other's external address (hairpin); and of a row of idle ones each is sent something after another
//! time (lifetime). What a reflector with a single address cannot show stays unknown.

use std::{net::SocketAddr, time::Duration};

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

use super::{
    Filtering, Mapping, NatProfile, OpenId, PortAssignment, Purpose, SocketRequest, safety::is_server,
};
use crate::{
    SocketId, Time, Transmit, address,
    wire::stun::{Change, Class, ReflectorReply, ReflectorRequest, TransactionId, peek},
};

/// A request is repeated so often, with these pauses: silence is an answer here, and must not be mere loss.
const TRIES: u8 = 5;
const RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_millis(800);
/// Between the first packets of the sockets: their order shows in sequential ports.
const STAGGER: Duration = Duration::from_millis(10);
/// How long sockets are waited for.
const OPENING: Duration = Duration::from_secs(3);
/// Distance between two neighbouring ports that still looks like a sequence: others behind the NAT take some between.
const NEAR: i16 = 64;
/// Ages at which idle mappings are looked at, in seconds; the first shows that the reflector can be asked to.
const AGES: [u64; 11] = [1, 10, 20, 30, 45, 60, 90, 120, 180, 300, 600];
/// Addresses of reflectors that are asked: the two addresses and two ports of RFC 5780, twice.
const MOST_TARGETS: usize = 8;

const MAPPING: usize = 0;
const FILTER_BOTH: usize = 1;
const FILTER_PORT: usize = 2;
/// Sends to other sockets' mappings.
const PARTNER: usize = 3;

/// What to find out, and by whom.
#[derive(Clone, Debug)]
pub struct Config {
    /// The reflector's addresses: those of a supernode's Hello, the one to ask first in front.
    pub reflectors: Vec<SocketAddr>,
    /// Only what decides how to connect: mapping, filtering and ports. Takes two and a half seconds at the most.
    pub quick: bool,
    /// How long to look for a mapping's lifetime at the most; zero: not at all.
    pub lifetime: Duration,
}

/// What was found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The NAT.
    pub profile: NatProfile,
    /// The external addresses seen, in the order of the tests.
    pub mapped: Vec<SocketAddr>,
    /// Nobody has answered: UDP does not get out, or the reflectors are down.
    pub no_answer: bool,
    /// The reflector has one address only: what could not be found out for that is `None` in the profile.
    pub one_address: bool,
    /// An idle mapping lived at least so long, and not as long as the second if that is known.
    pub lifetime: Option<(Duration, Option<Duration>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Base,
    Mapping,
    FilterBoth,
    FilterPort,
    Hairpin,
    Lifetime(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Seen(SocketAddr),
    Refused,
    Silence,
}

/// One question, repeated until it is answered or has been asked often enough.
struct Probe {
    kind: Kind,
    from: usize,
    to: SocketAddr,
    /// The socket on which the answer comes.
    on: usize,
    request: ReflectorRequest,
    tries: u8,
    due: Time,
    outcome: Option<Outcome>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Socket {
    Asked,
    Open(SocketId, SocketAddr),
    Refused,
}

/// A run of tests. Drain after each call: sockets, transmits, then [`poll_timeout`](Self::poll_timeout), until there is a
/// [`report`](Self::report). The sockets are fresh ones of its own, and what comes on them is for it alone.
pub struct Discovery {
    config: Config,
    rng: ChaCha20Rng,
    /// By number of their request.
    sockets: Vec<Socket>,
    opening_ends: Time,
    probes: Vec<Probe>,
    has_tested: bool,
    /// The reflector's other address, as it says itself.
    other: Option<SocketAddr>,
    requests: Vec<SocketRequest>,
    transmits: Vec<Transmit>,
    report: Option<Report>,
}

impl Discovery {
    /// Begins at `now`; transaction ids come from `seed`.
    pub fn new(config: Config, seed: [u8; 32], now: Time) -> Discovery {
        let ages = AGES.iter().filter(|age| Duration::from_secs(**age) <= config.lifetime).count();
        let count = if config.quick { PARTNER } else { PARTNER + 1 + ages };
        let open = |request| SocketRequest::Open { request: OpenId(request), purpose: Purpose::Discovery };
        let mut requests: Vec<_> = (0..count as u32).map(open).collect();
        // Taken from the end.
        requests.reverse();
        let mut discovery = Discovery {
            rng: ChaCha20Rng::from_seed(seed),
            sockets: vec![Socket::Asked; count],
            opening_ends: now + OPENING,
            probes: Vec::new(),
            has_tested: false,
            other: None,
            requests,
            transmits: Vec::new(),
            report: None,
            config,
        };
        if discovery.config.reflectors.is_empty() {
            discovery.requests.clear();
            discovery.sockets.clear();
            discovery.finish();
        }
        discovery
    }

    /// A socket that was asked for is open; `local` is its own address, unspecified where it is bound to all.
    pub fn handle_socket_opened(&mut self, request: OpenId, socket: SocketId, local: SocketAddr, now: Time) {
        match self.sockets.get_mut(request.0 as usize) {
            Some(slot) if *slot == Socket::Asked => *slot = Socket::Open(socket, local),
            _ => self.requests.push(SocketRequest::Close(socket)),
        }
        self.advance(now);
    }

    /// A socket that was asked for cannot be opened.
    pub fn handle_socket_refused(&mut self, request: OpenId, now: Time) {
        if let Some(slot) = self.sockets.get_mut(request.0 as usize).filter(|slot| **slot == Socket::Asked) {
            *slot = Socket::Refused;
        }
        self.advance(now);
    }

    /// A STUN datagram. False: not an answer to any of ours.
    pub fn handle_datagram(&mut self, socket: SocketId, from: SocketAddr, bytes: &[u8], now: Time) -> bool {
        let (Ok(header), from) = (peek(bytes), address::canonical(from)) else { return false };
        let is_it = |open: &Socket| matches!(open, Socket::Open(id, _) if *id == socket);
        let Some(on) = self.sockets.iter().position(is_it) else { return false };
        let Some(probe) = self.probes.iter_mut().find(|probe| probe.request.id == header.id) else {
            return false;
        };
        if probe.outcome.is_some() {
            return true;
        }
        let is_asked = from == probe.to;
        let outcome = match (probe.kind, header.class) {
            (Kind::Hairpin, Class::Request) if on == probe.on => Outcome::Seen(from),
            (_, Class::Success | Class::Error) => match ReflectorReply::decode(bytes) {
                Ok(ReflectorReply::Success(seen)) if on == probe.on => {
                    let from_elsewhere = matches!(probe.kind, Kind::FilterBoth | Kind::FilterPort);
                    if from_elsewhere == is_asked {
                        return true;
                    }
                    if probe.kind == Kind::Base && probe.to == address::canonical(self.config.reflectors[0]) {
                        self.other = self.other.or(seen.other.map(address::canonical));
                    }
                    Outcome::Seen(address::canonical(seen.mapped))
                }
                Ok(ReflectorReply::Error { .. }) if is_asked => Outcome::Refused,
                _ => return true,
            },
            _ => return false,
        };
        probe.outcome = Some(outcome);
        self.advance(now);
        true
    }

    /// The time of [`poll_timeout`](Self::poll_timeout) has come.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.opening_ends <= now {
            for slot in self.sockets.iter_mut().filter(|slot| **slot == Socket::Asked) {
                *slot = Socket::Refused;
            }
        }
        self.advance(now);
    }

    /// The next socket to open or close.
    pub fn poll_socket(&mut self) -> Option<SocketRequest> {
        self.requests.pop()
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.report.is_some() {
            return None;
        }
        let open = self.probes.iter().filter(|probe| probe.outcome.is_none());
        let next = open.map(|probe| probe.due).min();
        if self.probes.is_empty() { Some(self.opening_ends) } else { next }
    }

    /// What was found out, once all is done.
    pub fn report(&self) -> Option<&Report> {
        self.report.as_ref()
    }

    // ---- The course of it ----

    fn advance(&mut self, now: Time) {
        if self.report.is_some() {
            return;
        }
        if self.probes.is_empty() {
            if self.sockets.contains(&Socket::Asked) {
                return;
            }
            let first = address::canonical(self.config.reflectors[0]);
            for from in 0..self.sockets.len() {
                if self.open(from).is_some() {
                    self.probe(Kind::Base, (from, from), first, now + STAGGER * from as u32);
                }
            }
        }
        self.send_due(now);
        if self.probes.iter().all(|probe| probe.outcome.is_some()) {
            if !self.has_tested && self.base(MAPPING).is_some() {
                self.has_tested = true;
                self.test(now);
                self.send_due(now);
            }
            // There may be nothing to test: one reflector, and sockets that could not be had.
            if self.probes.iter().all(|probe| probe.outcome.is_some()) {
                self.finish();
            }
        }
    }

    fn send_due(&mut self, now: Time) {
        let mut due: Vec<_> =
            self.probes.iter_mut().filter(|p| p.outcome.is_none() && p.due <= now).collect();
        due.sort_by_key(|probe| probe.due);
        for probe in due.into_iter().rev() {
            let Socket::Open(socket, _) = self.sockets[probe.from] else { continue };
            if probe.tries == TRIES {
                probe.outcome = Some(Outcome::Silence);
                continue;
            }
            probe.due = now + (RETRY * (1 << probe.tries)).min(LONGEST_RETRY);
            probe.tries += 1;
            self.transmits
                .insert(0, Transmit { socket, to: probe.to, bytes: probe.request.encode(), hops: None });
        }
    }

    fn probe(&mut self, kind: Kind, (from, on): (usize, usize), to: SocketAddr, due: Time) -> &mut Probe {
        let id = TransactionId::tagged(self.rng.next_u32(), self.rng.next_u64());
        let mut request = ReflectorRequest::new(id);
        request.change = Some(match kind {
            Kind::FilterBoth => Change { address: true, port: true },
            Kind::FilterPort => Change { address: false, port: true },
            _ => Change::default(),
        });
        self.probes.push(Probe { kind, from, to, on, request, tries: 0, due, outcome: None });
        let last = self.probes.len() - 1;
        &mut self.probes[last]
    }

    /// All tests that need to know the sockets' external addresses.
    fn test(&mut self, now: Time) {
        let first = address::canonical(self.config.reflectors[0]);
        let mut targets = Vec::new();
        for target in self.config.reflectors.iter().copied().chain(self.other).map(address::canonical) {
            let is_new = target != first && !targets.contains(&target) && target.is_ipv4() == first.is_ipv4();
            if is_new && targets.len() < MOST_TARGETS && is_server(target, first) {
                targets.push(target);
            }
        }
        for target in targets {
            self.probe(Kind::Mapping, (MAPPING, MAPPING), target, now);
        }
        if self.base(FILTER_BOTH).is_some() {
            self.probe(Kind::FilterBoth, (FILTER_BOTH, FILTER_BOTH), first, now);
        }
        if self.base(FILTER_PORT).is_some() {
            self.probe(Kind::FilterPort, (FILTER_PORT, FILTER_PORT), first, now);
        }
        // What a reflector says of our own address is sent to as well, and may be anything.
        let Some(partner) = self.base(PARTNER).filter(|mapped| is_server(*mapped, first)) else { return };
        let mapped = self.base(MAPPING).filter(|mapped| is_server(*mapped, first));
        if let Some(mapped) = mapped.filter(|_| self.is_translated() == Some(true)) {
            self.probe(Kind::Hairpin, (PARTNER, MAPPING), mapped, now);
            self.probe(Kind::Hairpin, (MAPPING, PARTNER), partner, now);
        }
        for (slot, age) in (PARTNER + 1..self.sockets.len()).zip(AGES.map(Duration::from_secs)) {
            let Some(mapped) = self.base(slot).filter(|mapped| mapped.ip() == partner.ip()) else { continue };
            let probe = self.probe(Kind::Lifetime(age), (PARTNER, slot), first, now + age);
            probe.request.response_port = Some(mapped.port());
        }
    }

    // ---- What it means ----

    fn open(&self, slot: usize) -> Option<SocketAddr> {
        match self.sockets.get(slot) {
            Some(Socket::Open(_, local)) => Some(*local),
            _ => None,
        }
    }

    fn outcomes(&self, is_kind: impl Fn(Kind) -> bool) -> impl Iterator<Item = (&Probe, Outcome)> {
        let of_kind = self.probes.iter().filter(move |probe| is_kind(probe.kind));
        of_kind.filter_map(|probe| probe.outcome.map(|outcome| (probe, outcome)))
    }

    /// A socket's external address towards the first reflector.
    fn base(&self, slot: usize) -> Option<SocketAddr> {
        self.outcomes(|kind| kind == Kind::Base).find_map(|(probe, outcome)| match outcome {
            Outcome::Seen(mapped) if probe.from == slot => Some(mapped),
            _ => None,
        })
    }

    /// `None` where a socket does not know its own address, and its port tells nothing either.
    fn is_translated(&self) -> Option<bool> {
        let (mapped, local) = (self.base(MAPPING)?, self.open(MAPPING)?);
        let is_known = !local.ip().is_unspecified();
        if is_known {
            Some(mapped != address::canonical(local))
        } else {
            (mapped.port() != local.port()).then_some(true)
        }
    }

    fn finish(&mut self) {
        let profile = NatProfile {
            translated: self.is_translated(),
            mapping: self.mapping(),
            filtering: self.filtering(),
            ports: self.ports(),
            hairpin: self.hairpin(),
        };
        let mapped = self.probes.iter().filter_map(|probe| match (probe.kind, probe.outcome) {
            (Kind::Base | Kind::Mapping, Some(Outcome::Seen(mapped))) => Some(mapped),
            _ => None,
        });
        let mapped: Vec<_> = mapped.collect();
        let first = self.config.reflectors.first();
        let others = self.config.reflectors.iter().chain(&self.other);
        let one_address = others.clone().all(|other| first.is_some_and(|first| first.ip() == other.ip()));
        let lifetime = self.lifetime();
        self.report = Some(Report { no_answer: mapped.is_empty(), one_address, lifetime, mapped, profile });
        let close = |socket: &Socket| match socket {
            Socket::Open(id, _) => Some(SocketRequest::Close(*id)),
            Socket::Asked | Socket::Refused => None,
        };
        self.requests.extend(self.sockets.iter().filter_map(close));
    }

    /// RFC 5780 §4.3.
    fn mapping(&self) -> Option<Mapping> {
        if self.is_translated() == Some(false) {
            return Some(Mapping::EndpointIndependent);
        }
        let of_first_socket =
            |probe: &Probe| matches!(probe.kind, Kind::Base | Kind::Mapping) && probe.from == MAPPING;
        let seen: Vec<_> = self
            .probes
            .iter()
            .filter(|probe| of_first_socket(probe))
            .filter_map(|probe| match probe.outcome {
                Some(Outcome::Seen(mapped)) => Some((probe.to, mapped)),
                _ => None,
            })
            .collect();
        let pairs = || seen.iter().flat_map(|a| seen.iter().map(move |b| (a, b))).filter(|(a, b)| a.0 < b.0);
        let (mut to_ports, mut to_addresses) = (None, None);
        for (a, b) in pairs() {
            let across = if a.0.ip() == b.0.ip() { &mut to_ports } else { &mut to_addresses };
            *across = Some(across.unwrap_or(false) | (a.1 != b.1));
        }
        match (to_ports, to_addresses) {
            (Some(true), _) => Some(Mapping::AddressAndPortDependent),
            (_, Some(false)) => Some(Mapping::EndpointIndependent),
            (Some(false), Some(true)) => Some(Mapping::AddressDependent),
            (None, Some(true)) | (_, None) => None,
        }
    }

    /// RFC 5780 §4.4.
    fn filtering(&self) -> Option<Filtering> {
        let outcome = |kind| self.outcomes(move |other| other == kind).next().map(|(_, outcome)| outcome);
        match (outcome(Kind::FilterBoth), outcome(Kind::FilterPort)) {
            (Some(Outcome::Seen(_)), _) => Some(Filtering::EndpointIndependent),
            (Some(Outcome::Silence), Some(Outcome::Seen(_))) => Some(Filtering::AddressDependent),
            (_, Some(Outcome::Silence)) => Some(Filtering::AddressAndPortDependent),
            _ => None,
        }
    }

    fn ports(&self) -> Option<PortAssignment> {
        let all: Vec<_> =
            (0..self.sockets.len()).filter_map(|slot| Some((self.open(slot)?, self.base(slot)?))).collect();
        if all.len() < 3 {
            return None;
        }
        if all.iter().all(|(local, mapped)| local.port() == mapped.port()) {
            return Some(PortAssignment::Preserve);
        }
        let step = |pair: &[(SocketAddr, SocketAddr)]| pair[1].1.port().wrapping_sub(pair[0].1.port()) as i16;
        let mut steps = all.windows(2).map(step);
        let first = steps.next()?;
        let is_near =
            |step: i16| (1..=NEAR).contains(&step.saturating_abs()) && step.signum() == first.signum();
        let is_sequence = is_near(first) && steps.clone().all(is_near);
        let smallest = steps.fold(first, |least, step| if step.abs() < least.abs() { step } else { least });
        Some(if is_sequence { PortAssignment::Sequential(smallest) } else { PortAssignment::Random })
    }

    fn hairpin(&self) -> Option<bool> {
        let outcomes: Vec<_> = self.outcomes(|kind| kind == Kind::Hairpin).collect();
        let is_seen = outcomes.iter().any(|(_, outcome)| matches!(outcome, Outcome::Seen(_)));
        (!outcomes.is_empty()).then_some(is_seen)
    }

    /// RFC 5780 §4.6.
    fn lifetime(&self) -> Option<(Duration, Option<Duration>)> {
        let mut longest = None;
        for (probe, outcome) in self.outcomes(|kind| matches!(kind, Kind::Lifetime(_))) {
            let Kind::Lifetime(age) = probe.kind else { continue };
            match (outcome, longest) {
                (Outcome::Seen(_), _) => longest = Some(age),
                (Outcome::Silence, Some(longest)) => return Some((longest, Some(age))),
                // Not even a fresh mapping was heard on: the reflector does not do it.
                (Outcome::Silence | Outcome::Refused, _) => return None,
            }
        }
        longest.map(|longest| (longest, None))
    }
}
