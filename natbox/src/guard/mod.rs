//! Keeps the host's own stack quiet about what is natbox's, and leaves everything else of the host alone.
//!
//! natbox reads frames from a packet socket; the host's stack gets every one of them as well. On an address that both
//! share it would answer a TCP segment of natbox's with a reset and a datagram with "port unreachable"; a host that
//! forwards would also forward, by its own routes and untranslated, what LAN hosts send through natbox. The guard
//! drops such packets on their way to the stack:
//!
//! - to a shared address: TCP and UDP to a port that natbox has claimed. The host's other ports, its connections, its
//!   listeners, ping and every other protocol are as before;
//! - to an address that natbox owns: everything;
//! - on a LAN whose gateway natbox is: every IPv4 packet to the host's Ethernet address that is not for an address of
//!   the host.
//!
//! Packet sockets on all protocols (`ETH_P_ALL`: natbox's own, tcpdump's) come before the guard and see everything.
//! So does nothing of the host's connection tracking: tcx comes before netfilter, and the nf_tables chain sits before
//! connection tracking, so no flow of natbox's leaves an entry there; what natbox sends goes out by a packet socket,
//! which netfilter never sees. Broadcast, multicast, other hosts' frames and VLAN-tagged ones are never touched.
//!
//! The guard is held by descriptors: it ends with the process, however that ends.

mod nft;
mod tcx;

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
};

use natbox_core::Claim;
use nix::ifaddrs::getifaddrs;

use crate::{
    host::{InsideDevice, Wiring},
    settings::GuardChoice,
};

/// Shared addresses at the most: the tcx bitmap holds 16 KiB for each, and the kernel gives 4 MiB to one map.
const SHARED: usize = 128;

/// Why there is no guard.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The kernel refuses the tcx program.
    #[error(
        "the tcx guard cannot be attached: {0}; it needs Linux 6.6, CAP_BPF and CAP_NET_ADMIN (try --guard nftables)"
    )]
    Tcx(io::Error),
    /// The kernel refuses the table.
    #[error("the nftables guard cannot be made: {0}; it needs Linux 5.12 with nf_tables, and CAP_NET_ADMIN")]
    Nftables(io::Error),
    /// More shared addresses than the limit.
    #[error("{0} addresses cannot be shared with the host: {SHARED} at the most")]
    TooManyShared(usize),
    /// The addresses of this host are unknown.
    #[error("the addresses of this host cannot be listed: {0}")]
    Addresses(io::Error),
}

/// A guard at work; dropping it ends it.
#[derive(Debug)]
pub struct Guard {
    method: Method,
    shared: Vec<Ipv4Addr>,
    has_lan: bool,
    warnings: Vec<String>,
}

#[derive(Debug)]
enum Method {
    Tcx(tcx::Tcx),
    Nftables(nft::Nft),
    Off,
}

/// What to drop where, for either method.
#[derive(Debug)]
struct Rules {
    outside: u32,
    lans: Vec<u32>,
    shared: Vec<Ipv4Addr>,
    owned: Vec<(Ipv4Addr, u8)>,
    host: Vec<Ipv4Addr>,
}

impl Guard {
    /// Attaches a guard to the interfaces of `wiring`, in the namespace of the calling thread.
    ///
    /// `Auto` takes tcx where the kernel allows it, else nf_tables, else none; what that means is in
    /// [`warnings`](Guard::warnings).
    ///
    /// # Errors
    /// The kernel refuses the method that was chosen.
    pub fn attach(wiring: &Wiring, choice: GuardChoice) -> Result<Guard, GuardError> {
        let shared = if wiring.shared { wiring.external.clone() } else { Vec::new() };
        if shared.len() > SHARED {
            return Err(GuardError::TooManyShared(shared.len()));
        }
        let lans = wiring.inside.iter().filter_map(|device| match device {
            InsideDevice::Lan { interface, .. } => Some(interface.index),
            InsideDevice::Tun { .. } => None,
        });
        let rules = Rules {
            outside: wiring.outside.index,
            lans: lans.collect(),
            shared,
            owned: wiring.owned.clone(),
            host: host_addresses().map_err(GuardError::Addresses)?,
        };
        let tcx = || tcx::Tcx::attach(&rules).map(Method::Tcx).map_err(GuardError::Tcx);
        let nftables = || nft::Nft::attach(&rules).map(Method::Nftables).map_err(GuardError::Nftables);
        let (method, warnings) = match choice {
            GuardChoice::Tcx => (tcx()?, Vec::new()),
            GuardChoice::Nftables => (nftables()?, Vec::new()),
            GuardChoice::Off => (Method::Off, vec![consequence(&rules)]),
            GuardChoice::Auto => match tcx() {
                Ok(method) => (method, Vec::new()),
                // What replaces it does the same: nothing to warn of.
                Err(first) => match nftables() {
                    Ok(method) => (method, Vec::new()),
                    Err(second) => {
                        (Method::Off, vec![first.to_string(), second.to_string(), consequence(&rules)])
                    }
                },
            },
        };
        Ok(Guard { method, has_lan: !rules.lans.is_empty(), shared: rules.shared, warnings })
    }

    /// Takes note of a port that natbox has begun or ceased to use. Takes effect with [`flush`](Guard::flush) at the
    /// latest. Claims on addresses that are not shared, and of ICMP, need no guard.
    pub fn apply(&mut self, claim: Claim) {
        let endpoint = claim.external.0;
        let IpAddr::V4(address) = endpoint.addr else { return };
        if !self.shared.contains(&address) {
            return;
        }
        match &mut self.method {
            Method::Tcx(tcx) => tcx.claim(claim.protocol, address, endpoint.port, claim.held),
            Method::Nftables(nft) => nft.claim(claim.protocol, address, endpoint.port, claim.held),
            Method::Off => {}
        }
    }

    /// Makes every claim so far take effect: at the end of a batch, before its packets leave, so that the host never
    /// sees an answer to them. Costs nothing with tcx, one system call with nf_tables.
    ///
    /// # Errors
    /// The kernel refuses the new set of ports; the host may then answer for some of natbox's ports.
    pub fn flush(&mut self) -> io::Result<()> {
        match &mut self.method {
            Method::Nftables(nft) => nft.flush(),
            Method::Tcx(_) | Method::Off => Ok(()),
        }
    }

    /// Reads the addresses of the calling thread's namespace anew, as they decide what is the host's own on a LAN. To be
    /// called now and then where natbox is the gateway of a LAN; elsewhere it does nothing.
    ///
    /// # Errors
    /// The kernel refuses to list them, or to take them; then the former ones stay.
    pub fn refresh(&mut self) -> io::Result<()> {
        if !self.has_lan {
            return Ok(());
        }
        let addresses = host_addresses()?;
        match &mut self.method {
            Method::Tcx(tcx) => tcx.set_host_addresses(&addresses),
            Method::Nftables(nft) => nft.set_host_addresses(&addresses),
            Method::Off => Ok(()),
        }
    }

    /// Guards these addresses of natbox's own, beside those that it had at the start: nobody else has them either. Where
    /// natbox shares the host's address it owns none, and this does nothing.
    ///
    /// # Errors
    /// The kernel refuses to take them; then the host may answer for them, or forward them.
    pub fn set_owned(&mut self, addresses: &[Ipv4Addr]) -> io::Result<()> {
        if !self.shared.is_empty() {
            return Ok(());
        }
        match &mut self.method {
            Method::Tcx(tcx) => tcx.set_owned_addresses(addresses),
            Method::Nftables(nft) => nft.set_owned_addresses(addresses),
            Method::Off => Ok(()),
        }
    }

    /// `tcx`, `nftables` or `off`.
    pub fn kind(&self) -> &'static str {
        match self.method {
            Method::Tcx(_) => GuardChoice::Tcx.word(),
            Method::Nftables(_) => GuardChoice::Nftables.word(),
            Method::Off => GuardChoice::Off.word(),
        }
    }

    /// What will go wrong, and why, one line each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// Every IPv4 address of this network namespace, each once.
pub(crate) fn host_addresses() -> io::Result<Vec<Ipv4Addr>> {
    let addresses = getifaddrs()?.filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()));
    let mut addresses: Vec<_> = addresses.collect();
    addresses.sort();
    addresses.dedup();
    Ok(addresses)
}

fn consequence(rules: &Rules) -> String {
    let mut what = Vec::new();
    if !rules.shared.is_empty() {
        what.push("the host answers packets to natbox's ports with TCP resets and ICMP port unreachable");
    }
    if !rules.owned.is_empty() || !rules.lans.is_empty() {
        what.push("a host that forwards forwards natbox's packets as well, untranslated");
    }
    format!("no guard: {}", what.join(", and "))
}
