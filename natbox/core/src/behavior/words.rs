//! The choices of a NAT's design that are a word each.

use crate::{Protocol, value::words};

words! {
    /// When two packets from one inside endpoint get the same external endpoint (RFC 4787 §4.1).
    Mapping {
        /// Always, whoever they are sent to.
        EndpointIndependent = "endpoint-independent" | "eim",
        /// When they are sent to the same address.
        AddressDependent = "address-dependent" | "adm",
        /// When they are sent to the same address and port.
        AddressAndPortDependent = "address-and-port-dependent" | "apdm",
    }
}

words! {
    /// Who may send to an external endpoint (RFC 4787 §5).
    Filtering {
        /// Anybody.
        EndpointIndependent = "endpoint-independent" | "eif",
        /// Addresses that the inside host has sent to.
        AddressDependent = "address-dependent" | "adf",
        /// Endpoints that the inside host has sent to.
        AddressAndPortDependent = "address-and-port-dependent" | "apdf",
    }
}

words! {
    /// What the filter remembers its permissions for.
    FilterScope {
        /// Each mapping on its own: what was sent through one mapping opens that mapping only.
        Mapping = "mapping",
        /// The inside endpoint: what it sent through any of its mappings opens all of them.
        Endpoint = "endpoint",
    }
}

words! {
    /// How the external port of a new mapping is chosen (RFC 4787 §4.2).
    PortAssignment {
        /// The inside port; when it is taken, the next free one above it.
        Preserve = "preserve",
        /// The inside port; when it is taken, a random one.
        PreserveOrRandom = "preserve-or-random",
        /// One step above the port of the previous mapping.
        Sequential = "sequential",
        /// A random free port (RFC 7857 §9).
        Random = "random",
        /// The port of the inside endpoint's newest mapping; when that is taken towards this destination, or there is
        /// none, the inside port; when that is taken, a random one: as Linux's masquerade does.
        Linux = "linux",
    }
}

words! {
    /// Which boundaries a port keeps to: an inside port of one class never gets an external port of another
    /// (RFC 4787 §4.2.1).
    PortClass {
        /// None.
        Off = "off",
        /// 1–1023 and 1024–65535 (REQ-3a).
        WellKnown = "well-known",
        /// 1–511, 512–1023 and 1024–65535, as Linux does.
        Linux = "linux",
    }
}

words! {
    /// Which external address of a pool an inside host gets (RFC 4787 REQ-2).
    Pooling {
        /// Always the same one.
        Paired = "paired",
        /// Any, for each mapping anew.
        Arbitrary = "arbitrary",
    }
}

words! {
    /// What happens to a packet from inside to one of the NAT's own external endpoints (RFC 4787 §6).
    Hairpin {
        /// It is dropped.
        Off = "off",
        /// It is delivered, and seems to come from the sender's inside endpoint.
        Internal = "internal",
        /// It is delivered, and seems to come from the sender's external endpoint (REQ-9a).
        External = "external",
    }
}

words! {
    /// Which packets keep a UDP mapping alive (RFC 4787 REQ-6).
    Refresh {
        /// Packets from inside.
        Outbound = "outbound",
        /// Packets from outside that pass the filter.
        Inbound = "inbound",
        /// Both.
        Both = "both",
    }
}

words! {
    /// What an inbound SYN meets that no filter admits (RFC 5382 §7.1).
    UnsolicitedSyn {
        /// Silence for six seconds, then ICMP port unreachable, unless a SYN went out meanwhile (REQ-4).
        Wait = "wait",
        /// Silence for ever.
        Drop = "drop",
        /// A reset at once.
        Reset = "reset",
    }
}

words! {
    /// What a UDP packet or a SYN from outside leaves behind that nothing admits.
    Unsolicited {
        /// Nothing.
        Forget = "forget",
        /// Its tuple is taken, as by a connection of the gateway's own: the next mapping towards its sender gets another
        /// port.
        Occupy = "occupy",
    }
}

words! {
    /// What an outbound TCP segment of no known connection meets, unless it is a SYN.
    StrayTcp {
        /// It is dropped.
        Drop = "drop",
        /// It is taken for an established connection that outlived the NAT's state, if it could be in the middle of one:
        /// it acknowledges, and neither opens nor closes.
        Forward = "forward",
        /// The sender gets a reset, as cloud NAT gateways do after an idle timeout.
        Reset = "reset",
    }
}

words! {
    /// Which fragments pass (RFC 4787 §11).
    Fragments {
        /// All: those that come before the first one of their datagram wait for it (REQ-14).
        AnyOrder = "any-order",
        /// Those that come behind the first one of their datagram.
        InOrder = "in-order",
        /// Those of UDP, in any order.
        UdpOnly = "udp-only",
        /// None. Packets that are too big are still cut.
        Drop = "drop",
    }
}

impl Fragments {
    /// Whether fragments of this protocol pass at all.
    pub(crate) fn passes(self, protocol: Protocol) -> bool {
        match self {
            Fragments::AnyOrder | Fragments::InOrder => true,
            Fragments::UdpOnly => protocol == Protocol::Udp,
            Fragments::Drop => false,
        }
    }
}

words! {
    /// What happens to the identification of packets that are, or may become, fragments.
    Identification {
        /// They get one of the NAT's own, so that those of two hosts never meet (RFC 7857 §10).
        Unique = "unique",
        /// They keep what their host chose.
        Keep = "keep",
    }
}

words! {
    /// What a TCP reset does to the state of its connection, beside passing.
    TcpReset {
        /// It is kept for a while, and a packet from inside revives it (RFC 7857 §2.2): the reset may be forged.
        Keep = "keep",
        /// It ends at once when only one side has spoken yet, as on Linux; else it is kept.
        EndUnanswered = "end-unanswered",
        /// It ends at once, and its port is free.
        End = "end",
    }
}

words! {
    /// What a new flow meets when the tables are full (RFC 6888 REQ-11).
    Pressure {
        /// It is refused.
        Refuse = "refuse",
        /// A flow that only one side has spoken in yet is dropped for it, if a few looks find one, as on Linux.
        DropUnanswered = "drop-unanswered",
        /// The one of a few flows that would end first is dropped for it.
        DropOldest = "drop-oldest",
    }
}

words! {
    /// Which transport a permission of the filter is for (RFC 7857 §6).
    FilterProtocol {
        /// That of the packet which earned it.
        Own = "own",
        /// Any: who was sent to by UDP may answer by TCP at the same external port, and the other way round.
        Any = "any",
    }
}
