//! Names of what is in the net. An id is never used for anything else later, even after its bearer is gone.

use std::fmt;

use crate::slab::Key;

macro_rules! ids {
    ($($(#[$doc:meta])+ $name:ident = $word:literal),+ $(,)?) => {$(
        $(#[$doc])+
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub(crate) Key);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($word, " {}"), self.0.slot)?;
                if self.0.generation > 0 { write!(f, ".{}", self.0.generation) } else { Ok(()) }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )+};
}

ids! {
    /// A host.
    HostId = "host",
    /// A NAT; as a [`NetworkId`], the network behind it.
    NatId = "nat",
    /// A router; as a [`NetworkId`], the network behind it.
    RouterId = "router",
    /// A place that hosts, NATs and routers attach to: the internet, or what is behind a NAT or a router.
    NetworkId = "network",
    /// What attaches a host, a NAT or a router to its network.
    LinkId = "link",
}

impl NetworkId {
    /// The public network, where every address is reachable from everywhere.
    pub const INTERNET: NetworkId = NetworkId(Key::FIRST);
}

impl From<NatId> for NetworkId {
    fn from(nat: NatId) -> NetworkId {
        NetworkId(nat.0)
    }
}

impl From<RouterId> for NetworkId {
    fn from(router: RouterId) -> NetworkId {
        NetworkId(router.0)
    }
}
