//! Everything over IPv6, on loopback: the simulated internet has IPv4 only.

use std::net::SocketAddr;

use crate::common::{SOON, echo_server, identity, round_trip, within};
use supernode::Supernode;
use traversal::{Node, PathKind};

#[tokio::test]
async fn relayed_and_direct() {
    let any: SocketAddr = "[::1]:0".parse().unwrap();
    if let Err(error) = std::net::UdpSocket::bind(any) {
        println!("skipped: this machine has no ::1 ({error})");
        return;
    }
    let mut config = supernode::Config::new(identity(1));
    config.listen = vec![any];
    let supernode = Supernode::bind(config).await.unwrap();
    for direct in [false, true] {
        let node = |secret| {
            let builder = Node::builder().identity(identity(secret)).supernode(supernode.connect_string());
            builder.bind(any).loopback(direct).start()
        };
        let (a, b) = (node(2).await.unwrap(), node(3).await.unwrap());
        assert!(a.supernodes()[0].observed.unwrap().is_ipv6());
        echo_server(&b);
        let connection = within(SOON, "connect", a.connect(b.id())).await.unwrap();
        within(SOON, "echo", round_trip(&connection, b"hello")).await;
        if direct {
            let path = within(SOON, "direct", connection.wait_direct(SOON)).await.unwrap();
            assert_eq!(path.remote, Some(b.local_addr()));
        } else {
            assert_eq!(connection.path().kind, PathKind::Relay);
            assert!(connection.path().remote.unwrap().is_ipv6());
        }
        within(SOON, "a megabyte", round_trip(&connection, &vec![6; 1 << 20])).await;
        a.close().await;
        b.close().await;
    }
}
