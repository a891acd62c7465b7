//! A supernode, NATs of any shape, and nodes behind them.

use std::{cell::Cell, time::Duration};

use natbox_sim::{
    Behavior, Conditions, HostId, NatConfig, NatId, NetworkId,
    natbox_core::behavior::{Filtering, Hairpin, Mapping, PortAssignment},
};
use traversal::{Builder, Node};

use traversal_sim::World;

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn behavior(mapping: Mapping, filtering: Filtering) -> Behavior {
    Behavior { mapping, filtering, ports: PortAssignment::Random, ..Behavior::RFC }
}

/// The usual kind: direct paths have to be punched, and can be.
pub(crate) fn port_restricted() -> Behavior {
    behavior(Mapping::EndpointIndependent, Filtering::AddressAndPortDependent)
}

/// The kind that leaves nothing but the relay where both have it.
pub(crate) fn symmetric() -> Behavior {
    behavior(Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent)
}

pub(crate) fn hairpins() -> [Hairpin; 3] {
    [Hairpin::Off, Hairpin::Internal, Hairpin::External]
}

/// A NAT this far from the middle of the network above it.
pub(crate) fn home(behavior: Behavior, delay: Duration) -> NatConfig {
    NatConfig { link: Conditions::delayed(delay).into(), ..NatConfig::new(behavior) }
}

pub(crate) fn carrier(behavior: Behavior, delay: Duration) -> NatConfig {
    NatConfig { link: Conditions::delayed(delay).into(), ..NatConfig::carrier(behavior) }
}

pub(crate) struct Scene {
    pub(crate) world: World,
    /// On a host with two addresses, 10 ms from the middle.
    pub(crate) supernode: HostId,
    pub(crate) address: String,
    secret: Cell<u8>,
}

impl Scene {
    pub(crate) async fn new(seed: u64) -> Scene {
        let world = World::new(seed);
        let supernode = world.server(10 * MS);
        let address = world.supernode(supernode, 1).await;
        Scene { world, supernode, address, secret: Cell::new(10) }
    }

    pub(crate) fn nat(&self, at: impl Into<NetworkId>, config: NatConfig) -> NatId {
        self.world.with(|net, _| net.add_nat(at, config).unwrap())
    }

    pub(crate) fn host(&self, at: impl Into<NetworkId>) -> HostId {
        self.world.with(|net, _| net.add_host(at, Conditions::delayed(MS)).unwrap())
    }

    /// A node with a key of its own, at the scene's supernode.
    pub(crate) fn builder(&self, host: HostId) -> Builder {
        let secret = self.secret.get();
        self.secret.set(secret + 1);
        self.world.builder(host, secret).supernode(&self.address)
    }

    pub(crate) async fn node(&self, host: HostId) -> Node {
        self.builder(host).start().await.unwrap()
    }

    /// A host behind a NAT of its own, with a node on it.
    pub(crate) async fn at_home(&self, behavior: Behavior, delay: Duration) -> (NatId, HostId, Node) {
        let nat = self.nat(NetworkId::INTERNET, home(behavior, delay));
        let host = self.host(nat);
        (nat, host, self.node(host).await)
    }

    /// Two of them.
    pub(crate) async fn pair(&self, behaviors: [Behavior; 2]) -> [(NatId, HostId, Node); 2] {
        let [first, second] = behaviors;
        [self.at_home(first, 15 * MS).await, self.at_home(second, 20 * MS).await]
    }

    /// Lets the internet lose packets from one NAT to another.
    pub(crate) fn lose(&self, from: NatId, to: NatId, loss: f64) {
        self.world.with(|net, now| {
            let [from, to] = [from, to].map(|nat| net.external(nat)[0]);
            net.set_path_loss(from, to, loss, now).unwrap();
        });
    }
}
