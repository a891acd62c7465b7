//! Everything of this machine that natbox reads or changes: once, at the start.
//!
//! [`Plan::new`] reads: which interface is outside and what its address is, what the namespaces of the inside devices
//! hold, which ports the host's own sockets and its ephemeral range leave for natbox. It changes nothing, and its
//! `Display` is what `--dry-run` prints. [`Plan::apply`] does what the plan says, all of it or nothing: TUN devices
//! with their addresses and routes, in this namespace or in others, and a namespace for a command of its own
//! ([`spawn_behind`]).
//!
//! Nothing needs a clean exit to be undone. A TUN device is not persistent: it goes with its descriptor, and its
//! addresses, routes and sysctls go with it. A namespace made for a command goes with the command. No address, route,
//! rule or sysctl of an interface that was there before is ever touched.
//!
//! A TUN in the host's own namespace gets **no** default route: that would send the host's own traffic into the NAT
//! (and natbox's after it). Programs choose the device instead (`curl --interface tun0`, which binds the socket to it),
//! or a route is added for what should go there. In any other namespace the TUN becomes the default route, if there is
//! none yet.

mod apply;
mod command;
mod dns;
mod error;
mod netlink;
mod netns;
pub(crate) mod nlmsg;
mod plan;
mod ports;
mod prefix;
mod privilege;
mod sockets;
mod tun;
mod wire;

use std::{net::Ipv4Addr, os::fd::OwnedFd};

use natbox_core::PortRange;

pub use command::{Behind, exit_code, spawn_behind};
pub use error::HostError;
pub(crate) use error::failed;
pub use netns::Netns;
pub use plan::Plan;
pub(crate) use prefix::{mask, network};
pub use sockets::HostPorts;
pub use tun::Offload;
pub use wire::Wire;

/// An interface as it was when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address; zero where it has none.
    pub mac: [u8; 6],
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// Its IPv4 addresses with their prefix lengths, the primary one first.
    pub addresses: Vec<(Ipv4Addr, u8)>,
}

/// A unicast route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Network and prefix length; 0.0.0.0/0 is the default route.
    pub destination: (Ipv4Addr, u8),
    /// The next hop; `None` when the destination is on the link itself.
    pub gateway: Option<Ipv4Addr>,
    /// Of two routes to one destination the smaller metric wins.
    pub metric: u32,
}

/// The machine, ready for natbox. What was made for it goes away with the descriptors in here.
#[derive(Debug)]
pub struct Wiring {
    /// The inside devices: TUNs in the order of `--inside`, LANs in that of `--lan`, then the command's TUN.
    pub inside: Vec<InsideDevice>,
    /// The interface towards the public network.
    pub outside: Interface,
    /// The external addresses, each once.
    pub external: Vec<Ipv4Addr>,
    /// The prefixes that natbox owns; empty when it shares the interface's address.
    pub owned: Vec<(Ipv4Addr, u8)>,
    /// Whether the external address is the host's too.
    pub shared: bool,
    /// The ports to use instead of the configured range on a shared address: the part of it that the host's ephemeral
    /// range leaves. `None`: the configured range stands.
    pub port_range: Option<PortRange>,
    /// How many threads move packets; each TUN has as many queues.
    pub workers: usize,
    /// Where the command runs.
    pub command: Option<CommandSpace>,
    /// What was done, one line each.
    pub done: Vec<String>,
    /// How to use it, one line each.
    pub usage: Vec<String>,
    /// What may surprise, one line each.
    pub warnings: Vec<String>,
}

/// A side of the NAT with inside hosts.
#[derive(Debug)]
pub enum InsideDevice {
    /// A TUN device that natbox made.
    Tun {
        /// Its name.
        name: String,
        /// One descriptor for each worker. Non-blocking; every packet has a virtio-net header of 10 bytes in front, in
        /// both directions.
        queues: Vec<OwnedFd>,
        /// Packets may come, and may be sent, as TCP super-frames and with partial checksums.
        offload: bool,
        /// The same for UDP super-frames; implies `offload`.
        udp_offload: bool,
        /// natbox's own address there.
        gateway: Ipv4Addr,
        /// The address of the device itself, which is the inside host.
        host: Ipv4Addr,
        /// Of both.
        prefix_len: u8,
        /// Largest IP packet, in bytes.
        mtu: u16,
        /// The namespace that it is in, as it was given; `None` for natbox's own, and for the command's.
        netns: Option<String>,
        /// How programs of natbox's namespace reach it.
        reach: Reach,
    },
    /// An interface to a LAN that natbox is the gateway of.
    Lan {
        /// The interface.
        interface: Interface,
        /// natbox's own address there, the hosts' gateway.
        gateway: Ipv4Addr,
        /// The gateway address is the host's too: the host answers ARP and ping for it.
        shared: bool,
        /// Of the LAN's network.
        prefix_len: u8,
    },
}

/// How programs that move packets reach a TUN device.
#[derive(Debug)]
pub enum Reach {
    /// It is in natbox's own namespace: by its index.
    Here(u32),
    /// By a wire.
    Wired(Box<Wire>),
    /// They do not.
    Not,
}

/// The network namespace of a command, and what it needs there.
#[derive(Debug)]
pub struct CommandSpace {
    pub(crate) netns: Netns,
    /// To be seen as `/etc/resolv.conf`.
    pub(crate) resolv_conf: Option<std::path::PathBuf>,
}

/// The routes of one interface in the main table of this namespace.
///
/// # Errors
/// The kernel refuses to list them.
pub fn routes(index: u32) -> Result<Vec<Route>, HostError> {
    let snapshot = netns::on_thread(netlink::Snapshot::read)?;
    Ok(snapshot
        .routes
        .into_iter()
        .filter(|(interface, _)| *interface == index)
        .map(|(_, route)| route)
        .collect())
}

/// An interface of this namespace as it is now.
///
/// # Errors
/// There is none of this name, or the kernel refuses to list them.
pub fn interface(name: &str) -> Result<Interface, HostError> {
    let snapshot = netns::on_thread(netlink::Snapshot::read)?;
    plan::find(&snapshot, name).map(|link| link.interface.clone())
}
