//! What a carrier sets besides (RFC 6888): how much a subscriber may have, and what who finds no room is told.

use std::fmt;

use crate::{
    Side,
    value::{Value, words},
};

words! {
    /// What a host is told when there is no room for its new flow, or it has had its share.
    Exhaustion {
        /// ICMP code 13, communication administratively prohibited (RFC 5508 REQ-8).
        Prohibited = "prohibited",
        /// ICMP code 1, host unreachable (RFC 6888 REQ-11b).
        HostUnreachable = "host-unreachable",
        /// Nothing.
        Drop = "drop",
    }
}

words! {
    /// Towards which sides the NAT sends ICMP errors of its own (RFC 5508 REQ-9); those of others pass all the same.
    IcmpErrors {
        /// Towards all.
        Both = "both",
        /// Towards its hosts.
        Inside = "inside",
        /// Towards the public network.
        Outside = "outside",
        /// Towards none: what cannot go on is dropped in silence.
        Off = "off",
    }
}

impl IcmpErrors {
    pub(crate) fn go(self, to: Side) -> bool {
        match self {
            IcmpErrors::Both => true,
            IcmpErrors::Inside => to != Side::Outside,
            IcmpErrors::Outside => to == Side::Outside,
            IcmpErrors::Off => false,
        }
    }
}

/// What TCP does otherwise than the other protocols, if it does: written `same` or as the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForTcp<T> {
    /// As they do.
    Same,
    /// This.
    Own(T),
}

impl<T> ForTcp<T> {
    /// What TCP does where the others do `common`.
    #[inline]
    pub fn or(self, common: T) -> T {
        match self {
            ForTcp::Same => common,
            ForTcp::Own(own) => own,
        }
    }
}

impl<T: Value> Value for ForTcp<T> {
    fn read(text: &str) -> Option<Self> {
        if text == "same" { Some(ForTcp::Same) } else { T::read(text).map(ForTcp::Own) }
    }
    fn write(&self) -> String {
        match self {
            ForTcp::Same => "same".to_owned(),
            ForTcp::Own(own) => own.write(),
        }
    }
}

/// How often something may be begun: so many a second, and at most so many at once after a pause. Written
/// `RATE/BURST`; `RATE` alone allows the share of one second at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    per_second: u32,
    burst: u32,
}

impl Rate {
    /// The most a second, and the most at once.
    pub const MOST: u32 = 1_000_000;

    /// `per_second` in the long run and `burst` at once, both from 1 to [`Rate::MOST`]; `None` beyond.
    pub const fn new(per_second: u32, burst: u32) -> Option<Rate> {
        let is_good = per_second > 0 && per_second <= Rate::MOST && burst > 0 && burst <= Rate::MOST;
        if is_good { Some(Rate { per_second, burst }) } else { None }
    }

    /// What one costs, in nanoseconds.
    pub(crate) const fn cost(self) -> u64 {
        1_000_000_000 / self.per_second as u64
    }

    /// What may be spent in advance, in nanoseconds.
    pub(crate) const fn credit(self) -> u64 {
        self.cost() * (self.burst as u64 - 1)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.per_second, self.burst)
    }
}

impl Value for Rate {
    fn read(text: &str) -> Option<Self> {
        let (rate, burst) = text.split_once('/').unwrap_or((text, text));
        Rate::new(rate.trim().parse().ok()?, burst.trim().parse().ok()?)
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_read_and_write() {
        for (text, written) in [("50", "50/50"), ("50/200", "50/200"), ("1/1000000", "1/1000000")] {
            assert_eq!(Rate::read(text).map(|rate| rate.write()).as_deref(), Some(written));
        }
        for bad in ["", "0", "5/0", "0/5", "-1", "5/", "/5", "1000001", "5/1000001", "5/5/5"] {
            assert_eq!(Rate::read(bad), None, "{bad}");
        }
    }
}
