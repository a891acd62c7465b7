//! What the agent is told of its own node: sockets, addresses, reflectors.

use std::net::SocketAddr;

use rand_core::Rng;

use super::{Agent, Deadline, Interface, OpenId, Purpose, SocketRequest, Why, shared::Shared};
use crate::{SocketId, Time, wire::stun::TransactionId};

impl Agent {
    /// A socket is open at `local`: of the caller's own (`request` is `None`, [`Purpose::Main`]), or one asked for by
    /// [`poll_socket`](Self::poll_socket). Bound to the unspecified address it is at every local address.
    pub fn handle_socket_opened(
        &mut self,
        socket: SocketId,
        local: SocketAddr,
        request: Option<OpenId>,
        now: Time,
    ) {
        let now = self.at(now);
        let purpose = match request {
            None => Purpose::Main,
            Some(request) => match self.opening.remove(&request) {
                Some(Purpose::Discovery) => {
                    self.discovery_socket_opened(request, socket, local, now);
                    return;
                }
                Some(purpose) => purpose,
                None => return self.shared.request(SocketRequest::Close(socket)),
            },
        };
        let is_used = self.shared.local.add_socket(socket, local, purpose, now);
        if !is_used && request.is_some() {
            self.shared.request(SocketRequest::Close(socket));
        }
        self.handle_local_change(now);
    }

    /// A socket that was asked for cannot be opened.
    pub fn handle_socket_refused(&mut self, request: OpenId, now: Time) {
        let now = self.at(now);
        if self.opening.remove(&request) == Some(Purpose::Discovery) {
            self.discovery_socket_refused(request, now);
        }
    }

    /// A socket is closed or broken: no path goes by it any more.
    pub fn handle_socket_closed(&mut self, socket: SocketId, now: Time) {
        let now = self.at(now);
        self.shared.local.remove_socket(socket);
        self.for_all(|peer, shared| {
            peer.forget_socket(socket, shared);
            peer.reselect(Why::NetworkChanged, None, shared, now);
        });
        self.handle_local_change(now);
    }

    /// The machine's addresses are these now.
    pub fn handle_local_addresses(&mut self, interfaces: &[Interface], now: Time) {
        let now = self.at(now);
        self.shared.local.set_interfaces(interfaces);
        self.handle_local_change(now);
    }

    /// The reflector's addresses: those of the supernode's Hello, the one to ask first in front. Replaces earlier ones.
    pub fn handle_reflectors(&mut self, reflectors: &[SocketAddr], now: Time) {
        let now = self.at(now);
        self.shared.local.set_reflectors(reflectors, now);
        self.discover(now);
        self.gather(now);
    }

    /// A supernode has seen this socket at this address: Hello's `observed`.
    pub fn handle_observed(&mut self, socket: SocketId, observed: SocketAddr, now: Time) {
        let now = self.at(now);
        self.shared.local.handle_seen(socket, None, observed);
        self.handle_local_change(now);
    }

    /// The network has changed: every path is doubted and checked at once, addresses are gathered afresh, and both sides
    /// look for paths again.
    pub fn handle_network_changed(&mut self, now: Time) {
        let now = self.at(now);
        self.shared.local.forget_seen(now);
        self.handle_local_change(now);
        self.for_all(|peer, shared| {
            peer.doubt_all(shared, now);
            peer.search_again(shared, now);
        });
        self.discover(now);
    }

    /// Tells all peers what is new about this node, and asks reflectors.
    pub(super) fn handle_local_change(&mut self, now: Time) {
        if self.shared.local.gather(&self.shared.config) {
            self.for_all(|peer, shared| {
                peer.announce(shared);
                peer.make_pairs(shared, now);
            });
        }
        self.gather(now);
    }

    pub(super) fn gather(&mut self, now: Time) {
        let Shared { local, rng, counters, .. } = &mut self.shared;
        let id = || TransactionId::tagged(rng.next_u32(), rng.next_u64());
        let due = local.handle_timeout(now, id, counters);
        due.into_iter().for_each(|t| self.shared.transmit(t.socket, t.to, t.bytes));
        self.arm_gather();
    }

    pub(super) fn arm_gather(&mut self) {
        self.deadlines.arm(Deadline::Gather, &mut self.gather_armed, self.shared.local.deadline());
    }

    pub(super) fn open(&mut self, purpose: Purpose) -> OpenId {
        let request = OpenId(self.next_open);
        self.next_open = self.next_open.wrapping_add(1);
        self.opening.insert(request, purpose);
        self.shared.request(SocketRequest::Open { request, purpose });
        request
    }
}
