//! What strangers send to a node's own socket: nothing comes back, and nobody else notices.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use crate::common::{SOON, echo_server, identity, round_trip, supernode, within};
use traversal::{Node, PathKind};
use traversal_proto::wire::{
    frame::{Bind, ChannelId, Frame, FrameError, SessionId},
    stun::{Check, CheckKey, Reflection, ReflectorReply, ReflectorRequest, TransactionId},
};

async fn direct_node(secret: u8, supernode: &supernode::Supernode) -> Node {
    let builder =
        Node::builder().identity(identity(secret)).bind("127.0.0.1:0".parse().unwrap()).loopback(true);
    builder.supernode(supernode.connect_string()).start().await.unwrap()
}

/// Everything that begins well: what a node takes from its peers, its supernode and reflectors, and what it does not.
fn messages() -> Vec<Vec<u8>> {
    let (id, mapped) = (TransactionId([7; 12]), SocketAddr::from(([192, 0, 2, 1], 1)));
    let (session, sequence, cookie, proof) = (SessionId(1), 1, [1; 16], [1; 16]);
    let key = CheckKey::new(&[1; 32]);
    let reflection = Reflection { id, mapped, origin: None, other: None, padding: 0, fingerprint: true };
    let mut quic = vec![0xc3, 0, 0, 0, 1, 8];
    quic.resize(1200, 0x5a);
    let mut strange = quic.clone();
    strange[1..5].copy_from_slice(&[0x1a, 0x2a, 0x3a, 0x4a]);
    vec![
        Check::Request { id, nominate: true }.encode(&key),
        Check::Response { id, mapped }.encode(&key),
        ReflectorRequest::new(id).encode(),
        ReflectorReply::Success(reflection).encode(),
        Frame::Data { channel: ChannelId(1), payload: &[0x40; 100] }.to_vec(),
        Frame::Bind(Bind { session, sequence, cookie, proof }).to_vec(),
        Frame::Challenge { session, sequence, cookie }.to_vec(),
        Frame::Bound { session, sequence, lifetime: 60, proof }.to_vec(),
        Frame::Error { code: FrameError::NotBound, id: 1 }.to_vec(),
        quic,
        strange,
        vec![0x40; 60],
    ]
}

/// A peer's NAT may give it another port, so QUIC packets from its host make a node check there: with three times their
/// bytes at the most, and never for the smallest.
#[tokio::test]
async fn packets_from_a_peers_host() {
    let supernode = supernode().await;
    let (a, b) = (direct_node(2, &supernode).await, direct_node(3, &supernode).await);
    echo_server(&b);
    let connection = within(SOON, "connect", a.connect(b.id())).await.unwrap();
    within(SOON, "a direct path", connection.wait_direct(SOON)).await.unwrap();
    let received = |socket: &UdpSocket| -> usize {
        let mut buffer = [0; 2048];
        std::iter::from_fn(|| socket.recv(&mut buffer).ok()).sum()
    };
    let mut sockets = Vec::new();
    for size in [1, 20, 80, 90, 300, 1200] {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.send_to(&vec![0x40; size], a.local_addr()).unwrap();
        sockets.push((size, socket, 0));
    }
    // Four checks, with pauses of 40, 80 and 160 ms at least: the last of them have come when all are silent for a second.
    let silence = async {
        let mut silent_since = tokio::time::Instant::now();
        while silent_since.elapsed() < Duration::from_secs(1) {
            within(SOON, "echo", round_trip(&connection, b"undisturbed")).await;
            for (_, socket, total) in &mut sockets {
                let more = received(socket);
                *total += more;
                if more > 0 {
                    silent_since = tokio::time::Instant::now();
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(2 * SOON, "silence", silence).await;
    for (size, _, total) in sockets {
        assert!(total <= 3 * size, "{total} bytes for {size}");
        assert_eq!(total > 0, size >= 86, "{total} bytes for {size}");
    }
}

/// Random, truncated and well-formed datagrams of every kind at the sockets of two nodes that are connected directly.
#[tokio::test]
async fn noise_at_a_nodes_socket() {
    let supernode = supernode().await;
    let (a, b) = (direct_node(2, &supernode).await, direct_node(3, &supernode).await);
    echo_server(&b);
    let connection = within(SOON, "connect", a.connect(b.id())).await.unwrap();
    within(SOON, "a direct path", connection.wait_direct(SOON)).await.unwrap();

    // On a host that no path goes to.
    let stranger = UdpSocket::bind("127.0.9.1:0").unwrap();
    stranger.set_nonblocking(true).unwrap();
    let mut state = 1u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    for to in [a.local_addr(), b.local_addr()] {
        for first in 0..=255u8 {
            let mut bytes = vec![first];
            bytes.extend((0..usize::from(noise()) * 4).map(|_| noise()));
            stranger.send_to(&bytes, to).unwrap();
        }
        for message in messages() {
            for cut in (0..=message.len()).step_by(1 + message.len() / 100) {
                stranger.send_to(&message[..cut], to).unwrap();
            }
            stranger.send_to(&message, to).unwrap();
            // What was sent before this is read before it.
            within(SOON, "echo", round_trip(&connection, b"undisturbed")).await;
        }
    }
    assert_eq!(connection.path().kind, PathKind::Direct);
    let nothing = stranger.recv(&mut [0; 2048]).map_err(|error| error.kind());
    assert_eq!(nothing, Err(std::io::ErrorKind::WouldBlock), "a stranger is answered");

    // Both still find others, and are found.
    let c = direct_node(4, &supernode).await;
    echo_server(&a);
    for (to, node) in [(&a, &c), (&c, &b)] {
        if std::ptr::eq(to, &c) {
            echo_server(&c);
        }
        let connection = within(SOON, "connect", node.connect(to.id())).await.unwrap();
        within(SOON, "echo", round_trip(&connection, b"served")).await;
    }
    assert!(a.supernodes().iter().all(|home| home.registered));
    within(Duration::from_secs(20), "close", async { tokio::join!(a.close(), b.close(), c.close()) }).await;
    assert_eq!(supernode.status().gauges().registrations, 0);
}
