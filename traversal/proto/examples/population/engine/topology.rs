//! Two peers of a population with what is around them, and the net that this makes.

use std::{net::Ipv4Addr, time::Duration};

use natbox_sim::{Attachment, BuildError, Conditions, NatConfig, Net, NetworkId};
use rand_chacha::ChaCha8Rng;
use rand_core::Rng;

use super::mix::{Mix, millis, unit};

/// Networks at home as vendors number them: two homes have the same one often enough.
const LANS: [Ipv4Addr; 5] = [
    Ipv4Addr::new(192, 168, 1, 1),
    Ipv4Addr::new(192, 168, 0, 1),
    Ipv4Addr::new(192, 168, 178, 1),
    Ipv4Addr::new(10, 0, 0, 1),
    Ipv4Addr::new(192, 168, 1, 254),
];

/// What two peers have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Relation {
    /// The internet.
    Apart,
    /// The innermost NAT: they are in one home.
    SameNat,
    /// The outermost of several NATs: they are customers of one carrier.
    SameCarrier,
}

/// One of the peers.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    /// Its index in the mix.
    pub kind: usize,
    /// The link of its outermost NAT, or of a public host.
    pub access: Conditions,
    /// Its own link to the NAT in front of it.
    lan_link: Conditions,
    lan: Ipv4Addr,
    host: u8,
}

/// Two peers, the caller first.
#[derive(Clone, Debug)]
pub struct Pair {
    pub sides: [Side; 2],
    pub relation: Relation,
    pub supernode: Conditions,
    /// The caller's program has just started.
    pub is_fresh: bool,
}

impl Pair {
    pub fn draw(mix: &Mix, rng: &mut ChaCha8Rng) -> Pair {
        let mut sides = [0, 1].map(|side| Side::draw(mix, side, rng));
        let (at, nats) = (unit(rng), mix.kinds[sides[0].kind].nats.len());
        let relation = match at {
            _ if at < mix.same_nat && nats > 0 => Relation::SameNat,
            _ if at >= mix.same_nat && at < mix.same_nat + mix.same_carrier && nats > 1 => {
                Relation::SameCarrier
            }
            _ => Relation::Apart,
        };
        if relation != Relation::Apart {
            (sides[1].kind, sides[1].access) = (sides[0].kind, sides[0].access);
        }
        let supernode = Conditions::delayed(millis(mix.supernode_delay.draw(rng)));
        Pair { sides, relation, supernode, is_fresh: unit(rng) < mix.fresh }
    }

    /// Two peers of these kinds on short links without loss.
    pub fn ideal(kinds: [usize; 2], relation: Relation) -> Pair {
        let access = Conditions::delayed(millis(10.0));
        let side = |at: usize| Side {
            kind: kinds[at],
            access,
            lan_link: Conditions::PERFECT,
            lan: LANS[at],
            host: 20 + at as u8,
        };
        Pair { sides: [side(0), side(1)], relation, supernode: Conditions::PERFECT, is_fresh: false }
    }

    /// A round trip from peer to peer over the supernode, without jitter.
    pub fn relay_rtt(&self) -> Duration {
        let ways =
            self.sides.iter().map(|side| side.access.delay + side.lan_link.delay + self.supernode.delay);
        2 * ways.sum::<Duration>()
    }

    /// Adds the NATs, and says where each peer attaches.
    pub fn build(&self, mix: &Mix, net: &mut Net) -> Result<[(NetworkId, Attachment); 2], BuildError> {
        let [first, second] = &self.sides;
        let networks = first.add_nats(mix, net, NetworkId::INTERNET, 0)?;
        let inner = networks.last().copied().unwrap_or(NetworkId::INTERNET);
        let other = match self.relation {
            Relation::Apart => second.add_nats(mix, net, NetworkId::INTERNET, 0)?.last().copied(),
            Relation::SameNat => Some(inner),
            Relation::SameCarrier => second.add_nats(mix, net, networks[0], 1)?.last().copied(),
        };
        // Whoever shares a network must have another address there.
        let shares = self.relation == Relation::SameNat && first.host == second.host;
        let hosts = [first.host, if shares { second.host - 1 } else { second.host }];
        let lans = [first.lan, if self.relation == Relation::SameNat { first.lan } else { second.lan }];
        let attach = |at: usize, network| (network, self.sides[at].attachment(mix, lans[at], hosts[at]));
        Ok([attach(0, inner), attach(1, other.unwrap_or(NetworkId::INTERNET))])
    }
}

impl Side {
    fn draw(mix: &Mix, side: u8, rng: &mut ChaCha8Rng) -> Side {
        let kind = mix.draw(rng);
        let access = mix.kinds[kind].access.draw(rng);
        let wireless = Conditions { jitter: millis(1.0), ..Conditions::delayed(millis(3.0 * unit(rng))) };
        Side {
            kind,
            access,
            lan_link: if mix.kinds[kind].nats.is_empty() { Conditions::PERFECT } else { wireless },
            lan: LANS[rng.next_u32() as usize % LANS.len()],
            // Odd for one and even for the other where it matters not: what collides is told apart in `build`.
            host: 20 + side + (rng.next_u32() % 100) as u8,
        }
    }

    /// The NATs of this side behind `at`, but for the `skipped` outermost ones: the networks, outermost first.
    fn add_nats(
        &self,
        mix: &Mix,
        net: &mut Net,
        at: NetworkId,
        skipped: usize,
    ) -> Result<Vec<NetworkId>, BuildError> {
        let nats = &mix.kinds[self.kind].nats;
        let (mut at, mut networks) = (at, Vec::new());
        for (depth, behavior) in nats.iter().rev().enumerate().skip(skipped) {
            let is_inner = depth + 1 == nats.len();
            let mut config = match depth {
                _ if is_inner => NatConfig { gateway: self.lan, ..NatConfig::new(behavior.clone()) },
                0 => NatConfig::carrier(behavior.clone()),
                _ => NatConfig {
                    gateway: Ipv4Addr::new(192, 168, 200 + depth as u8, 1),
                    ..NatConfig::new(behavior.clone())
                },
            };
            config.link = if depth == 0 { self.access } else { Conditions::PERFECT }.into();
            at = net.add_nat(at, config)?.into();
            networks.push(at);
        }
        Ok(networks)
    }

    fn attachment(&self, mix: &Mix, lan: Ipv4Addr, host: u8) -> Attachment {
        if mix.kinds[self.kind].nats.is_empty() {
            return self.access.into();
        }
        let [a, b, c, _] = lan.octets();
        Attachment { address: Some(Ipv4Addr::new(a, b, c, host)), link: self.lan_link.into() }
    }
}
