//! What an attempt to connect waits for goes away: it finds another way in time.

use std::time::Duration;

use crate::common::{
    call::{Call, for_each_seed},
    echo_server, round_trip,
    scene::{MS, SECOND, Scene, home, symmetric},
    within,
};
use natbox_sim::NetworkId;
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(20);

/// The supernode dies after it was asked for a channel: another one is asked as soon as that is known.
#[test]
fn the_supernode_that_was_asked_dies() {
    for_each_seed(0..5, async |seed| {
        let scene = Scene::new(seed).await;
        let second = scene.world.supernode(scene.world.public_host(10 * MS), 7).await;
        let mut nodes = Vec::new();
        for secret in [20, 21, 22] {
            let nat = scene.nat(NetworkId::INTERNET, home(symmetric(), 15 * MS));
            let builder = scene.world.builder(scene.host(nat), secret);
            nodes.push(builder.supernode(&scene.address).supernode(&second).start().await.unwrap());
        }
        let [a, b, c] = &nodes[..] else { panic!() };
        tokio::time::sleep(2 * SECOND).await;
        // Whoever is relayed notices soon.
        let call = Call::new(a, c).await;
        tokio::time::sleep(SECOND).await;
        scene.world.kill_supernode(scene.supernode);
        let start = Instant::now();
        let connection = within(SOON, "connect", a.connect(b.id())).await.unwrap();
        assert!(start.elapsed() < 5 * SECOND, "{:?}", start.elapsed());
        assert_eq!(connection.peer_id(), b.id());
        call.goes_on().await;
    });
}

/// The peer calls, is restarted in the middle of its handshake, and is called meanwhile.
#[test]
fn the_peers_handshake_hangs() {
    for_each_seed(0..5, async |seed| {
        let scene = Scene::new(seed).await;
        let [(_, _, a), (_, host, b)] = scene.pair([symmetric(), symmetric()]).await;
        let calling = tokio::spawn({
            let (b, a) = (b.clone(), a.id());
            async move { b.connect(a).await }
        });
        // 31 ms to the supernode, and back; 57 ms to the peer; and the answer is on its way.
        tokio::time::sleep(135 * MS).await;
        scene.world.set_offline(host, true);
        calling.abort();
        b.close().await;
        let start = Instant::now();
        let connect = tokio::spawn({
            let (a, b) = (a.clone(), b.id());
            async move { a.connect(b).await }
        });
        scene.world.set_offline(host, false);
        let again = scene.world.builder(host, 11).supernode(&scene.address).start().await.unwrap();
        assert_eq!(again.id(), b.id());
        echo_server(&again);
        let connection = within(SOON, "connect", connect).await.unwrap().unwrap();
        assert!(start.elapsed() < 8 * SECOND, "{:?}", start.elapsed());
        within(SOON, "echo", round_trip(&connection, b"again")).await;
    });
}

/// The channel of an earlier connection is closed by the peer while the call that uses it is on its way.
#[test]
fn the_channel_is_closed_under_a_call() {
    for_each_seed(0..2, async |seed| {
        for offset in 0..12 {
            let scene = Scene::new(seed).await;
            let [(_, _, a), (_, _, b)] = scene.pair([symmetric(), symmetric()]).await;
            let (ours, theirs) = tokio::join!(a.connect(b.id()), b.accept());
            tokio::time::sleep(SECOND).await;
            theirs.unwrap().close(0, b"over");
            within(SOON, "closed", ours.unwrap().closed()).await;
            tokio::time::sleep(4900 * MS + offset * 10 * MS).await;
            let start = Instant::now();
            within(SOON, "connect", a.connect(b.id())).await.unwrap();
            assert!(start.elapsed() < 2 * SECOND, "{:?}, offset {offset}", start.elapsed());
        }
    });
}
