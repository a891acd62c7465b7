//! What will be done to the machine, worked out from what is there; nothing is changed here.

mod inside;

use std::{
    fmt,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use natbox_core::{PortRange, Protocol};

use super::{
    HostPorts, Interface,
    error::{HostError, failed, list},
    netlink::{Link, Snapshot},
    netns::{Netns, on_thread},
    ports, prefix, privilege,
};
use crate::settings::{FastPathChoice, Forward, GuardChoice, Settings};

/// External addresses at the most: a /20. natbox answers ARP for each and keeps a table of ports for each.
const POOL: u64 = 4096;
/// How long the name of a TUN may still be taken. A natbox that was killed gives its TUN back when the last of its
/// threads has ended, which is a moment after it has ended for whoever watches it.
const VACATING: Duration = Duration::from_millis(300);

/// What natbox will do to this machine, and what it found there.
///
/// `Display` prints it for `--dry-run`, a line each: facts as they are, changes after `+`, how to use it after `use:`,
/// what may surprise after `note:`, what keeps this process from doing it after `missing:`.
#[derive(Debug)]
pub struct Plan {
    pub(super) outside: Interface,
    pub(super) external: Vec<Ipv4Addr>,
    pub(super) owned: Vec<(Ipv4Addr, u8)>,
    pub(super) port_range: Option<PortRange>,
    pub(super) workers: usize,
    pub(super) tuns: Vec<TunPlan>,
    pub(super) lans: Vec<LanPlan>,
    pub(super) resolv_conf: Option<std::path::PathBuf>,
    pub(super) facts: Vec<String>,
    pub(super) changes: Vec<String>,
    pub(super) usage: Vec<String>,
    pub(super) warnings: Vec<String>,
    pub(super) obstacles: Vec<HostError>,
}

/// A TUN device to be made.
#[derive(Debug)]
pub(super) struct TunPlan {
    pub(super) name: String,
    pub(super) place: Place,
    /// Programs are to reach it from natbox's namespace.
    pub(super) wire: bool,
    pub(super) net: (Ipv4Addr, u8),
    pub(super) gateway: Ipv4Addr,
    pub(super) mtu: u16,
    pub(super) offload: bool,
    /// One for each worker.
    pub(super) queues: usize,
    pub(super) default_route: bool,
    /// Reverse-path filtering would drop every reply: to be loosened on this device.
    pub(super) loosen: bool,
}

/// The namespace of a TUN device.
#[derive(Debug)]
pub(super) enum Place {
    Here,
    Named(Netns),
    /// Made for the command.
    Command,
}

impl Place {
    fn describe(&self) -> String {
        match self {
            Place::Here => "this namespace".to_owned(),
            Place::Named(netns) => format!("namespace {}", netns.name()),
            Place::Command => "a namespace of the command's own".to_owned(),
        }
    }

    fn same_as(&self, other: &Place) -> bool {
        match (self, other) {
            (Place::Here, Place::Here) => true,
            (Place::Named(one), Place::Named(other)) => one.is_same(other).unwrap_or(false),
            _ => false,
        }
    }
}

/// An interface to a LAN.
#[derive(Debug)]
pub(super) struct LanPlan {
    pub(super) interface: Interface,
    pub(super) gateway: Ipv4Addr,
    pub(super) shared: bool,
    pub(super) prefix_len: u8,
}

impl Plan {
    /// Reads the machine and works out what `settings` mean on it.
    ///
    /// # Errors
    /// Whatever of `settings` cannot be had here. Missing privileges are not among them, so that anybody can ask for
    /// a plan: see [`obstacles`](Plan::obstacles).
    pub fn new(settings: &Settings) -> Result<Plan, HostError> {
        let deadline = Instant::now() + VACATING;
        loop {
            match Plan::read(settings) {
                Err(HostError::NameInUse { .. }) if Instant::now() < deadline => thread::sleep(VACATING / 20),
                plan => return plan,
            }
        }
    }

    fn read(settings: &Settings) -> Result<Plan, HostError> {
        if settings.inside.is_empty() && settings.lan.is_empty() && settings.command.is_none() {
            return Err(HostError::NothingInside);
        }
        let here = on_thread(Snapshot::read)?;
        let outside = ready(&here, &settings.outside)?.interface.clone();
        let mut plan = Plan {
            outside,
            external: Vec::new(),
            owned: Vec::new(),
            port_range: None,
            workers: settings.workers.count(),
            tuns: Vec::new(),
            lans: Vec::new(),
            resolv_conf: None,
            facts: Vec::new(),
            changes: Vec::new(),
            usage: Vec::new(),
            warnings: Vec::new(),
            obstacles: Vec::new(),
        };
        plan.outside_facts(&here);
        if plan.workers > 1 {
            plan.facts.push(format!("workers: {}, among which flows are shared out", plan.workers));
        }
        if settings.external.is_empty() {
            plan.share(settings)?;
        } else {
            plan.own(&here, &settings.external)?;
        }
        for spec in &settings.lan {
            plan.lan(&here, spec)?;
        }
        plan.guard(settings.guard);
        for spec in &settings.inside {
            plan.tun(&here, spec, settings)?;
        }
        if settings.command.is_some() {
            plan.command(&here, settings)?;
        }
        plan.fast_path(settings);
        plan.check_forwards(&settings.forwards)?;
        let namespaces = plan.tuns.iter().any(|tun| !matches!(tun.place, Place::Here));
        plan.obstacles.extend(privilege::check(namespaces).err());
        if !plan.tuns.is_empty() {
            plan.obstacles.extend(privilege::check_tun().err());
        }
        Ok(plan)
    }

    /// What keeps this process from carrying the plan out: [`apply`](Plan::apply) fails with the first of them.
    pub fn obstacles(&self) -> &[HostError] {
        &self.obstacles
    }

    fn outside_facts(&mut self, here: &Snapshot) {
        let Interface { name, mtu, index, .. } = &self.outside;
        let gateway = here.routes.iter().find(|(on, route)| on == index && route.destination.1 == 0);
        let way = match gateway {
            Some((_, route)) => route
                .gateway
                .map_or("default route on the link".to_owned(), |hop| format!("default route by {hop}")),
            None => "no default route".to_owned(),
        };
        self.facts.push(format!("outside: {name}, {}, MTU {mtu}, {way}", nets(&self.outside.addresses)));
        if gateway.is_none() {
            self.warnings
                .push(format!("{name} has no default route: only what it has a route for can be reached"));
        }
    }

    /// The outside interface's own address, beside the host.
    fn share(&mut self, settings: &Settings) -> Result<(), HostError> {
        let name = self.outside.name.clone();
        let Some((address, _)) = self.outside.addresses.first().copied() else {
            return Err(HostError::NoAddress { name, option: "--external ADDR" });
        };
        self.external = vec![address];
        let taken = HostPorts::new(self.external.clone()).map_err(failed("list the sockets of this host"))?;
        for forward in &settings.forwards {
            let held = if forward.protocol == Protocol::Tcp { taken.tcp() } else { taken.udp() };
            if held.binary_search(&forward.external_port).is_ok() {
                return Err(HostError::PortInUse { protocol: forward.protocol, port: forward.external_port });
            }
        }
        self.facts.push(format!(
            "external address: {address}, shared with the host, whose sockets hold {} TCP and {} UDP ports",
            taken.tcp().len(),
            taken.udp().len()
        ));
        let ephemeral = ports::ephemeral().map_err(failed(format!("read {}", ports::LOCAL_PORT_RANGE)))?;
        let configured = settings.behavior.port_range;
        match ports::beside(ephemeral, configured) {
            Some(range) => {
                self.port_range = Some(range);
                self.facts.push(format!(
                    "external ports: {range}, the larger part of {configured} outside the host's ephemeral {ephemeral}"
                ));
            }
            None => self.warnings.push(format!(
                "the host draws its own ports from {ephemeral}, which leaves none of {configured}: a new connection of \
                 the host may get a port that natbox uses; narrow net.ipv4.ip_local_port_range"
            )),
        }
        Ok(())
    }

    /// Addresses of natbox's own.
    fn own(&mut self, here: &Snapshot, prefixes: &[(Ipv4Addr, u8)]) -> Result<(), HostError> {
        let asked = prefixes.iter().map(|(_, len)| prefix::size(*len)).sum();
        if asked > POOL {
            return Err(HostError::PoolTooLarge { asked, limit: POOL });
        }
        for (address, len) in prefixes.iter().copied() {
            let network = prefix::network(address, len);
            if network != address {
                return Err(HostError::HostBits { address, len, network });
            }
            if let Some((owner, (taken, _))) =
                here.addresses().find(|(_, (taken, _))| prefix::contains((network, len), *taken))
            {
                return Err(HostError::AddressInUse {
                    address: taken.to_string(),
                    owner: format!("the host's own on {}", owner.name),
                    remedy: "leave --external out to share the outside interface's address",
                });
            }
            self.owned.push((network, len));
            let last = u32::from(network) | !prefix::mask(len);
            self.external.extend((u32::from(network)..=last).map(Ipv4Addr::from));
        }
        self.external.sort();
        self.external.dedup();
        let on_link = &self.outside.addresses;
        self.external.retain(|address| !on_link.iter().any(|net| prefix::is_reserved(*net, *address)));
        if let [(address, len), ..] = prefixes
            && self.external.is_empty()
        {
            return Err(HostError::NotAHost { address: *address, len: *len });
        }
        self.facts.push(format!("external addresses: {}, natbox's own", nets(&self.owned)));
        self.changes.push(format!("ARP answers for {} on {}", nets(&self.owned), self.outside.name));
        Ok(())
    }

    /// Every forward leads to an inside device.
    fn check_forwards(&self, forwards: &[Forward]) -> Result<(), HostError> {
        let tuns = self.tuns.iter().map(|tun| tun.net);
        let inside: Vec<_> = tuns.chain(self.lans.iter().map(|lan| (lan.gateway, lan.prefix_len))).collect();
        let leads = |forward: &&Forward| match forward.inside_port {
            Some(index) => index < inside.len(),
            None => inside.iter().any(|net| prefix::contains(*net, forward.inside.0)),
        };
        match forwards.iter().find(|forward| !leads(forward)) {
            Some(forward) => Err(HostError::NoInsideFor { forward: forward.to_string() }),
            None => Ok(()),
        }
    }

    fn guard(&mut self, choice: GuardChoice) {
        let interfaces = [&self.outside].into_iter().chain(self.lans.iter().map(|lan| &lan.interface));
        let on = list(interfaces.map(|interface| interface.name.clone()));
        match choice {
            GuardChoice::Auto => {
                self.changes.push(format!(
                    "guard on {on}: a tcx program, or an nf_tables table where tcx is refused"
                ));
            }
            GuardChoice::Tcx => self.changes.push(format!("guard on {on}: a tcx program")),
            GuardChoice::Nftables => self.changes.push(format!("guard on {on}: an nf_tables table")),
            // The guard itself says what this means.
            GuardChoice::Off => self.facts.push("guard: off".to_owned()),
        }
    }

    fn fast_path(&mut self, settings: &Settings) {
        let lans = self.lans.iter().map(|lan| lan.interface.name.clone());
        let tuns = self.tuns.iter().filter(|tun| tun.wire || matches!(tun.place, Place::Here));
        let inside: Vec<_> = lans.chain(tuns.map(|tun| tun.name.clone())).collect();
        if settings.without_fast_path().is_none() && !inside.is_empty() {
            let on = list([self.outside.name.clone()].into_iter().chain(inside));
            let unless = match settings.fast_path {
                FastPathChoice::On => "",
                _ => ", where tcx is not refused",
            };
            self.changes.push(format!("tcx programs on {on} for packets of quick flows{unless}"));
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let obstacles = self.obstacles.iter().map(HostError::to_string).collect();
        let parts =
            [("", &self.facts), ("+ ", &self.changes), ("use: ", &self.usage), ("note: ", &self.warnings)];
        for (head, lines) in parts.into_iter().chain([("missing: ", &obstacles)]) {
            for line in lines {
                writeln!(f, "{head}{line}")?;
            }
        }
        Ok(())
    }
}

/// The interface of this name, or the names that there are.
pub(super) fn find<'a>(snapshot: &'a Snapshot, name: &str) -> Result<&'a Link, HostError> {
    snapshot.link(name).ok_or_else(|| HostError::NoInterface {
        name: name.to_owned(),
        existing: list(snapshot.links.iter().map(|link| link.interface.name.clone())),
    })
}

/// An interface that Ethernet frames can cross now.
fn ready<'a>(snapshot: &'a Snapshot, name: &str) -> Result<&'a Link, HostError> {
    let link = find(snapshot, name)?;
    let name = name.to_owned();
    match link {
        Link { ethernet: false, .. } => Err(HostError::NotEthernet { name }),
        Link { up: false, .. } => Err(HostError::InterfaceDown { name }),
        link => Ok(link),
    }
}

fn check_host(address: Ipv4Addr, len: u8) -> Result<(), HostError> {
    if len > 31 {
        return Err(HostError::NoRoom { address, len });
    }
    if prefix::is_reserved((address, len), address) {
        return Err(HostError::NotAHost { address, len });
    }
    Ok(())
}

fn nets(nets: &[(Ipv4Addr, u8)]) -> String {
    if nets.is_empty() {
        return "no address".to_owned();
    }
    nets.iter().map(|(address, len)| format!("{address}/{len}")).collect::<Vec<_>>().join(", ")
}
