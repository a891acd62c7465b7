//! What natbox was asked to do: flags, configuration file and preset, merged and checked. Nothing of the machine has
//! been read yet.

mod workers;

use std::{
    ffi::OsString,
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    str::FromStr,
};

use natbox_core::{Behavior, Limits, Protocol};

pub use workers::{Workers, WorkersError};

/// Everything that one run of natbox needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How the NAT behaves.
    pub behavior: Behavior,
    /// The preset that `behavior` started from.
    pub preset: Option<String>,
    /// Decides random ports; drawn from the system when absent.
    pub seed: Option<u64>,
    /// The interface towards the public network.
    pub outside: String,
    /// TUN devices to make, each a side with inside hosts.
    pub inside: Vec<InsideSpec>,
    /// Interfaces to LANs that natbox is the gateway of.
    pub lan: Vec<LanSpec>,
    /// External addresses of natbox's own, with the prefix length that they were given with (32 when none was). Empty:
    /// the outside interface's address is shared with the host.
    pub external: Vec<(Ipv4Addr, u8)>,
    /// Static forwards to make at the start.
    pub forwards: Vec<Forward>,
    /// Bounds on what the NAT remembers.
    pub limits: Limits,
    /// MTU of the TUN devices in bytes; the outside interface's when absent.
    pub mtu: Option<u16>,
    /// Let checksums and segmentation be finished by the kernel and the devices.
    pub offload: bool,
    /// How the host's own stack is kept quiet about natbox's ports.
    pub guard: GuardChoice,
    /// Whether packets of quick flows are moved by programs in the kernel.
    pub fast_path: FastPathChoice,
    /// How many threads move packets.
    pub workers: Workers,
    /// The command to run behind the NAT, in a network namespace of its own.
    pub command: Option<Vec<OsString>>,
    /// Print a line for every packet.
    pub log_packets: bool,
    /// Letters (or words) to print instead of addresses in the packet log.
    pub names: Vec<(String, IpAddr)>,
    /// Print for programs: one JSON object a line.
    pub json: bool,
    /// Where the control socket goes; under the runtime directory when absent.
    pub control: Option<PathBuf>,
}

impl Settings {
    /// Why no packets are to be moved by programs in the kernel, if so.
    pub fn without_fast_path(&self) -> Option<&'static str> {
        match self.fast_path {
            FastPathChoice::Off => Some("as was asked"),
            FastPathChoice::Auto if self.log_packets => Some("every packet is printed"),
            FastPathChoice::Auto if !self.offload => Some("every packet is to move by itself"),
            FastPathChoice::Auto | FastPathChoice::On => None,
        }
    }
}

/// A TUN device to make: `NAME[@NETNS][=ADDR/LEN]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InsideSpec {
    /// The name of the device.
    pub name: String,
    /// The network namespace that it is put into: a name in `/run/netns`, a path, or `pid:N`; ours when absent.
    pub netns: Option<String>,
    /// The host's address on it and the prefix length; chosen by natbox when absent.
    pub net: Option<(Ipv4Addr, u8)>,
}

/// A LAN that natbox is the gateway of: `INTERFACE[=ADDR/LEN]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LanSpec {
    /// The interface to it.
    pub interface: String,
    /// The gateway address that natbox owns and answers ARP for; the interface's own is shared when absent.
    pub net: Option<(Ipv4Addr, u8)>,
}

/// A static forward: `PROTOCOL:PORT=ADDR:PORT[#N]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The transport: UDP or TCP.
    pub protocol: Protocol,
    /// The external port.
    pub external_port: u16,
    /// The inside endpoint that it leads to.
    pub inside: (Ipv4Addr, u16),
    /// Which inside port the host is behind, counted from 0 over `inside` and then `lan`; found by its address when
    /// absent.
    pub inside_port: Option<usize>,
}

/// How the host's own stack is kept quiet about natbox's ports on a shared address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GuardChoice {
    /// The best one that works here.
    #[default]
    Auto,
    /// A tcx program on the interface (kernel 6.6 and newer).
    Tcx,
    /// An nf_tables table that goes away with its owner.
    Nftables,
    /// None: the host will answer for natbox's ports.
    Off,
}

/// Whether packets of quick flows are moved by programs in the kernel, which natbox then does not see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FastPathChoice {
    /// Where the kernel allows it, and no packet is to be looked at.
    #[default]
    Auto,
    /// Yes, or natbox does not start.
    On,
    /// No: every packet goes through natbox.
    Off,
}

impl FastPathChoice {
    /// Every choice, in the order of the documentation.
    pub const ALL: [FastPathChoice; 3] = [FastPathChoice::Auto, FastPathChoice::On, FastPathChoice::Off];

    /// The word for this choice.
    pub const fn word(self) -> &'static str {
        match self {
            FastPathChoice::Auto => "auto",
            FastPathChoice::On => "on",
            FastPathChoice::Off => "off",
        }
    }
}

impl GuardChoice {
    /// Every choice, in the order of the documentation.
    pub const ALL: [GuardChoice; 4] =
        [GuardChoice::Auto, GuardChoice::Tcx, GuardChoice::Nftables, GuardChoice::Off];

    /// The word for this choice.
    pub const fn word(self) -> &'static str {
        match self {
            GuardChoice::Auto => "auto",
            GuardChoice::Tcx => "tcx",
            GuardChoice::Nftables => "nftables",
            GuardChoice::Off => "off",
        }
    }
}

impl fmt::Display for GuardChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// A part of the wiring that does not say what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}: {problem}; write {grammar}")]
pub struct SpecError {
    /// What was given.
    pub text: String,
    /// What it should have been.
    pub what: &'static str,
    /// What is wrong with it.
    pub problem: String,
    /// How it is written.
    pub grammar: &'static str,
}

const INSIDE: (&str, &str) = ("an inside device", "NAME[@NETNS][=ADDR/LEN], such as tun0@lab=10.64.0.2/24");
const LAN: (&str, &str) = ("a LAN", "INTERFACE[=ADDR/LEN], such as eth1=192.168.7.1/24");
const FORWARD: (&str, &str) = ("a forward", "PROTOCOL:PORT=ADDR:PORT, such as tcp:8080=10.64.0.2:80");
const EXTERNAL: (&str, &str) = ("an external address", "ADDR[/LEN], such as 198.51.100.7 or 198.51.100.8/30");

fn fail(text: &str, (what, grammar): (&'static str, &'static str), problem: impl Into<String>) -> SpecError {
    SpecError { text: text.to_owned(), what, problem: problem.into(), grammar }
}

/// The kernel's limit on interface names is 16 bytes with the final zero.
const NAME_MAX: usize = 15;

/// Refuses what the kernel would refuse as an interface name.
fn interface_name(name: &str) -> Result<String, String> {
    match name {
        "" => Err("the interface name is empty".to_owned()),
        "." | ".." => Err(format!("{name:?} cannot be an interface name")),
        _ if name.len() > NAME_MAX => {
            Err(format!("the interface name {name:?} is longer than {NAME_MAX} bytes"))
        }
        _ if name.contains(|c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace()) => {
            Err(format!("the interface name {name:?} has a character that interface names cannot have"))
        }
        _ => Ok(name.to_owned()),
    }
}

/// `ADDR/LEN` of a host in a network: an address that a host could have there.
fn network(text: &str) -> Result<(Ipv4Addr, u8), String> {
    let (addr, len) = text.split_once('/').ok_or_else(|| format!("{text:?} has no /LEN"))?;
    let addr = host_address(addr)?;
    let len = prefix_len(len)?;
    if !(1..=31).contains(&len) {
        return Err(format!("a network with natbox and a host in it is /1 to /31, not /{len}"));
    }
    Ok((addr, len))
}

fn prefix_len(text: &str) -> Result<u8, String> {
    text.parse().ok().filter(|len| *len <= 32).ok_or_else(|| format!("{text:?} is not a prefix length"))
}

fn host_address(text: &str) -> Result<Ipv4Addr, String> {
    let addr: Ipv4Addr = match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(addr)) => addr,
        Ok(IpAddr::V6(_)) => return Err(format!("{text} is IPv6, and only IPv4 is translated")),
        Err(_) => return Err(format!("{text:?} is not an IPv4 address")),
    };
    if addr.is_unspecified() || addr.is_multicast() || addr.is_broadcast() || addr.is_loopback() {
        return Err(format!("{addr} cannot be the address of a host"));
    }
    Ok(addr)
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|port| *port != 0).ok_or_else(|| format!("{text:?} is not a port (1 to 65535)"))
}

impl FromStr for InsideSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<InsideSpec, SpecError> {
        let fail = |problem: String| fail(text, INSIDE, problem);
        // A path to a namespace may hold an '=', so the address is what follows the last one.
        let (device, net) = match text.rsplit_once('=') {
            Some((device, net)) => (device, Some(network(net).map_err(fail)?)),
            None => (text, None),
        };
        let (name, netns) = match device.split_once('@') {
            Some((_, "")) => return Err(fail("the namespace after @ is empty".to_owned())),
            Some((name, netns)) => (name, Some(netns.to_owned())),
            None => (device, None),
        };
        Ok(InsideSpec { name: interface_name(name).map_err(fail)?, netns, net })
    }
}

impl fmt::Display for InsideSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(netns) = &self.netns {
            write!(f, "@{netns}")?;
        }
        write_net(f, self.net)
    }
}

impl FromStr for LanSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<LanSpec, SpecError> {
        let fail = |problem: String| fail(text, LAN, problem);
        let (interface, net) = match text.split_once('=') {
            Some((interface, net)) => (interface, Some(network(net).map_err(fail)?)),
            None => (text, None),
        };
        Ok(LanSpec { interface: interface_name(interface).map_err(fail)?, net })
    }
}

impl fmt::Display for LanSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.interface)?;
        write_net(f, self.net)
    }
}

fn write_net(f: &mut fmt::Formatter<'_>, net: Option<(Ipv4Addr, u8)>) -> fmt::Result {
    net.map_or(Ok(()), |(addr, len)| write!(f, "={addr}/{len}"))
}

impl FromStr for Forward {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Forward, SpecError> {
        let fail = |problem: String| fail(text, FORWARD, problem);
        let (external, inside) = text.split_once('=').ok_or_else(|| fail("there is no =".to_owned()))?;
        let (protocol, external_port) =
            external.split_once(':').ok_or_else(|| fail(format!("{external:?} is not PROTOCOL:PORT")))?;
        let protocol = match protocol {
            "udp" => Protocol::Udp,
            "tcp" => Protocol::Tcp,
            other => return Err(fail(format!("the protocol {other:?} is neither udp nor tcp"))),
        };
        let (endpoint, index) = match inside.split_once('#') {
            Some((endpoint, index)) => {
                let index = index.parse().map_err(|_| fail(format!("{index:?} is not a number")))?;
                (endpoint, Some(index))
            }
            None => (inside, None),
        };
        let (addr, inside_port) =
            endpoint.split_once(':').ok_or_else(|| fail(format!("{endpoint:?} is not ADDR:PORT")))?;
        Ok(Forward {
            protocol,
            external_port: port(external_port).map_err(fail)?,
            inside: (host_address(addr).map_err(fail)?, port(inside_port).map_err(fail)?),
            inside_port: index,
        })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (addr, port) = self.inside;
        write!(f, "{}:{}={addr}:{port}", self.protocol, self.external_port)?;
        self.inside_port.map_or(Ok(()), |index| write!(f, "#{index}"))
    }
}

/// Reads `ADDR[/LEN]` of an external address; without a length it stands for itself alone (32).
pub fn external_address(text: &str) -> Result<(Ipv4Addr, u8), SpecError> {
    let fail = |problem: String| fail(text, EXTERNAL, problem);
    let (addr, len) = match text.split_once('/') {
        Some((addr, len)) => (addr, prefix_len(len).map_err(fail)?),
        None => (text, 32),
    };
    Ok((host_address(addr).map_err(fail)?, len))
}
