//! What all peers of an agent have in common.

use std::{collections::BTreeMap, collections::VecDeque, net::SocketAddr};

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

use super::{Config, Counters, Event, PeerKey, local::Local, pair::PairKey};
use crate::{
    SocketId, Time, Transmit,
    path::SocketRequest,
    rate::{Bucket, Meter},
    wire::{peer::PeerMessage, stun::TransactionId},
};

/// Outputs of each kind that may wait. They are drained after every input, and one input makes a few for each peer; only
/// a caller that does not drain gets here.
const MOST_OUTPUTS: usize = 1 << 16;

/// Who may say that packets from an address are its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) peer: PeerKey,
    /// It answers what is sent there. Without: only what came from there was its own, and a source can be forged.
    pub(super) is_proved: bool,
}

#[derive(Default)]
pub(super) struct Outputs {
    pub(super) transmits: VecDeque<Transmit>,
    pub(super) messages: VecDeque<(PeerKey, PeerMessage)>,
    pub(super) sockets: VecDeque<SocketRequest>,
    pub(super) events: VecDeque<Event>,
    pub(super) routes: VecDeque<PeerKey>,
}

pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) rng: ChaCha20Rng,
    pub(super) local: Local,
    pub(super) out: Outputs,
    pub(super) counters: Counters,
    /// Checks that may still be answered: the last few of each pair.
    pub(super) asked: BTreeMap<TransactionId, (PeerKey, PairKey)>,
    /// A few addresses of each peer.
    pub(super) owners: BTreeMap<(SocketId, SocketAddr), Owner>,
    /// How often an address has got another owner, or none.
    pub(super) owners_generation: u64,
    budget: (Meter, Bucket),
    /// Peers that wait for the budget, each once: first come, first served.
    pub(super) waiting: VecDeque<PeerKey>,
}

impl Shared {
    pub(super) fn new(config: Config, seed: [u8; 32]) -> Shared {
        Shared {
            rng: ChaCha20Rng::from_seed(seed),
            local: Local::default(),
            out: Outputs::default(),
            counters: Counters::default(),
            asked: BTreeMap::new(),
            owners: BTreeMap::new(),
            owners_generation: 0,
            budget: (Meter::new(Some(config.probes)), Bucket::default()),
            waiting: VecDeque::new(),
            config,
        }
    }

    /// Takes one probe out of the budget, if it holds one.
    pub(super) fn take_probe(&mut self, now: Time) -> bool {
        let (meter, bucket) = &mut self.budget;
        bucket.take(meter, 1, now)
    }

    pub(super) fn transmit(&mut self, socket: SocketId, to: SocketAddr, bytes: Vec<u8>) {
        push(&mut self.out.transmits, Transmit { socket, to, bytes, hops: None }, &mut self.counters);
    }

    /// Sends what only the nearest routers may see.
    pub(super) fn transmit_near(&mut self, socket: SocketId, to: SocketAddr, bytes: Vec<u8>, hops: u8) {
        push(&mut self.out.transmits, Transmit { socket, to, bytes, hops: Some(hops) }, &mut self.counters);
    }

    pub(super) fn message(&mut self, peer: PeerKey, message: PeerMessage) {
        push(&mut self.out.messages, (peer, message), &mut self.counters);
    }

    pub(super) fn request(&mut self, request: SocketRequest) {
        push(&mut self.out.sockets, request, &mut self.counters);
    }

    pub(super) fn event(&mut self, event: Event) {
        push(&mut self.out.events, event, &mut self.counters);
    }

    pub(super) fn rerouted(&mut self, peer: PeerKey) {
        push(&mut self.out.routes, peer, &mut self.counters);
    }

    /// `span` more or less by up to a quarter, so that nodes do not fall into step.
    pub(super) fn jittered(&mut self, span: std::time::Duration) -> std::time::Duration {
        span.mul_f64(0.75 + f64::from(self.rng.next_u32()) / f64::from(u32::MAX) / 2.0)
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T, counters: &mut Counters) {
    if queue.len() < MOST_OUTPUTS {
        queue.push_back(item);
    } else {
        counters.outputs_lost += 1;
    }
}
