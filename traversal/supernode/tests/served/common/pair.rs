//! Two peers at a supernode.

use std::net::SocketAddr;

use tokio::{net::UdpSocket, time::timeout};
use traversal_proto::wire::frame::ChannelId;

use super::{Client, SOON, Session, bind, data, udp};

/// Two peers with bound sockets and a channel, between which data goes. No other datagram of theirs goes to the supernode.
pub(crate) struct Pair {
    pub(crate) a: Client,
    pub(crate) b: Client,
    pub(crate) near: Session,
    pub(crate) sockets: (UdpSocket, UdpSocket),
    pub(crate) ends: (ChannelId, ChannelId),
    pub(crate) to: SocketAddr,
}

impl Pair {
    pub(crate) async fn at(to: SocketAddr) -> Pair {
        let (mut a, mut b) = (Client::tcp(to, 2).await, Client::tcp(to, 3).await);
        let (near, far) = (a.register().await, b.register().await);
        let sockets = (udp().await, udp().await);
        bind(&sockets.0, to, &near).await;
        bind(&sockets.1, to, &far).await;
        let ends = a.channel_to(&mut b).await;
        Pair { a, b, near, sockets, ends, to }
    }

    /// Data goes both ways, and nothing else comes.
    pub(crate) async fn relays(&self) {
        let ((left, right), (near, far)) = ((&self.sockets.0, &self.sockets.1), self.ends);
        let mut buffer = [0; 64];
        for (from, by, at, on) in [(left, near, right, far), (right, far, left, near)] {
            from.send_to(&data(by, b"served"), self.to).await.unwrap();
            let (length, source) =
                timeout(SOON, at.recv_from(&mut buffer)).await.expect("not relayed").unwrap();
            assert_eq!((&buffer[..length], source), (&data(on, b"served")[..], self.to));
        }
    }
}
