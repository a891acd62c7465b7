//! The node's supernodes: one client engine for each, and the control connection that it asks for.

use std::{net::SocketAddr, time::Duration};

use tokio::sync::mpsc::{self, error::TrySendError};
use traversal_proto::{
    SocketId, Time,
    client::{Carrier, Client, Config, Event, Lost, Route},
    path::safety::is_server,
    wire::{Kind, List, PeerId, demultiplex, message::Hello},
};

use super::{Driver, MAIN, Timer};
use crate::{
    SupernodeAddress, SupernodeStatus,
    control::{Attempt, By, MAX_WAITING, News},
    routes::virtual_address,
};

/// While the control connection runs over TCP, QUIC is tried so often.
const RETRY_QUIC: Duration = Duration::from_secs(60);

/// Messages that found no room are tried again after so long: a round trip of a fast link, in which some are written.
const MAKE_ROOM: Duration = Duration::from_millis(20);

/// Packets that are sent to a relay bring others back, acknowledgements at least, within this time as a rule.
const SILENCE: Duration = Duration::from_secs(1);

/// One supernode.
pub(super) struct Home {
    pub(super) address: SupernodeAddress,
    pub(super) client: Client,
    /// When another supernode has named it; `None`: it is configured.
    added: Option<Time>,
    /// Where it was reached last.
    remote: Option<SocketAddr>,
    /// Where it is being tried.
    dialled: Option<SocketAddr>,
    control: Option<Control>,
    /// The attempt that counts: news of any other is of one that was given up.
    attempt: Option<u64>,
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

    /// Whether its relay frames come from here.
    pub(super) fn relays_by(&self, socket: SocketId, from: SocketAddr) -> bool {
        self.client.route() == Some(Route::Datagram { socket, to: from })
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

    /// Its key, as shown or as expected.
    pub(super) fn id(&self) -> Option<PeerId> {
        self.client.supernode().or(self.address.id)
    }

    pub(super) fn remote(&self) -> Option<SocketAddr> {
        self.remote
    }

    pub(super) fn added(&self) -> Option<Time> {
        self.added
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
            id: self.id(),
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

    pub(super) fn add_home(&mut self, address: SupernodeAddress, is_configured: bool, now: Time) {
        let home = self.new_home(address, is_configured, now);
        self.homes.push(home);
    }

    pub(super) fn new_home(&mut self, address: SupernodeAddress, is_configured: bool, now: Time) -> Home {
        let mut config = Config::new(self.identity.clone());
        config.accepting = self.home_defaults.accepting;
        let seed = self.seeds.take();
        let elapsed = u64::try_from(now.since(Time::ZERO).as_millis()).unwrap_or(u64::MAX);
        let wall = match self.home_defaults.wall_clock {
            0 => 0,
            wall => wall.saturating_add(elapsed),
        };
        let client = Client::new(config, seed, now, wall);
        Home {
            address,
            client,
            added: (!is_configured).then_some(now),
            remote: None,
            dialled: None,
            control: None,
            attempt: None,
            better: None,
            hello: None,
            problem: None,
            waiting: None,
        }
    }

    /// Whether a supernode's control connection, or an attempt at one, is at this address.
    pub(super) fn is_supernode(&self, from: SocketAddr) -> bool {
        self.homes.iter().any(|home| [home.remote, home.dialled].contains(&Some(from)))
    }

    /// Moves what the clients have to say. True: there was something.
    pub(super) fn drain_homes(&mut self, now: Time) -> bool {
        let mut moved = false;
        for at in 0..self.homes.len() {
            moved |= self.drain_home(at, now);
        }
        moved
    }

    pub(super) fn drain_home(&mut self, at: usize, now: Time) -> bool {
        let mut moved = self.drain_messages(at, now);
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
                self.intake.inbound().push_slice(virtual_address(key), &packet);
            }
        }
        if moved {
            self.publish_homes();
        }
        moved
    }

    /// Moves messages as far as there is room; without a connection they go nowhere.
    fn drain_messages(&mut self, at: usize, now: Time) -> bool {
        let mut moved = false;
        let Home { client, control, address, .. } = &mut self.homes[at];
        loop {
            let room = match control.as_ref().map(|control| control.frames.try_reserve()) {
                Some(Err(TrySendError::Full(()))) => {
                    // If the supernode reads nothing, the client's Pings find out.
                    tracing::debug!(supernode = %address, most = MAX_WAITING, "messages wait for room");
                    self.counts.add(|counts| &counts.supernode_messages_held);
                    self.timers.set_first(now + MAKE_ROOM, Timer::Unwritten(at));
                    return moved;
                }
                room => room.and_then(Result::ok),
            };
            let Some(message) = client.poll_message() else { return moved };
            moved = true;
            if let Some(room) = room {
                room.send(message.encode());
            }
        }
    }

    fn home_event(&mut self, at: usize, event: Event, now: Time) {
        tracing::debug!(supernode = %self.homes[at].address, ?event, "supernode");
        match event {
            Event::Dial => self.dial(at),
            Event::Lost(why) => {
                let home = &mut self.homes[at];
                (home.control, home.attempt) = (None, None);
                home.problem = Some(match why {
                    Lost::Unresponsive => "it does not answer any more".to_owned(),
                    Lost::Code(code) => code.to_string(),
                });
                self.relay_gone(at, now);
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
            Event::BindLost => self.relay_gone(at, now),
            Event::Opened { peer, .. } => self.channel_open(at, peer, now),
            Event::Refused { peer, code, elsewhere } => {
                self.channel_refused(at, peer, code, elsewhere.as_ref(), now);
            }
            Event::Closed { peer, retrying, .. } => self.channel_closed(at, peer, retrying, now),
            Event::Drain { leave_in, alternatives } => self.draining(at, leave_in, &alternatives, now),
            Event::Redirect { alternatives } => self.draining(at, Duration::ZERO, &alternatives, now),
            Event::Found { .. } | Event::Presence { .. } => {}
            Event::Quota { resource, used, limit, .. } => {
                tracing::warn!(supernode = %self.homes[at].address, ?resource, used, limit, "relay quota");
            }
        }
    }

    fn dial(&mut self, at: usize) {
        let number = self.next_attempt();
        let home = &mut self.homes[at];
        (home.control, home.attempt, home.better) = (None, Some(number), None);
        let attempt = Attempt {
            home: at,
            number,
            address: home.address.address.clone(),
            expected: home.address.id.or(home.client.supernode()),
            tcp: true,
        };
        self.dialer.spawn(attempt);
    }

    /// Tries QUIC while TCP carries the control connection.
    pub(super) fn retry_quic(&mut self, at: usize) {
        let number = self.next_attempt();
        let Some(home) = self.homes.get_mut(at) else { return };
        if home.control.as_ref().is_none_or(|control| control.by == By::Quic) || home.better.is_some() {
            return;
        }
        // The present attempt stays the one that counts.
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
        if home.better == Some(attempt) {
            match news {
                News::Resolved(_) => {}
                News::Up { .. } => home.attempt = Some(attempt),
                News::Frame(_) | News::Down(_) => {
                    home.better = None;
                    self.timers.set(now + RETRY_QUIC, Timer::RetryQuic(at));
                    return;
                }
            }
        }
        if ![home.attempt, home.better].contains(&Some(attempt)) {
            return;
        }
        match news {
            News::Resolved(address) => home.dialled = Some(address),
            News::Up { supernode, by, address, frames } => {
                (home.remote, home.dialled, home.better) = (Some(address), None, None);
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
                (home.control, home.attempt) = (None, None);
                if home.problem.is_none() || !home.client.is_registered() {
                    home.problem = Some(problem);
                }
                home.client.handle_disconnected(now);
                self.relay_gone(at, now);
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
                    self.intake.inbound().push_slice(virtual_address(key), &body[range]);
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
        self.wake_relayed(at, now);
        let by_tcp = self.homes[at].control.as_ref().is_some_and(|control| control.by == By::Tcp);
        if by_tcp && matches!(route, Route::Datagram { .. }) {
            self.retry_quic(at);
        }
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
