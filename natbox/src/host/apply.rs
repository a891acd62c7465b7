//! Carries a plan out. Everything made here hangs on a descriptor, so an error on the way undoes what came before it.

use std::{fs, net::Ipv4Addr};

use super::{
    CommandSpace, HostError, InsideDevice, Offload, Plan, Reach, Wire, Wiring,
    netlink::{self, Setup},
    netns::{Netns, on_thread},
    plan::{LanPlan, Place, TunPlan},
    tun,
};

impl Plan {
    /// Makes the devices and namespaces of this plan, and reports.
    ///
    /// # Errors
    /// The first [obstacle](Plan::obstacles), or what the kernel refused; then nothing has changed.
    pub fn apply(mut self) -> Result<Wiring, HostError> {
        if !self.obstacles.is_empty() {
            return Err(self.obstacles.swap_remove(0));
        }
        let mut wiring = Wiring {
            inside: Vec::new(),
            shared: self.owned.is_empty(),
            outside: self.outside,
            external: self.external,
            owned: self.owned,
            port_range: self.port_range,
            workers: self.workers,
            command: None,
            done: self.changes,
            usage: self.usage,
            warnings: self.warnings,
        };
        let (mut tuns, mut behind) = (Vec::new(), Vec::new());
        for (number, tun) in self.tuns.into_iter().enumerate() {
            let made = match &tun.place {
                Place::Here => on_thread(|| make(&tun))?,
                Place::Named(netns) => wired(netns.run(|| make(&tun))?, &tun, netns, number)?,
                Place::Command => {
                    let netns = Netns::anonymous()?;
                    let made = netns.run(|| {
                        netlink::bring_up("lo")?;
                        let_users_ping();
                        make(&tun)
                    })?;
                    let made = wired(made, &tun, &netns, number)?;
                    wiring.command = Some(CommandSpace { netns, resolv_conf: self.resolv_conf.take() });
                    made
                }
            };
            wiring.done.push(format!("{} has {}", tun.name, made.offload.word()));
            wiring.warnings.extend(made.warning);
            if matches!(tun.place, Place::Command) { &mut behind } else { &mut tuns }.push(made.device);
        }
        wiring.inside.extend(tuns);
        wiring.inside.extend(self.lans.into_iter().map(lan));
        wiring.inside.extend(behind);
        Ok(wiring)
    }
}

/// Lays the wire, if there is to be one, to a device that was made in another namespace.
fn wired(mut made: Made, plan: &TunPlan, netns: &Netns, number: usize) -> Result<Made, HostError> {
    if let (true, InsideDevice::Tun { reach, .. }) = (plan.wire, &mut made.device) {
        *reach = Reach::Wired(Box::new(Wire::lay(made.index, netns, number)?));
    }
    Ok(made)
}

struct Made {
    device: InsideDevice,
    index: u32,
    offload: Offload,
    warning: Option<String>,
}

/// Makes a TUN device in the calling thread's namespace.
fn make(plan: &TunPlan) -> Result<Made, HostError> {
    let TunPlan { name, net, gateway, mtu, .. } = plan;
    let (queues, offload) = tun::create(name, plan.offload, plan.queues)?;
    let default_route: Option<Ipv4Addr> = plan.default_route.then_some(*gateway);
    let setup = Setup { name, net: *net, mtu: *mtu, queue: tun::QUEUE, gateway: default_route };
    let index = netlink::set_up(setup)?;
    let netns = match &plan.place {
        Place::Named(netns) => Some(netns.name().to_owned()),
        Place::Here | Place::Command => None,
    };
    let device = InsideDevice::Tun {
        name: name.clone(),
        queues,
        offload: offload >= Offload::Tcp,
        udp_offload: offload == Offload::TcpUdp,
        gateway: *gateway,
        host: net.0,
        prefix_len: net.1,
        mtu: *mtu,
        netns,
        reach: if matches!(plan.place, Place::Here) { Reach::Here(index) } else { Reach::Not },
    };
    Ok(Made { device, index, offload, warning: if plan.loosen { loosen(name) } else { None } })
}

/// Loosens reverse-path filtering on our own device: the larger of its value and that for all devices counts, and 2
/// is the loose one. Where `/proc/sys` is read-only, as in containers, the user has to know.
fn loosen(name: &str) -> Option<String> {
    let path = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
    let error = fs::write(path, "2").err()?;
    Some(format!(
        "replies on {name} will be dropped by its strict reverse-path filter, which cannot be loosened here: {error}; \
         set net.ipv4.conf.all.rp_filter to 2 or 0"
    ))
}

/// Lets any group send ICMP echo requests in the command's namespace, as distributions do on the host. A kernel or a
/// user namespace that refuses leaves ping to root, as it was.
fn let_users_ping() {
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
}

fn lan(LanPlan { interface, gateway, shared, prefix_len }: LanPlan) -> InsideDevice {
    InsideDevice::Lan { interface, gateway, shared, prefix_len }
}
