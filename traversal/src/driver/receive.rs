//! What comes in by UDP, by its first byte and its source.

use std::{
    net::SocketAddr,
    task::{Context, Poll},
};

use bytes::Bytes;
use traversal_net::{RecvMeta, udp::RecvBatch};
use traversal_proto::{
    SocketId, Time,
    wire::{Kind, demultiplex, frame::DATA_HEADER},
};

use super::Driver;
use crate::routes::{as_v6, virtual_address};

/// Batches read from one socket in one turn, so that commands and deadlines get theirs.
const BATCHES_PER_TURN: usize = 8;

impl Driver {
    /// Reads from all sockets. True: there may be more.
    pub(super) fn poll_sockets(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(mut batch) = self.batch.take() else { return false };
        let mut more = false;
        for (id, socket) in self.sockets.all() {
            for turn in 0..BATCHES_PER_TURN {
                match batch.poll_recv(&*socket, cx) {
                    Poll::Ready(Ok(count)) => {
                        let now = self.now();
                        for at in 0..count {
                            self.received(id, &mut batch, at, now);
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
    fn received(&mut self, socket: SocketId, batch: &mut RecvBatch, at: usize, now: Time) {
        let (meta, bytes) = batch.train(at);
        let (from, stride) = (meta.addr, meta.stride.max(1));
        let kind = |datagram: &[u8]| datagram.first().map_or(Kind::Unknown, |first| demultiplex(*first));
        if bytes.chunks(stride).all(|datagram| kind(datagram) == Kind::Quic) {
            if let Some(meta) = self.quic(socket, meta, now) {
                self.inbound.push_train(meta, batch.take(at));
            }
            return;
        }
        if self.relayed_train(socket, &meta, bytes, now) {
            return;
        }
        for datagram in bytes.chunks_mut(stride) {
            match kind(datagram) {
                Kind::Stun => {
                    self.stun(socket, from, datagram, now);
                    self.settle(now);
                }
                Kind::Relay => {
                    self.relay_frame(socket, from, datagram, now);
                    self.settle(now);
                }
                Kind::Quic => {
                    let single = RecvMeta { len: datagram.len(), stride: datagram.len(), ..meta };
                    if let Some(meta) = self.quic(socket, single, now) {
                        self.inbound.push_train(meta, Bytes::copy_from_slice(datagram));
                    }
                }
                Kind::Unknown => {}
            }
        }
    }

    /// QUIC: of a supernode's control connection, or of the peer that has proved itself at this address; as it is to be
    /// received. Anything else may be a peer whose NAT has given it another port, for the agent to find out.
    fn quic(&mut self, socket: SocketId, mut meta: RecvMeta, now: Time) -> Option<RecvMeta> {
        let from = meta.addr;
        meta.addr = match self.agent.peer_of(socket, from) {
            Some(peer) => {
                self.agent.handle_received(peer, socket, from, now);
                self.heard(peer, now);
                // Which of our addresses it came to says nothing about the next packet: the path may be another by then.
                meta.dst_ip = None;
                virtual_address(peer)
            }
            None if self.is_supernode(from) => as_v6(from),
            None => {
                self.agent.handle_unknown(socket, from, meta.len, now);
                return None;
            }
        };
        Some(meta)
    }

    fn stun(&mut self, socket: SocketId, from: SocketAddr, datagram: &[u8], now: Time) {
        if self.doctor_datagram(socket, from, datagram, now) {
            return;
        }
        self.agent.handle_datagram(socket, from, datagram, now);
    }

    fn relay_frame(&mut self, socket: SocketId, from: SocketAddr, datagram: &[u8], now: Time) {
        for home in &mut self.homes {
            if let Some((peer, range)) = home.client.handle_datagram(socket, from, datagram, now) {
                home.heard();
                if let Some(peer) = self.peers.key_of(&peer) {
                    self.inbound.push_slice(virtual_address(peer), &datagram[range]);
                    self.heard(peer, now);
                }
                return;
            }
        }
    }

    /// Data frames of one channel are unpacked together: a relayed bulk transfer comes in trains.
    fn relayed_train(&mut self, socket: SocketId, meta: &RecvMeta, bytes: &[u8], now: Time) -> bool {
        let stride = meta.stride.max(1);
        let Some(header) = bytes.first_chunk::<DATA_HEADER>() else { return false };
        let is_data = header[0]
            == traversal_proto::wire::frame::data_header(traversal_proto::wire::frame::ChannelId(0))[0];
        let alike = bytes.chunks(stride).all(|frame| frame.len() > DATA_HEADER && frame.starts_with(header));
        if !is_data || !alike || bytes.len() <= stride {
            return false;
        }
        let first = &bytes[..stride];
        let mut homes = self.homes.iter_mut();
        let found = homes.find_map(|home| {
            let found = home.client.handle_datagram(socket, meta.addr, first, now)?;
            home.heard();
            Some(found)
        });
        let Some((peer, _)) = found else {
            return true;
        };
        if let Some(peer) = self.peers.key_of(&peer) {
            let mut payload = Vec::with_capacity(bytes.len());
            bytes.chunks(stride).for_each(|frame| payload.extend_from_slice(&frame[DATA_HEADER..]));
            let mut inner = *meta;
            (inner.addr, inner.dst_ip) = (virtual_address(peer), None);
            (inner.len, inner.stride) = (payload.len(), stride - DATA_HEADER);
            self.inbound.push_train(inner, payload.into());
            self.heard(peer, now);
        }
        true
    }
}
