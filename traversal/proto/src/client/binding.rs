//! Where relayed packets go: the bound address, or the control connection.

use std::{net::SocketAddr, time::Duration};

use super::{Carrier, Client, Control, Event, Route, timers::Timer};
use crate::{
    SocketId, Time, Transmit,
    wire::{
        frame::{Bind, ChannelId, Cookie, Frame, FrameError, SessionId},
        message::ToSupernode,
        same,
    },
};

/// The first Bind of an attempt is sent again after so long; then twice as long, and so on.
const FIRST_WAIT: Duration = Duration::from_millis(300);
/// Binds go on this rarely where UDP is blocked.
const RAREST: Duration = Duration::from_secs(30);
/// After so many unanswered Binds of one attempt (2.1 s) relayed packets go by the control connection.
const FALL_BACK_AFTER: u32 = 3;
/// A binding is confirmed after 15 to 25 seconds (docs/protocol.md, Binding an address).
const REFRESH: (u64, u64) = (15_000, 10_000);
/// Challenges taken in one attempt: one is usual, two where our address changes meanwhile; more is somebody's game.
const MAX_CHALLENGES: u32 = 4;
/// Anybody can forge a hint: no more than one in this time is acted upon.
const HINT_EVERY: Duration = Duration::from_secs(1);
const NO_COOKIE: Cookie = [0; 16];

/// What is known of the binding.
#[derive(Default)]
pub(super) struct Binding {
    /// From where and to where UDP is tried.
    path: Option<(SocketId, SocketAddr)>,
    /// The connection runs over TCP: there is reason to think that UDP is blocked.
    stream_only: bool,
    /// How packets go now.
    route: Option<Route>,
    /// Of the last Bind.
    sequence: u32,
    cookie: Cookie,
    /// Binds of this attempt without an answer; `None`: no attempt is under way.
    tries: Option<u32>,
    challenges: u32,
    /// A Bind of this attempt has carried a cookie: the supernode may have taken its number.
    proved: bool,
    /// Attach is sent, and not answered yet.
    attaching: bool,
    /// The connection is a new one: that the address is still bound there is news.
    unconfirmed: bool,
    /// Hints before that are not acted upon.
    hint_after: Time,
}

impl Binding {
    pub(super) fn carried_by(&mut self, carrier: Carrier) {
        let (path, stream_only) = match carrier {
            Carrier::Datagrams { socket, to } => (Some((socket, to)), false),
            Carrier::Stream { udp } => (udp, true),
        };
        if self.path != path {
            *self = Binding::default();
        }
        (self.path, self.stream_only) = (path, stream_only);
        if self.route == Some(Route::Stream) {
            self.route = None;
        }
    }

    pub(super) fn reset(&mut self) {
        let (path, stream_only) = (self.path, self.stream_only);
        *self = Binding { path, stream_only, ..Binding::default() };
    }

    /// The control connection is gone; a bound address stays bound for a while.
    pub(super) fn interrupted(&mut self) {
        (self.tries, self.attaching) = (None, false);
        if self.route == Some(Route::Stream) {
            self.route = None;
        }
    }

    pub(super) fn path(&self) -> Option<(SocketId, SocketAddr)> {
        self.path
    }

    pub(super) fn route(&self) -> Option<Route> {
        self.route
    }

    pub(super) fn is_asking(&self) -> bool {
        self.tries.is_some()
    }
}

impl Client {
    /// After a registration on a new connection: there is a new token, and numbers start at 0 again.
    pub(super) fn start_binding(&mut self, resumed: bool, now: Time) {
        let route = self.binding.route.filter(|_| resumed);
        self.binding.reset();
        (self.binding.route, self.binding.unconfirmed) = (route, true);
        if self.binding.stream_only || self.binding.path.is_none() {
            self.attach();
        }
        self.bind_afresh(now);
    }

    /// Begins an attempt, with a new number.
    pub(super) fn bind_afresh(&mut self, now: Time) {
        if self.binding.path.is_none() {
            return;
        }
        self.binding.sequence += 1;
        (self.binding.tries, self.binding.challenges, self.binding.proved) = (Some(0), 0, false);
        self.send_bind(now);
    }

    /// The time for a Bind has come: the first of an attempt, or again.
    pub(super) fn bind_due(&mut self, now: Time) {
        let Some(tries) = self.binding.tries else { return self.bind_afresh(now) };
        let tries = tries.saturating_add(1);
        self.binding.tries = Some(tries);
        if tries == FALL_BACK_AFTER && self.binding.route != Some(Route::Stream) {
            if self.binding.route.take().is_some() {
                self.event(Event::BindLost);
            }
            self.attach();
        }
        if tries >= FALL_BACK_AFTER {
            // What was proved so long ago may be worth nothing now, and Attach must not win over a later Bind.
            self.binding.sequence += 1;
            (self.binding.cookie, self.binding.challenges, self.binding.proved) = (NO_COOKIE, 0, false);
        }
        self.send_bind(now);
    }

    fn send_bind(&mut self, now: Time) {
        let Some((session, token)) = self.registration.session else { return };
        let Some((socket, to)) = self.binding.path else { return };
        let (sequence, cookie) = (self.binding.sequence, self.binding.cookie);
        self.binding.proved |= cookie != NO_COOKIE;
        let proof = token.bind(session, sequence, &cookie);
        let bytes = Frame::Bind(Bind { session, sequence, cookie, proof }).to_vec();
        if self.transmits.len() < super::MAX_OUTPUTS {
            self.transmits.push_back(Transmit { socket, to, bytes, hops: None });
        }
        let tries = self.binding.tries.unwrap_or(0);
        let wait = (FIRST_WAIT * (1 << tries.min(7))).min(RAREST);
        // The first ones are on time: nothing is won by spreading them.
        let wait = if tries < FALL_BACK_AFTER { wait } else { self.jittered(wait) };
        self.timers.set(Timer::Bind, now + wait);
    }

    fn attach(&mut self) {
        if self.control == Control::Registered && !self.binding.attaching {
            self.binding.attaching = true;
            self.message(ToSupernode::Attach);
        }
    }

    pub(super) fn attached(&mut self) {
        // A Bind that was answered meanwhile has a higher number than anything that Attach could undo: but the supernode
        // handles the two in the order in which they reach it, which is not known here. So the binding is asked again.
        let undone = matches!(self.binding.route, Some(Route::Datagram { .. }));
        if !std::mem::take(&mut self.binding.attaching) {
            return;
        }
        self.binding.route = Some(Route::Stream);
        self.event(Event::Bound(Route::Stream));
        if undone && self.binding.tries.is_none() {
            let now = self.now;
            self.bind_afresh(now);
        }
    }

    pub(super) fn challenged(&mut self, session: SessionId, sequence: u32, cookie: Cookie, now: Time) {
        let expected = self.registration.session.is_some_and(|(ours, _)| ours == session)
            && self.binding.tries.is_some()
            && self.binding.sequence == sequence
            && self.binding.challenges < MAX_CHALLENGES;
        if !expected || self.control != Control::Registered {
            return;
        }
        self.binding.challenges += 1;
        if self.binding.proved && self.binding.cookie != cookie {
            // Our address has changed, or the cookie was too old. In the first case a new number is needed.
            self.binding.sequence += 1;
        }
        self.binding.cookie = cookie;
        self.send_bind(now);
    }

    pub(super) fn bound(
        &mut self,
        session: SessionId,
        sequence: u32,
        lifetime: u16,
        proof: [u8; 16],
        now: Time,
    ) {
        let Some((ours, token)) = self.registration.session else { return };
        let Some((socket, to)) = self.binding.path else { return };
        if ours != session || sequence != self.binding.sequence || self.binding.tries.is_none() {
            return;
        }
        if !same(&token.bound(session, sequence, &self.binding.cookie), &proof) {
            return;
        }
        self.binding.tries = None;
        let (least, spread) = REFRESH;
        let refresh = Duration::from_millis(least + rand_core::Rng::next_u64(&mut self.rng) % spread);
        let refresh = refresh.min(Duration::from_secs(lifetime.max(3).into()) / 3);
        self.timers.set(Timer::Bind, now + refresh);
        let route = Route::Datagram { socket, to };
        let is_news = std::mem::take(&mut self.binding.unconfirmed);
        if self.binding.route.replace(route) != Some(route) || is_news {
            self.event(Event::Bound(route));
        }
    }

    /// A hint that anybody can forge: what it says is asked, not believed. A supernode that knows nothing of our channel or
    /// session may be another process than the one that we are connected to.
    pub(super) fn frame_refused(&mut self, code: FrameError, id: u32, now: Time) {
        if self.control != Control::Registered {
            return;
        }
        match code {
            FrameError::NotBound if self.binding.tries.is_none() => self.bind_afresh(now),
            FrameError::NotBound | FrameError::Other(_) => {}
            FrameError::NoChannel => {
                self.recheck_channel(ChannelId(id), now);
                self.hinted(now);
            }
            FrameError::NoSession => {
                if self.timers.get(Timer::Register) > now + HINT_EVERY {
                    self.timers.set(Timer::Register, now + HINT_EVERY);
                }
                self.hinted(now);
            }
        }
    }

    fn hinted(&mut self, now: Time) {
        if now >= self.binding.hint_after {
            self.binding.hint_after = now + HINT_EVERY;
            self.suspect(now);
        }
    }
}
