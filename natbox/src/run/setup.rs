//! From wiring and settings to an engine and its ports.

use std::{
    fs::File,
    io::{self, Read},
    net::IpAddr,
};

use natbox_core::{Config, Endpoint, Inside, InsideId, InsidePort, MappingRequest, Nat, PortRange, Time};

use super::{RunError, express::Express, state::OUTSIDE, watch::Watched};
use crate::{
    datapath::{PacketOptions, PacketPort, Port, PortError, TunPort},
    fastpath::{Device, FastPath, set_filter},
    host::{InsideDevice, Interface, Reach, Wiring, network},
    neighbor::{NeighborConfig, Neighbors},
    settings::{FastPathChoice, Forward, Settings},
};

/// The engine with its inside ports, in the order of the wiring.
pub(super) fn nat(wiring: &Wiring, settings: &Settings) -> Result<Nat, RunError> {
    let config = Config {
        behavior: settings.behavior.clone(),
        external: wiring.external.iter().copied().map(IpAddr::V4).collect(),
        shared: wiring.shared,
        outside_mtu: wiring.outside.mtu,
        ports: wiring.port_range.unwrap_or(PortRange::ALL),
        limits: settings.limits,
        report_claims: true,
        report_events: true,
    };
    let seed = match settings.seed {
        Some(seed) => seed,
        None => random_seed().map_err(RunError::system("draw a random seed"))?,
    };
    let mut nat = Nat::new(config, seed)?;
    for device in &wiring.inside {
        let (gateway, prefix_len, mtu, shared) = match device {
            InsideDevice::Tun { gateway, prefix_len, mtu, .. } => (*gateway, *prefix_len, *mtu, false),
            InsideDevice::Lan { interface, gateway, prefix_len, shared } => {
                (*gateway, *prefix_len, interface.mtu, *shared)
            }
        };
        nat.add_inside(InsidePort { gateway: gateway.into(), prefix_len, mtu, shared })?;
    }
    Ok(nat)
}

fn random_seed() -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Makes the static forwards.
pub(super) fn forwards(
    nat: &mut Nat,
    wiring: &Wiring,
    settings: &Settings,
    now: Time,
) -> Result<(), RunError> {
    for forward in &settings.forwards {
        let port = inside_port(wiring, forward).ok_or(RunError::NoInside(*forward))?;
        let (addr, inside_port) = forward.inside;
        let request = MappingRequest {
            protocol: forward.protocol,
            inside: Inside { port, endpoint: Endpoint::v4(addr, inside_port) },
            address: None,
            port: forward.external_port,
            until: Time::NEVER,
        };
        nat.add_mapping(request, now).map_err(|source| RunError::Forward { forward: *forward, source })?;
    }
    Ok(())
}

/// The inside port that a forward names, or the first whose network its host is in.
fn inside_port(wiring: &Wiring, forward: &Forward) -> Option<InsideId> {
    let has_host = |device: &InsideDevice| {
        let (gateway, len) = match device {
            InsideDevice::Tun { gateway, prefix_len, .. } | InsideDevice::Lan { gateway, prefix_len, .. } => {
                (*gateway, *prefix_len)
            }
        };
        network(gateway, len) == network(forward.inside.0, len)
    };
    let index = match forward.inside_port {
        Some(index) => Some(index).filter(|index| *index < wiring.inside.len()),
        None => wiring.inside.iter().position(has_host),
    };
    index.map(|index| InsideId(index as u16))
}

/// The interfaces whose routes are to be kept up with, and what is on them whatever the host's routes say.
pub(super) fn watched(wiring: &Wiring) -> Vec<Watched> {
    let outside = Watched { side: OUTSIDE, index: wiring.outside.index, on_link: None };
    let lans = wiring.inside.iter().enumerate().filter_map(|(i, device)| match device {
        InsideDevice::Lan { interface, gateway, prefix_len, .. } => Some(Watched {
            side: OUTSIDE + 1 + i,
            index: interface.index,
            on_link: Some((network(*gateway, *prefix_len), *prefix_len)),
        }),
        InsideDevice::Tun { .. } => None,
    });
    std::iter::once(outside).chain(lans).collect()
}

/// A side of the NAT.
pub(super) struct Side {
    /// One for each worker.
    pub(super) ports: Vec<Box<dyn Port + Send>>,
    /// `None` on a TUN, where there is nobody to ask.
    pub(super) neighbors: Option<Neighbors>,
}

impl Side {
    fn new<P: Port + Send + 'static>(ports: Vec<P>, neighbors: Option<Neighbors>) -> Side {
        let boxed = ports.into_iter().map(|port| Box::new(port) as Box<dyn Port + Send>);
        Side { ports: boxed.collect(), neighbors }
    }
}

/// The sides: outside, then inside in the order of the wiring. Routes come with the first news.
pub(super) fn sides(wiring: Wiring, settings: &Settings) -> Result<Vec<Side>, RunError> {
    let Wiring { inside, outside, external, owned, workers, .. } = wiring;
    let options = |interface: &Interface| PacketOptions {
        offload: settings.offload,
        ring: settings.offload,
        mtu: interface.mtu,
    };
    let ethernet = |interface: Interface, speak_as, owned| {
        let Interface { index, name, mac, .. } = &interface;
        let ports = PacketPort::open_several(name, *index, *mac, options(&interface), workers)?;
        let neighbors = Neighbors::new(NeighborConfig { mac: *mac, speak_as, owned, routes: Vec::new() });
        Ok::<_, PortError>(Side::new(ports, Some(neighbors)))
    };
    let external = external.into_iter().map(|addr| (addr, 32));
    // The host's own address in the same network is the better one to ask as: neighbours may ignore a stranger's.
    let speak_as = outside.addresses.iter().copied().chain(external).collect();
    let mut sides = vec![ethernet(outside, speak_as, owned)?];
    for device in inside {
        sides.push(match device {
            InsideDevice::Tun { name, queues, offload, .. } => {
                let ports = queues.into_iter().map(|fd| TunPort::new(&name, fd, offload));
                Side::new(ports.collect::<Result<_, _>>()?, None)
            }
            InsideDevice::Lan { interface, gateway, shared, prefix_len } => {
                let owned = if shared { Vec::new() } else { vec![(gateway, 32)] };
                ethernet(interface, vec![(gateway, prefix_len)], owned)?
            }
        });
    }
    Ok(sides)
}

/// The devices of all sides, as far as packets can be moved from and to them by programs; taken out of the wiring.
pub(super) fn devices(wiring: &mut Wiring) -> Vec<Option<Device>> {
    let ethernet = |interface: &Interface| Device::Ethernet(interface.index, interface.mac);
    let inside = wiring.inside.iter_mut().map(|device| match device {
        InsideDevice::Lan { interface, .. } => Some(ethernet(interface)),
        InsideDevice::Tun { reach, .. } => match std::mem::replace(reach, Reach::Not) {
            Reach::Here(index) => Some(Device::Tun(index)),
            Reach::Wired(wire) => Some(Device::Wired(wire)),
            Reach::Not => None,
        },
    });
    std::iter::once(Some(ethernet(&wiring.outside))).chain(inside).collect()
}

/// The fast path, if there is to be one, and `on`, or `off` and why. `ports` are those of each worker.
pub(super) fn fast_path(
    devices: Vec<Option<Device>>,
    ports: &[Vec<Box<dyn Port + Send>>],
    settings: &Settings,
    now: Time,
) -> Result<(Option<Express>, String), RunError> {
    let off = |why: &str| Ok((None, format!("off: {why}")));
    if let Some(why) = settings.without_fast_path() {
        return off(why);
    }
    if devices[OUTSIDE + 1..].iter().all(Option::is_none) {
        return off("every inside device is in another namespace, which takes --fast-path on");
    }
    let sides = devices.len();
    match attach(devices, ports, now) {
        Ok(path) => Ok((Some(Express::new(Box::new(path), sides)), "on".to_owned())),
        Err(error) if settings.fast_path == FastPathChoice::On => Err(RunError::FastPath(error)),
        Err(error) => off(&format!("the kernel refuses: {error}")),
    }
}

fn attach(
    devices: Vec<Option<Device>>,
    ports: &[Vec<Box<dyn Port + Send>>],
    now: Time,
) -> io::Result<FastPath> {
    let path = FastPath::attach(devices, now)?;
    for (side, port) in ports.iter().flat_map(|ports| ports.iter().enumerate()) {
        if let (Some(filter), Some(socket)) = (path.filter(side), port.fd()) {
            set_filter(socket, filter)?;
        }
    }
    Ok(path)
}
