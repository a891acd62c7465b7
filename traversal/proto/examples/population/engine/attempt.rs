//! One attempt, from its seed.

use std::{net::SocketAddr, time::Duration};

use natbox_sim::{Attachment, BuildError, HostId, NetworkId};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use traversal_proto::{
    Time,
    path::strategy::{Expectation, expect},
    peer::{Config, Event},
};

use super::{
    ideal::Expected,
    mix::{Kind, Mix},
    peer_world::World,
    tally::Surprise,
    topology::{Pair, Relation},
};

/// What the caller says when it does not know what stands against a direct path.
const NOTHING_KNOWN: &str = "nothing is known against a direct path";
const CALLER: usize = 0;
const CALLEE: usize = 1;
/// The callee, and a caller that has not just started, have been up for so long and know their NATs.
const UP: Duration = Duration::from_secs(4);
/// A connection that does not stand by then never will.
const CONNECT: Duration = Duration::from_secs(30);
/// How long a direct path is waited for where there should be one.
const PATIENCE: Duration = Duration::from_secs(60);
/// Packets of all hosts: a few hundred are what it takes, and what takes more is a storm.
const MOST_PACKETS: u64 = 5_000;
/// Where UDP is blocked, the relay is reached by TLS on this port. Here that is datagrams too, which firewalls of the mix
/// let through to this port; their loss is made good as TCP would.
const TLS_PORT: u16 = 443;

/// How the peers reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// Each sends to the other without the relay.
    Direct,
    /// By the relay.
    Relay,
    /// Not at all.
    NotConnected,
}

/// What came of one attempt.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub seed: u64,
    pub kinds: [usize; 2],
    pub relation: Relation,
    pub outcome: Outcome,
    /// Whether a direct path is possible.
    pub is_direct_expected: bool,
    /// One round trip over the relay, without jitter.
    pub rtt: Duration,
    /// From the call until the caller can send.
    pub usable: Option<Duration>,
    /// From the call until both send directly.
    pub direct: Option<Duration>,
    /// Checks sent to addresses that had proved nothing, by both.
    pub probes: u64,
    /// Rounds of checks that found nothing before a path was found, on the side that took more.
    pub failed_rounds: u32,
    /// Why there is no direct path, in the words of the caller, which has given up for now.
    pub reason: Option<&'static str>,
    /// Packets that all hosts have sent.
    pub packets: u64,
}

impl Attempt {
    /// A time in round trips.
    pub fn trips(&self, time: Duration) -> f64 {
        time.as_secs_f64() / self.rtt.as_secs_f64()
    }

    /// What should not have come of it.
    pub fn surprise(&self) -> Option<Surprise> {
        if self.packets > MOST_PACKETS {
            return Some(Surprise::Storm);
        }
        if self.reason == Some(NOTHING_KNOWN) {
            return Some(Surprise::Misjudged);
        }
        match (self.outcome, self.is_direct_expected) {
            (Outcome::NotConnected, _) => Some(Surprise::NotConnected),
            (Outcome::Relay, true) => Some(Surprise::StayedRelayed),
            (Outcome::Direct, false) => Some(Surprise::DirectAgainstOdds),
            (Outcome::Direct, true) | (Outcome::Relay, false) => None,
        }
    }
}

/// Runs the attempt of this seed.
///
/// # Panics
///
/// When the world cannot be built, which is a mistake in the mix, or an agent panics.
pub fn run(mix: &Mix, expected: &Expected, seed: u64) -> Attempt {
    let (stage, attempt) = Stage::play(mix, expected, seed).expect("a mix that was checked can be built");
    drop(stage);
    attempt
}

/// Runs the attempt of this seed, and tells its story.
pub fn replay(mix: &Mix, expected: &Expected, seed: u64) -> Result<(Attempt, String), BuildError> {
    let (stage, attempt) = Stage::play(mix, expected, seed)?;
    let mut story = format!("seed {seed}\n");
    for (name, side) in ["caller", "callee"].into_iter().zip(&stage.pair.sides) {
        let (kind, link) = (&mix.kinds[side.kind], &side.access);
        story += &format!(
            "{name}: {}; link {:?} + {:?}, loss {:.2} %\n",
            kind.name,
            link.delay,
            link.jitter,
            100.0 * link.loss
        );
        for nat in &kind.nats {
            story += &format!(
                "  behind mapping {:?}, filtering {:?}, ports {:?}, hairpin {:?}\n",
                nat.mapping, nat.filtering, nat.ports, nat.hairpin
            );
        }
    }
    story += &format!(
        "{:?}, supernode at {:?}, caller has {}; called at {}\n",
        stage.pair.relation,
        stage.pair.supernode.delay,
        if stage.pair.is_fresh { "just started" } else { "been up for a while" },
        stage.called,
    );
    Ok((attempt, story + &stage.world.story()))
}

/// A world with a pair in it.
struct Stage {
    world: World,
    pair: Pair,
    called: Time,
}

impl Stage {
    fn play(mix: &Mix, expected: &Expected, seed: u64) -> Result<(Stage, Attempt), BuildError> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let pair = Pair::draw(mix, &mut rng);
        let mut world = World::new(rng.next_u64(), pair.supernode);
        let places = pair.build(mix, &mut world.sim.net)?;
        let begin = |world: &mut World, side: usize| {
            let (at, attachment) = places[side];
            start(world, &mix.kinds[pair.sides[side].kind], side, at, attachment)
        };
        // The order matters to nobody but the seed: the callee is always up.
        let callee = begin(&mut world, CALLEE);
        let early = (!pair.is_fresh).then(|| begin(&mut world, CALLER));
        world.sim.run_for(UP);
        let caller = early.unwrap_or_else(|| begin(&mut world, CALLER));
        world.peers = vec![caller, callee];
        let kinds = pair.sides.map(|side| side.kind);
        let is_direct_expected = expected.is_direct(kinds, pair.relation);
        let mut stage = Stage { called: world.now(), world, pair };
        let blocks_udp = kinds.iter().any(|kind| mix.kinds[*kind].blocks_udp());
        let attempt = stage.call(seed, is_direct_expected, blocks_udp);
        Ok((stage, attempt))
    }

    fn call(&mut self, seed: u64, is_direct_expected: bool, blocks_udp: bool) -> Attempt {
        let world = &mut self.world;
        let deadline = world.sim.now() + CONNECT;
        world.run_until_both(deadline, MOST_PACKETS, |peer, _| peer.calls.is_registered);
        self.called = world.now();
        world.with(CALLER, |peer, now| peer.call(CALLEE, now));
        let deadline = world.sim.now() + CONNECT;
        let is_connected =
            world.run_until_both(deadline, MOST_PACKETS, |peer, other| peer.calls.stands(other).is_some());
        let (mut outcome, mut direct) = (Outcome::NotConnected, None);
        if is_connected {
            let deadline = world.sim.now() + PATIENCE;
            // Where nothing is to be found, one round says so; where something is, rounds go on until it is found.
            world.run_until_both(deadline, MOST_PACKETS, |peer, other| {
                peer.is_direct(other) || !is_direct_expected && peer.gave_up > 0
            });
            let is_direct = world.is_direct(CALLER, CALLEE) && world.is_direct(CALLEE, CALLER);
            outcome = if is_direct { Outcome::Direct } else { Outcome::Relay };
            direct = is_direct.then(|| world.now().since(self.called));
        }
        let peers = [world.peer(CALLER), world.peer(CALLEE)];
        let reason = peers[CALLER].events.iter().find_map(|(_, event)| match event {
            Event::GaveUp { ours, theirs, .. } => Some(reason(expect(ours, theirs))),
            _ => None,
        });
        let reason = match self.pair.relation {
            _ if blocks_udp => Some("UDP is blocked at one of the peers"),
            Relation::SameCarrier if !is_direct_expected => {
                Some("one NAT is in front of both, without hairpin")
            }
            _ => reason,
        };
        let [a, b] = &self.pair.sides;
        Attempt {
            seed,
            kinds: [a.kind, b.kind],
            relation: self.pair.relation,
            outcome,
            is_direct_expected,
            rtt: self.pair.relay_rtt(),
            usable: peers[CALLER].calls.stands(CALLEE).map(|stands| stands.since(self.called)),
            direct,
            probes: peers.iter().map(|peer| peer.agent.counters().probes).sum(),
            failed_rounds: peers.iter().map(|peer| peer.gave_up).max().unwrap_or(0),
            reason: reason.filter(|_| outcome == Outcome::Relay),
            packets: world.sim.net.counters().sent,
        }
    }
}

fn reason(expectation: Expectation) -> &'static str {
    match expectation {
        Expectation::OneSide => "a port of one NAT would have to be found",
        Expectation::BothSides => "a port of both NATs would have to be found",
        Expectation::Plain => NOTHING_KNOWN,
        Expectation::Unknown => "too little is known of the NATs",
    }
}

/// Starts a peer, which registers at the hub.
fn start(world: &mut World, kind: &Kind, side: usize, at: NetworkId, attachment: Attachment) -> HostId {
    let host = world.start_peer(side, at, attachment, &Config::default(), 1);
    world.with_host(host, |peer, now| {
        if kind.blocks_udp() {
            peer.hub = SocketAddr::new(peer.hub.ip(), TLS_PORT);
        }
        peer.register(now);
    });
    host
}
