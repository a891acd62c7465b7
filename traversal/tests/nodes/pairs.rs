//! All pairs of NAT behaviours, by whole nodes under a paused clock: when a connection is usable, and when direct.

use std::{fmt::Write as _, time::Duration};

use crate::common::{echo_server, round_trip, within};
use natbox_sim::{
    Behavior,
    natbox_core::behavior::{self, PortAssignment},
};
use tokio::time::Instant;
use traversal_proto::path::{
    Filtering, Mapping, NatProfile,
    strategy::{Expectation, expect},
};
use traversal_sim::World;

const MS: Duration = Duration::from_millis(1);
const SOON: Duration = Duration::from_secs(20);

/// From A by way of the supernode to B and back.
const TRIP: Duration = Duration::from_millis(2 * (15 + 10 + 10 + 20));
/// Round trips of the relay path until the first byte is answered, and until packets go directly, at the most.
const USABLE_WITHIN: f64 = 3.0;
const DIRECT_WITHIN: f64 = 5.0;
/// Longer is not waited for a direct path that is not to be expected.
const GIVEN_UP: Duration = Duration::from_secs(5);

/// The nine kinds, by number: a row of three for each mapping, in it one for each filtering.
const KINDS: [&str; 9] =
    ["eim/eif", "eim/adf", "eim/apdf", "adm/eif", "adm/adf", "adm/apdf", "apdm/eif", "apdm/adf", "apdm/apdf"];

fn behavior(kind: usize, ports: PortAssignment) -> Behavior {
    let (mapping, filtering) = (behavior::Mapping::ALL[kind / 3], behavior::Filtering::ALL[kind % 3]);
    // A port can only be kept towards several destinations if mappings may share it.
    let overloading = ports == PortAssignment::Preserve;
    Behavior { mapping, filtering, ports, overloading, ..Behavior::RFC }
}

fn profile(kind: usize) -> NatProfile {
    let mappings =
        [Mapping::EndpointIndependent, Mapping::AddressDependent, Mapping::AddressAndPortDependent];
    let filterings =
        [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent];
    let (mapping, filtering) = (Some(mappings[kind / 3]), Some(filterings[kind % 3]));
    NatProfile { mapping, filtering, ..NatProfile::default() }
}

/// Connects two nodes; round trips until the first byte was answered, and until the path was direct.
async fn connect(seed: u64, kinds: [usize; 2], ports: PortAssignment) -> (f64, Option<f64>) {
    let world = World::new(seed);
    let supernode = world.server(10 * MS);
    let address = world.supernode(supernode, 1).await;
    let (_, host_a) = world.nat_host(behavior(kinds[0], ports), 15 * MS);
    let (_, host_b) = world.nat_host(behavior(kinds[1], ports), 20 * MS);
    let a = world.builder(host_a, 2).supernode(&address).start().await.unwrap();
    let b = world.builder(host_b, 3).supernode(&address).start().await.unwrap();
    echo_server(&b);
    let start = Instant::now();
    let trips = || start.elapsed().as_secs_f64() / TRIP.as_secs_f64();
    let connection = within(SOON, "connect", a.connect(b.id())).await.unwrap();
    let using = async {
        round_trip(&connection, b"hello").await;
        trips()
    };
    let waiting = async { connection.wait_direct(GIVEN_UP).await.ok().map(|_| trips()) };
    tokio::join!(using, waiting)
}

/// 45 pairs: all are usable at once; direct, and soon, are those that need no port found out.
async fn all_pairs(ports: PortAssignment) {
    let (mut table, mut wrong) = (String::new(), String::new());
    for (one, its_name) in KINDS.iter().enumerate() {
        for (other, other_name) in KINDS[..=one].iter().enumerate() {
            let (usable, direct) = connect((one * 9 + other) as u64, [one, other], ports).await;
            let is_expected = match ports {
                PortAssignment::Random => expect(&profile(one), &profile(other)) == Expectation::Plain,
                // Whoever keeps the port has one external endpoint towards everybody.
                _ => true,
            };
            let line = format!("{its_name} × {other_name}: usable {usable:.2}, direct {direct:.2?}");
            let is_soon = direct.is_none_or(|direct| direct <= DIRECT_WITHIN);
            if usable > USABLE_WITHIN || !is_soon || direct.is_some() != is_expected {
                writeln!(wrong, "{line}, direct expected: {is_expected}").unwrap();
            }
            writeln!(table, "{line}").unwrap();
        }
    }
    println!("{table}");
    assert!(wrong.is_empty(), "{wrong}");
}

#[tokio::test(start_paused = true)]
async fn random_ports() {
    all_pairs(PortAssignment::Random).await;
}

#[tokio::test(start_paused = true)]
async fn preserved_ports() {
    all_pairs(PortAssignment::Preserve).await;
}
