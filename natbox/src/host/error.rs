//! What can stand in the way of setting the machine up. Each is one line: what is wrong, with which name or address,
//! and what to do.

use std::{io, net::Ipv4Addr};

use natbox_core::Protocol;

/// Why the machine cannot be set up as asked.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A static forward to a network that nothing inside has.
    #[error(
        "cannot forward {forward}: no inside device has the network of that host; name one with #N, from 0 on"
    )]
    NoInsideFor {
        /// The forward as it was given.
        forward: String,
    },
    /// A name that no interface has.
    #[error("there is no interface {name:?} here; there are: {existing}")]
    NoInterface {
        /// The name given.
        name: String,
        /// The names that exist, separated by commas.
        existing: String,
    },
    /// An interface that packets cannot cross.
    #[error("{name} is down: bring it up with `ip link set {name} up`")]
    InterfaceDown {
        /// Its name.
        name: String,
    },
    /// An interface that a packet socket with Ethernet frames cannot serve.
    #[error("{name} is not an Ethernet interface, and natbox needs one there")]
    NotEthernet {
        /// Its name.
        name: String,
    },
    /// The address to be shared does not exist.
    #[error(
        "{name} has no IPv4 address to share: give it one with `ip addr add ADDR/LEN dev {name}`, or natbox one of its \
         own with {option}"
    )]
    NoAddress {
        /// The interface.
        name: String,
        /// The option that gives natbox an address of its own.
        option: &'static str,
    },
    /// An interface with two tasks.
    #[error("{name} is given twice: as {first} and as {second}")]
    UsedTwice {
        /// Its name.
        name: String,
        /// Its first task.
        first: &'static str,
        /// Its second task.
        second: &'static str,
    },
    /// An address that natbox was to own is taken.
    #[error("the address {address} is in use: it is {owner}; {remedy}")]
    AddressInUse {
        /// The address, or the network.
        address: String,
        /// Whose it is.
        owner: String,
        /// What to write instead.
        remedy: &'static str,
    },
    /// An external prefix with host bits.
    #[error(
        "{address}/{len} has host bits: write {address} for the one address or {network}/{len} for the whole network"
    )]
    HostBits {
        /// As given.
        address: Ipv4Addr,
        /// As given.
        len: u8,
        /// With the host bits cleared.
        network: Ipv4Addr,
    },
    /// More external addresses than the limit.
    #[error("--external asks for {asked} addresses: natbox takes {limit} at the most")]
    PoolTooLarge {
        /// How many were asked for.
        asked: u64,
        /// How many there may be.
        limit: u64,
    },
    /// A network without room for a host and its gateway.
    #[error("{address}/{len} has no room for a host and its gateway: use /31 or shorter")]
    NoRoom {
        /// As given.
        address: Ipv4Addr,
        /// As given.
        len: u8,
    },
    /// An address that no host of its network may have.
    #[error("{address}/{len} is the network or broadcast address of its network: choose a host's")]
    NotAHost {
        /// As given.
        address: Ipv4Addr,
        /// As given.
        len: u8,
    },
    /// No default network is free.
    #[error("no network is free for {name}: give one with --inside {name}=ADDR/LEN")]
    NoFreeNetwork {
        /// The TUN device.
        name: String,
    },
    /// The name for a TUN device is taken.
    #[error(
        "there is an interface {name} already in {place}: choose another name, or remove it with `ip link del {name}`"
    )]
    NameInUse {
        /// The name.
        name: String,
        /// Which namespace.
        place: String,
    },
    /// The port of a static forward is the host's.
    #[error("{protocol} port {port} cannot be forwarded: a socket of this host holds it (see `ss -ntulp`)")]
    PortInUse {
        /// The transport.
        protocol: Protocol,
        /// The port.
        port: u16,
    },
    /// There would be nobody to translate for.
    #[error("nobody is behind this NAT: give --inside NAME, --lan INTERFACE, or a command after --")]
    NothingInside,
    /// A namespace that does not exist.
    #[error("there is no network namespace {name:?}; there are: {existing}")]
    NoNetns {
        /// As given.
        name: String,
        /// The names in `/run/netns`.
        existing: String,
    },
    /// A file that is not a network namespace.
    #[error("{name:?} is not a network namespace: give a name in /run/netns, a path, or pid:N")]
    NotNetns {
        /// As given.
        name: String,
    },
    /// A namespace of somebody else.
    #[error(
        "no permission to enter the network namespace {name:?}: it takes CAP_SYS_ADMIN here and there; run natbox with sudo"
    )]
    NetnsPermission {
        /// As given.
        name: String,
    },
    /// A capability is missing.
    #[error("natbox lacks {capabilities} over this network namespace: run it with sudo")]
    NoPrivilege {
        /// Names, separated by commas.
        capabilities: String,
    },
    /// There is no TUN driver.
    #[error(
        "there is no /dev/net/tun: load it with `modprobe tun`; in a container, pass it in with `--device /dev/net/tun`"
    )]
    NoTun,
    /// A TUN device without a queue for each worker.
    #[error("the kernel gives {name} fewer than {queues} queues: {source}; ask for fewer --workers")]
    NoQueues {
        /// The device.
        name: String,
        /// How many were asked for.
        queues: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The TUN driver is not for us.
    #[error(
        "no permission to open /dev/net/tun: run natbox with sudo, or allow it with `chmod 666 /dev/net/tun` as desktop \
         distributions do"
    )]
    TunPermission,
    /// A command that could not be started.
    #[error("cannot run {command:?}: {source}")]
    Command {
        /// The program.
        command: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused something that should have worked.
    #[error("cannot {action}: {source}")]
    Kernel {
        /// What was tried, with its names.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl HostError {
    /// A step that the kernel refused.
    pub(crate) fn kernel(action: impl Into<String>, source: impl Into<io::Error>) -> HostError {
        HostError::Kernel { action: action.into(), source: source.into() }
    }
}

/// For `map_err`: names the step that the kernel refused.
pub(crate) fn failed<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> HostError {
    move |source| HostError::kernel(action, source)
}

/// Names for a sentence: sorted, separated by commas, or `none`.
pub(crate) fn list(names: impl IntoIterator<Item = String>) -> String {
    let mut names: Vec<String> = names.into_iter().collect();
    names.sort();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
