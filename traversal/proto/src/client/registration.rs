//! Being registered.

use std::time::Duration;

use super::{Client, Control, Event, Lost, timers::Timer};
use crate::{
    Time, UnixTime,
    wire::{
        PeerId, Record, RelayToken, SignedRecord,
        frame::SessionId,
        message::{Code, Hello, RelayMode, Supernode, ToSupernode},
    },
};

/// A supernode that calls the number stale again and again does not mean to register us.
const MAX_RAISES: u32 = 3;
/// After a refusal that another attempt will hardly change.
const HOPELESS: Duration = Duration::from_secs(60);

/// What is known of the registration.
#[derive(Default)]
pub(super) struct Registration {
    /// The supernode's key.
    pub(super) supernode: Option<PeerId>,
    /// The relay session, while registered and through an interruption.
    pub(super) session: Option<(SessionId, RelayToken)>,
    pub(super) relay: Option<RelayMode>,
    /// The last sequence number used, or known to be stale.
    sequence: u64,
    /// How often the number was raised for this registration.
    raises: u32,
    /// The supernode's limit.
    max_lifetime: Duration,
    /// The registration on this connection is confirmed.
    confirmed: bool,
}

impl Registration {
    pub(super) fn forget(&mut self) {
        (self.session, self.relay, self.confirmed) = (None, None, false);
    }
}

/// Two clocks of the world: our own, and the supernode's.
pub(super) struct Clock {
    /// Milliseconds since 1970 by our own clock, and when it was read.
    ours: (u64, Time),
    /// By the supernode's.
    theirs: Option<(UnixTime, Time)>,
}

impl Clock {
    pub(super) fn new(wall: u64, now: Time) -> Clock {
        Clock { ours: (wall, now), theirs: None }
    }

    /// The supernode's time: what it compares a record's expiry with.
    pub(super) fn unix(&self, now: Time) -> UnixTime {
        match self.theirs {
            Some((unix, at)) => unix + now.since(at),
            None => UnixTime(self.ours.0 / 1000) + now.since(self.ours.1),
        }
    }

    /// Milliseconds by our own clock, if it runs at all, otherwise by the supernode's.
    fn millis(&self, now: Time) -> u64 {
        if self.ours.0 == 0 {
            return self.unix(now).0.saturating_mul(1000);
        }
        let since = u64::try_from(now.since(self.ours.1).as_millis()).unwrap_or(u64::MAX);
        self.ours.0.saturating_add(since)
    }
}

impl Client {
    pub(super) fn greeted(&mut self, hello: Hello, now: Time) {
        if self.control != Control::Greeting {
            return;
        }
        self.clock.theirs = Some((hello.time, now));
        self.registration.max_lifetime = Duration::from_secs(hello.max_lifetime.into());
        (self.registration.confirmed, self.registration.raises) = (false, 0);
        self.event(Event::Hello(hello));
        self.register(now);
    }

    /// Registers, or renews.
    pub(super) fn register(&mut self, now: Time) {
        let Some(supernode) = self.registration.supernode else { return };
        if !matches!(self.control, Control::Greeting | Control::Registering | Control::Registered) {
            return;
        }
        let lifetime = self.config.lifetime.min(self.registration.max_lifetime);
        let sequence = self.clock.millis(now).max(self.registration.sequence.saturating_add(1));
        self.registration.sequence = sequence;
        let expires = self.clock.unix(now) + lifetime;
        let record = Record { peer: self.id, supernode, sequence, expires };
        let record = SignedRecord::sign(record, &self.config.identity);
        let resume = self.registration.session.is_some();
        self.message(ToSupernode::Register { record, accepting: self.config.accepting, resume });
        if self.control != Control::Registered {
            self.control = Control::Registering;
        }
    }

    pub(super) fn registered(
        &mut self,
        session: SessionId,
        token: RelayToken,
        lifetime: u32,
        relay: RelayMode,
        now: Time,
    ) {
        if !matches!(self.control, Control::Registering | Control::Registered) {
            return;
        }
        let known = self.registration.session.replace((session, token));
        self.registration.relay = Some(relay);
        self.control = Control::Registered;
        (self.failures, self.registration.raises) = (0, 0);
        let renew = self.jittered(Duration::from_secs(lifetime.max(2).into()) * 2 / 3);
        self.timers.set(Timer::Register, now + renew);
        if std::mem::replace(&mut self.registration.confirmed, true) && known == Some((session, token)) {
            return;
        }
        let resumed = known.is_some_and(|(known, _)| known == session);
        if !resumed {
            self.channels.lost();
            self.early.clear();
        }
        self.event(Event::Registered { resumed, relay });
        self.start_binding(resumed, now);
        self.reopen(now);
    }

    pub(super) fn not_registered(
        &mut self,
        code: Code,
        detail: u64,
        elsewhere: Option<Supernode>,
        now: Time,
    ) {
        if !matches!(self.control, Control::Registering | Control::Registered) {
            return;
        }
        if code == Code::StaleSequence && self.registration.raises < MAX_RAISES {
            self.registration.raises += 1;
            self.registration.sequence = self.registration.sequence.max(detail);
            return self.register(now);
        }
        // The clocks differ from what Hello said, after a long sleep of this machine for one: a new Hello tells.
        if code == Code::BadExpiry && self.control == Control::Registered {
            return self.lose(Lost::Code(code), now);
        }
        self.failures = self.failures.saturating_add(1);
        let wait = match code {
            Code::TooFast | Code::Full | Code::StaleSequence => {
                self.backoff_floor().max(Duration::from_secs(2))
            }
            _ => HOPELESS,
        };
        let wait = self.jittered(wait);
        self.timers.set(Timer::Register, now + wait);
        self.event(Event::NotRegistered { code, elsewhere });
    }

    /// An Error message: something that no request stands for.
    pub(super) fn complained(&mut self, code: Code, now: Time) {
        match code {
            Code::Expired | Code::NotRegistered if self.control == Control::Registered => {
                self.registration.forget();
                self.binding.reset();
                self.channels.lost();
                self.early.clear();
                self.control = Control::Registering;
                self.register(now);
            }
            // Answers to a Close of a channel that is gone already, and to a Watch: the connection stays.
            Code::NoChannel | Code::TooManyWatches | Code::TooFast => {}
            code => self.lose(Lost::Code(code), now),
        }
    }
}
