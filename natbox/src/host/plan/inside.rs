//! The inside of a plan: TUN devices, LANs, and the namespace of a command.

use std::net::Ipv4Addr;

use super::{LanPlan, Place, Plan, TunPlan, check_host, ready};
use crate::{
    host::{
        dns::{self, Dns},
        error::{HostError, failed},
        netlink::Snapshot,
        netns::Netns,
        prefix, tun,
    },
    settings::{FastPathChoice, InsideSpec, LanSpec, Settings},
};

/// The name of a command's own TUN: its namespace holds nothing else.
const COMMAND_TUN: &str = "tun0";

impl Plan {
    pub(super) fn lan(&mut self, here: &Snapshot, spec: &LanSpec) -> Result<(), HostError> {
        let interface = ready(here, &spec.interface)?.interface.clone();
        let name = &interface.name;
        if *name == self.outside.name {
            return Err(HostError::UsedTwice { name: name.clone(), first: "--outside", second: "--lan" });
        }
        if self.lans.iter().any(|lan| lan.interface.name == *name) {
            return Err(HostError::UsedTwice { name: name.clone(), first: "--lan", second: "--lan" });
        }
        let (gateway, prefix_len) = match spec.net {
            Some((address, len)) => {
                check_host(address, len)?;
                if let Some((owner, _)) = here.addresses().find(|(_, (taken, _))| *taken == address) {
                    return Err(HostError::AddressInUse {
                        address: address.to_string(),
                        owner: format!("the host's own on {}", owner.name),
                        remedy: "write --lan without =ADDR/LEN to share the interface's address",
                    });
                }
                self.changes.push(format!("ARP answers for {address} on {name}"));
                (address, len)
            }
            None => interface.addresses.first().copied().ok_or_else(|| HostError::NoAddress {
                name: name.clone(),
                option: "--lan INTERFACE=ADDR/LEN",
            })?,
        };
        let shared = spec.net.is_none();
        let whose = if shared { "shared with the host" } else { "natbox's own" };
        self.facts
            .push(format!("LAN: {name}, gateway {gateway}/{prefix_len} ({whose}), MTU {}", interface.mtu));
        self.usage.push(format!("on the hosts of {name}: ip route add default via {gateway}"));
        self.lans.push(LanPlan { interface, gateway, shared, prefix_len });
        Ok(())
    }

    pub(super) fn tun(
        &mut self,
        here: &Snapshot,
        spec: &InsideSpec,
        settings: &Settings,
    ) -> Result<(), HostError> {
        let place = match &spec.netns {
            None => Place::Here,
            Some(name) => {
                let netns = Netns::open(name)?;
                // Its own namespace by another name gets no default route either.
                if netns.is_own().map_err(failed(format!("compare {name} with this namespace")))? {
                    Place::Here
                } else {
                    Place::Named(netns)
                }
            }
        };
        let there = match &place {
            Place::Named(netns) => &netns.run(Snapshot::read)?,
            _ => here,
        };
        let name = &spec.name;
        let beside = || self.tuns.iter().filter(|tun| tun.place.same_as(&place));
        if there.link(name).is_some() || beside().any(|tun| tun.name == *name) {
            return Err(HostError::NameInUse { name: name.clone(), place: place.describe() });
        }
        let taken: Vec<_> = there.addresses().map(|(interface, net)| (interface.name.clone(), net)).collect();
        let taken = taken.into_iter().chain(beside().map(|tun| (tun.name.clone(), tun.net)));
        let net = match spec.net {
            Some((address, len)) => {
                check_host(address, len)?;
                if let Some((owner, _)) =
                    taken.into_iter().find(|(_, net)| prefix::overlap(*net, (address, len)))
                {
                    return Err(HostError::AddressInUse {
                        address: format!("{address}/{len}"),
                        owner: format!("in the network of {owner} in {}", place.describe()),
                        remedy: "choose another network",
                    });
                }
                (address, len)
            }
            None => {
                let taken: Vec<_> = taken.map(|(_, net)| net).collect();
                self.free_network(name, there, &taken)?
            }
        };
        let first_default = !beside().any(|tun| tun.default_route);
        let default_route =
            matches!(place, Place::Named(_)) && there.default_route().is_none() && first_default;
        if matches!(place, Place::Named(_)) && !default_route {
            let by = there.default_route().unwrap_or("another TUN of this plan");
            self.warnings.push(format!(
                "{} has a default route by {by} already: {name} gets none, add the routes that should use it",
                place.describe()
            ));
        }
        let loosen = !default_route && there.strict_reverse_path;
        self.tun_usage(name, &place, default_route);
        self.add_tun(name, place, net, default_route, loosen, settings)
    }

    fn add_tun(
        &mut self,
        name: &str,
        place: Place,
        net: (Ipv4Addr, u8),
        default_route: bool,
        loosen: bool,
        settings: &Settings,
    ) -> Result<(), HostError> {
        let (address, len) = net;
        let gateway = prefix::first_other(net).ok_or(HostError::NoRoom { address, len })?;
        let mtu = settings.mtu.unwrap_or(self.outside.mtu);
        let offload = if settings.offload { "offloads as the kernel has them" } else { "no offload" };
        let queues = match self.workers {
            1 => format!("queue {}", tun::QUEUE),
            several => format!("{several} queues of {}", tun::QUEUE),
        };
        self.changes.push(format!(
            "TUN device {name} in {}: {address}/{len}, up, MTU {mtu}, {queues}, {offload}; natbox is {gateway}",
            place.describe()
        ));
        if default_route {
            self.changes.push(format!("default route by {gateway} on {name}, in {}", place.describe()));
        }
        if loosen {
            self.changes.push(format!(
                "net.ipv4.conf.{name}.rp_filter = 2 (loose): the strict filter would drop the replies on {name}, which \
                 is not the default route"
            ));
        }
        let wire = settings.fast_path == FastPathChoice::On && !matches!(place, Place::Here);
        if wire {
            self.changes.push(format!(
                "virtual cables between this namespace and {}, without addresses, for quick flows of {name}",
                place.describe()
            ));
        }
        self.tuns.push(TunPlan {
            name: name.to_owned(),
            place,
            wire,
            net,
            gateway,
            mtu,
            offload: settings.offload,
            queues: self.workers,
            default_route,
            loosen,
        });
        Ok(())
    }

    fn tun_usage(&mut self, name: &str, place: &Place, default_route: bool) {
        match place {
            Place::Here => self.usage.extend([
                format!("one program through the NAT: curl --interface {name} http://ADDR/ (or ping -I {name} ADDR)"),
                format!("everything for one network through it: ip route add NET/LEN dev {name}"),
            ]),
            Place::Named(netns) if default_route => self.usage.push(match netns.name().strip_prefix("pid:") {
                Some(pid) => format!("behind the NAT: nsenter --net --target {pid} COMMAND"),
                None if netns.name().contains('/') => {
                    format!("behind the NAT: nsenter --net={} COMMAND", netns.name())
                }
                None => format!("behind the NAT: ip netns exec {} COMMAND", netns.name()),
            }),
            Place::Named(_) | Place::Command => {}
        }
    }

    /// The namespace for the command, with a TUN and name servers that can be reached from there.
    pub(super) fn command(&mut self, here: &Snapshot, settings: &Settings) -> Result<(), HostError> {
        let own: Vec<_> = here.addresses().map(|(_, (address, _))| address).collect();
        self.changes.push("network namespace for the command, its loopback interface up".to_owned());
        let net = self.free_network(COMMAND_TUN, &Snapshot::default(), &[])?;
        self.add_tun(COMMAND_TUN, Place::Command, net, true, false, settings)?;
        match dns::find(&own) {
            Dns::AsItIs => {}
            Dns::Replace(path) => {
                self.changes.push(format!(
                    "{} in the place of /etc/resolv.conf, for the command only: the host's names a resolver on the host",
                    path.display()
                ));
                self.resolv_conf = Some(path);
            }
            Dns::None(why) => self.warnings.push(format!("names will not resolve behind the NAT: {why}")),
        }
        Ok(())
    }

    /// A /24 that overlaps nothing in the namespace, nothing outside and nothing else in this plan; its second host.
    fn free_network(
        &self,
        name: &str,
        there: &Snapshot,
        taken: &[(Ipv4Addr, u8)],
    ) -> Result<(Ipv4Addr, u8), HostError> {
        // Routes shorter than /8 stand for "everything else" and would overlap every candidate.
        let routes = there.routes.iter().map(|(_, route)| route.destination).filter(|(_, len)| *len >= 8);
        let outside = self.outside.addresses.iter().chain(&self.owned).copied();
        let lans = self.lans.iter().map(|lan| (lan.gateway, lan.prefix_len));
        let tuns = self.tuns.iter().map(|tun| tun.net);
        let used: Vec<_> =
            routes.chain(outside).chain(lans).chain(tuns).chain(taken.iter().copied()).collect();
        let candidates = [[10, 64], [172, 30], [192, 168]]
            .into_iter()
            .flat_map(|[a, b]| (0..=255).map(move |n| (Ipv4Addr::new(a, b, n, 2), 24)));
        let mut free =
            candidates.filter(|candidate| !used.iter().any(|used| prefix::overlap(*used, *candidate)));
        free.next().ok_or_else(|| HostError::NoFreeNetwork { name: name.to_owned() })
    }
}
