//! What the engine says about a packet, and what it counts and reports.

use std::fmt;

use crate::{External, Inside, InsideId, PortBlock, Protocol, Remote};

/// What is to be done with the packet that was just handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Translated: send it out of this side.
    Forward(Side),
    /// Translated twice: deliver it to the host behind this inside port (RFC 4787 §6).
    Hairpin(InsideId),
    /// Not to be forwarded; counted under this reason.
    Drop(DropReason),
    /// The packet has become its own answer: send it back the way it came.
    Reply,
    /// For an address of the NAT itself, unchanged: the caller's own business.
    Local,
    /// A fragment that came before the first one of its datagram: the NAT has kept a copy, which comes out of
    /// `poll_transmit` behind that first one, or is dropped when that does not come.
    Held,
}

/// A side of the NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The public network.
    Outside,
    /// The hosts behind this inside port.
    Inside(InsideId),
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $word:literal),+ $(,)?) => {
        /// Why a packet was not forwarded.
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
    /// Not an IPv4 packet, or its header is damaged or cut short.
    Malformed = "malformed",
    /// The IPv4 header checksum is wrong.
    BadChecksum = "bad-checksum",
    /// IPv6 is not translated.
    Ipv6 = "ipv6",
    /// A protocol other than UDP, TCP and ICMP.
    Protocol = "unknown-protocol",
    /// An ICMP type that a NAT does not translate.
    IcmpType = "icmp-type",
    /// A fragment that the behaviour does not pass, or a part of an ICMP error.
    Fragment = "fragment",
    /// A first fragment without the whole transport header, or a later one that reaches into it.
    FragmentHeader = "fragment-header",
    /// A fragment whose first one has not come, or not in time.
    FragmentOrphan = "fragment-orphan",
    /// No room for a fragment that waits for its first one, or that is to be sent.
    FragmentsFull = "fragments-full",
    /// The source address cannot be a host's: multicast, broadcast, loopback or our own.
    BadSource = "bad-source",
    /// The destination is multicast, broadcast, loopback or unspecified.
    BadDestination = "bad-destination",
    /// The TTL ran out here; an ICMP Time Exceeded was sent.
    TtlExceeded = "ttl-exceeded",
    /// Too big for the next link and not to be fragmented; ICMP Fragmentation Needed was sent.
    TooBig = "too-big",
    /// No mapping has this external endpoint.
    NoMapping = "no-mapping",
    /// The mapping's filter does not admit this remote endpoint.
    Filtered = "filtered",
    /// An inbound SYN that no filter admits.
    UnsolicitedSyn = "unsolicited-syn",
    /// A TCP segment of no known connection.
    StrayTcp = "stray-tcp",
    /// An ICMP error about a packet that no session sent.
    IcmpUnrelated = "icmp-unrelated",
    /// Hairpinning is switched off.
    HairpinOff = "hairpin-off",
    /// The behaviour does not let inside hosts reach this destination.
    Prohibited = "prohibited",
    /// No external port is free.
    PortsExhausted = "ports-exhausted",
    /// The table of mappings or sessions is full.
    TableFull = "table-full",
    /// Its subscriber has as many mappings, or port blocks, as one may have.
    SubscriberMappings = "subscriber-mappings",
    /// Its subscriber has as many sessions as one may have.
    SubscriberSessions = "subscriber-sessions",
    /// Its subscriber makes mappings or sessions faster than one may.
    SubscriberRate = "subscriber-rate",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])+ $field:ident),+ $(,)?) => {
        /// What has happened since the NAT was made. Packets count as the engine sees them: a super-frame is one.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])+ pub $field: u64,)+
            pub(crate) dropped: [u64; DropReason::ALL.len()],
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
    /// Packets forwarded from inside to outside.
    outbound_packets,
    /// Their bytes, IP headers included.
    outbound_bytes,
    /// Packets forwarded from outside to inside.
    inbound_packets,
    /// Their bytes, IP headers included.
    inbound_bytes,
    /// Packets between two inside hosts by way of an external endpoint.
    hairpin_packets,
    /// Packets routed between inside ports, untranslated.
    routed_packets,
    /// Echo requests to the NAT's own addresses that were answered.
    replies,
    /// Packets for the NAT's own addresses.
    local_packets,
    /// Of the packets forwarded, those that passed untranslated, as to and from their remote they are to.
    untranslated_packets,
    /// Mappings made since the start.
    mappings_created,
    /// Mappings that ended.
    mappings_ended,
    /// Sessions made since the start.
    sessions_created,
    /// Sessions that ended.
    sessions_ended,
    /// Port blocks that subscribers were given.
    blocks_assigned,
    /// Port blocks that were theirs no more.
    blocks_released,
    /// Ports at rest that were free before their time, for want of room.
    quarantine_cut_short,
    /// Sessions that were dropped to make room for new ones.
    displaced,
    /// Tuples that packets from outside have taken.
    tuples_occupied,
    /// Tuples that they have not, for want of room.
    tuples_not_occupied,
    /// ICMP errors and resets that the NAT sent.
    generated_packets,
    /// ICMP errors and resets held back by the rate limit or a full queue.
    generated_suppressed,
    /// Fragments that had to wait for their first one.
    fragments_delayed,
    /// Fragments that packets too big for the next link were cut into.
    fragments_made,
    /// Events that nobody took in time.
    events_lost,
}

impl Counters {
    /// Packets dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    /// Every reason with its count.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.iter().map(|reason| (*reason, self.dropped(*reason)))
    }
}

/// Something that happened to the NAT's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A mapping came into being.
    MappingCreated {
        /// Its transport.
        protocol: Protocol,
        /// The private side.
        inside: Inside,
        /// The public side.
        external: External,
    },
    /// A mapping ended.
    MappingEnded {
        /// Its transport.
        protocol: Protocol,
        /// The private side.
        inside: Inside,
        /// The public side, now free.
        external: External,
        /// Why.
        why: Ended,
    },
    /// A mapping could not be made.
    MappingRefused {
        /// The transport asked for.
        protocol: Protocol,
        /// Who asked.
        inside: Inside,
        /// Whom it wanted to reach.
        remote: Remote,
        /// What stood in the way.
        why: DropReason,
    },
    /// A subscriber was given a port block: until its release every port in it is that subscriber's, but for static
    /// forwards.
    BlockAssigned(PortBlock),
    /// A port block is nobody's any more.
    BlockReleased(PortBlock),
}

/// Why a mapping ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Idle for too long, or of age.
    Expired,
    /// Removed by its owner or by a flush.
    Removed,
    /// Dropped to make room for a new one, where the behaviour is such.
    Displaced,
}

/// A packet of the NAT's own making, or a fragment that follows another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Where it goes.
    pub to: Side,
    /// A complete IP packet, every checksum in place.
    pub packet: Box<[u8]>,
}

/// An external port that the NAT has begun or ceased to use: what a guard must know at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The transport.
    pub protocol: Protocol,
    /// The endpoint.
    pub external: External,
    /// True from the first mapping on this endpoint until the last has ended.
    pub held: bool,
}
