//! What the engine counts and reports.

use std::fmt;

use crate::wire::{PeerId, message::Code};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $word:literal),+ $(,)?) => {
        /// Why a datagram or frame went no further.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason { $($(#[doc = $doc])+ $variant),+ }

        impl DropReason {
            /// Every reason, in the order of its index.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant),+];

            /// The name of this reason in counters and logs.
            pub const fn word(self) -> &'static str {
                match self { $(DropReason::$variant => $word),+ }
            }

            /// A sentence for people.
            pub const fn explanation(self) -> &'static str {
                match self { $(DropReason::$variant => concat!($($doc),+)),+ }
            }
        }
    };
}

reasons! {
    /// Neither STUN nor a relay frame, or damaged.
    Malformed = "malformed",
    /// A frame that a supernode does not take, or not from there.
    Unexpected = "unexpected",
    /// From an address that no host sends from.
    BadSource = "bad-source",
    /// An answer to an unproven address would have been too long or one too many.
    Unproven = "unproven",
    /// A Bind whose proof was not made with the session's token.
    BadProof = "bad-proof",
    /// A Bind that is older than the one in force.
    StaleBind = "stale-bind",
    /// No such session.
    NoSession = "no-session",
    /// No such channel.
    NoChannel = "no-channel",
    /// The sender's session is not bound to the address that the frame came from.
    NotBound = "not-bound",
    /// The other peer has bound no address.
    PeerNotBound = "peer-not-bound",
    /// Longer than the receiver's connection takes.
    TooLong = "too-long",
    /// The sender's bytes per second are used up.
    ByteRate = "byte-rate",
    /// The sender's packets per second are used up.
    PacketRate = "packet-rate",
    /// Everybody's rate together is used up.
    TotalRate = "total-rate",
    /// What the sender may send for signalling is used up.
    SignallingOnly = "signalling-only",
    /// Forwarded by more supernodes than a packet may cross.
    HopLimit = "hop-limit",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])+ $field:ident),+ $(,)?) => {
        /// What has happened since the supernode was made.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])+ pub $field: u64,)+
            pub(super) dropped: [u64; DropReason::ALL.len()],
        }

        impl Counters {
            /// Every counter but the drops, with its name.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field)),+].into_iter()
            }
        }
    };
}

counters! {
    /// Frames relayed.
    relayed_packets,
    /// Their bytes, frame headers included, IP and UDP headers not.
    relayed_bytes,
    /// STUN requests answered with an address.
    reflections,
    /// STUN requests answered with an error.
    reflection_errors,
    /// Challenges sent.
    challenges,
    /// Sessions bound to an address, or moved to another.
    binds,
    /// Binds that kept an address.
    bind_refreshes,
    /// Error frames sent.
    frame_errors,
    /// Connections taken.
    connections_accepted,
    /// Connections sent away at once.
    connections_refused,
    /// Messages taken.
    messages,
    /// Frames on a connection that were no message.
    messages_malformed,
    /// Requests refused because they came too fast.
    messages_too_fast,
    /// Registrations made, renewed or moved.
    registrations,
    /// Registrations refused.
    registrations_refused,
    /// Registrations that ended.
    registrations_ended,
    /// Lookups.
    lookups,
    /// Channels opened.
    channels_opened,
    /// Channels that ended.
    channels_closed,
    /// Requests for a channel that were refused.
    connects_refused,
    /// Questions put to the directory.
    queries,
    /// Questions that were not answered in time.
    query_timeouts,
    /// Answers with a record that does not verify.
    answers_forged,
    /// Accounts forgotten to make room for others.
    accounts_evicted,
    /// Warnings about quotas.
    quota_warnings,
    /// Datagrams, messages or events of our own that found their queue full.
    outputs_lost,
}

impl Counters {
    /// Datagrams and frames dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    /// Every reason with its count.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.iter().map(|reason| (*reason, self.dropped(*reason)))
    }
}

/// How much there is at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Connections.
    pub connections: usize,
    /// Registered peers.
    pub registrations: usize,
    /// Channels, each with two ends.
    pub channels: usize,
    /// Watches.
    pub watches: usize,
    /// Questions that the directory has not answered.
    pub queries: usize,
    /// Accounts, those of absent peers included.
    pub accounts: usize,
}

/// Something that happened to the supernode's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A peer can be found here now.
    Registered(PeerId),
    /// A peer's registration ended.
    Released(PeerId, Code),
    /// A channel came into being.
    ChannelOpened {
        /// Who asked for it.
        from: PeerId,
        /// To whom.
        to: PeerId,
    },
    /// A peer's volume for this period is used up; from now on it is signalling only.
    VolumeExhausted(PeerId),
}
