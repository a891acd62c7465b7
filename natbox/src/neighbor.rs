//! Who is next on an Ethernet link: routes choose the next hop, ARP finds its Ethernet address (RFC 826), and requests
//! for addresses that natbox owns are answered.
//!
//! A pure engine: it takes packets and `now`, and returns frames to send. Ask [`Neighbors::deliver`] for every IP
//! packet, hand ARP frames to [`Neighbors::handle_arp`], call [`Neighbors::handle_timeout`] when
//! [`Neighbors::poll_timeout`] says so, and send what [`Neighbors::poll_transmit`] gives after any of these.
//!
//! What is learned, and from whom: an answer to a request of ours is believed. Whoever asks for one of our addresses is
//! remembered, but asked back before long. An announcement nobody asked for changes nothing; if it contradicts what is
//! known, the neighbour is asked at once (so a gateway that fails over is followed within a round trip, and a liar must
//! at least win a race).
//!
//! A neighbour's life: *incomplete* (asked for; packets wait) → *fresh* for 30 s → *stale* (still used; the first
//! use asks again) → fresh, or forgotten after 3 unanswered requests. Incomplete ones are never used, stale and
//! fresh ones never hold packets back.

mod arp;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::Ipv4Addr,
    time::Duration,
};

use natbox_core::{Time, packet::Offload};

use crate::{
    datapath::{BROADCAST, ETHERTYPE_ARP, ETHERTYPE_IPV4, Mac},
    host::{Route, network},
};
use arp::{Arp, Operation};

/// How long an answer is believed without asking again; Linux's base_reachable_time.
const FRESH: Duration = Duration::from_secs(30);

/// Time between two requests (RFC 1122 §2.3.2.1 wants no more than one a second), and for the last one to be answered.
const PATIENCE: Duration = Duration::from_secs(1);

/// Requests before a neighbour is given up; Linux's mcast_solicit.
const TRIES: u8 = 3;

/// Neighbours remembered: as many hosts as a /20 has. Beyond, the first by [`Rank`] is forgotten.
const MOST_NEIGHBORS: usize = 4096;

/// How exact it is known when a neighbour was last used, so that few packets have to put that down.
const GRAIN: Duration = Duration::from_secs(1);

/// Packets that wait for one neighbour: a burst as long as a batch; the oldest makes room.
const MOST_WAITING_FOR_ONE: usize = 64;

/// Packets that wait in all: 16 MB even when each is a super-frame.
const MOST_WAITING: usize = 256;

/// Addresses announced at the start; more would be a burst that helps nobody.
const MOST_ANNOUNCED: usize = 16;

/// The link and our own place on it.
#[derive(Clone, Debug, Default)]
pub struct NeighborConfig {
    /// Our Ethernet address.
    pub mac: Mac,
    /// Addresses that requests can be made as, with their prefix lengths, best first. May include the host's own.
    pub speak_as: Vec<(Ipv4Addr, u8)>,
    /// Prefixes that natbox owns: requests for these are answered. Never an address shared with the host.
    pub owned: Vec<(Ipv4Addr, u8)>,
    /// The routes of the link, in any order.
    pub routes: Vec<Route>,
}

/// What becomes of a packet that is to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Send it to this Ethernet address now.
    To(Mac),
    /// It waits here for its next hop to answer.
    Held,
    /// There is no route to its destination.
    NoRoute,
}

/// A frame to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// The Ethernet address that it goes to.
    pub to: Mac,
    /// Its EtherType.
    pub protocol: u16,
    /// What is owed to it.
    pub offload: Offload,
    /// From the network header on.
    pub packet: Box<[u8]>,
}

/// The neighbours on one link.
#[derive(Debug)]
pub struct Neighbors {
    mac: Mac,
    speak_as: Vec<(Ipv4Addr, u8)>,
    owned: Vec<(Ipv4Addr, u8)>,
    /// Longest prefix first, then smallest metric.
    routes: Vec<Route>,
    table: BTreeMap<Ipv4Addr, Neighbor>,
    /// Everybody in the table; who makes room for others comes first.
    ranks: BTreeSet<Rank>,
    /// The deadline of every neighbour that has been asked and has not answered.
    deadlines: BTreeSet<(Time, Ipv4Addr)>,
    /// Packets that wait, over all neighbours.
    waiting: usize,
    /// The last delivery, and until when it can be relied on: most packets go where the one before went.
    last: Option<(Ipv4Addr, Mac, Time)>,
    out: VecDeque<Transmit>,
    dropped: u64,
    /// Changes of what packets go by: routes, and Ethernet addresses that were known.
    generation: u64,
}

#[derive(Debug)]
struct Neighbor {
    /// `None` while incomplete.
    mac: Option<Mac>,
    /// Until when `mac` needs no confirmation.
    fresh_until: Time,
    /// Requests made since it was last heard of, and when the next step is due.
    asked: Option<(u8, Time)>,
    /// When it was last used, to a [`GRAIN`]; while incomplete, when it was first asked for.
    used: Time,
    waiting: VecDeque<(Box<[u8]>, Offload)>,
}

/// Who is forgotten first when there is no room: whoever has never answered, the oldest first, so that addresses that are
/// only tried out push out nobody who is there; then who has been idle longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    is_known: bool,
    used: Time,
    addr: Ipv4Addr,
}

impl Neighbors {
    /// A link on which nobody is known yet. Addresses of our own are announced.
    pub fn new(config: NeighborConfig) -> Neighbors {
        let NeighborConfig { mac, speak_as, owned, routes } = config;
        let mut neighbors = Neighbors {
            mac,
            speak_as,
            owned: Vec::new(),
            routes: Vec::new(),
            table: BTreeMap::new(),
            ranks: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            waiting: 0,
            last: None,
            out: VecDeque::new(),
            dropped: 0,
            generation: 0,
        };
        neighbors.set_routes(routes);
        neighbors.set_owned(owned);
        neighbors
    }

    /// Replaces the routes.
    pub fn set_routes(&mut self, mut routes: Vec<Route>) {
        routes.sort_by_key(|route| (u8::MAX - route.destination.1, route.metric));
        if routes != self.routes {
            self.routes = routes;
            self.last = None;
            self.generation += 1;
        }
    }

    /// Replaces the prefixes that natbox owns, and announces them: others may remember who had the addresses before.
    pub fn set_owned(&mut self, owned: Vec<(Ipv4Addr, u8)>) {
        self.owned = owned;
        let single = self.owned.iter().filter(|(_, len)| *len == 32).map(|(addr, _)| *addr);
        for addr in single.take(MOST_ANNOUNCED).collect::<Vec<_>>() {
            self.send_arp(BROADCAST, Operation::Request, addr, [0; 6], addr);
        }
    }

    /// The next hop for packets to `destination` and its Ethernet address, if that is known. As good as a packet: who is
    /// asked for here is in use, and asked himself before he is forgotten.
    pub fn next(&mut self, destination: Ipv4Addr, now: Time) -> Option<(Ipv4Addr, Mac)> {
        let hop = self.next_hop(destination)?;
        let neighbor = self.table.get_mut(&hop)?;
        let mac = neighbor.mac?;
        neighbor.use_now(hop, now, &mut self.ranks);
        if now >= neighbor.fresh_until && neighbor.asked.is_none() {
            self.ask(hop, now);
        }
        Some((hop, mac))
    }

    /// A number that is another one whenever [`next`](Neighbors::next) may give another answer than the one that it gave.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Finds the Ethernet address for an IPv4 packet to `destination`, or keeps a copy until it is found.
    pub fn deliver(&mut self, destination: Ipv4Addr, packet: &[u8], offload: Offload, now: Time) -> Delivery {
        match self.last {
            Some((last, mac, until)) if last == destination && now < until => Delivery::To(mac),
            _ => self.resolve(destination, packet, offload, now),
        }
    }

    fn resolve(&mut self, destination: Ipv4Addr, packet: &[u8], offload: Offload, now: Time) -> Delivery {
        let Some(hop) = self.next_hop(destination) else {
            self.dropped += 1;
            return Delivery::NoRoute;
        };
        let known = self.table.get_mut(&hop).and_then(|neighbor| Some((neighbor.mac?, neighbor)));
        let Some((mac, neighbor)) = known else { return self.wait_for(hop, packet, offload, now) };
        neighbor.use_now(hop, now, &mut self.ranks);
        if now < neighbor.fresh_until {
            // So that one whose packets follow each other counts as used all the time.
            self.last = Some((destination, mac, neighbor.fresh_until.min(now + GRAIN)));
        } else if neighbor.asked.is_none() {
            self.ask(hop, now);
        }
        Delivery::To(mac)
    }

    /// Keeps a packet for a neighbour who is incomplete, or has not been heard of at all.
    fn wait_for(&mut self, hop: Ipv4Addr, packet: &[u8], offload: Offload, now: Time) -> Delivery {
        if !self.table.contains_key(&hop) {
            self.add(hop, None, now);
        }
        self.hold(hop, packet, offload);
        if self.table.get(&hop).is_some_and(|neighbor| neighbor.asked.is_none()) {
            self.ask(hop, now);
        }
        Delivery::Held
    }

    /// The gateway of the longest matching route, or the destination itself where it is on the link.
    fn next_hop(&self, destination: Ipv4Addr) -> Option<Ipv4Addr> {
        let matches = |route: &&Route| contains(route.destination, destination);
        self.routes.iter().find(matches).map(|route| route.gateway.unwrap_or(destination))
    }

    /// Takes an ARP frame, from behind its Ethernet header. Whatever is not ARP for IPv4 over Ethernet is ignored.
    pub fn handle_arp(&mut self, frame: &[u8], now: Time) {
        let Some(arp) = Arp::parse(frame) else { return };
        let owned = self.owned.iter().any(|prefix| contains(*prefix, arp.target));
        let for_us = owned || self.speak_as.iter().any(|(addr, _)| *addr == arp.target);
        let is_announcement = arp.sender == arp.target;
        match arp.operation {
            Operation::Request if is_announcement => self.doubt(&arp, now),
            Operation::Request => {
                if for_us {
                    self.notice(&arp, now);
                }
                if owned {
                    self.send_arp(arp.sender_mac, Operation::Reply, arp.target, arp.sender_mac, arp.sender);
                }
            }
            Operation::Reply if self.table.get(&arp.sender).is_some_and(|known| known.asked.is_some()) => {
                self.learn(arp.sender, arp.sender_mac, now);
            }
            Operation::Reply => self.doubt(&arp, now),
        }
    }

    /// An answer: the neighbour is fresh, and what waited for it goes out.
    fn learn(&mut self, addr: Ipv4Addr, mac: Mac, now: Time) {
        let Some(neighbor) = self.table.get_mut(&addr) else { return };
        if let Some((_, due)) = neighbor.asked.take() {
            self.deadlines.remove(&(due, addr));
        }
        match neighbor.mac {
            Some(known) => self.generation += u64::from(known != mac),
            None => {
                self.ranks.remove(&neighbor.rank(addr));
                self.ranks.insert(Rank { is_known: true, used: now, addr });
                neighbor.used = now;
            }
        }
        neighbor.mac = Some(mac);
        neighbor.fresh_until = now + FRESH;
        self.waiting -= neighbor.waiting.len();
        for (packet, offload) in neighbor.waiting.drain(..) {
            self.out.push_back(Transmit { to: mac, protocol: ETHERTYPE_IPV4, offload, packet });
        }
        self.last = None;
    }

    /// Somebody on the link who wants to talk to us: remembered as stale if he was unknown.
    fn notice(&mut self, arp: &Arp, now: Time) {
        let on_link = self.next_hop(arp.sender) == Some(arp.sender);
        let is_ours = self.owned.iter().chain(&self.speak_as).any(|(addr, _)| *addr == arp.sender);
        if !on_link || is_ours || arp.sender.is_unspecified() {
            return;
        }
        match self.table.get(&arp.sender) {
            // He can be reached; the request itself is as good as an answer that we waited for.
            Some(known) if known.mac.is_none() => self.learn(arp.sender, arp.sender_mac, now),
            Some(_) => self.doubt(arp, now),
            None => self.add(arp.sender, Some(arp.sender_mac), now),
        }
    }

    /// A claim that nobody asked for: if it contradicts what is known, the neighbour is asked.
    fn doubt(&mut self, arp: &Arp, now: Time) {
        let Some(neighbor) = self.table.get_mut(&arp.sender) else { return };
        if neighbor.asked.is_some() || neighbor.mac.is_none_or(|mac| mac == arp.sender_mac) {
            return;
        }
        neighbor.fresh_until = now;
        self.last = None;
        self.request(arp.sender, BROADCAST, now, TRIES);
    }

    fn hold(&mut self, hop: Ipv4Addr, packet: &[u8], offload: Offload) {
        let Some(neighbor) = self.table.get_mut(&hop) else { return };
        if neighbor.waiting.len() == MOST_WAITING_FOR_ONE {
            neighbor.waiting.pop_front();
            self.waiting -= 1;
            self.dropped += 1;
        }
        if self.waiting == MOST_WAITING {
            self.dropped += 1;
            return;
        }
        neighbor.waiting.push_back((packet.into(), offload));
        self.waiting += 1;
    }

    /// The first request of a series: to the neighbour itself where its address is known.
    fn ask(&mut self, hop: Ipv4Addr, now: Time) {
        let to = self.table.get(&hop).and_then(|neighbor| neighbor.mac).unwrap_or(BROADCAST);
        self.request(hop, to, now, 1);
    }

    /// Sends the request that makes it `tries` since the neighbour was last heard of.
    fn request(&mut self, hop: Ipv4Addr, to: Mac, now: Time, tries: u8) {
        let Some(neighbor) = self.table.get_mut(&hop) else { return };
        if let Some((_, due)) = neighbor.asked {
            self.deadlines.remove(&(due, hop));
        }
        let due = now + PATIENCE;
        neighbor.asked = Some((tries, due));
        self.deadlines.insert((due, hop));
        let speaker = self.speak_as.iter().find(|prefix| contains(**prefix, hop)).or(self.speak_as.first());
        let speaker = speaker.map_or(Ipv4Addr::UNSPECIFIED, |(addr, _)| *addr);
        self.send_arp(to, Operation::Request, speaker, [0; 6], hop);
    }

    /// When [`handle_timeout`](Neighbors::handle_timeout) is due next.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.deadlines.first().map(|(due, _)| *due)
    }

    /// Asks again, or gives up.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some((due, hop)) = self.deadlines.first().copied().filter(|(due, _)| *due <= now) {
            match self.table.get(&hop).and_then(|neighbor| neighbor.asked) {
                // The last tries go to everybody: the neighbour may have got another Ethernet address.
                Some((tries, _)) if tries < TRIES => self.request(hop, BROADCAST, now, tries + 1),
                _ => {
                    self.deadlines.remove(&(due, hop));
                    self.forget(hop);
                }
            }
        }
    }

    fn forget(&mut self, hop: Ipv4Addr) {
        let Some(neighbor) = self.table.remove(&hop) else { return };
        self.ranks.remove(&neighbor.rank(hop));
        if let Some((_, due)) = neighbor.asked {
            self.deadlines.remove(&(due, hop));
        }
        self.waiting -= neighbor.waiting.len();
        self.dropped += neighbor.waiting.len() as u64;
        self.last = None;
        self.generation += u64::from(neighbor.mac.is_some());
    }

    /// Puts down somebody who is not in the table; where that is full, another one makes room.
    fn add(&mut self, addr: Ipv4Addr, mac: Option<Mac>, now: Time) {
        if self.table.len() >= MOST_NEIGHBORS
            && let Some(first) = self.ranks.first()
        {
            self.forget(first.addr);
        }
        let (fresh_until, asked, waiting) = (Time::ZERO, None, VecDeque::new());
        let neighbor = Neighbor { mac, fresh_until, asked, used: now, waiting };
        self.ranks.insert(neighbor.rank(addr));
        self.table.insert(addr, neighbor);
    }

    /// The next frame to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out.pop_front()
    }

    /// Packets dropped since this was last asked: no route, no answer, or too many waiting.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    fn send_arp(
        &mut self,
        to: Mac,
        operation: Operation,
        sender: Ipv4Addr,
        target_mac: Mac,
        target: Ipv4Addr,
    ) {
        let arp = Arp { operation, sender_mac: self.mac, sender, target_mac, target };
        let packet = arp.to_bytes().into();
        self.out.push_back(Transmit { to, protocol: ETHERTYPE_ARP, offload: Offload::default(), packet });
    }
}

impl Neighbor {
    fn rank(&self, addr: Ipv4Addr) -> Rank {
        Rank { is_known: self.mac.is_some(), used: self.used, addr }
    }

    /// Puts down that a packet goes to one who is known, at `addr`.
    fn use_now(&mut self, addr: Ipv4Addr, now: Time, ranks: &mut BTreeSet<Rank>) {
        if now < self.used + GRAIN {
            return;
        }
        ranks.remove(&self.rank(addr));
        self.used = now;
        ranks.insert(self.rank(addr));
    }
}

fn contains((base, len): (Ipv4Addr, u8), addr: Ipv4Addr) -> bool {
    network(base, len) == network(addr, len)
}
