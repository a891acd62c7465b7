//! What a link does to packets.

use std::time::Duration;

use crate::ConditionsError;

/// The conditions in one direction of a link. [`Conditions::default`] is a perfect link with an MTU of 1,500 bytes.
///
/// A packet first waits for its turn (`rate`, `queue`), then may be lost on the wire, and arrives after `delay` plus a
/// random part of `jitter`. Jitter alone never reorders: a packet does not overtake the one before it. Only a packet
/// that `reorder` picks is held back, by `reorder_by`, while others pass it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// Time on the wire.
    pub delay: Duration,
    /// Up to this much more, uniformly at random.
    pub jitter: Duration,
    /// Probability that a packet is lost, 0 to 1, each on its own.
    pub loss: f64,
    /// Probability that a packet arrives twice, 0 to 1.
    pub duplicate: f64,
    /// Probability that a packet is held back, 0 to 1.
    pub reorder: f64,
    /// How long a packet that `reorder` picks is held back.
    pub reorder_by: Duration,
    /// Bits of IP packets a second; `None` for no limit.
    pub rate: Option<u64>,
    /// Bytes that may wait for the rate; what would go beyond is dropped.
    pub queue: u32,
    /// Largest IP packet in bytes; 68 to 65,535.
    pub mtu: u16,
}

impl Conditions {
    /// A link without delay, loss or limit.
    pub const PERFECT: Conditions = Conditions {
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        loss: 0.0,
        duplicate: 0.0,
        reorder: 0.0,
        reorder_by: Duration::from_millis(10),
        rate: None,
        queue: 256 * 1024,
        mtu: 1500,
    };

    /// A perfect link but for its delay.
    pub const fn delayed(delay: Duration) -> Conditions {
        Conditions { delay, ..Conditions::PERFECT }
    }

    pub(crate) fn check(&self) -> Result<(), ConditionsError> {
        for (what, value) in [("loss", self.loss), ("duplicate", self.duplicate), ("reorder", self.reorder)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(ConditionsError::NotAProbability { what, value });
            }
        }
        if self.rate == Some(0) {
            return Err(ConditionsError::NoRate);
        }
        if self.mtu < 68 {
            return Err(ConditionsError::MtuTooSmall(self.mtu));
        }
        Ok(())
    }
}

impl Default for Conditions {
    fn default() -> Conditions {
        Conditions::PERFECT
    }
}

/// The conditions of a link in both directions; from one [`Conditions`] for both alike.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LinkConditions {
    /// From the host, NAT or router to its network.
    pub up: Conditions,
    /// From the network to the host, NAT or router.
    pub down: Conditions,
}

impl LinkConditions {
    pub(crate) fn check(&self) -> Result<(), ConditionsError> {
        self.up.check()?;
        self.down.check()
    }
}

impl From<Conditions> for LinkConditions {
    fn from(both: Conditions) -> LinkConditions {
        LinkConditions { up: both, down: both }
    }
}

/// A direction of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From the host, NAT or router to its network.
    Up,
    /// From the network to the host, NAT or router.
    Down,
}

impl Direction {
    /// Both directions.
    pub const BOTH: [Direction; 2] = [Direction::Up, Direction::Down];
}
