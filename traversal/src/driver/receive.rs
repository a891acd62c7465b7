//! What comes in by UDP and is not known as a peer's yet, by its first byte and its source.

use std::{
    net::SocketAddr,
    task::{Context, Poll},
};

use bytes::Bytes;
use traversal_net::RecvMeta;
use traversal_proto::{
    SocketId, Time,
    peer::PeerKey,
    wire::{
        Kind, demultiplex,
        frame::{ChannelId, DATA_HEADER, data_header},
    },
};

use super::{Driver, MAIN};
use crate::{
    intake::{Source, as_peers, source_of},
    routes::{as_v6, virtual_address},
};

/// Batches read from one socket in one turn, so that commands and deadlines get theirs.
const BATCHES_PER_TURN: usize = 8;
/// The same for what the main socket has brought, in trains.
const STRAYS_PER_TURN: usize = 64;

impl Driver {
    /// Reads from all sockets. True: there may be more.
    pub(super) fn poll_sockets(&mut self, cx: &mut Context<'_>) -> bool {
        self.poll_strays(cx) | self.poll_others(cx)
    }

    fn poll_strays(&mut self, cx: &mut Context<'_>) -> bool {
        for _ in 0..STRAYS_PER_TURN {
            let Poll::Ready((meta, bytes)) = self.intake.strays().poll_take(cx) else { return false };
            let now = self.now();
            self.received(MAIN, &meta, &bytes, now);
        }
        true
    }

    fn poll_others(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(mut batch) = self.batch.take() else { return false };
        let mut more = false;
        for (id, socket) in self.sockets.others() {
            for turn in 0..BATCHES_PER_TURN {
                match batch.poll_recv(&*socket, cx) {
                    Poll::Ready(Ok(count)) => {
                        let now = self.now();
                        for (meta, bytes) in batch.trains(count) {
                            self.received(id, &meta, &Bytes::copy_from_slice(bytes), now);
                        }
                        more |= turn + 1 == BATCHES_PER_TURN;
                    }
                    Poll::Ready(Err(error)) => {
                        // Nothing wakes this task before the socket is read again.
                        tracing::debug!(?id, %error, "a socket cannot be read");
                        more |= turn + 1 == BATCHES_PER_TURN;
                    }
                    Poll::Pending => break,
                }
            }
        }
        self.batch = Some(batch);
        more
    }

    /// A train of datagrams of one size from one source; mostly of one kind.
    fn received(&mut self, socket: SocketId, meta: &RecvMeta, bytes: &Bytes, now: Time) {
        match source_of(meta, bytes) {
            Some(Source::Direct(_)) => return self.quic(socket, meta, bytes.clone(), now),
            Some(source @ Source::Relay(_, header)) if is_data(header) => {
                return self.relayed(socket, source, meta, bytes, now);
            }
            _ => {}
        }
        let stride = meta.stride.max(1);
        if bytes.len() > stride {
            for start in (0..bytes.len()).step_by(stride) {
                let datagram = bytes.slice(start..(start + stride).min(bytes.len()));
                let single = RecvMeta { len: datagram.len(), stride: datagram.len(), ..*meta };
                self.received(socket, &single, &datagram, now);
            }
            return;
        }
        match bytes.first().map_or(Kind::Unknown, |first| demultiplex(*first)) {
            Kind::Stun => self.stun(socket, meta.addr, bytes, now),
            Kind::Relay => drop(self.relay_frame(socket, meta.addr, bytes, now)),
            Kind::Quic | Kind::Unknown => {}
        }
        self.settle(now);
    }

    /// QUIC: of a supernode's control connection, or of the peer that has proved itself at this address. Anything else may
    /// be a peer whose NAT has given it another port, for the agent to find out.
    fn quic(&mut self, socket: SocketId, meta: &RecvMeta, bytes: Bytes, now: Time) {
        let from = meta.addr;
        let addr = match self.agent.peer_of(socket, from) {
            Some(peer) => {
                if socket == MAIN {
                    self.intake.learn(Source::Direct(from), peer);
                }
                self.agent.handle_received(peer, socket, from, now);
                self.heard(peer, now);
                virtual_address(peer)
            }
            None if self.is_supernode(from) => as_v6(from),
            None => return self.agent.handle_unknown(socket, from, meta.len, now),
        };
        // Of a peer's packet it says nothing: the path of the next may be another.
        let dst_ip = meta.dst_ip.filter(|_| addr == as_v6(from));
        self.intake.inbound().push_train(RecvMeta { addr, dst_ip, ..*meta }, bytes);
    }

    fn stun(&mut self, socket: SocketId, from: SocketAddr, datagram: &[u8], now: Time) {
        if self.doctor_datagram(socket, from, datagram, now) {
            return;
        }
        self.agent.handle_datagram(socket, from, datagram, now);
    }

    /// A frame of a supernode's; the peer that a Data frame is from.
    fn relay_frame(
        &mut self,
        socket: SocketId,
        from: SocketAddr,
        frame: &[u8],
        now: Time,
    ) -> Option<PeerKey> {
        let mut homes = self.homes.iter_mut();
        let peer = homes.find_map(|home| {
            let (peer, _) = home.client.handle_datagram(socket, from, frame, now)?;
            home.heard();
            Some(peer)
        })?;
        self.peers.key_of(&peer)
    }

    /// Data frames of one channel.
    fn relayed(&mut self, socket: SocketId, source: Source, meta: &RecvMeta, bytes: &Bytes, now: Time) {
        let first = &bytes[..meta.stride.clamp(1, bytes.len())];
        if let Some(peer) = self.relay_frame(socket, meta.addr, first, now) {
            if socket == MAIN {
                self.intake.learn(source, peer);
            }
            let mut packets = bytes.to_vec();
            let meta = as_peers(peer, source, meta, &mut packets);
            packets.truncate(meta.len);
            self.intake.inbound().push_train(meta, packets.into());
            self.heard(peer, now);
        }
        self.settle(now);
    }

    /// Tells the engines what has gone to QUIC by itself.
    pub(super) fn notice_heard(&mut self, cx: &mut Context<'_>) {
        let now = self.now();
        for (source, peer) in self.intake.take_heard(cx) {
            match source {
                Source::Direct(from) => self.agent.handle_received(peer, MAIN, from, now),
                Source::Relay(from, _) => {
                    if let Some(home) = self.homes.iter_mut().find(|home| home.relays_by(MAIN, from)) {
                        home.heard();
                    }
                }
            }
            self.heard(peer, now);
        }
    }
}

fn is_data(header: [u8; DATA_HEADER]) -> bool {
    header[0] == data_header(ChannelId(0))[0]
}
