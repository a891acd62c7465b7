//! Supernodes and nodes, on loopback or on a simulated internet.

pub(crate) mod call;
pub(crate) mod scene;

use std::{future::Future, time::Duration};

use supernode::Supernode;
use traversal::{Connection, Identity, Node, PeerId, SupernodeStatus};

pub(crate) fn identity(secret: u8) -> Identity {
    Identity::from_secret(&[secret; 32])
}

pub(crate) fn id(secret: u8) -> PeerId {
    identity(secret).peer_id()
}

/// One of many that nobody is.
pub(crate) fn numbered(number: u32) -> PeerId {
    let mut secret = [0xee; 32];
    secret[..4].copy_from_slice(&number.to_le_bytes());
    Identity::from_secret(&secret).peer_id()
}

/// Waits until a node stands so with its supernodes.
pub(crate) async fn until(node: &Node, is_so: impl Fn(&[SupernodeStatus]) -> bool) {
    let mut homes = node.supernodes();
    while !is_so(&homes) {
        homes = node.supernodes_changed(&homes).await;
    }
}

/// A supernode on loopback.
pub(crate) async fn supernode() -> Supernode {
    let mut config = supernode::Config::new(identity(1));
    config.listen = vec!["127.0.0.1:0".parse().unwrap()];
    Supernode::bind(config).await.unwrap()
}

/// A node on loopback.
pub(crate) async fn node(secret: u8, supernode: &Supernode) -> Node {
    let builder = Node::builder().identity(identity(secret)).bind("127.0.0.1:0".parse().unwrap());
    builder.supernode(supernode.connect_string()).start().await.unwrap()
}

/// Fails instead of hanging.
pub(crate) async fn within<T>(time: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(time, future).await {
        Ok(result) => result,
        Err(_) => panic!("{what}: not within {time:?}"),
    }
}

pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Sends everything back that comes, on every stream and as datagrams, until the connection is over.
pub(crate) async fn echo(connection: Connection) {
    let datagrams = connection.clone();
    let datagrams = async move {
        while let Ok(datagram) = datagrams.read_datagram().await {
            let _ = datagrams.send_datagram(datagram);
        }
    };
    let streams = async move {
        while let Ok((mut send, mut receive)) = connection.accept_bi().await {
            tokio::spawn(async move {
                if tokio::io::copy(&mut receive, &mut send).await.is_ok() {
                    let _ = send.finish();
                }
            });
        }
    };
    tokio::join!(datagrams, streams);
}

/// Accepts everybody and echoes.
pub(crate) fn echo_server(node: &Node) {
    let node = node.clone();
    tokio::spawn(async move {
        while let Some(connection) = node.accept().await {
            tokio::spawn(echo(connection));
        }
    });
}

/// Sends `bytes` and expects them back.
pub(crate) async fn round_trip(connection: &Connection, bytes: &[u8]) {
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    let write = async {
        send.write_all(bytes).await.unwrap();
        send.finish().unwrap();
    };
    let (back, ()) = tokio::join!(receive.read_to_end(bytes.len() + 1), write);
    assert!(back.unwrap() == bytes, "what comes back is what was sent");
}
