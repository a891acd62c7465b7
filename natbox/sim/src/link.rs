//! Links: what happens to a packet between a host, NAT or router and the network it is attached to.
//!
//! A link holds no packets. Its queue is an account: the time at which the line falls idle says how many bytes wait, so
//! a packet costs one event, its arrival, whatever the conditions.

use std::time::Duration;

use natbox_core::Time;
use rand_chacha::ChaCha8Rng;
use rand_core::Rng;

use crate::{Conditions, Direction, LinkConditions, slab::Key};

const NANOS: u128 = 1_000_000_000;

/// What a direction of a link has done so far, in packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Handed to the link.
    pub sent: u64,
    /// Bytes of IP packets handed to the link.
    pub sent_bytes: u64,
    /// Had to wait for those before them.
    pub queued: u64,
    /// Dropped because the queue was full.
    pub dropped_rate: u64,
    /// Dropped because they were larger than the MTU.
    pub dropped_mtu: u64,
    /// Lost on the wire.
    pub lost: u64,
    /// Swallowed while the link was cut.
    pub blackholed: u64,
    /// Arrived twice.
    pub duplicated: u64,
    /// Held back so that others overtook them.
    pub reordered: u64,
}

impl LinkCounters {
    /// Packets that arrived or will, each counted once.
    pub fn carried(&self) -> u64 {
        self.sent - self.dropped_rate - self.dropped_mtu - self.lost - self.blackholed
    }
}

/// Why a link did not carry a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinkDrop {
    /// The link is cut.
    Cut,
    /// Larger than the MTU.
    TooBig,
    /// The queue is full.
    QueueFull,
    /// Lost on the wire.
    Lost,
}

impl LinkDrop {
    /// The word for this in traces.
    pub const fn word(self) -> &'static str {
        match self {
            LinkDrop::Cut => "cut",
            LinkDrop::TooBig => "too-big",
            LinkDrop::QueueFull => "queue-full",
            LinkDrop::Lost => "lost",
        }
    }
}

/// Whose link it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Host(Key),
    /// The NAT or router in front of this network.
    Gateway(Key),
}

pub(crate) struct Link {
    pub(crate) owner: Owner,
    pub(crate) network: Key,
    pipes: [Pipe; 2],
}

impl Link {
    pub(crate) fn new(owner: Owner, network: Key, conditions: LinkConditions) -> Link {
        let pipes = [Pipe::new(conditions.up), Pipe::new(conditions.down)];
        Link { owner, network, pipes }
    }

    pub(crate) fn pipe(&self, direction: Direction) -> &Pipe {
        &self.pipes[direction as usize]
    }

    pub(crate) fn pipe_mut(&mut self, direction: Direction) -> &mut Pipe {
        &mut self.pipes[direction as usize]
    }
}

/// One direction of a link.
pub(crate) struct Pipe {
    pub(crate) conditions: Conditions,
    pub(crate) is_cut: bool,
    pub(crate) counters: LinkCounters,
    /// When the last packet accepted so far has been sent at the link's rate.
    busy_until: Time,
    /// When the last packet in order arrives.
    last_arrival: Time,
}

/// What becomes of a packet: when it arrives, and when its double does.
pub(crate) type Fate = Result<(Time, Option<Time>), LinkDrop>;

impl Pipe {
    fn new(conditions: Conditions) -> Pipe {
        Pipe {
            conditions,
            is_cut: false,
            counters: LinkCounters::default(),
            busy_until: Time::ZERO,
            last_arrival: Time::ZERO,
        }
    }

    /// Takes a packet of `len` bytes at `now` and decides on it.
    pub(crate) fn carry(&mut self, len: usize, now: Time, rng: &mut ChaCha8Rng) -> Fate {
        self.counters.sent += 1;
        self.counters.sent_bytes += len as u64;
        if self.is_cut {
            self.counters.blackholed += 1;
            return Err(LinkDrop::Cut);
        }
        if len > self.conditions.mtu.into() {
            self.counters.dropped_mtu += 1;
            return Err(LinkDrop::TooBig);
        }
        let departure = self.depart(len, now)?;
        if happens(self.conditions.loss, rng) {
            self.counters.lost += 1;
            return Err(LinkDrop::Lost);
        }
        let first = self.arrive(departure, rng);
        if !happens(self.conditions.duplicate, rng) {
            return Ok((first, None));
        }
        self.counters.duplicated += 1;
        Ok((first, Some(self.arrive(departure, rng))))
    }

    /// When the last bit of a packet has left.
    fn depart(&mut self, len: usize, now: Time) -> Result<Time, LinkDrop> {
        let Some(rate) = self.conditions.rate else { return Ok(now) };
        let waiting = self.backlog(now);
        // The packet that is being sent waits no more: a queue shorter than a packet still lets one through at a time.
        if waiting > 0 && waiting + len as u64 > self.conditions.queue.into() {
            self.counters.dropped_rate += 1;
            return Err(LinkDrop::QueueFull);
        }
        self.counters.queued += u64::from(waiting > 0);
        self.busy_until = self.busy_until.max(now) + sending_time(len as u64, rate);
        Ok(self.busy_until)
    }

    fn arrive(&mut self, departure: Time, rng: &mut ChaCha8Rng) -> Time {
        let Conditions { delay, jitter, reorder, reorder_by, .. } = self.conditions;
        let mut arrival = departure + delay;
        if !jitter.is_zero() {
            let span = u64::try_from(jitter.as_nanos()).unwrap_or(u64::MAX);
            let part = (u128::from(rng.next_u64()) * u128::from(span)) >> 64;
            arrival = arrival + Duration::from_nanos(part as u64);
        }
        if happens(reorder, rng) {
            self.counters.reordered += 1;
            return arrival + reorder_by;
        }
        self.last_arrival = self.last_arrival.max(arrival);
        self.last_arrival
    }

    /// Bytes that wait for the rate, the packet being sent included.
    pub(crate) fn backlog(&self, now: Time) -> u64 {
        let Some(rate) = self.conditions.rate else { return 0 };
        let bits = (self.busy_until - now).as_nanos() * u128::from(rate) / NANOS;
        u64::try_from(bits.div_ceil(8)).unwrap_or(u64::MAX)
    }

    /// Works under other conditions from now on. What waits is sent at the new rate; what is on the wire arrives as it
    /// would have.
    pub(crate) fn set_conditions(&mut self, conditions: Conditions, now: Time) {
        let waiting = self.backlog(now);
        self.conditions = conditions;
        let rest = conditions.rate.map_or(Duration::ZERO, |rate| sending_time(waiting, rate));
        self.busy_until = now + rest;
        // A shorter delay may let new packets overtake old ones, as on a real route that changes.
        self.last_arrival = Time::ZERO;
    }
}

fn sending_time(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 8 * NANOS / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Draws only where there is something to decide, so that a perfect link costs no randomness.
pub(crate) fn happens(probability: f64, rng: &mut ChaCha8Rng) -> bool {
    probability > 0.0 && f64::from(rng.next_u32()) < probability * 4_294_967_296.0
}

#[cfg(test)]
mod tests {
    use rand_core::SeedableRng;

    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_nanos(millis * 1_000_000)
    }

    fn pipe(change: impl FnOnce(&mut Conditions)) -> (Pipe, ChaCha8Rng) {
        let mut conditions = Conditions::PERFECT;
        change(&mut conditions);
        (Pipe::new(conditions), ChaCha8Rng::seed_from_u64(1))
    }

    #[test]
    fn a_rate_spaces_packets_and_a_full_queue_drops_them() {
        // 1,000 bytes take a millisecond.
        let (mut pipe, mut rng) = pipe(|c| (c.rate, c.queue) = (Some(8_000_000), 3_000));
        let fates: Vec<Fate> = (0..5).map(|_| pipe.carry(1000, at(10), &mut rng)).collect();
        let arrives = |millis| Ok((at(millis), None));
        assert_eq!(
            fates,
            [arrives(11), arrives(12), arrives(13), Err(LinkDrop::QueueFull), Err(LinkDrop::QueueFull)]
        );
        assert_eq!((pipe.backlog(at(10)), pipe.backlog(at(12)), pipe.backlog(at(13))), (3000, 1000, 0));
        assert_eq!(pipe.carry(1000, at(12), &mut rng), arrives(14));
        assert_eq!((pipe.counters.queued, pipe.counters.dropped_rate), (3, 2));
    }

    #[test]
    fn a_new_rate_holds_for_what_waits() {
        let (mut pipe, mut rng) = pipe(|c| c.rate = Some(8_000_000));
        for _ in 0..4 {
            pipe.carry(1000, at(0), &mut rng).unwrap();
        }
        pipe.set_conditions(Conditions { rate: Some(4_000_000), ..pipe.conditions }, at(2));
        assert_eq!(pipe.backlog(at(2)), 2000);
        assert_eq!(pipe.carry(1000, at(2), &mut rng), Ok((at(8), None)));
    }

    #[test]
    fn a_queue_shorter_than_a_packet_passes_one_at_a_time() {
        let (mut pipe, mut rng) = pipe(|c| (c.rate, c.queue) = (Some(8_000_000), 10));
        assert_eq!(pipe.carry(1000, at(0), &mut rng), Ok((at(1), None)));
        assert_eq!(pipe.carry(1000, at(0), &mut rng), Err(LinkDrop::QueueFull));
        assert_eq!(pipe.carry(1000, at(1), &mut rng), Ok((at(2), None)));
    }

    #[test]
    fn jitter_keeps_the_order() {
        let (mut pipe, mut rng) =
            pipe(|c| (c.delay, c.jitter) = (Duration::from_millis(10), Duration::from_millis(50)));
        let mut last = Time::ZERO;
        for i in 0..1000 {
            let (arrival, _) = pipe.carry(100, at(i), &mut rng).unwrap();
            assert!(arrival >= last && arrival >= at(i + 10) && arrival <= at(i + 60));
            last = arrival;
        }
    }

    #[test]
    fn cut_and_mtu_swallow() {
        let (mut pipe, mut rng) = pipe(|c| c.mtu = 100);
        assert_eq!(pipe.carry(101, at(0), &mut rng), Err(LinkDrop::TooBig));
        pipe.is_cut = true;
        assert_eq!(pipe.carry(100, at(0), &mut rng), Err(LinkDrop::Cut));
        pipe.is_cut = false;
        assert_eq!(pipe.carry(100, at(0), &mut rng), Ok((at(0), None)));
        assert_eq!(pipe.counters.carried(), 1);
    }
}
