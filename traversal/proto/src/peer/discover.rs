//! The agent's own discovery of its NAT, with sockets of its own.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use rand_core::Rng;

use super::{Agent, Deadline, Event, OpenId, Purpose, SocketRequest};
use crate::{
    SocketId, Time,
    path::{Discovery, discovery},
};

/// A discovery under way.
#[derive(Default)]
pub(super) struct Discovering {
    engine: Option<Discovery>,
    /// The agent's number of each socket that was asked for, and discovery's.
    requests: BTreeMap<OpenId, OpenId>,
    sockets: Vec<SocketId>,
}

impl Agent {
    /// Begins, or begins again.
    pub(super) fn discover(&mut self, now: Time) {
        let reflectors = self.shared.local.reflectors().to_vec();
        if !self.shared.config.discover || reflectors.is_empty() {
            return;
        }
        let old = std::mem::take(&mut self.discovering);
        old.sockets.into_iter().for_each(|socket| self.shared.request(SocketRequest::Close(socket)));
        for request in old.requests.keys() {
            // A socket that comes yet is closed again.
            self.opening.remove(request);
        }
        let mut seed = [0; 32];
        self.shared.rng.fill_bytes(&mut seed);
        let config = discovery::Config { reflectors, quick: true, lifetime: Duration::ZERO };
        self.discovering.engine = Some(Discovery::new(config, seed, now));
        self.drain_discovery(now);
    }

    fn drain_discovery(&mut self, now: Time) {
        let Some(mut engine) = self.discovering.engine.take() else { return };
        while let Some(request) = engine.poll_socket() {
            match request {
                SocketRequest::Open { request: inner, .. } => {
                    let request = self.open(Purpose::Discovery);
                    self.discovering.requests.insert(request, inner);
                }
                SocketRequest::Close(socket) => {
                    self.discovering.sockets.retain(|other| *other != socket);
                    self.shared.request(SocketRequest::Close(socket));
                }
            }
        }
        while let Some(t) = engine.poll_transmit() {
            self.shared.transmit(t.socket, t.to, t.bytes);
        }
        let due = engine.poll_timeout().unwrap_or(Time::NEVER);
        match engine.report() {
            Some(report) => {
                let profile = report.profile;
                self.discovering.requests.clear();
                self.deadlines.arm(Deadline::Discovery, &mut self.discovery_armed, Time::NEVER);
                self.shared.local.set_discovered(profile);
                self.shared.event(Event::Profile(profile));
                self.handle_local_change(now);
            }
            None => {
                self.discovering.engine = Some(engine);
                self.deadlines.arm(Deadline::Discovery, &mut self.discovery_armed, due);
            }
        }
    }

    pub(super) fn discovery_socket_opened(
        &mut self,
        request: OpenId,
        socket: SocketId,
        local: SocketAddr,
        now: Time,
    ) {
        let inner = self.discovering.requests.remove(&request);
        let Some((inner, engine)) = inner.zip(self.discovering.engine.as_mut()) else {
            return self.shared.request(SocketRequest::Close(socket));
        };
        engine.handle_socket_opened(inner, socket, local, now);
        self.discovering.sockets.push(socket);
        self.drain_discovery(now);
    }

    pub(super) fn discovery_socket_refused(&mut self, request: OpenId, now: Time) {
        let inner = self.discovering.requests.remove(&request);
        if let Some((inner, engine)) = inner.zip(self.discovering.engine.as_mut()) {
            engine.handle_socket_refused(inner, now);
            self.drain_discovery(now);
        }
    }

    /// True when the datagram came on a socket of discovery's.
    pub(super) fn discovery_datagram(
        &mut self,
        socket: SocketId,
        from: SocketAddr,
        bytes: &[u8],
        now: Time,
    ) -> bool {
        if !self.discovering.sockets.contains(&socket) {
            return false;
        }
        if let Some(engine) = &mut self.discovering.engine {
            engine.handle_datagram(socket, from, bytes, now);
            self.drain_discovery(now);
        }
        true
    }

    pub(super) fn discovery_timeout(&mut self, now: Time) {
        if let Some(engine) = &mut self.discovering.engine {
            engine.handle_timeout(now);
        }
        self.drain_discovery(now);
    }
}
