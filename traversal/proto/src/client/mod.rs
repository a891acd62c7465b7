//! A node's session with one supernode: registered, bound, with a channel to every peer that is wanted.
//!
//! # Theory of operation
//!
//! A [`Client`] is told when the control connection is up and what comes over it, and says what to send. It keeps three
//! things alive through whatever happens to that connection, and to the supernode:
//!
//! ```text
//!  Dial ─▶ connected ─▶ Hello ─▶ Register ─▶ Registered ──┬─▶ renewed at half of its lifetime
//!    ▲                                                    ├─▶ Bind ─▶ Challenge ─▶ Bind ─▶ Bound, again every 15–25 s
//!    │                                                    │     └ no answer ─▶ Attach: relayed by the connection
//!    └── disconnected: back-off with jitter               └─▶ Connect for each peer that is wanted
//! ```
//!
//! - **The registration.** A record is signed with the supernode's clock, which Hello tells, and a sequence number of our
//!   own clock in milliseconds. A number that the supernode finds stale is raised once, and the floor remembered. After a
//!   new connection the registration is resumed, so that channels, and the bound address with them, outlive the
//!   connection.
//! - **The binding.** Relayed packets go by UDP when the supernode has bound our address. Unanswered Binds mean that UDP
//!   is blocked: then packets go by the control connection (Attach), and Binds go on, more and more rarely; the first that
//!   is answered takes them back. Every refresh has a new sequence number, so one that finds our NAT's mapping changed
//!   moves the binding.
//! - **Channels.** [`connect`](Client::connect) says that a channel to a peer is wanted, until [`close`](Client::close).
//!   When it is lost with a supernode or a connection it is asked for again: both ends ask, and whoever comes first opens
//!   it for both.
//!
//! What comes after what: after every `handle_*`, and after every call that asks for something, drain
//! [`poll_message`](Client::poll_message), [`poll_transmit`](Client::poll_transmit), [`poll_event`](Client::poll_event)
//! and [`poll_early`](Client::poll_early), in this order; then wait for [`poll_timeout`](Client::poll_timeout).

mod binding;
mod channels;
mod early;
mod event;
mod registration;
mod timers;

use std::{collections::VecDeque, net::SocketAddr, ops::Range, time::Duration};

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

pub use event::{Carrier, Event, Lost, Route};

use crate::{
    SocketId, Time, Transmit, UnixTime,
    wire::{
        Identity, Kind, List, PeerId, demultiplex,
        frame::{ChannelId, DATA_HEADER, Frame},
        message::{Code, DecodeError, FromSupernode, MAX_WATCH, RelayMode, ToSupernode},
    },
};
use binding::Binding;
use channels::Channels;
use early::Early;
use registration::{Clock, Registration};
use timers::{Timer, Timers};

/// A registration lasts so long unless something else is configured: long enough that renewing costs nothing, short
/// enough that a node that vanished is not looked for much longer.
pub const LIFETIME: Duration = Duration::from_secs(300);

/// A supernode that answers nothing for so long after a Ping is gone.
const PONG_WITHIN: Duration = Duration::from_secs(10);
/// The same when there is a reason to suspect that it is gone: a few round trips of the slowest link.
const SUSPECT_PONG_WITHIN: Duration = Duration::from_secs(2);
/// Between two Pings.
const PING_EVERY: Duration = Duration::from_secs(20);
/// Outputs that wait. They are drained after every input, which makes at most one message for each channel and some.
const MAX_OUTPUTS: usize = 4096;

/// What a [`Client`] needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Registers under this key, and signs its records with it.
    pub identity: Identity,
    /// Whether others may find this node and connect to it.
    pub accepting: bool,
    /// How long a registration lasts without being renewed; at most what the supernode allows.
    pub lifetime: Duration,
    /// Channels at the same time, those that others opened included. More are refused.
    pub max_channels: usize,
}

impl Config {
    /// The configuration that fits nearly everybody.
    pub fn new(identity: Identity) -> Config {
        Config { identity, accepting: true, lifetime: LIFETIME, max_channels: 1024 }
    }
}

/// One node's session with one supernode. See the [module](self) for how it works.
pub struct Client {
    config: Config,
    id: PeerId,
    rng: ChaCha8Rng,
    now: Time,
    clock: Clock,
    control: Control,
    registration: Registration,
    binding: Binding,
    channels: Channels,
    early: Early,
    timers: Timers,
    /// Dials, and registrations, that failed in a row.
    failures: u32,
    messages: VecDeque<ToSupernode>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

/// How far the control connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    /// There is none: a dial is under way, or waits for its time. Nothing is sent.
    Down,
    /// It is up, Hello has not come. Nothing is sent.
    Greeting,
    /// Register is sent, or waits for its time after a refusal. Nothing else is sent.
    Registering,
    /// Registered. Everything is allowed.
    Registered,
    /// The node has taken its registration back. Nothing is sent but Pings.
    Unregistered,
}

impl Client {
    /// A session to be: its first event asks to be dialled. All that is random comes from `seed`; `wall` is our own clock,
    /// in milliseconds since 1970, or 0 if there is none.
    pub fn new(config: Config, seed: [u8; 32], now: Time, wall: u64) -> Client {
        let id = config.identity.peer_id();
        let mut client = Client {
            config,
            id,
            rng: ChaCha8Rng::from_seed(seed),
            now,
            clock: Clock::new(wall, now),
            control: Control::Down,
            registration: Registration::default(),
            binding: Binding::default(),
            channels: Channels::default(),
            early: Early::default(),
            timers: Timers::default(),
            failures: 0,
            messages: VecDeque::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        };
        client.event(Event::Dial);
        client
    }

    // ---- Inputs ----

    /// A control connection to `supernode` is up, and its key is proved. If another was up, it counts no more: the caller
    /// hands over nothing of it from now on.
    pub fn handle_connected(&mut self, supernode: PeerId, carrier: Carrier, now: Time) {
        let now = self.at(now);
        self.messages.clear();
        self.timers.clear(Timer::Dial);
        self.control = Control::Greeting;
        self.registration.supernode = Some(supernode);
        self.binding.carried_by(carrier);
        self.timers.set(Timer::Pong, now + PONG_WITHIN);
    }

    /// The control connection is gone, or could not be made. [`Event::Dial`] comes when it is time to try again.
    pub fn handle_disconnected(&mut self, now: Time) {
        let now = self.at(now);
        // After `Lost` the end of the connection is no news, and the next dial has its time already.
        if self.control != Control::Down || self.timers.get(Timer::Dial) == Time::NEVER {
            self.down(self.backoff_floor(), now);
        }
    }

    /// The body of one frame of the control connection: a message is acted upon; of a relayed packet, the peer that it is
    /// from and where its payload lies are returned.
    pub fn handle_frame(
        &mut self,
        body: &[u8],
        now: Time,
    ) -> Result<Option<(PeerId, Range<usize>)>, DecodeError> {
        if body.first().is_some_and(|first| demultiplex(*first) == Kind::Relay) {
            // Behind a bulk transfer a Pong comes late: whoever sends something else meanwhile is there.
            if self.control == Control::Registered {
                self.heard(now);
            }
            return Ok(self.payload_of(body, now));
        }
        let message = FromSupernode::decode(body)?;
        self.handle_message(message, now);
        Ok(None)
    }

    /// A relay frame that came by UDP, as [`handle_frame`](Self::handle_frame). Only the supernode's address counts.
    pub fn handle_datagram(
        &mut self,
        socket: SocketId,
        from: SocketAddr,
        datagram: &[u8],
        now: Time,
    ) -> Option<(PeerId, Range<usize>)> {
        if self.binding.path() != Some((socket, from)) {
            return None;
        }
        match Frame::decode(datagram).ok()? {
            Frame::Data { .. } => return self.payload_of(datagram, now),
            Frame::Challenge { session, sequence, cookie } => {
                let now = self.at(now);
                self.challenged(session, sequence, cookie, now);
            }
            Frame::Bound { session, sequence, lifetime, proof } => {
                let now = self.at(now);
                self.bound(session, sequence, lifetime, proof, now);
            }
            Frame::Error { code, id } => {
                let now = self.at(now);
                self.frame_refused(code, id, now);
            }
            Frame::Bind(_) | Frame::Forward { .. } => {}
        }
        None
    }

    /// A message of the supernode's.
    pub fn handle_message(&mut self, message: FromSupernode, now: Time) {
        let now = self.at(now);
        if self.control == Control::Down {
            return;
        }
        self.heard(now);
        match message {
            FromSupernode::Hello(hello) => self.greeted(hello, now),
            FromSupernode::Registered { session, token, lifetime, relay } => {
                self.registered(session, token, lifetime, relay, now);
            }
            FromSupernode::Refused { request: 0, code, detail, elsewhere } => {
                self.not_registered(code, detail, elsewhere, now);
            }
            FromSupernode::Refused { request, code, elsewhere, .. } => {
                self.refused(request, code, elsewhere, now);
            }
            FromSupernode::Found { request, record, elsewhere } => self.found(request, &record, elsewhere),
            FromSupernode::Opened { peer, channel, relay, .. } => self.opened(peer, channel, relay),
            FromSupernode::Closed { channel, code } => self.closed(channel, code, now),
            FromSupernode::Attached => self.attached(),
            FromSupernode::Presence { peer, online } => self.event(Event::Presence { peer, online }),
            FromSupernode::Quota { resource, used, limit, resets_in } => {
                let resets_in = Duration::from_secs(resets_in.into());
                self.event(Event::Quota { resource, used, limit, resets_in });
            }
            FromSupernode::Drain { leave_in, alternatives } => {
                let leave_in = Duration::from_millis(leave_in.into());
                self.event(Event::Drain { leave_in, alternatives: alternatives.to_vec() });
            }
            FromSupernode::Redirect { alternatives } => {
                self.event(Event::Redirect { alternatives: alternatives.to_vec() });
            }
            FromSupernode::Pong { .. } => {}
            FromSupernode::Error { code } => self.complained(code, now),
        }
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Time) {
        let now = self.at(now);
        while let Some(timer) = self.timers.pop(now) {
            match timer {
                Timer::Dial => self.event(Event::Dial),
                Timer::Register => self.register(now),
                Timer::Bind => self.bind_due(now),
                Timer::Channels => self.channels_due(now),
                Timer::Ping => {
                    let nonce = self.rng.next_u64();
                    self.message(ToSupernode::Ping { nonce });
                    self.timers.set(Timer::Pong, now + PONG_WITHIN);
                }
                Timer::Pong => self.lose(Lost::Unresponsive, now),
            }
        }
    }

    // ---- What is wanted ----

    /// A channel to `peer` is wanted, until [`close`](Self::close). Answered by [`Event::Opened`] or [`Event::Refused`],
    /// once the node is registered; at once if it is open. After a refusal it is wanted no more.
    pub fn connect(&mut self, peer: PeerId, now: Time) {
        let now = self.at(now);
        self.want(peer, now);
    }

    /// The channel to `peer` is wanted no more.
    pub fn close(&mut self, peer: &PeerId, now: Time) {
        self.at(now);
        self.drop_channel(peer);
    }

    /// Asks where `peer` is. Answered by [`Event::Found`] or [`Event::Refused`]; false if the node is not registered at the
    /// moment, or asks too much at a time.
    pub fn lookup(&mut self, peer: PeerId) -> bool {
        self.ask_where(peer)
    }

    /// Asks to be told when `peer` comes or goes, and at once what it is now. To be asked again after
    /// [`Event::Registered`] with `resumed` false. False if the node is not registered.
    pub fn watch(&mut self, peer: PeerId) -> bool {
        let registered = self.control == Control::Registered;
        if registered {
            self.message(ToSupernode::Watch { peers: List::<_, MAX_WATCH>::first_of([peer]) });
        }
        registered
    }

    /// Takes the registration back: nobody finds this node any more, and all channels are gone.
    pub fn unregister(&mut self, now: Time) {
        self.at(now);
        if self.control == Control::Registered {
            self.message(ToSupernode::Unregister);
            self.control = Control::Unregistered;
        }
        self.channels = Channels::default();
        self.registration.forget();
        self.binding.reset();
        for timer in [Timer::Register, Timer::Bind, Timer::Channels] {
            self.timers.clear(timer);
        }
    }

    /// Asks the supernode whether it is there, with little patience: what was sent to it has brought nothing back.
    pub fn suspect(&mut self, now: Time) {
        let now = self.at(now);
        if self.control == Control::Registered && self.timers.get(Timer::Pong) == Time::NEVER {
            let nonce = self.rng.next_u64();
            self.message(ToSupernode::Ping { nonce });
            self.timers.set(Timer::Pong, now + SUSPECT_PONG_WITHIN);
        }
    }

    /// Binds again now: relayed packets are lost, or our address has changed.
    pub fn rebind(&mut self, now: Time) {
        let now = self.at(now);
        if self.control == Control::Registered && !self.binding.is_asking() {
            self.bind_afresh(now);
        }
    }

    // ---- Outputs ----

    /// The next message to write to the control connection.
    pub fn poll_message(&mut self) -> Option<ToSupernode> {
        self.messages.pop_front()
    }

    /// The next relay frame to send by UDP.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// What has happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The next packet that came before the [`Opened`](Event::Opened) of its channel, and whose it is.
    pub fn poll_early(&mut self) -> Option<(PeerId, Vec<u8>)> {
        self.early.poll()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timers.next()
    }

    // ---- What is there ----

    /// How Data frames go to the supernode at the moment, if they can.
    pub fn route(&self) -> Option<Route> {
        self.binding.route()
    }

    /// Our end of the open channel to `peer`.
    pub fn channel(&self, peer: &PeerId) -> Option<ChannelId> {
        self.channels.open_to(peer)
    }

    /// Whether some channel is open, or wanted.
    pub fn has_channels(&self) -> bool {
        !self.channels.is_empty()
    }

    /// Whether the node is registered.
    pub fn is_registered(&self) -> bool {
        self.control == Control::Registered
    }

    /// How much of our traffic the supernode carries; `None` before the first registration.
    pub fn relay_mode(&self) -> Option<RelayMode> {
        self.registration.relay
    }

    /// The supernode's key, once it was connected to.
    pub fn supernode(&self) -> Option<PeerId> {
        self.registration.supernode
    }

    /// The wall clock as the supernode has it, or our own before its Hello.
    pub fn unix_time(&self, now: Time) -> UnixTime {
        self.clock.unix(now)
    }

    // ---- Inside ----

    fn at(&mut self, now: Time) -> Time {
        self.now = self.now.max(now);
        self.now
    }

    /// Something came by the control connection.
    fn heard(&mut self, now: Time) {
        let now = self.at(now);
        self.timers.clear(Timer::Pong);
        if self.timers.get(Timer::Ping) == Time::NEVER {
            self.timers.set(Timer::Ping, now + PING_EVERY);
        }
    }

    fn payload_of(&mut self, frame: &[u8], now: Time) -> Option<(PeerId, Range<usize>)> {
        let Ok(Frame::Data { channel, payload }) = Frame::decode(frame) else { return None };
        let Some(peer) = self.channels.peer_of(channel) else {
            let now = self.at(now);
            self.early.keep(channel, payload, now);
            return None;
        };
        Some((peer, DATA_HEADER..frame.len()))
    }

    /// The connection is of no use any more: the caller is to close it.
    fn lose(&mut self, why: Lost, now: Time) {
        let floor = if why == Lost::Code(Code::Replaced) { REPLACED } else { self.backoff_floor() };
        self.down(floor, now);
        self.event(Event::Lost(why));
    }

    fn down(&mut self, wait: Duration, now: Time) {
        self.control = Control::Down;
        self.failures = self.failures.saturating_add(1);
        self.messages.clear();
        self.timers.clear_all();
        self.channels.interrupted();
        self.binding.interrupted();
        let wait = self.jittered(wait);
        self.timers.set(Timer::Dial, now + wait);
    }

    /// 250 ms, doubling up to 30 s.
    fn backoff_floor(&self) -> Duration {
        Duration::from_millis(250 << self.failures.min(7)).min(Duration::from_secs(30))
    }

    /// Between one half and the whole of `wait`: so a thousand nodes that lost the same supernode do not come back at once.
    fn jittered(&mut self, wait: Duration) -> Duration {
        let half = u64::try_from(wait.as_nanos() / 2).unwrap_or(u64::MAX / 2);
        Duration::from_nanos(half + self.rng.next_u64() % half.max(1))
    }

    fn message(&mut self, message: ToSupernode) {
        if self.messages.len() < MAX_OUTPUTS {
            self.messages.push_back(message);
        }
    }

    fn event(&mut self, event: Event) {
        if self.events.len() < MAX_OUTPUTS {
            self.events.push_back(event);
        }
    }
}

/// Another process uses the same key: fighting for it would throw both out again and again.
const REPLACED: Duration = Duration::from_secs(60);
