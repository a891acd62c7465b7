//! One connection that several callers share, each with wishes of their own.

use std::time::Duration;

use crate::common::{
    call::for_each_seed,
    echo_server, round_trip,
    scene::{MS, SECOND, Scene, port_restricted, symmetric},
    within,
};
use natbox_sim::{Behavior, NatId};
use traversal::{CloseReason, Node, PathKind, Policy};

const SOON: Duration = Duration::from_secs(20);

struct Pair {
    scene: Scene,
    nats: [NatId; 2],
    a: Node,
    b: Node,
}

impl Pair {
    async fn new(seed: u64, behavior: Behavior) -> Pair {
        let scene = Scene::new(seed).await;
        let [(first, _, a), (second, _, b)] = scene.pair([behavior.clone(), behavior]).await;
        Pair { scene, nats: [first, second], a, b }
    }

    fn block(&self, is_blocked: bool) {
        self.scene.world.with(|net, now| {
            let [a, b] = self.nats.map(|nat| net.external(nat)[0]);
            net.set_blocked(a, b, is_blocked, now);
            net.set_blocked(b, a, is_blocked, now);
        });
    }
}

/// Who names no policy changes none.
#[test]
fn a_second_caller_leaves_the_policy() {
    for_each_seed(0..3, async |seed| {
        let pair = Pair::new(seed, port_restricted()).await;
        echo_server(&pair.b);
        let first = pair.a.connect_with(pair.b.id(), Policy::RelayOnly).await.unwrap();
        let second = within(SOON, "connect", pair.a.connect(pair.b.id())).await.unwrap();
        assert!(second.wait_direct(30 * SECOND).await.is_err());
        round_trip(&first, b"relayed").await;

        let third = pair.a.connect_with(pair.b.id(), Policy::PreferDirect).await.unwrap();
        within(SOON, "direct", third.wait_direct(SOON)).await.unwrap();
        assert_eq!(first.path().kind, PathKind::Direct);
    });
}

/// A call that wants a direct path and finds none fails alone.
#[test]
fn a_failing_call_closes_nothing_of_others() {
    for_each_seed(0..3, async |seed| {
        let pair = Pair::new(seed, symmetric()).await;
        echo_server(&pair.b);
        let first = within(SOON, "connect", pair.a.connect(pair.b.id())).await.unwrap();
        let wish = Policy::DirectOnly(5 * SECOND);
        let both = async {
            tokio::join!(
                pair.a.connect_with(pair.b.id(), wish),
                pair.a.connect_with(pair.b.id(), Policy::DirectOnly(3 * SECOND)),
            )
        };
        let (one, other) = within(SOON, "the calls", both).await;
        assert_eq!(one.unwrap_err().code(), "connect.not-direct");
        assert_eq!(other.unwrap_err().code(), "connect.not-direct");
        tokio::time::sleep(20 * SECOND).await;
        assert_eq!(first.close_reason(), None);
        within(SOON, "still there", round_trip(&first, b"relayed")).await;
    });
}

/// A connection that was made for such a call, and that nobody else has, ends with it.
#[test]
fn a_connection_of_nobody_else_is_closed() {
    for_each_seed(0..3, async |seed| {
        let pair = Pair::new(seed, symmetric()).await;
        let wish = Policy::DirectOnly(5 * SECOND);
        let both = async { tokio::join!(pair.a.connect_with(pair.b.id(), wish), pair.b.accept()) };
        let (failed, theirs) = within(SOON, "connect", both).await;
        assert_eq!(failed.unwrap_err().code(), "connect.not-direct");
        let reason = within(SOON, "closed", theirs.unwrap().closed()).await;
        assert_eq!(reason, CloseReason::Peer { code: 0, reason: b"no direct path".to_vec() });

        // Two callers make it together: the one who takes the relay keeps it.
        echo_server(&pair.b);
        let both =
            async { tokio::join!(pair.a.connect_with(pair.b.id(), wish), pair.a.connect(pair.b.id())) };
        let (failed, kept) = within(SOON, "connect", both).await;
        assert_eq!(failed.unwrap_err().code(), "connect.not-direct");
        within(SOON, "kept", round_trip(&kept.unwrap(), b"relayed")).await;
    });
}

/// The policy that was there before comes back, whether the call fails or is given up.
#[test]
fn a_failing_call_leaves_the_policy() {
    for gives_up in [false, true] {
        for_each_seed(0..3, async |seed| {
            let pair = Pair::new(seed, port_restricted()).await;
            echo_server(&pair.b);
            pair.block(true);
            let first = pair.a.connect_with(pair.b.id(), Policy::RelayOnly).await.unwrap();
            let wish = Policy::DirectOnly(if gives_up { 60 * SECOND } else { 5 * SECOND });
            let call = pair.a.connect_with(pair.b.id(), wish);
            match tokio::time::timeout(10 * SECOND, call).await {
                Ok(failed) => assert_eq!(failed.unwrap_err().code(), "connect.not-direct"),
                Err(_) => assert!(gives_up),
            }
            pair.block(false);
            assert!(first.wait_direct(60 * SECOND).await.is_err(), "it is relayed only");
            within(SOON, "relayed", round_trip(&first, b"relayed")).await;
        });
    }
}

/// What has ended is not given out, and takes no room.
#[test]
fn dead_connections_do_not_wait_to_be_accepted() {
    for_each_seed(0..1, async |seed| {
        let pair = Pair::new(seed, symmetric()).await;
        for _ in 0..70 {
            let connection = within(SOON, "connect", pair.a.connect(pair.b.id())).await.unwrap();
            connection.close(1, b"over");
            tokio::time::sleep(200 * MS).await;
        }
        let connection = within(SOON, "connect", pair.a.connect(pair.b.id())).await.unwrap();
        let accepted = within(SOON, "accept", pair.b.accept()).await.unwrap();
        accepted.send_datagram(&b"alive"[..]).unwrap();
        assert_eq!(within(SOON, "a datagram", connection.read_datagram()).await.unwrap(), &b"alive"[..]);
    });
}

/// A connection that may only be direct waits for a path; it is closed meanwhile, and another one takes its place. What was
/// wrong with the first does not end the second.
#[test]
fn a_lost_path_is_not_held_against_the_next_connection() {
    const DEADLINE: Duration = Duration::from_secs(20);
    for_each_seed(0..5, async |seed| {
        let pair = Pair::new(seed, port_restricted()).await;
        echo_server(&pair.b);
        let wish = Policy::DirectOnly(DEADLINE);
        let first = within(SOON, "connect", pair.a.connect_with(pair.b.id(), wish)).await.unwrap();
        let mut events = first.path_events();
        pair.block(true);
        let lost = async {
            while first.path().kind == PathKind::Direct {
                events.next().await.expect("the connection goes on");
            }
        };
        within(SOON, "the path is lost", lost).await;
        let lost = tokio::time::Instant::now();
        assert_eq!(first.close_reason(), None, "it has some time");
        first.close(1, b"enough");

        let second = pair.a.connect_with(pair.b.id(), Policy::PreferDirect);
        let second = within(SOON, "connect again", second).await.unwrap();
        assert!(lost.elapsed() < DEADLINE, "{:?}", lost.elapsed());
        tokio::time::sleep_until(lost + 2 * DEADLINE).await;
        assert_eq!((second.close_reason(), second.path().kind), (None, PathKind::Relay));
        within(SOON, "still there", round_trip(&second, b"hello")).await;
    });
}
