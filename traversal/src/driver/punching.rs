//! Sockets that are punched for somebody else.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::sync::oneshot;
use traversal_net::{quic, socket::DatagramSocket, tls};
use traversal_proto::{
    peer::{PeerKey, Role},
    wire::{PeerId, peer::PUNCH_ALPN},
};

use super::{Driver, MAIN, peers};
use crate::{
    ConnectError,
    punch::{ANSWER_WITHIN, Punch, Punched},
    routes::virtual_address,
};

impl Driver {
    /// Punches to a peer that is connected.
    pub(super) fn punch(
        &mut self,
        peer: PeerId,
        within: Duration,
        reply: oneshot::Sender<Result<Punched, ConnectError>>,
    ) {
        let failed = move |reason: String| ConnectError::Handshake { peer, reason };
        let punch = match self.new_punch(peer, Role::Initiator, within) {
            Ok(punch) => punch,
            Err(error) => {
                // Who asked may have given up.
                let _ = reply.send(Err(failed(error.to_string())));
                return;
            }
        };
        let Some(key) = self.peers.key_of(&peer) else { return };
        let (endpoint, identity) = (self.endpoint.clone(), self.shown.clone());
        tokio::spawn(async move {
            let handshake = async {
                let config =
                    quic::client(&identity, Some(peer), &[PUNCH_ALPN], peers::transport(Default::default()));
                let config = config.map_err(|error| failed(error.to_string()))?;
                let connecting = endpoint.connect_with(config, virtual_address(key), tls::SERVER_NAME);
                let connecting = connecting.map_err(|error| failed(error.to_string()))?;
                connecting.await.map_err(|error| failed(format!("{error}; does it accept punches?")))
            };
            let result = match tokio::time::timeout(within, handshake).await {
                Ok(Ok(connection)) => punch.run(connection).await.map_err(ConnectError::from),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(failed("no answer".to_owned())),
            };
            // Who asked may have given up.
            let _ = reply.send(result);
        });
    }

    /// The peer punches, and waits for us to do the same.
    pub(super) fn answer_punch(&mut self, key: PeerKey, connection: quinn::Connection) {
        let Some(peer) = self.peers.get(key).map(|slot| slot.peer) else { return };
        let Ok(punch) = self.new_punch(peer, Role::Acceptor, ANSWER_WITHIN) else { return };
        let punched = self.punched.clone();
        tokio::spawn(async move {
            match punch.run(connection).await {
                // Nobody takes it: the socket is closed, and the peer finds nobody there.
                Ok(socket) => drop(punched.try_send(socket)),
                Err(error) => tracing::debug!(%error, "a punch came to nothing"),
            }
        });
    }

    fn new_punch(&mut self, peer: PeerId, role: Role, within: Duration) -> std::io::Result<Punch> {
        let mut address = self.sockets.local(MAIN);
        address.set_port(0);
        let (socket, plain): (Arc<dyn DatagramSocket>, _) = self.network.bind_plain(address)?;
        let reflectors: Vec<SocketAddr> = self
            .homes
            .iter()
            .find_map(|home| home.hello())
            .map(|hello| hello.reflectors.to_vec())
            .unwrap_or_default();
        Ok(Punch {
            peer,
            role,
            socket,
            plain,
            config: self.agent_config.clone(),
            seed: self.seeds.take(),
            reflectors,
            interfaces: self.interfaces.clone(),
            within,
        })
    }
}

/// Whether a finished handshake is for a punch.
pub(super) fn is_punch(connection: &quinn::Connection) -> bool {
    let data = connection
        .handshake_data()
        .and_then(|any| any.downcast::<quinn::crypto::rustls::HandshakeData>().ok());
    data.is_some_and(|data| data.protocol.as_deref() == Some(PUNCH_ALPN))
}
