//! Many punches at the same time.

use std::{collections::BTreeSet, time::Duration};

use crate::common::{
    call::for_each_seed,
    scene::{MS, SECOND, Scene, home, port_restricted, symmetric},
    within,
};
use natbox_sim::{Behavior, NetworkId};
use tokio::task::JoinSet;
use traversal::{ConnectError, Node, Punched};

const SOON: Duration = Duration::from_secs(30);

async fn pair(scene: &Scene, behavior: Behavior) -> [Node; 2] {
    let mut nodes = Vec::new();
    for secret in [20, 21] {
        let nat = scene.nat(NetworkId::INTERNET, home(behavior.clone(), 15 * MS));
        let builder = scene.world.builder(scene.host(nat), secret).accept_punches(true);
        nodes.push(builder.supernode(&scene.address).start().await.unwrap());
    }
    nodes.try_into().unwrap()
}

async fn punch(from: &Node, to: &Node, many: usize) -> Vec<Result<Punched, ConnectError>> {
    let mut punches = JoinSet::new();
    for _ in 0..many {
        let (from, to) = (from.clone(), to.id());
        punches.spawn(async move { from.punch(to, 10 * SECOND).await });
    }
    within(SOON, "the punches", punches.join_all()).await
}

/// They do not disturb each other.
#[test]
fn several_at_the_same_time() {
    for_each_seed(0..10, async |seed| {
        let scene = Scene::new(seed).await;
        let [a, b] = pair(&scene, port_restricted()).await;
        let ours = punch(&a, &b, 4).await;
        let secrets: BTreeSet<_> = ours.into_iter().map(|punched| punched.unwrap().secret()).collect();
        let mut theirs = BTreeSet::new();
        for _ in 0..4 {
            theirs.insert(within(SOON, "accept", b.accept_punch()).await.unwrap().secret());
        }
        assert_eq!((theirs.len(), secrets), (4, theirs));
    });
}

/// What goes beyond the limit is told so, and the others go on.
#[test]
fn too_many_of_one_peer() {
    for_each_seed(0..3, async |seed| {
        let scene = Scene::new(seed).await;
        let [a, b] = pair(&scene, symmetric()).await;
        let mut codes: Vec<_> =
            punch(&a, &b, 6).await.into_iter().map(|result| result.unwrap_err().code()).collect();
        codes.sort_unstable();
        let (direct, many) = ("connect.not-direct", "connect.too-many-punches");
        assert_eq!(codes, [direct, direct, direct, direct, many, many]);
        // When those are over there is room again.
        tokio::time::sleep(SOON).await;
        assert_eq!(punch(&a, &b, 1).await.remove(0).unwrap_err().code(), direct);
    });
}
