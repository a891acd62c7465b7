//! Sockets that are punched for somebody else.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quinn::VarInt;
use tokio::sync::oneshot;
use traversal_net::{quic, socket::DatagramSocket, tls};
use traversal_proto::{
    peer::{PeerKey, Role},
    wire::{PeerId, peer::PUNCH_ALPN},
};

use super::{Driver, MAIN, handshakes};
use crate::{
    ConnectError,
    builder::StreamLimits,
    punch::{ANSWER_WITHIN, Punch, Punched, TOO_MANY},
    routes::virtual_address,
};

/// Sockets that are punched for others, or wait to be taken. Each is a file descriptor, of which a process has 1024 as a rule.
pub(super) const MAX_ACCEPTED: usize = 64;
/// The same that one peer may cause: more than a game needs, and room for others.
const MAX_OF_PEER: usize = 4;
/// Sockets that this node punches at the same time.
const MAX_OWN: usize = 64;

impl Driver {
    /// Punches to a peer that is connected.
    pub(super) fn punch(
        &mut self,
        peer: PeerId,
        within: Duration,
        reply: oneshot::Sender<Result<Punched, ConnectError>>,
    ) {
        if Arc::strong_count(&self.punching) > MAX_OWN {
            self.counts.add(|counts| &counts.punches_refused);
            let reason = format!("this node punches {MAX_OWN} holes already, which is the limit");
            // Who asked may have given up.
            let _ = reply.send(Err(ConnectError::TooManyPunches { peer, reason }));
            return;
        }
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
        let place = Arc::clone(&self.punching);
        tokio::spawn(async move {
            let handshake = async {
                let config = quic::client(
                    &identity,
                    Some(peer),
                    &[PUNCH_ALPN],
                    handshakes::transport(Default::default(), StreamLimits::default()),
                );
                let config = config.map_err(|error| failed(error.to_string()))?;
                let connecting = endpoint.connect_with(config, virtual_address(key), tls::SERVER_NAME);
                let connecting = connecting.map_err(|error| failed(error.to_string()))?;
                connecting.await.map_err(|error| failed(format!("{error}; does it accept punches?")))
            };
            let result = match tokio::time::timeout(within, handshake).await {
                Ok(Ok(connection)) => punch.run(connection).await,
                Ok(Err(error)) => Err(error),
                Err(_) => Err(failed("no answer".to_owned())),
            };
            drop(place);
            // Who asked may have given up.
            let _ = reply.send(result);
        });
    }

    /// The peer punches, and waits for us to do the same.
    pub(super) fn answer_punch(&mut self, key: PeerKey, connection: quinn::Connection) {
        let Some((peer, of_peer)) = self.peers.get(key).map(|slot| (slot.peer, Arc::clone(&slot.punches)))
        else {
            return;
        };
        // One is the peer's own, one the new punch's.
        if Arc::strong_count(&of_peer) > MAX_OF_PEER + 1 {
            return self
                .refuse_punch(&connection, &format!("{MAX_OF_PEER} of this peer's are under way there"));
        }
        let Ok(place) = self.punched.clone().try_reserve_owned() else {
            return self
                .refuse_punch(&connection, &format!("{MAX_ACCEPTED} are under way or not taken there"));
        };
        let punch = match self.new_punch(peer, Role::Acceptor, ANSWER_WITHIN) {
            Ok(punch) => punch,
            Err(error) => return self.refuse_punch(&connection, &error.to_string()),
        };
        tokio::spawn(async move {
            let result = punch.run(connection).await;
            drop(of_peer);
            match result {
                // Nobody takes it any more: the socket is closed, and the peer finds nobody there.
                Ok(socket) => drop(place.send(socket)),
                Err(error) => tracing::debug!(%error, "a punch came to nothing"),
            }
        });
    }

    fn refuse_punch(&self, connection: &quinn::Connection, reason: &str) {
        self.counts.add(|counts| &counts.punches_refused);
        connection.close(VarInt::from_u32(TOO_MANY), reason.as_bytes());
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
