//! A thousand runs of the whole crate: NATs of all kinds, loss, jitter, paths that die and come back. No connection may be
//! lost.

use std::{ops::Range, time::Duration};

use crate::common::{echo_server, round_trip, within};
use natbox_sim::{
    Behavior, Conditions, NatConfig, NetworkId,
    natbox_core::behavior::{Filtering, Mapping, PortAssignment},
};
use traversal::PathKind;
use traversal_sim::World;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Splits a seed into small choices.
struct Choices(u64);

impl Choices {
    fn of(&mut self, many: u64) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % many
    }

    fn behavior(&mut self) -> Behavior {
        let mappings =
            [Mapping::EndpointIndependent, Mapping::AddressDependent, Mapping::AddressAndPortDependent];
        let filterings =
            [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent];
        Behavior {
            mapping: mappings[self.of(3) as usize],
            filtering: filterings[self.of(3) as usize],
            ports: PortAssignment::Random,
            ..Behavior::RFC
        }
    }

    /// A link: 2 to 80 ms, up to 5 ms of jitter, up to 5 % loss.
    fn link(&mut self) -> Conditions {
        Conditions {
            delay: (2 + self.of(79) as u32) * MS,
            jitter: self.of(6) as u32 * MS,
            loss: self.of(51) as f64 / 1000.0,
            ..Conditions::PERFECT
        }
    }
}

/// Runs one scenario; true if the peers had a direct path at some time.
async fn run(seed: u64) -> bool {
    let mut choices = Choices(seed);
    let world = World::new(seed);
    let supernode = world.public_host(10 * MS);
    let address = world.supernode(supernode, 1).await;
    let mut nodes = Vec::new();
    for secret in [2, 3] {
        let (nat, host) = world.with(|net, _| {
            let config = NatConfig { link: choices.link().into(), ..NatConfig::new(choices.behavior()) };
            let nat = net.add_nat(NetworkId::INTERNET, config).unwrap();
            (nat, net.add_host(nat, Conditions::PERFECT).unwrap())
        });
        let builder = world.builder(host, secret).supernode(&address).start_timeout(60 * SECOND);
        nodes.push((nat, builder.connect_timeout(60 * SECOND).start().await.unwrap()));
    }
    let [(nat_a, a), (nat_b, b)] = &nodes[..] else { panic!() };
    echo_server(b);
    let connection = a.connect(b.id()).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let block = |blocked| {
        world.with(|net, now| {
            let [a, b] = [nat_a, nat_b].map(|nat| net.external(*nat)[0]);
            net.set_blocked(a, b, blocked, now);
            net.set_blocked(b, a, blocked, now);
        });
    };
    let mut was_direct = false;
    for round in 0..4u8 {
        let what = format!("seed {seed}, round {round}, {}", connection.path());
        within(180 * SECOND, &what, round_trip(&connection, &vec![round; 20_000])).await;
        let direct = connection.wait_direct(Duration::from_millis(choices.of(3000))).await.is_ok();
        assert_eq!(direct, connection.path().kind == PathKind::Direct, "{what}");
        was_direct |= direct;
        block(true);
        within(180 * SECOND, &what, round_trip(&connection, &vec![round; 20_000])).await;
        tokio::time::sleep(Duration::from_millis(choices.of(10_000))).await;
        block(false);
        assert_eq!(connection.close_reason(), None, "{what}");
    }
    within(10 * SECOND, "close", a.close()).await;
    within(10 * SECOND, "close", b.close()).await;
    was_direct
}

fn all(seeds: Range<u64>) {
    let mut direct = 0;
    for seed in seeds.clone() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(run(seed))));
        match result {
            Ok(was_direct) => direct += u64::from(was_direct),
            Err(panic) => {
                eprintln!("failed with seed {seed}: run({seed}) repeats it");
                std::panic::resume_unwind(panic);
            }
        }
    }
    // 25 of 45 pairs can be direct, and all kinds are drawn alike.
    let runs = seeds.end - seeds.start;
    println!("{direct} of {runs} were direct");
    assert!(direct > runs * 2 / 5, "{direct} of {runs} were direct at some time");
}

#[test]
fn no_connection_is_lost_1() {
    all(0..250);
}

#[test]
fn no_connection_is_lost_2() {
    all(250..500);
}

#[test]
fn no_connection_is_lost_3() {
    all(500..750);
}

#[test]
fn no_connection_is_lost_4() {
    all(750..1000);
}
