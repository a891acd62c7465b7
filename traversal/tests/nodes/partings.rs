//! The end of a connection is told until the peer knows: one lost packet does not leave it waiting for a minute.

use std::time::Duration;

use crate::common::{
    call::for_each_seed,
    scene::{MS, SECOND, Scene, home, symmetric},
    until, within,
};
use natbox_sim::{HostId, NetworkId};
use traversal::{CloseReason, Connection, Node, PathKind, Policy};

const SOON: Duration = Duration::from_secs(20);
/// So long nothing is carried that the one who closes says: the first words are lost in it.
const OUTAGE: Duration = Duration::from_millis(200);

/// Two nodes, connected over a relay; the first is to close.
struct Pair {
    scene: Scene,
    host: HostId,
    nodes: [Node; 2],
    ends: [Connection; 2],
}

impl Pair {
    /// `by_tcp`: nothing goes by UDP.
    async fn new(seed: u64, by_tcp: bool) -> Pair {
        let scene = Scene::new(seed).await;
        let mut nodes = Vec::new();
        let mut hosts = Vec::new();
        for delay in [15 * MS, 20 * MS] {
            let host = scene.host(scene.nat(NetworkId::INTERNET, home(symmetric(), delay)));
            scene.world.block_udp(host, by_tcp);
            let node = scene.node(host).await;
            within(SOON, "a registration", until(&node, |homes| homes[0].registered)).await;
            nodes.push(node);
            hosts.push(host);
        }
        let nodes: [Node; 2] = nodes.try_into().unwrap();
        let [a, b] = &nodes;
        let both = async { tokio::join!(a.connect_with(b.id(), Policy::RelayOnly), b.accept()) };
        let (ours, theirs) = within(SOON, "connect", both).await;
        let ends = [ours.unwrap(), theirs.unwrap()];
        // Nothing is on its way any more that would be answered.
        let pause = 2 * SECOND;
        tokio::time::sleep(pause).await;
        assert_eq!(ends[0].path().kind, PathKind::Relay);
        Pair { scene, host: hosts[0], nodes, ends }
    }

    /// Nothing that the first one says gets through for a while.
    async fn outage(&self) {
        self.scene.world.block_udp(self.host, true);
        tokio::time::sleep(OUTAGE).await;
        self.scene.world.block_udp(self.host, false);
    }

    /// Waits until the second one knows, with this code.
    async fn knows(&self, code: u64) {
        let reason = within(2 * SECOND, "the end", self.ends[1].closed()).await;
        assert!(matches!(&reason, CloseReason::Peer { code: told, .. } if *told == code), "{reason:?}");
    }
}

#[test]
fn a_close_that_is_lost_is_said_again() {
    for_each_seed(0..10, |seed| async move {
        let pair = Pair::new(seed, false).await;
        pair.ends[0].close(7, b"enough");
        pair.outage().await;
        pair.knows(7).await;
    });
}

#[test]
fn a_connection_that_is_dropped_is_told_of_too() {
    for_each_seed(0..3, |seed| async move {
        let mut pair = Pair::new(seed, false).await;
        let [ours, theirs] = pair.ends;
        pair.ends = [theirs.clone(), theirs];
        drop(ours);
        pair.outage().await;
        pair.knows(0).await;
    });
}

/// A program that ends takes its registration back, and no relay carries anything for it then: it waits until its peers know.
#[test]
fn a_node_that_closes_waits_for_its_last_words() {
    for_each_seed(0..10, |seed| async move {
        let pair = Pair::new(seed, false).await;
        let closing = async {
            pair.ends[0].close(8, b"enough");
            pair.nodes[0].close().await;
        };
        let begin = tokio::time::Instant::now();
        tokio::join!(closing, pair.outage(), pair.knows(8));
        assert!(begin.elapsed() <= 2 * SECOND, "{:?}", begin.elapsed());
    });
}

/// Nor does it wait for a peer that is not there any more.
#[test]
fn a_node_that_closes_does_not_wait_for_the_dead() {
    for_each_seed(0..3, |seed| async move {
        let pair = Pair::new(seed, false).await;
        let begin = tokio::time::Instant::now();
        pair.scene.world.set_offline(pair.host, true);
        pair.nodes[0].close().await;
        assert!(begin.elapsed() <= 2 * SECOND + 10 * MS, "{:?}", begin.elapsed());
    });
}

/// Where the relay is reached by TLS, what is said last is written before the stream ends, also by a node that ends at once.
#[test]
fn last_words_by_tls() {
    for_each_seed(0..5, |seed| async move {
        let pair = Pair::new(seed, true).await;
        assert!(pair.nodes[0].supernodes()[0].by_tcp);
        let begin = tokio::time::Instant::now();
        pair.ends[0].close(9, b"enough");
        tokio::join!(pair.nodes[0].close(), pair.knows(9));
        // Its peer's answer was heard by the same stream.
        assert!(begin.elapsed() <= SECOND / 2, "{:?}", begin.elapsed());
    });
}
