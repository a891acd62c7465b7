//! Taps: what passes at some places of the net, for tests that look for something in it and for people who look for a
//! reason.

use std::{collections::VecDeque, fmt};

use natbox_core::{DropReason, Time};

use crate::{Direction, HostId, LinkDrop, LinkId, NatId, packet};

/// Where a tap listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tap {
    /// Everywhere: every packet that is sent, enters a link, is dropped or delivered.
    Everything,
    /// What a host sends and what reaches it.
    Host(HostId),
    /// What enters a link, and what the link drops.
    Link(LinkId),
}

/// What happened to a packet, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A host sent it.
    Sent(HostId),
    /// It reached a host.
    Delivered(HostId),
    /// It entered a link and arrives.
    Carried(LinkId, Direction),
    /// It entered a link and does not arrive.
    Dropped(LinkId, Direction, LinkDrop),
    /// A NAT did not forward it.
    Refused(NatId, DropReason),
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arrow = |direction: &Direction| if *direction == Direction::Up { "up" } else { "down" };
        match self {
            Point::Sent(host) => write!(f, "{host} sends"),
            Point::Delivered(host) => write!(f, "{host} gets"),
            Point::Carried(link, direction) => write!(f, "{link} {}", arrow(direction)),
            Point::Dropped(link, direction, why) => {
                write!(f, "{link} {} drops ({})", arrow(direction), why.word())
            }
            Point::Refused(nat, why) => write!(f, "{nat} drops ({why})"),
        }
    }
}

/// A packet that a tap saw. Its `Display` is one line: time, place, flow, size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured<'a> {
    /// When.
    pub time: Time,
    /// Where, and what became of it there.
    pub at: Point,
    /// The whole IP packet as it was there.
    pub packet: &'a [u8],
}

impl fmt::Display for Captured<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        packet::write_time(self.time, f)?;
        write!(f, " {}: ", self.at)?;
        packet::describe(self.packet, f)
    }
}

/// Which tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapId(pub(crate) usize);

struct Record {
    time: Time,
    at: Point,
    packet: Vec<u8>,
}

/// A tap with what it has seen last.
pub(crate) struct Capture {
    tap: Tap,
    capacity: usize,
    records: VecDeque<Record>,
    pub(crate) forgotten: u64,
}

impl Capture {
    pub(crate) fn new(tap: Tap, capacity: usize) -> Capture {
        Capture { tap, capacity: capacity.max(1), records: VecDeque::new(), forgotten: 0 }
    }

    pub(crate) fn see(&mut self, time: Time, at: Point, packet: &[u8]) {
        let concerns = match (self.tap, at) {
            (Tap::Everything, _) => true,
            (Tap::Host(host), Point::Sent(h) | Point::Delivered(h)) => host == h,
            (Tap::Link(link), Point::Carried(l, _) | Point::Dropped(l, _, _)) => link == l,
            _ => false,
        };
        if !concerns {
            return;
        }
        // The oldest makes room for the newest, and lends it its buffer.
        let mut buffer = Vec::new();
        if self.records.len() >= self.capacity
            && let Some(oldest) = self.records.pop_front()
        {
            self.forgotten += 1;
            buffer = oldest.packet;
            buffer.clear();
        }
        buffer.extend_from_slice(packet);
        self.records.push_back(Record { time, at, packet: buffer });
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Captured<'_>> {
        self.records.iter().map(|record| Captured {
            time: record.time,
            at: record.at,
            packet: &record.packet,
        })
    }
}
