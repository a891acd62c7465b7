//! Answers to addresses that have proved nothing: few and small.
//!
//! A source address can be forged, so whatever is sent back may hit somebody who never asked. Two rules bound the harm:
//! an answer is at most a given multiple of what came in, and each network (/24, /56) gets only so many answers in a
//! time, by address and not by address and port. The buckets of the networks lie in a table of fixed size, two for each
//! network by a keyed hash: a flood from made-up addresses cannot make it grow.

use std::net::SocketAddr;

use super::slots::Keyed;
use crate::{
    Time,
    address::Prefix,
    rate::{Bucket, Meter, Rate},
};

/// A power of two; two million buckets would be no better than these against the address space of IPv6.
const BUCKETS: usize = 1 << 15;

/// Own frames: never more bytes than came in.
pub(super) const OWN: usize = 1;
/// STUN: RFC 8489's answers are longer than its requests; three times as with QUIC (RFC 9000 §8.1).
pub(super) const STUN: usize = 3;

pub(super) struct Unproven {
    buckets: Box<[Bucket]>,
    total: Bucket,
    per_network: Meter,
    overall: Meter,
    hash: Keyed,
}

impl Unproven {
    pub(super) fn new(per_network: Rate, overall: Rate, hash: Keyed) -> Unproven {
        Unproven {
            buckets: vec![Bucket::default(); BUCKETS].into(),
            total: Bucket::default(),
            per_network: Meter::new(Some(per_network)),
            overall: Meter::new(Some(overall)),
            hash,
        }
    }

    /// Whether `answer` bytes may go to `to`, in return for `received` bytes, `factor` for one at the most.
    pub(super) fn allows(
        &mut self,
        to: SocketAddr,
        received: usize,
        answer: usize,
        factor: usize,
        now: Time,
    ) -> bool {
        if answer > factor * received {
            return false;
        }
        let hash = self.hash.number(Prefix::of(to.ip()).to_bits()) as usize;
        let (first, second) = (hash % BUCKETS, hash / BUCKETS % BUCKETS);
        // The fuller one is nearer the truth: it has been charged for fewer other networks.
        let fuller = self.buckets[first].fuller(self.buckets[second]);
        let Some(after) = self.per_network.take(fuller, 1, now) else { return false };
        if !self.total.take(&self.overall, 1, now) {
            return false;
        }
        for at in [first, second] {
            self.buckets[at] = self.buckets[at].emptier(after);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unproven(per_network: u64, overall: u64) -> Unproven {
        let rate = |n| Rate { per_second: 1, burst: n };
        Unproven::new(rate(per_network), rate(overall), Keyed::new(1, 2))
    }

    #[test]
    fn a_network_is_limited_whatever_the_port_and_host() {
        let mut unproven = unproven(5, 1_000);
        let allowed = (0..100u16)
            .filter(|n| {
                let to = SocketAddr::from(([192, 0, 2, *n as u8], 1000 + n));
                unproven.allows(to, 100, 100, OWN, Time::ZERO)
            })
            .count();
        assert_eq!(allowed, 5);
        assert!(
            unproven.allows("198.51.100.1:1".parse().unwrap(), 100, 100, OWN, Time::ZERO),
            "another network"
        );
    }

    #[test]
    fn everybody_together_is_limited() {
        let mut unproven = unproven(5, 20);
        let allowed = (0..1000u32)
            .filter(|n| {
                unproven.allows(SocketAddr::from(((n << 8).to_be_bytes(), 9)), 10, 10, OWN, Time::ZERO)
            })
            .count();
        assert_eq!(allowed, 20);
    }

    #[test]
    fn never_more_than_the_factor() {
        let mut unproven = unproven(5, 20);
        let to = "192.0.2.1:1".parse().unwrap();
        assert!(!unproven.allows(to, 10, 11, OWN, Time::ZERO));
        assert!(unproven.allows(to, 10, 30, STUN, Time::ZERO));
        assert!(!unproven.allows(to, 10, 31, STUN, Time::ZERO));
    }
}
