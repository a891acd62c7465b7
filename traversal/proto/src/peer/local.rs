//! This node as seen from outside: its sockets, their addresses, and its NAT.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use super::{Config, Counters};
use crate::{
    SocketId, Time, Transmit,
    address::{self, Scope},
    path::{
        Candidate, CandidateKind, Mapping, NatProfile, Purpose, Transport, candidate,
        safety::{Evidence, Interface},
    },
    wire::{
        List,
        peer::MAX_CANDIDATES,
        stun::{ReflectorReply, ReflectorRequest, TransactionId},
    },
};

/// Sockets whose addresses become candidates. More would not fit into one announcement.
const MOST_SOCKETS: usize = 8;
/// Interfaces that are told: a machine may have hundreds of virtual ones.
const MOST_INTERFACES: usize = 16;
/// Reflectors that are remembered, and how many of them each socket asks.
const MOST_REFLECTORS: usize = 8;
const ASKED: usize = 2;
/// External addresses of one socket that are told: a NAT that maps by destination shows another one to each reflector.
const MOST_SEEN: usize = 3;
/// Between two requests for the same answer, at first; then twice as long each time.
const RETRY: Duration = Duration::from_millis(250);
const TRIES: u8 = 5;
/// How often each socket asks what its external address is: keeps the mapping alive (RFC 8445 §11), and a rebinding does
/// not go unnoticed for longer.
const REFRESH: Duration = Duration::from_secs(25);
/// Not oftener than this, whatever happens.
const REFRESH_AT_ONCE: Duration = Duration::from_millis(500);

struct Socket {
    local: SocketAddr,
    /// By whom it was seen, and at which address; `None` stands for the supernode.
    seen: Vec<(Option<SocketAddr>, SocketAddr)>,
}

struct Query {
    socket: SocketId,
    reflector: SocketAddr,
    tries: u8,
    due: Time,
}

/// What the agent knows of its own node.
pub(super) struct Local {
    sockets: BTreeMap<SocketId, Socket>,
    interfaces: Vec<Interface>,
    reflectors: Vec<SocketAddr>,
    queries: BTreeMap<TransactionId, Query>,
    /// What discovery has found.
    discovered: NatProfile,
    profile: NatProfile,
    generation: u32,
    candidates: List<Candidate, MAX_CANDIDATES>,
    own: Vec<SocketAddr>,
    reflexive: Vec<SocketAddr>,
    refresh: Time,
    refreshed: Option<Time>,
}

impl Default for Local {
    fn default() -> Local {
        Local {
            sockets: BTreeMap::new(),
            interfaces: Vec::new(),
            reflectors: Vec::new(),
            queries: BTreeMap::new(),
            discovered: NatProfile::default(),
            profile: NatProfile::default(),
            generation: 1,
            candidates: List::new(),
            own: Vec::new(),
            reflexive: Vec::new(),
            refresh: Time::NEVER,
            refreshed: None,
        }
    }
}

impl Local {
    // ---- What it looks like from outside ----

    /// Counts the changes of what follows.
    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    pub(super) fn candidates(&self) -> &List<Candidate, MAX_CANDIDATES> {
        &self.candidates
    }

    pub(super) fn profile(&self) -> NatProfile {
        self.profile
    }

    pub(super) fn evidence<'a>(&'a self, config: &Config) -> Evidence<'a> {
        Evidence {
            interfaces: &self.interfaces,
            own: &self.own,
            reflexive: &self.reflexive,
            loopback: config.loopback,
        }
    }

    /// The sockets that paths may go by, of one address family.
    pub(super) fn path_sockets(&self, v4: bool) -> impl Iterator<Item = SocketId> {
        let fits = move |socket: &Socket| socket.local.is_ipv4() == v4 || is_dual(socket.local);
        self.sockets.iter().filter(move |(_, socket)| fits(socket)).map(|(id, _)| *id)
    }

    /// Works out candidates and profile anew; true when there is something new to tell.
    pub(super) fn gather(&mut self, config: &Config) -> bool {
        let (mut hosts, mut seen) = (Vec::new(), Vec::new());
        for (id, socket) in &self.sockets {
            let candidate =
                |kind, address| Candidate { kind, transport: Transport::Udp, address, foundation: id.0 };
            for address in addresses(socket.local, &self.interfaces) {
                if candidate::is_tellable(address.ip(), config.loopback) {
                    hosts.push(candidate(CandidateKind::Host, address));
                }
            }
            seen.extend(
                socket.seen.iter().map(|(_, address)| candidate(CandidateKind::ServerReflexive, *address)),
            );
        }
        self.own = hosts.iter().map(|host| host.address).collect();
        self.reflexive = seen.iter().map(|seen| seen.address).collect();
        self.reflexive.sort_unstable();
        self.reflexive.dedup();
        let mut all: Vec<Candidate> = Vec::new();
        for candidate in hosts.into_iter().chain(seen) {
            if all.iter().all(|other| other.address != candidate.address) {
                all.push(candidate);
            }
        }
        let candidates = List::first_of(all);
        let profile = self.guessed().updated(self.discovered);
        let is_new = candidates != self.candidates || profile != self.profile;
        if is_new {
            (self.candidates, self.profile) = (candidates, profile);
            self.generation = self.generation.wrapping_add(1).max(1);
        }
        is_new
    }

    /// What the addresses alone tell of the NAT.
    fn guessed(&self) -> NatProfile {
        let mut profile = NatProfile::default();
        for socket in self.sockets.values().filter(|socket| !socket.seen.is_empty()) {
            let own: Vec<_> = addresses(socket.local, &self.interfaces).collect();
            if !own.is_empty() {
                profile.translated = Some(socket.seen.iter().any(|(_, seen)| !own.contains(seen)));
            }
            let hosts: Vec<_> = socket.seen.iter().filter_map(|(by, _)| by.map(|by| by.ip())).collect();
            let by_several = hosts.iter().any(|host| *host != hosts[0]);
            if by_several && socket.seen.iter().all(|(_, seen)| *seen == socket.seen[0].1) {
                profile.mapping = Some(Mapping::EndpointIndependent);
            }
        }
        profile
    }

    // ---- What happens to it ----

    /// False: there are as many as can be used already.
    pub(super) fn add_socket(
        &mut self,
        id: SocketId,
        local: SocketAddr,
        purpose: Purpose,
        now: Time,
    ) -> bool {
        let is_path = matches!(purpose, Purpose::Main | Purpose::Path);
        if !is_path || self.sockets.len() >= MOST_SOCKETS && !self.sockets.contains_key(&id) {
            return false;
        }
        self.sockets.insert(id, Socket { local: address::canonical(local), seen: Vec::new() });
        self.refresh = now;
        self.refreshed = None;
        true
    }

    pub(super) fn remove_socket(&mut self, id: SocketId) {
        self.sockets.remove(&id);
        self.queries.retain(|_, query| query.socket != id);
    }

    pub(super) fn set_interfaces(&mut self, interfaces: &[Interface]) {
        self.interfaces = interfaces.iter().copied().take(MOST_INTERFACES).collect();
        for interface in &mut self.interfaces {
            interface.address = interface.address.to_canonical();
        }
    }

    pub(super) fn set_reflectors(&mut self, reflectors: &[SocketAddr], now: Time) {
        self.reflectors = reflectors.iter().map(|to| address::canonical(*to)).take(MOST_REFLECTORS).collect();
        for socket in self.sockets.values_mut() {
            socket.seen.retain(|(by, _)| by.is_none_or(|by| self.reflectors.contains(&by)));
        }
        self.refresh = now;
        self.refreshed = None;
    }

    pub(super) fn reflectors(&self) -> &[SocketAddr] {
        &self.reflectors
    }

    pub(super) fn set_discovered(&mut self, profile: NatProfile) {
        self.discovered = self.discovered.updated(profile);
    }

    /// A socket was seen at this address by a reflector, or by the supernode.
    pub(super) fn handle_seen(&mut self, socket: SocketId, by: Option<SocketAddr>, at: SocketAddr) {
        let at = address::canonical(at);
        let is_nowhere = matches!(address::scope(at.ip()), Scope::Nowhere | Scope::Group);
        let Some(socket) = self.sockets.get_mut(&socket).filter(|_| at.port() != 0 && !is_nowhere) else {
            return;
        };
        // In place: another order would be news to every peer.
        match socket.seen.iter().position(|(other, _)| *other == by) {
            Some(known) => socket.seen[known].1 = at,
            None if socket.seen.len() < MOST_SEEN => socket.seen.push((by, at)),
            None => {}
        }
    }

    /// The network is another one: what was seen before is void.
    pub(super) fn forget_seen(&mut self, now: Time) {
        self.sockets.values_mut().for_each(|socket| socket.seen.clear());
        self.discovered = NatProfile::default();
        self.queries.clear();
        self.refreshed = None;
        self.refresh = now;
    }

    /// External addresses may have changed: asks again soon, however lately it did.
    pub(super) fn refresh(&mut self, now: Time) {
        let earliest = self.refreshed.map_or(now, |last| last + REFRESH_AT_ONCE);
        self.refresh = self.refresh.min(earliest.max(now));
    }

    // ---- Reflectors ----

    pub(super) fn deadline(&self) -> Time {
        let refresh =
            if self.sockets.is_empty() || self.reflectors.is_empty() { Time::NEVER } else { self.refresh };
        self.queries.values().map(|query| query.due).fold(refresh, Time::min)
    }

    /// The requests that are due.
    pub(super) fn handle_timeout(
        &mut self,
        now: Time,
        mut id: impl FnMut() -> TransactionId,
        counters: &mut Counters,
    ) -> Vec<Transmit> {
        let mut due = Vec::new();
        if self.refresh <= now && !self.reflectors.is_empty() {
            self.queries.clear();
            for socket in self.sockets.keys() {
                due.extend(self.asked(*socket).map(|reflector| (*socket, reflector, 0)));
            }
            (self.refresh, self.refreshed) = (now + REFRESH, Some(now));
        }
        let late: Vec<_> =
            self.queries.iter().filter(|(_, query)| query.due <= now).map(|(id, _)| *id).collect();
        for query in late.into_iter().filter_map(|id| self.queries.remove(&id)) {
            if query.tries < TRIES {
                due.push((query.socket, query.reflector, query.tries));
            }
        }
        let send = |(socket, reflector, tries): (SocketId, SocketAddr, u8)| {
            let id = id();
            let query = Query { socket, reflector, tries: tries + 1, due: now + RETRY * (1 << tries.min(4)) };
            self.queries.insert(id, query);
            counters.reflections += 1;
            Transmit { socket, to: reflector, bytes: ReflectorRequest::new(id).encode(), hops: None }
        };
        due.into_iter().map(send).collect()
    }

    /// The reflectors that a socket asks: the first that it can reach, and the next at another address.
    fn asked(&self, socket: SocketId) -> impl Iterator<Item = SocketAddr> {
        let local = self.sockets.get(&socket).map(|socket| socket.local);
        let mut reached = self.reflectors.iter().copied().filter(move |reflector| {
            local.is_some_and(|local| local.is_ipv4() == reflector.is_ipv4() || is_dual(local))
        });
        let first = reached.next();
        let second = reached.find(move |next| first.is_some_and(|first| first.ip() != next.ip()));
        first.into_iter().chain(second).take(ASKED)
    }

    /// An answer, if it is one to our question; true then.
    pub(super) fn handle_reply(&mut self, id: TransactionId, from: SocketAddr, bytes: &[u8]) -> bool {
        let Some(query) = self.queries.get(&id).filter(|query| query.reflector == address::canonical(from))
        else {
            return false;
        };
        let (socket, by) = (query.socket, query.reflector);
        if let Ok(ReflectorReply::Success(reflection)) = ReflectorReply::decode(bytes) {
            self.handle_seen(socket, Some(by), reflection.mapped);
            self.queries.remove(&id);
        }
        true
    }
}

/// A dual-stack socket.
fn is_dual(local: SocketAddr) -> bool {
    local.is_ipv6() && local.ip().is_unspecified()
}

/// Where a socket can be reached within its own networks.
fn addresses(local: SocketAddr, interfaces: &[Interface]) -> impl Iterator<Item = SocketAddr> {
    let is_any = local.ip().is_unspecified();
    let fits = move |interface: &&Interface| interface.address.is_ipv4() == local.is_ipv4() || is_dual(local);
    let all =
        interfaces.iter().filter(fits).map(move |interface| SocketAddr::new(interface.address, local.port()));
    all.filter(move |_| is_any).chain((!is_any).then_some(local))
}
