//! Two nodes and a supernode on loopback, with the kernel's sockets. Loopback addresses are no
//! candidates unless a node is told so: what does not say that is relayed.

use crate::common::{SOON, echo_server, identity, node, round_trip, supernode, within};
use traversal::{CloseReason, ConnectError, Node, PathKind, PeerId};

#[tokio::test]
async fn echo_over_the_relay() {
    let supernode = supernode().await;
    let (a, b) = (node(2, &supernode).await, node(3, &supernode).await);
    echo_server(&b);
    let connection = within(SOON, "connect", a.connect(b.id())).await.unwrap();
    assert_eq!(connection.peer_id(), b.id());
    assert_eq!(connection.path().kind, PathKind::Relay);
    within(SOON, "echo", round_trip(&connection, b"hello")).await;
    within(SOON, "a megabyte", round_trip(&connection, &vec![7; 1 << 20])).await;

    let datagram = vec![5; connection.max_datagram_size()];
    connection.send_datagram(datagram.clone()).unwrap();
    assert_eq!(within(SOON, "datagram", connection.read_datagram()).await.unwrap(), datagram);
    assert!(connection.max_datagram_size() >= 1100);
    assert!(connection.send_datagram(vec![5; 5000]).is_err());

    connection.close(7, b"enough");
    assert_eq!(connection.closed().await, CloseReason::Here);
    a.close().await;
    b.close().await;
}

#[tokio::test]
async fn streams_of_either_side_and_the_end_of_a_connection() {
    let supernode = supernode().await;
    let (a, b) = (node(2, &supernode).await, node(3, &supernode).await);
    let (to_b, from_a) = tokio::join!(a.connect(b.id()), b.accept());
    let (to_b, from_a) = (to_b.unwrap(), from_a.unwrap());
    assert_eq!(from_a.peer_id(), a.id());

    // The acceptor opens first, too: the nodes' own stream is in nobody's way.
    let (mut send, _receive) = from_a.open_bi().await.unwrap();
    send.write_all(b"first").await.unwrap();
    send.finish().unwrap();
    let (_send, mut receive) = within(SOON, "accept_bi", to_b.accept_bi()).await.unwrap();
    assert_eq!(receive.read_to_end(99).await.unwrap(), b"first");

    let mut send = to_b.open_uni().await.unwrap();
    send.write_all(b"one way").await.unwrap();
    send.finish().unwrap();
    let mut receive = within(SOON, "accept_uni", from_a.accept_uni()).await.unwrap();
    assert_eq!(receive.read_to_end(99).await.unwrap(), b"one way");

    to_b.close(42, b"bye");
    let reason = within(SOON, "closed", from_a.closed()).await;
    assert_eq!(reason, CloseReason::Peer { code: 42, reason: b"bye".to_vec() });
    let again = within(SOON, "connect again", a.connect(b.id())).await.unwrap();
    assert_eq!(within(SOON, "accept", b.accept()).await.unwrap().peer_id(), a.id());
    drop(again);
}

/// Over the relay, which is gone as soon as the supernode has heard that the node is: who is left must hear it first,
/// whether it is said for one connection or for all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relayed_peer_hears_the_end() {
    let supernode = supernode().await;
    let b = node(3, &supernode).await;
    for round in 0..40 {
        let a = node(10 + round, &supernode).await;
        let (to_b, from_a) = tokio::join!(within(SOON, "connect", a.connect(b.id())), b.accept());
        let (to_b, from_a) = (to_b.unwrap(), from_a.unwrap());
        let expected = if round % 2 == 0 {
            CloseReason::Peer { code: 0, reason: b"node closed".to_vec() }
        } else {
            to_b.close(9, b"that is all");
            CloseReason::Peer { code: 9, reason: b"that is all".to_vec() }
        };
        a.close().await;
        assert_eq!(within(SOON, "the end", from_a.closed()).await, expected, "round {round}");
    }
}

#[tokio::test]
async fn refusals_say_why() {
    let supernode = supernode().await;
    let a = node(2, &supernode).await;
    let nobody = crate::common::id(99);
    let error = within(SOON, "refused", a.connect(nobody)).await.unwrap_err();
    assert!(matches!(error, ConnectError::PeerOffline { peer } if peer == nobody), "{error}");
    assert_eq!(error.code(), "connect.peer-offline");
    assert!(matches!(a.connect(a.id()).await, Err(ConnectError::Myself)));

    let loopback = "127.0.0.1:0".parse().unwrap();
    let builder = |secret| {
        Node::builder().identity(identity(secret)).bind(loopback).supernode(supernode.connect_string())
    };
    let shy = builder(4).accepting(false).start().await.unwrap();
    let error = within(SOON, "shy", a.connect(shy.id())).await.unwrap_err();
    assert!(matches!(error, ConnectError::NotAccepting { .. } | ConnectError::PeerOffline { .. }), "{error}");

    let admission = traversal::Admission::Only([crate::common::id(77)].into());
    let choosy = builder(5).admit(admission).start().await.unwrap();
    let error = within(SOON, "choosy", a.connect(choosy.id())).await.unwrap_err();
    assert!(matches!(error, ConnectError::NotAdmitted { .. }), "{error}");

    a.close().await;
    assert!(matches!(a.connect(nobody).await, Err(ConnectError::Closed)));
}

#[tokio::test]
async fn a_supernode_with_another_key_is_not_used() {
    let supernode = supernode().await;
    let address = supernode.addresses()[0];
    let wrong: PeerId = crate::common::id(66);
    let builder =
        Node::builder().bind("127.0.0.1:0".parse().unwrap()).supernode(format!("{wrong}@{address}"));
    let error = builder.start_timeout(std::time::Duration::from_secs(3)).start().await.unwrap_err();
    assert_eq!(error.code(), "start.unreachable");
    assert!(error.to_string().contains("another key"), "{error}");
}

/// Both connect at once, many times: there is one connection, and both have it.
#[tokio::test]
async fn both_connect_at_once() {
    let supernode = supernode().await;
    for round in 0..10u8 {
        let (a, b) = (node(10 + 2 * round, &supernode).await, node(11 + 2 * round, &supernode).await);
        let (to_b, to_a) =
            within(SOON, "connect", async { tokio::join!(a.connect(b.id()), b.connect(a.id())) }).await;
        let (to_b, to_a) = (to_b.unwrap(), to_a.unwrap());
        to_b.send_datagram(vec![round]).unwrap();
        assert_eq!(within(SOON, "datagram", to_a.read_datagram()).await.unwrap(), [round][..]);
        assert_eq!(a.connect(b.id()).await.unwrap().peer_id(), b.id());
    }
}

/// Nobody holds the node or a connection any more: it ends by itself, and its peer is told.
#[tokio::test]
async fn a_dropped_node_ends() {
    let supernode = supernode().await;
    let (a, b) = (node(2, &supernode).await, node(3, &supernode).await);
    let (to_b, from_a) = tokio::join!(a.connect(b.id()), b.accept());
    drop((a, to_b.unwrap()));
    let reason = within(SOON, "closed", from_a.unwrap().closed()).await;
    assert!(matches!(reason, CloseReason::Peer { .. }), "{reason:?}");
    let left = async {
        while supernode.status().gauges().registrations > 1 {
            tokio::task::yield_now().await;
        }
    };
    within(SOON, "unregistered", left).await;
}

/// The kernel's sockets, directly, in bulk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn direct_on_one_machine() {
    let supernode = supernode().await;
    let builder = |secret| {
        let builder = Node::builder().identity(identity(secret)).supernode(supernode.connect_string());
        builder.bind("127.0.0.1:0".parse().unwrap()).loopback(true).start()
    };
    let (a, b) = (builder(2).await.unwrap(), builder(3).await.unwrap());
    echo_server(&b);
    let connection = within(SOON, "connect", a.connect(b.id())).await.unwrap();
    let path = within(SOON, "direct", connection.wait_direct(SOON)).await.unwrap();
    assert_eq!(path.remote, Some(b.local_addr()));
    let relayed = supernode.status().counters().relayed_bytes;
    let bytes = vec![1; 16 << 20];
    let start = std::time::Instant::now();
    within(3 * SOON, "16 MiB there and back", round_trip(&connection, &bytes)).await;
    println!("16 MiB there and back: {:?}, {}", start.elapsed(), connection.path());
    let relayed = supernode.status().counters().relayed_bytes - relayed;
    assert!(relayed < 10_000, "{relayed} bytes were relayed, though the path is direct");
}

/// The kernel's own socket, with nothing of ours around it.
#[tokio::test]
async fn a_punched_socket_is_a_plain_one() {
    let supernode = supernode().await;
    let builder = |secret| {
        let builder = Node::builder().identity(identity(secret)).supernode(supernode.connect_string());
        builder.bind("127.0.0.1:0".parse().unwrap()).loopback(true).accept_punches(true).start()
    };
    let (a, b) = (builder(2).await.unwrap(), builder(3).await.unwrap());
    let punched = async { tokio::join!(a.punch(b.id(), SOON), b.accept_punch()) };
    let (ours, theirs) = within(SOON, "punch", punched).await;
    let ((ours, to_them), (theirs, to_us)) =
        (ours.unwrap().into_std().unwrap(), theirs.unwrap().into_std().unwrap());
    assert_eq!((to_them, to_us), (theirs.local_addr().unwrap(), ours.local_addr().unwrap()));
    a.close().await;
    b.close().await;
    let (ours, theirs) =
        (tokio::net::UdpSocket::from_std(ours).unwrap(), tokio::net::UdpSocket::from_std(theirs).unwrap());
    ours.send_to(b"\xffping", to_them).await.unwrap();
    let mut buffer = [0; 1500];
    let received = async {
        loop {
            let (len, from) = theirs.recv_from(&mut buffer).await.unwrap();
            if buffer[..len] == *b"\xffping" {
                return from;
            }
        }
    };
    assert_eq!(within(SOON, "a datagram", received).await, to_us);
}
