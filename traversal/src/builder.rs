//! How a node is set up.

use std::{collections::BTreeSet, fmt, net::SocketAddr, str::FromStr, sync::Arc, time::Duration};

use traversal_proto::{
    peer,
    wire::{Identity, PeerId},
};

use crate::{Node, PathConfig, Policy, StartError, driver, network::Kernel, network::Network};

/// A node registers at this many supernodes at the most: each costs a packet every 20 seconds.
const MAX_SUPERNODES: usize = 4;

/// Where a supernode is, and who it is if that is known: `203.0.113.10:3478`, `relay.example:3478`, or either with the
/// supernode's id and an `@` before it. Without an id, whoever answers there at first is taken for the supernode: it can
/// refuse service, but it cannot read or fake anything between peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SupernodeAddress {
    /// Its key; `None`: not known beforehand.
    pub id: Option<PeerId>,
    /// An address or a name, and a port.
    pub address: String,
}

/// Text that is no supernode's address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no supernode's address: {problem}; write ADDRESS:PORT or ID@ADDRESS:PORT")]
pub struct SupernodeAddressError {
    text: String,
    problem: String,
}

impl FromStr for SupernodeAddress {
    type Err = SupernodeAddressError;

    fn from_str(text: &str) -> Result<SupernodeAddress, SupernodeAddressError> {
        let fail = |problem: String| SupernodeAddressError { text: text.to_owned(), problem };
        let (id, address) = match text.split_once('@') {
            Some((id, address)) => (Some(id.parse().map_err(|error| fail(format!("{error}")))?), address),
            None => (None, text),
        };
        let port = address.rsplit_once(':').and_then(|(host, port)| {
            let port: u16 = port.parse().ok()?;
            (!host.is_empty() && port != 0).then_some(port)
        });
        if port.is_none() {
            return Err(fail("the port is missing".to_owned()));
        }
        Ok(SupernodeAddress { id, address: address.to_owned() })
    }
}

impl fmt::Display for SupernodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.id {
            Some(id) => write!(f, "{id}@{}", self.address),
            None => f.write_str(&self.address),
        }
    }
}

/// Who may connect to this node. The peer's key is proved before it gets a connection.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Admission {
    /// Everybody.
    #[default]
    Everybody,
    /// These peers.
    Only(BTreeSet<PeerId>),
    /// Whom this function says. It is called in the node's own task and must not block.
    Ask(Arc<dyn Fn(PeerId) -> bool + Send + Sync>),
}

impl Admission {
    pub(crate) fn admits(&self, peer: PeerId) -> bool {
        match self {
            Admission::Everybody => true,
            Admission::Only(peers) => peers.contains(&peer),
            Admission::Ask(admits) => admits(peer),
        }
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Admission::Everybody => f.write_str("Everybody"),
            Admission::Only(peers) => f.debug_tuple("Only").field(peers).finish(),
            Admission::Ask(_) => f.write_str("Ask(…)"),
        }
    }
}

/// What a peer's streams may take up here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamLimits {
    /// Streams in both directions, beside the node's own.
    pub(crate) open: u32,
    /// Bytes, over all streams of a connection; `None`: each stream's own limit is all.
    pub(crate) unread: Option<u32>,
}

impl Default for StreamLimits {
    fn default() -> StreamLimits {
        StreamLimits { open: 99, unread: None }
    }
}

/// Sets up a [`Node`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is started"]
pub struct Builder {
    pub(crate) identity: Option<Identity>,
    pub(crate) supernodes: Vec<Result<SupernodeAddress, SupernodeAddressError>>,
    pub(crate) bind: Option<SocketAddr>,
    pub(crate) admission: Admission,
    pub(crate) accepting: bool,
    pub(crate) punches: bool,
    pub(crate) policy: Policy,
    pub(crate) streams: StreamLimits,
    pub(crate) connect_timeout: Duration,
    pub(crate) start_timeout: Duration,
    pub(crate) agent: peer::Config,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) seed: Option<[u8; 32]>,
    pub(crate) wall_clock: Option<u64>,
    pub(crate) shown: Option<Identity>,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder {
            identity: None,
            supernodes: Vec::new(),
            bind: None,
            admission: Admission::Everybody,
            accepting: true,
            punches: false,
            policy: Policy::PreferDirect,
            streams: StreamLimits::default(),
            connect_timeout: Duration::from_secs(10),
            start_timeout: Duration::from_secs(10),
            agent: peer::Config::default(),
            network: Arc::new(Kernel),
            seed: None,
            wall_clock: None,
            shown: None,
        }
    }
}

impl Builder {
    /// The node's key, by which others know it. Without one it is somebody new at every start.
    pub fn identity(mut self, identity: Identity) -> Builder {
        self.identity = Some(identity);
        self
    }

    /// A supernode to register at, as text (see [`SupernodeAddress`]); may be called several times, the preferred one
    /// first. The node is registered at all of them (four at the most), so that the next one is ready when one dies. Two
    /// peers meet at any supernode that both use.
    pub fn supernode(mut self, address: impl AsRef<str>) -> Builder {
        self.supernodes.push(address.as_ref().parse());
        self.supernodes.truncate(MAX_SUPERNODES);
        self
    }

    /// The UDP socket's own address. By default all addresses of the machine and a port that the system chooses.
    pub fn bind(mut self, address: SocketAddr) -> Builder {
        self.bind = Some(address);
        self
    }

    /// Who may connect to this node; by default everybody.
    pub fn admit(mut self, admission: Admission) -> Builder {
        self.admission = admission;
        self
    }

    /// Whether others may find this node and connect to it at all; by default they may.
    pub fn accepting(mut self, accepting: bool) -> Builder {
        self.accepting = accepting;
        self
    }

    /// Whether others may punch to this node (see [`Node::punch`]); by default not. What comes of it is waiting in
    /// [`Node::accept_punch`].
    pub fn accept_punches(mut self, accept: bool) -> Builder {
        self.punches = accept;
        self
    }

    /// Which paths connections may take, unless [`Node::connect_with`] says something else; by default direct if possible.
    pub fn policy(mut self, policy: Policy) -> Builder {
        self.policy = policy;
        self
    }

    /// How many streams in both directions a peer may have open at a time; 99 by default. More are opened when others
    /// have ended, an eighth of them at least: until then the peer's [`Connection::open_bi`](crate::Connection::open_bi) waits.
    pub fn max_streams(mut self, streams: u32) -> Builder {
        self.streams.open = streams;
        self
    }

    /// How many bytes of a peer's are held here that were not read yet, over all streams of a connection; then the peer waits. By
    /// default only each stream has a limit of its own, 1.25 MB, which this leaves as it is.
    pub fn max_unread(mut self, bytes: u32) -> Builder {
        self.streams.unread = Some(bytes);
        self
    }

    /// After how long [`Node::connect`] gives up; 10 seconds by default. Looking for a direct path is not part of it.
    pub fn connect_timeout(mut self, timeout: Duration) -> Builder {
        self.connect_timeout = timeout;
        self
    }

    /// After how long [`start`](Self::start) gives up; 10 seconds by default.
    pub fn start_timeout(mut self, timeout: Duration) -> Builder {
        self.start_timeout = timeout;
        self
    }

    /// How paths are looked for and kept: intervals and budgets.
    pub fn paths(mut self, config: PathConfig) -> Builder {
        self.agent = config;
        self
    }

    /// Whether loopback addresses are candidates too: for programs that try themselves out on one machine, with their
    /// socket [bound](Self::bind) to `127.0.0.1`. By default they are not.
    pub fn loopback(mut self, allowed: bool) -> Builder {
        self.agent.loopback = allowed;
        self
    }

    /// Another network than the kernel's: for simulations.
    #[doc(hidden)]
    pub fn network(mut self, network: Arc<dyn Network>) -> Builder {
        self.network = network;
        self
    }

    /// Decides all that is random but keys, so that a simulation can be repeated.
    #[doc(hidden)]
    pub fn seed(mut self, seed: [u8; 32]) -> Builder {
        self.seed = Some(seed);
        self
    }

    /// Our own clock, in milliseconds since 1970, in place of the system's; 0: there is none.
    #[doc(hidden)]
    pub fn wall_clock(mut self, millis: u64) -> Builder {
        self.wall_clock = Some(millis);
        self
    }

    /// Shows another key to peers than the one that the node is registered under, as somebody would who is in league with
    /// a supernode: for tests of what comes of it.
    #[doc(hidden)]
    pub fn impersonate(mut self, shown: Identity) -> Builder {
        self.shown = Some(shown);
        self
    }

    /// Starts the node in the running tokio runtime: its socket is open, and it is registered at a supernode.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(self) -> Result<Node, StartError> {
        driver::start(self).await
    }
}

/// 32 bytes from the operating system.
pub(crate) fn random_seed() -> Result<[u8; 32], StartError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| StartError::Randomness(error.to_string()))?;
    Ok(seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supernode_addresses() {
        let id = Identity::from_secret(&[1; 32]).peer_id();
        for text in
            ["203.0.113.10:3478", "relay.example:1", "[2001:db8::1]:3478", &format!("{id}@192.0.2.1:9")]
        {
            let address: SupernodeAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        for text in ["203.0.113.10", "relay.example:0", ":3478", "relay:port", "abc@192.0.2.1:9", ""] {
            let error = text.parse::<SupernodeAddress>().unwrap_err().to_string();
            assert!(error.contains("ADDRESS:PORT"), "{error}");
        }
    }
}
