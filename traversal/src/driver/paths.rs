//! What the path agent says, and the ways that follow from it.

use std::{sync::Arc, task::Context, time::Duration};

use traversal_proto::{
    Time, Transmit,
    client::Route,
    path::SocketRequest,
    peer::{Event, Hop, PeerKey},
    wire::frame::data_header,
};

use super::{Driver, Timer};
use crate::{
    Path, PathEvent, PathKind,
    routes::{Entry, Way},
};

/// After so long without a packet a peer counts as quiet, and its next packet as news to the agent.
const QUIET: Duration = Duration::from_millis(40);

impl Driver {
    /// Sends what an engine wants sent. What cannot be sent is lost, as any datagram may be.
    pub(super) fn send(&self, transmit: &Transmit) {
        let Some(socket) = self.sockets.get(transmit.socket) else { return };
        // Where no packet can be told how far to go, openers are done without.
        if let Err(error) = socket.try_send_for(transmit)
            && error.kind() != std::io::ErrorKind::Unsupported
        {
            self.counts.add(|counts| &counts.send_errors);
            tracing::trace!(to = %transmit.to, %error, "a datagram is lost");
        }
    }

    /// Moves what the agent has to say. True: there was something.
    pub(super) fn drain_agent(&mut self, now: Time) -> bool {
        let mut moved = false;
        while let Some(transmit) = self.agent.poll_transmit() {
            moved = true;
            self.send(&transmit);
        }
        while let Some((peer, message)) = self.agent.poll_message() {
            moved = true;
            if !self.peers.say(peer, message) {
                self.counts.add(|counts| &counts.peer_messages_dropped);
                tracing::debug!(?peer, "a message between nodes is lost: the stream does not take it");
            }
        }
        while let Some(request) = self.agent.poll_socket() {
            moved = true;
            self.socket_wanted(request, now);
        }
        while let Some(peer) = self.agent.poll_route() {
            moved = true;
            self.refresh_route(peer);
        }
        while let Some(event) = self.agent.poll_event() {
            moved = true;
            self.path_event(event, now);
        }
        moved
    }

    fn socket_wanted(&mut self, request: SocketRequest, now: Time) {
        match request {
            SocketRequest::Open { request, .. } => match self.open_socket() {
                Some(socket) => {
                    let local = self.sockets.local(socket);
                    self.agent.handle_socket_opened(socket, local, Some(request), now);
                }
                None => self.agent.handle_socket_refused(request, now),
            },
            SocketRequest::Close(socket) => self.sockets.remove(socket),
        }
    }

    /// Another socket, of the main one's family, on a port of the system's choice.
    pub(super) fn open_socket(&mut self) -> Option<traversal_proto::SocketId> {
        let mut address = self.sockets.local(super::MAIN);
        address.set_port(0);
        let socket = self.network.bind(address).ok()?;
        self.sockets.insert(socket)
    }

    fn path_event(&mut self, event: Event, now: Time) {
        tracing::debug!(?event, "path");
        match event {
            Event::PathUp { peer, hop, rtt } => {
                let path = Path { rtt: Some(rtt), ..self.path_of(peer, Some(hop)) };
                self.peers.tell(peer, PathEvent::PathUp { path });
            }
            Event::Switched { peer, from, to, why, rtt } => {
                let from = self.path_of(peer, from);
                let to = Path { rtt, ..self.path_of(peer, to) };
                self.mind_policy(peer, &to, now);
                self.refresh_route(peer);
                self.peers.set_path(peer, to);
                self.peers.tell(peer, PathEvent::Switched { from, to, why: why.into() });
            }
            Event::PathLost { peer, hop } => {
                let path = self.path_of(peer, Some(hop));
                self.peers.tell(peer, PathEvent::PathLost { path });
            }
            Event::GaveUp { peer, ours, theirs, same_nat, retry_in } => {
                self.peers.set_profiles(peer, ours, theirs);
                self.peers.set_same_nat(peer, same_nat);
                self.peers.tell(peer, PathEvent::NoDirectPath { ours, theirs, same_nat, retry_in });
            }
            Event::Candidates { peer, .. } => {
                if let Some(theirs) = self.agent.profile_of(peer) {
                    self.peers.set_profiles(peer, self.agent.profile(), theirs);
                }
            }
            Event::Profile(profile) => self.peers.set_own_profile(profile),
        }
    }

    pub(super) fn path_of(&self, peer: PeerKey, hop: Option<Hop>) -> Path {
        match hop {
            None => Path::NONE,
            Some(Hop::Direct { to, .. }) => Path { kind: PathKind::Direct, remote: Some(to), rtt: None },
            Some(Hop::Relay) => {
                let remote = self.relay_home(peer).and_then(|home| match home.client.route()? {
                    Route::Datagram { to, .. } => Some(to),
                    Route::Stream => None,
                });
                Path { kind: PathKind::Relay, remote, rtt: None }
            }
        }
    }

    /// Puts in which way the packets of every peer go.
    pub(super) fn refresh_routes(&mut self) {
        for peer in self.peers.keys() {
            self.refresh_route(peer);
        }
    }

    pub(super) fn refresh_route(&mut self, peer: PeerKey) {
        let (primary, also, epoch) = match self.agent.route(peer) {
            Some(route) => (route.primary, route.also, route.epoch),
            // Before the agent knows of the peer there is the relay, and nothing else.
            None => (Hop::Relay, None, 0),
        };
        let ways = (self.way(peer, primary), also.map(|hop| self.way(peer, hop)));
        let up = self.relay_home(peer).is_some();
        if let Some(slot) = self.peers.get_mut(peer) {
            let was_certain = slot.entry.as_ref().is_none_or(|entry| entry.also.is_none());
            let is_doubted = was_certain && ways.1.is_some();
            if !slot.has_ways(&ways) {
                let entry = Arc::new(Entry::new(ways.0, ways.1));
                slot.entry = Some(Arc::clone(&entry));
                self.routes.set(peer, entry);
            }
            if is_doubted {
                slot.epoch.doubt();
            }
            if slot.epoch.set(epoch) || is_doubted {
                slot.wake();
            }
        }
        self.tell_relay(peer, up);
    }

    /// Tells the agent when the relay comes or goes.
    fn tell_relay(&mut self, peer: PeerKey, up: bool) {
        let now = self.now();
        let Some(slot) = self.peers.get_mut(peer) else { return };
        let Some(rtt) = slot.connection().map(quinn::Connection::rtt) else { return };
        if slot.relay_told != Some(up) {
            slot.relay_told = Some(up);
            self.agent.handle_relay(peer, up, Some(rtt), now);
        }
    }

    fn way(&self, peer: PeerKey, hop: Hop) -> Way {
        match hop {
            Hop::Direct { socket, to } => match self.sockets.get(socket) {
                Some(socket) => Way::Direct { socket: Arc::clone(socket), to },
                None => Way::Nowhere,
            },
            Hop::Relay if self.is_barred_from_relay(peer) => Way::Nowhere,
            Hop::Relay => self.relay_way(peer).unwrap_or(Way::Nowhere),
        }
    }

    fn relay_way(&self, peer: PeerKey) -> Option<Way> {
        let home = self.relay_home(peer)?;
        let channel = home.client.channel(&self.peers.get(peer)?.peer)?;
        let header = data_header(channel);
        match home.route()? {
            (Route::Datagram { socket, to }, _) => {
                Some(Way::Relay { socket: Arc::clone(self.sockets.get(socket)?), to, header })
            }
            (Route::Stream, frames) => Some(Way::Stream { frames: frames?, header }),
        }
    }

    /// Whoever was sent to lately counts as quiet until the next packet; relays that bring nothing back are asked why.
    pub(super) fn rearm_sent(&mut self, now: Time) {
        for peer in std::mem::take(&mut self.sent_lately) {
            if let Some(entry) = self.peers.get(peer).and_then(|slot| slot.entry.as_ref()) {
                entry.rearm();
            }
            if self.agent.route(peer).is_none_or(|route| route.primary == Hop::Relay)
                && let Some(at) = self.relay_index(peer)
            {
                self.homes[at].sent_to(now);
            }
        }
    }

    /// The supernode that relays for this peer: the first with a channel that carries packets.
    pub(super) fn relay_home(&self, peer: PeerKey) -> Option<&super::Home> {
        self.relay_index(peer).map(|at| &self.homes[at])
    }

    pub(super) fn relay_index(&self, peer: PeerKey) -> Option<usize> {
        let id = self.peers.get(peer)?.peer;
        let can = |home: &super::Home| home.client.channel(&id).is_some() && home.client.route().is_some();
        let registered = |home: &super::Home| can(home) && home.client.is_registered();
        self.homes.iter().position(registered).or_else(|| self.homes.iter().position(can))
    }

    /// Tells the agent who was sent to after a quiet time.
    pub(super) fn notice_sent(&mut self, cx: &mut Context<'_>) {
        let woken = self.routes.take_woken(cx);
        if woken.is_empty() {
            return;
        }
        let now = self.now();
        for peer in &woken {
            self.agent.handle_sent(*peer, now);
        }
        self.sent_lately.extend(woken);
        self.timers.set_first(now + QUIET, Timer::Quiet);
    }
}
