//! The node's supernodes: one client engine for each, and the control connection that it asks for.

use std::{net::SocketAddr, time::Duration};

use tokio::sync::mpsc;
use traversal_proto::{
    Time,
    client::{Carrier, Client, Config, Event, Lost, Route},
    path::safety::is_server,
    wire::{
        Kind, List, demultiplex,
        message::{Hello, Supernode},
    },
};

use super::{Driver, MAIN, Timer};
use crate::{
    SupernodeAddress, SupernodeStatus,
    control::{Attempt, By, News},
    routes::virtual_address,
};

/// While the control connection runs over TCP, QUIC is tried so often.
const RETRY_QUIC: Duration = Duration::from_secs(60);

/// Packets that are sent to a relay bring others back, acknowledgements at least, within this time as a rule.
const SILENCE: Duration = Duration::from_secs(1);

/// One supernode.
pub(super) struct Home {
    pub(super) address: SupernodeAddress,
    pub(super) client: Client,
    /// Where it was reached last.
    remote: Option<SocketAddr>,
    control: Option<Control>,
    /// The attempt that counts: news of any other is of one that was given up.
    attempt: u64,
    /// An attempt by QUIC while TCP carries the connection.
    better: Option<u64>,
    hello: Option<Hello>,
    problem: Option<String>,
    /// Since when something is sent there and nothing has come back.
    waiting: Option<Time>,
}

struct Control {
    by: By,
    frames: mpsc::Sender<Vec<u8>>,
}

impl Home {
    /// How Data frames go there now, and the queue of the control connection.
    pub(super) fn route(&self) -> Option<(Route, Option<mpsc::Sender<Vec<u8>>>)> {
        Some((self.client.route()?, self.control.as_ref().map(|control| control.frames.clone())))
    }

    /// Something came from it.
    pub(super) fn heard(&mut self) {
        self.waiting = None;
    }

    /// Something was sent there lately. When nothing comes back for a while it is asked whether it is there.
    pub(super) fn sent_to(&mut self, now: Time) {
        if now.since(*self.waiting.get_or_insert(now)) >= SILENCE {
            self.client.suspect(now);
        }
    }

    /// Registered, and packets can be relayed.
    pub(super) fn is_ready(&self) -> bool {
        self.client.is_registered() && self.client.route().is_some()
    }

    pub(super) fn hello(&self) -> Option<&Hello> {
        self.hello.as_ref()
    }

    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    fn status(&self) -> SupernodeStatus {
        SupernodeStatus {
            address: self.address.address.clone(),
            id: self.client.supernode().or(self.address.id),
            registered: self.is_ready(),
            by_tcp: self.control.as_ref().is_some_and(|control| control.by == By::Tcp),
            relay_by_udp: matches!(self.client.route(), Some(Route::Datagram { .. })),
            observed: self.hello.as_ref().map(|hello| hello.observed),
            problem: self.problem.clone(),
        }
    }
}

/// What all client engines start with.
#[derive(Clone, Copy, Default)]
pub(super) struct HomeDefaults {
    wall_clock: u64,
    accepting: bool,
}

impl Driver {
    pub(super) fn set_home_defaults(&mut self, wall_clock: &Option<u64>, accepting: bool) {
        let system = || {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
        };
        self.home_defaults = HomeDefaults { wall_clock: wall_clock.unwrap_or_else(system), accepting };
    }

    pub(super) fn add_home(&mut self, address: SupernodeAddress, now: Time) {
        let mut config = Config::new(self.identity.clone());
        config.accepting = self.home_defaults.accepting;
        let seed = self.seeds.take();
        let elapsed = u64::try_from(now.since(Time::ZERO).as_millis()).unwrap_or(u64::MAX);
        let wall = match self.home_defaults.wall_clock {
            0 => 0,
            wall => wall.saturating_add(elapsed),
        };
        let client = Client::new(config, seed, now, wall);
        self.homes.push(Home {
            address,
            client,
            remote: None,
            control: None,
            attempt: 0,
            better: None,
            hello: None,
            problem: None,
            waiting: None,
        });
    }

    /// Whether a supernode's control connection, or an attempt at one, is at this address.
    pub(super) fn is_supernode(&self, from: SocketAddr) -> bool {
        self.homes.iter().any(|home| match home.remote {
            Some(remote) => remote == from,
            // A name: where it leads to is known to the dialling task only.
            None => match home.address.address.parse::<SocketAddr>() {
                Ok(address) => traversal_proto::address::canonical(address) == from,
                Err(_) => true,
            },
        })
    }

    /// Moves what the clients have to say. True: there was something.
    pub(super) fn drain_homes(&mut self, now: Time) -> bool {
        let mut moved = false;
        for at in 0..self.homes.len() {
            moved |= self.drain_home(at, now);
        }
        moved
    }

    fn drain_home(&mut self, at: usize, now: Time) -> bool {
        let mut moved = false;
        let home = &mut self.homes[at];
        while let Some(message) = home.client.poll_message() {
            moved = true;
            if let Some(control) = &home.control
                && control.frames.try_send(message.encode()).is_err()
            {
                // A supernode that reads nothing: the client's Pings find out soon enough.
                tracing::warn!(supernode = %home.address, "a message is lost: the supernode does not read");
            }
        }
        while let Some(transmit) = self.homes[at].client.poll_transmit() {
            moved = true;
            self.send(&transmit);
        }
        while let Some(event) = self.homes[at].client.poll_event() {
            moved = true;
            self.home_event(at, event, now);
        }
        while let Some((peer, packet)) = self.homes[at].client.poll_early() {
            if let Some(key) = self.peers.key_of(&peer) {
                self.inbound.push_slice(virtual_address(key), &packet);
            }
        }
        if moved {
            self.publish_homes();
        }
        moved
    }

    fn home_event(&mut self, at: usize, event: Event, now: Time) {
        tracing::debug!(supernode = %self.homes[at].address, ?event, "supernode");
        match event {
            Event::Dial => self.dial(at),
            Event::Lost(why) => {
                let home = &mut self.homes[at];
                home.control = None;
                home.attempt += 1;
                home.problem = Some(match why {
                    Lost::Unresponsive => "it does not answer any more".to_owned(),
                    Lost::Code(code) => code.to_string(),
                });
                self.relay_gone(now);
            }
            Event::Hello(hello) => self.greeted(at, hello, now),
            Event::Registered { .. } => {
                self.homes[at].problem = None;
                self.refresh_routes();
                if self.homes[at].is_ready() {
                    self.relay_ready(at, now);
                }
            }
            Event::NotRegistered { code, elsewhere } => {
                self.homes[at].problem = Some(code.to_string());
                // It is full, and names another one.
                if let Some(other) = elsewhere {
                    self.draining(at, Duration::ZERO, &[other], now);
                }
            }
            Event::Bound(route) => self.bound(at, route, now),
            Event::BindLost => self.relay_gone(now),
            Event::Opened { peer, .. } => self.channel_open(at, peer, now),
            Event::Refused { peer, code, .. } => self.channel_refused(at, peer, code, now),
            Event::Closed { peer, code, retrying } => self.channel_closed(at, peer, code, retrying, now),
            Event::Drain { leave_in, alternatives } => self.draining(at, leave_in, &alternatives, now),
            Event::Redirect { alternatives } => self.draining(at, Duration::ZERO, &alternatives, now),
            Event::Found { .. } | Event::Presence { .. } => {}
            Event::Quota { resource, used, limit, .. } => {
                tracing::warn!(supernode = %self.homes[at].address, ?resource, used, limit, "relay quota");
            }
        }
    }

    fn dial(&mut self, at: usize) {
        let home = &mut self.homes[at];
        home.attempt += 1;
        (home.control, home.better) = (None, None);
        let attempt = Attempt {
            home: at,
            number: home.attempt,
            address: home.address.address.clone(),
            expected: home.address.id.or(home.client.supernode()),
            tcp: true,
        };
        self.dialer.spawn(attempt);
    }

    /// Tries QUIC while TCP carries the control connection.
    pub(super) fn retry_quic(&mut self, at: usize) {
        let Some(home) = self.homes.get_mut(at) else { return };
        if home.control.as_ref().is_none_or(|control| control.by == By::Quic) || home.better.is_some() {
            return;
        }
        // Numbers of both kinds come from one counter; the present attempt stays the one that counts.
        let number = home.attempt + 1_000_000_000;
        home.better = Some(number);
        let attempt = Attempt {
            home: at,
            number,
            address: home.address.address.clone(),
            expected: home.client.supernode(),
            tcp: false,
        };
        self.dialer.spawn(attempt);
    }

    pub(super) fn control_news(&mut self, at: usize, attempt: u64, news: News, now: Time) {
        let Some(home) = self.homes.get_mut(at) else { return };
        if home.better == Some(attempt) && attempt != home.attempt {
            match news {
                News::Up { .. } => home.attempt = attempt,
                _ => {
                    home.better = None;
                    self.timers.set(now + RETRY_QUIC, Timer::RetryQuic(at));
                    return;
                }
            }
        }
        if attempt != home.attempt {
            return;
        }
        match news {
            News::Up { supernode, by, address, frames } => {
                home.better = None;
                home.remote = Some(address);
                home.control = Some(Control { by, frames });
                let carrier = match by {
                    By::Quic => Carrier::Datagrams { socket: MAIN, to: address },
                    By::Tcp => Carrier::Stream { udp: Some((MAIN, address)) },
                };
                home.client.handle_connected(supernode, carrier, now);
                if by == By::Tcp {
                    self.timers.set(now + RETRY_QUIC, Timer::RetryQuic(at));
                }
            }
            News::Frame(body) => self.control_frame(at, &body, now),
            News::Down(problem) => {
                home.control = None;
                home.attempt += 1;
                if home.problem.is_none() || !home.client.is_registered() {
                    home.problem = Some(problem);
                }
                home.client.handle_disconnected(now);
                self.relay_gone(now);
                self.publish_homes();
            }
        }
    }

    fn control_frame(&mut self, at: usize, body: &[u8], now: Time) {
        let home = &mut self.homes[at];
        home.heard();
        match home.client.handle_frame(body, now) {
            Ok(Some((peer, range))) => {
                if let Some(key) = self.peers.key_of(&peer) {
                    self.inbound.push_slice(virtual_address(key), &body[range]);
                    self.heard(key, now);
                }
            }
            Ok(None) => {}
            Err(error) => {
                // Dropping the queue ends the connection; the task tells so.
                home.control = None;
                let relay = body.first().is_some_and(|first| demultiplex(*first) == Kind::Relay);
                tracing::warn!(supernode = %home.address, %error, relay, "the supernode speaks another language");
                home.problem = Some(error.to_string());
            }
        }
    }

    fn greeted(&mut self, at: usize, mut hello: Hello, now: Time) {
        let home = &mut self.homes[at];
        let may_be_asked = |named: &SocketAddr| home.remote.is_some_and(|remote| is_server(*named, remote));
        hello.reflectors = List::first_of(hello.reflectors.iter().copied().filter(may_be_asked));
        let by_quic = home.control.as_ref().is_some_and(|control| control.by == By::Quic);
        let (observed, reflectors) = (hello.observed, hello.reflectors.to_vec());
        home.hello = Some(hello);
        if by_quic {
            self.agent.handle_observed(MAIN, observed, now);
        }
        // The reflectors of the first supernode that has some.
        let preferred = self.homes.iter().position(|home| home.hello.is_some());
        if preferred == Some(at) {
            self.agent.handle_reflectors(&reflectors, now);
        }
    }

    /// Packets can be relayed, or by another way than before.
    fn bound(&mut self, at: usize, route: Route, now: Time) {
        self.refresh_routes();
        self.relay_ready(at, now);
        let by_tcp = self.homes[at].control.as_ref().is_some_and(|control| control.by == By::Tcp);
        if by_tcp && matches!(route, Route::Datagram { .. }) {
            self.retry_quic(at);
        }
    }

    /// The supernode goes away: the alternatives that it names are added, as far as there is room.
    fn draining(&mut self, at: usize, leave_in: Duration, alternatives: &[Supernode], now: Time) {
        tracing::info!(supernode = %self.homes[at].address, ?leave_in, "the supernode is going away");
        let remote = self.homes[at].remote;
        for alternative in alternatives {
            let known = self
                .homes
                .iter()
                .any(|home| home.client.supernode().or(home.address.id) == Some(alternative.id));
            let may_be_dialled = |to: &&SocketAddr| remote.is_some_and(|remote| is_server(**to, remote));
            let Some(address) = alternative.addresses.iter().find(may_be_dialled) else { continue };
            if !known && self.homes.len() < MAX_HOMES {
                let address = SupernodeAddress { id: Some(alternative.id), address: address.to_string() };
                self.add_home(address, now);
            }
        }
        self.use_other_homes(at, now);
    }

    pub(super) fn homes_due(&mut self, now: Time) {
        for home in &mut self.homes {
            if home.client.poll_timeout().is_some_and(|at| at <= now) {
                home.client.handle_timeout(now);
            }
        }
    }

    pub(super) fn homes_next(&self) -> Option<Time> {
        self.homes.iter().filter_map(|home| home.client.poll_timeout()).min()
    }

    pub(super) fn rebind_homes(&mut self, now: Time) {
        self.homes.iter_mut().for_each(|home| home.client.rebind(now));
    }

    pub(super) fn unregister(&mut self, now: Time) {
        self.homes.iter_mut().for_each(|home| home.client.unregister(now));
    }

    pub(super) fn publish_homes(&mut self) {
        let statuses: Vec<_> = self.homes.iter().map(Home::status).collect();
        self.statuses.send_if_modified(|known| {
            let changed = *known != statuses;
            *known = statuses;
            changed
        });
    }

    /// Whether nobody could be asked for a channel, and what is in the way.
    pub(super) fn homes_problem(&self) -> String {
        let problems = self
            .homes
            .iter()
            .filter_map(|home| home.problem().map(|problem| format!("; {}: {problem}", home.address)));
        problems.collect()
    }
}

/// Supernodes at the same time, with those that others have named.
const MAX_HOMES: usize = 8;
