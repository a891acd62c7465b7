//! Nodes on a net, under a virtual clock.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use natbox_core::Time;

use crate::{Datagram, HostId, Net, Node, Transmit};

/// A node whose deadline does not move on, or that never stops sending, is called again only this much later: the clock
/// gets on, whatever the node does.
const GRAIN: Duration = Duration::from_micros(1);
/// How often a node may want to be called again at once, before that.
const MOST_AT_ONCE: u32 = 64;
/// What a node may send in one turn, so that one that never stops does not hold up the rest.
const MOST_SENT: usize = 4096;

/// A net whose hosts run nodes.
///
/// Time is virtual: it jumps from one event to the next. Change the net between runs through [`net`](Sim::net), at the
/// time of [`now`](Sim::now); call nodes through [`with`](Sim::with).
pub struct Sim<N> {
    /// The net that the nodes run on.
    pub net: Net,
    /// By the host's slot.
    seats: Vec<Option<Seat<N>>>,
    timers: BinaryHeap<Reverse<(Time, u64, HostId)>>,
    scheduled: u64,
    now: Time,
}

/// A node on its host.
struct Seat<N> {
    host: HostId,
    node: N,
    /// For when a timer is scheduled, by the net's clock.
    armed: Time,
    /// When it last wanted to be called again at once, and how often at that time.
    at_once: (Time, u32),
    clock: Clock,
    is_asleep: bool,
}

impl<N> Seat<N> {
    /// The deadline, put off if it has been now too often.
    fn not_for_ever(&mut self, due: Time, now: Time) -> Time {
        if due > now {
            return due;
        }
        let (since, times) = self.at_once;
        self.at_once = if since == now { (now, times + 1) } else { (now, 1) };
        if self.at_once.1 <= MOST_AT_ONCE { now } else { now + GRAIN }
    }
}

/// How a host's clock differs from the net's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clock {
    Ahead(Duration),
    Behind(Duration),
}

impl Clock {
    fn read(self, now: Time) -> Time {
        match self {
            Clock::Ahead(by) => now + by,
            Clock::Behind(by) => back(now, by),
        }
    }

    /// The net's time at which this clock shows `time`.
    fn when(self, time: Time) -> Time {
        match self {
            _ if time == Time::NEVER => time,
            Clock::Ahead(by) => back(time, by),
            Clock::Behind(by) => time + by,
        }
    }

    fn nanos(self) -> i128 {
        match self {
            Clock::Ahead(by) => by.as_nanos() as i128,
            Clock::Behind(by) => -(by.as_nanos() as i128),
        }
    }

    fn from_nanos(nanos: i128) -> Clock {
        let by = Duration::from_nanos(u64::try_from(nanos.unsigned_abs()).unwrap_or(u64::MAX));
        if nanos < 0 { Clock::Behind(by) } else { Clock::Ahead(by) }
    }
}

fn back(time: Time, by: Duration) -> Time {
    Time::from_nanos(time.as_nanos().saturating_sub(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
}

/// Which way a host's clock jumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockJump {
    /// Its timers fire early.
    Forward(Duration),
    /// Its timers fire late.
    Back(Duration),
}

impl<N: Node> Sim<N> {
    /// An internet with nothing in it; see [`Net::new`].
    pub fn new(seed: u64) -> Sim<N> {
        Sim::on(Net::new(seed))
    }

    /// Runs nodes on this net.
    pub fn on(net: Net) -> Sim<N> {
        let now = net.now();
        Sim { net, seats: Vec::new(), timers: BinaryHeap::new(), scheduled: 0, now }
    }

    /// Puts a node on a host; it may begin at once. Returns the node that was there before.
    pub fn add_node(&mut self, host: HostId, node: N) -> Option<N> {
        let index = host.0.slot as usize;
        if index >= self.seats.len() {
            self.seats.resize_with(index + 1, || None);
        }
        let (now, clock) = (self.now, Clock::Ahead(Duration::ZERO));
        let seat = Seat { host, node, armed: Time::NEVER, at_once: (now, 0), clock, is_asleep: false };
        let old = self.seats[index].replace(seat);
        self.drain(host);
        old.filter(|old| old.host == host).map(|old| old.node)
    }

    /// Takes a node off its host: the program has ended. What comes for it is lost.
    pub fn remove_node(&mut self, host: HostId) -> Option<N> {
        self.seat(host)?;
        self.seats[host.0.slot as usize].take().map(|seat| seat.node)
    }

    /// The node of a host.
    pub fn node(&self, host: HostId) -> Option<&N> {
        self.seat(host).map(|seat| &seat.node)
    }

    /// Every node with its host.
    pub fn nodes(&self) -> impl Iterator<Item = (HostId, &N)> {
        self.seats.iter().flatten().map(|seat| (seat.host, &seat.node))
    }

    /// Calls a node, with the time by its own clock, and sends what it then wants to send; `None` when the host has no
    /// node.
    pub fn with<R>(&mut self, host: HostId, call: impl FnOnce(&mut N, Time) -> R) -> Option<R> {
        let now = self.now;
        let seat = self.seat_mut(host)?;
        let local = seat.clock.read(now);
        let result = call(&mut seat.node, local);
        self.drain(host);
        Some(result)
    }

    // ---- Time ----

    /// The time that the run has reached.
    pub fn now(&self) -> Time {
        self.now
    }

    /// Lets happen whatever is next, and everything else at that time; false when nothing ever will.
    pub fn step(&mut self) -> bool {
        match self.next() {
            Some(time) => {
                self.turn(time);
                true
            }
            None => false,
        }
    }

    /// Runs until `deadline`; [`Time::NEVER`] stands for as long as anything happens.
    pub fn run_until(&mut self, deadline: Time) {
        self.run_until_true(deadline, |_| false);
    }

    /// Runs for this long.
    pub fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    /// Runs until `is_reached` holds, looking after each turn, or until `deadline`; true when it holds.
    pub fn run_until_true(&mut self, deadline: Time, mut is_reached: impl FnMut(&Sim<N>) -> bool) -> bool {
        loop {
            if is_reached(self) {
                return true;
            }
            match self.next().filter(|time| *time <= deadline) {
                Some(time) => self.turn(time),
                None if deadline == Time::NEVER => return false,
                None => {
                    self.turn(deadline);
                    return is_reached(self);
                }
            }
        }
    }

    /// The whole world stands still and goes on later, as a machine that was suspended sees it: what was due meanwhile
    /// happens in the net at its own time, but nodes hear of it only after the jump, and their timers fire late.
    pub fn jump(&mut self, by: Duration) {
        self.turn(self.now + by);
    }

    fn next(&self) -> Option<Time> {
        let timer = self.timers.peek().map(|Reverse((at, ..))| *at);
        [self.net.poll_timeout(), timer].into_iter().flatten().min()
    }

    /// Everything that happens until this time: packets first, then timers.
    fn turn(&mut self, time: Time) {
        self.now = self.now.max(time);
        self.net.handle_timeout(self.now);
        while let Some((host, input)) = self.net.poll_deliver(self.now) {
            let Some(Some(seat)) = self.seats.get_mut(host.0.slot as usize) else { continue };
            if seat.host == host && !seat.is_asleep {
                seat.node.handle_input(input, seat.clock.read(self.now));
                self.drain(host);
            }
        }
        while let Some(Reverse((at, _, host))) = self.timers.peek().copied()
            && at <= self.now
        {
            self.timers.pop();
            self.fire(host, at);
        }
    }

    fn fire(&mut self, host: HostId, at: Time) {
        let now = self.now;
        let Some(seat) = self.seat_mut(host) else { return };
        // An earlier timer may have taken this one's place.
        if seat.armed != at || seat.is_asleep {
            return;
        }
        seat.armed = Time::NEVER;
        let local = seat.clock.read(now);
        if seat.node.poll_timeout().is_some_and(|due| due <= local) {
            seat.node.handle_timeout(local);
        }
        self.drain(host);
    }

    /// Sends what a node has to send, and sets its timer.
    fn drain(&mut self, host: HostId) {
        let now = self.now;
        let Some(Some(seat)) = self.seats.get_mut(host.0.slot as usize) else { return };
        if seat.host != host || seat.is_asleep {
            return;
        }
        let local = seat.clock.read(now);
        let mut left = MOST_SENT;
        while left > 0
            && let Some(transmit) = seat.node.poll_transmit(local)
        {
            left -= 1;
            let sent = match &transmit {
                Transmit::Datagram { from, to, ttl, payload } => {
                    self.net.send(host, Datagram { from: *from, to: *to, ttl: *ttl, payload }, now)
                }
                Transmit::Packet(bytes) => self.net.send_packet(host, bytes, now),
            };
            if let Err(why) = sent {
                seat.node.handle_refused(transmit, why, local);
            }
        }
        let due = match seat.node.poll_timeout() {
            _ if left == 0 => now + GRAIN,
            Some(due) => seat.clock.when(due),
            None => return,
        };
        let due = seat.not_for_ever(due, now);
        if due < seat.armed {
            seat.armed = due;
            self.timers.push(Reverse((due, self.scheduled, host)));
            self.scheduled += 1;
        }
    }

    // ---- What befalls a host ----

    /// Puts a host to sleep: its node hears and does nothing, what comes for it is lost, and time goes on without it.
    /// False when it has no node.
    pub fn suspend(&mut self, host: HostId) -> bool {
        self.seat_mut(host).map(|seat| seat.is_asleep = true).is_some()
    }

    /// Wakes a host up: timers whose time has passed meanwhile fire at once. False when it has no node.
    pub fn resume(&mut self, host: HostId) -> bool {
        self.seat_mut(host).map(|seat| (seat.is_asleep, seat.armed) = (false, Time::NEVER)).is_some() && {
            self.drain(host);
            true
        }
    }

    /// Sets a host's clock forward or back, as time synchronisation does to a bad clock: from now on its node sees
    /// another time. False when it has no node.
    pub fn jump_clock(&mut self, host: HostId, jump: ClockJump) -> bool {
        let by = match jump {
            ClockJump::Forward(by) => by.as_nanos() as i128,
            ClockJump::Back(by) => -(by.as_nanos() as i128),
        };
        let Some(seat) = self.seat_mut(host) else { return false };
        seat.clock = Clock::from_nanos(seat.clock.nanos().saturating_add(by));
        seat.armed = Time::NEVER;
        self.drain(host);
        true
    }

    fn seat(&self, host: HostId) -> Option<&Seat<N>> {
        self.seats.get(host.0.slot as usize)?.as_ref().filter(|seat| seat.host == host)
    }

    fn seat_mut(&mut self, host: HostId) -> Option<&mut Seat<N>> {
        self.seats.get_mut(host.0.slot as usize)?.as_mut().filter(|seat| seat.host == host)
    }
}
