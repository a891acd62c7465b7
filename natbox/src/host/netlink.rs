//! Interfaces, addresses and routes of a network namespace, read and changed by rtnetlink.
//!
//! Each function starts a private runtime on the calling thread: call it on a setup thread
//! ([`on_thread`](super::netns::on_thread)), in the namespace that is meant.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr},
};

use futures_util::TryStreamExt;
use rtnetlink::{
    Error, Handle, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressMessage},
        link::{
            AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkLayerType, LinkMessage,
        },
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
    },
};

use super::{
    Interface, Route,
    error::{HostError, failed},
};

/// One interface with what decides whether natbox can work on it.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) interface: Interface,
    pub(crate) up: bool,
    pub(crate) ethernet: bool,
}

/// One namespace as it is now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) links: Vec<Link>,
    /// Of the main table, each with the index of its interface.
    pub(crate) routes: Vec<(u32, Route)>,
    /// A new interface would drop packets from sources that the routes lead to elsewhere (`rp_filter` 1).
    pub(crate) strict_reverse_path: bool,
}

impl Snapshot {
    /// Reads the namespace of the calling thread.
    pub(crate) fn read() -> Result<Snapshot, HostError> {
        run(async |handle| {
            let links: Vec<_> =
                handle.link().get().execute().try_collect().await.map_err(because("list the interfaces"))?;
            let addresses: Vec<_> = handle
                .address()
                .get()
                .execute()
                .try_collect()
                .await
                .map_err(because("list the addresses"))?;
            let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
            let routes: Vec<_> = handle
                .route()
                .get(query)
                .execute()
                .try_collect()
                .await
                .map_err(because("list the routes"))?;
            let mut by_index = BTreeMap::<u32, Vec<(Ipv4Addr, u8)>>::new();
            for (index, net) in addresses.iter().filter_map(ipv4_address) {
                by_index.entry(index).or_default().push(net);
            }
            Ok(Snapshot {
                links: links.iter().filter_map(|link| read_link(link, &mut by_index)).collect(),
                routes: routes.iter().flat_map(main_routes).collect(),
                strict_reverse_path: strict_reverse_path(),
            })
        })
    }

    /// The interface of this name.
    pub(crate) fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.interface.name == name)
    }

    /// Every IPv4 address with its interface.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (&Interface, (Ipv4Addr, u8))> {
        self.links.iter().flat_map(|link| link.interface.addresses.iter().map(|net| (&link.interface, *net)))
    }

    /// Whether there is a default route already.
    pub(crate) fn default_route(&self) -> Option<&str> {
        let (index, _) = self.routes.iter().find(|(_, route)| route.destination.1 == 0)?;
        let link = self.links.iter().find(|link| link.interface.index == *index);
        Some(link.map_or("?", |link| link.interface.name.as_str()))
    }
}

/// What a new TUN device gets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup<'a> {
    pub(crate) name: &'a str,
    pub(crate) net: (Ipv4Addr, u8),
    pub(crate) mtu: u16,
    pub(crate) queue: u32,
    /// Of the default route, where one is wanted.
    pub(crate) gateway: Option<Ipv4Addr>,
}

/// Addresses a TUN device, brings it up and, if asked, makes it the default route; returns its index.
pub(crate) fn set_up(setup: Setup<'_>) -> Result<u32, HostError> {
    let Setup { name, net: (address, len), mtu, queue, gateway } = setup;
    run(async |handle| {
        let index = index_of(&handle, name).await?;
        let change = LinkUnspec::new_with_index(index).mtu(mtu.into()).txqueuelen(queue).build();
        handle
            .link()
            .change(change)
            .execute()
            .await
            .map_err(because(&format!("set the MTU of {name} to {mtu} and its queue to {queue} packets")))?;
        // Only IPv4 is translated: without a link-local address the kernel does not fill the device with router
        // solicitations. A kernel without IPv6 refuses this, and does not need it.
        let _ = handle.link().change(without_ipv6(index)).execute().await;
        handle
            .address()
            .add(index, IpAddr::V4(address), len)
            .execute()
            .await
            .map_err(because(&format!("give {name} the address {address}/{len}")))?;
        set_link_up(&handle, index, name).await?;
        if let Some(gateway) = gateway {
            let route =
                RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(index).build();
            handle
                .route()
                .add(route)
                .execute()
                .await
                .map_err(because(&format!("add the default route by {name}")))?;
        }
        Ok(index)
    })
}

/// Brings an interface up.
pub(crate) fn bring_up(name: &str) -> Result<(), HostError> {
    run(async |handle| set_link_up(&handle, index_of(&handle, name).await?, name).await)
}

/// The larger of the values for all interfaces and for new ones counts; a missing file means no filter.
fn strict_reverse_path() -> bool {
    let value = |of| {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{of}/rp_filter"));
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    value("all").max(value("default")) == 1
}

pub(super) fn run<T>(work: impl AsyncFnOnce(Handle) -> Result<T, HostError>) -> Result<T, HostError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(failed("start the netlink runtime"))?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(failed("open a netlink socket"))?;
        tokio::spawn(connection);
        work(handle).await
    })
}

pub(super) async fn index_of(handle: &Handle, name: &str) -> Result<u32, HostError> {
    let mut found = handle.link().get().match_name(name.to_owned()).execute();
    let link = found.try_next().await.map_err(because(&format!("find the interface {name}")))?;
    link.map(|link| link.header.index).ok_or_else(|| {
        HostError::kernel(format!("find the interface {name}"), io::Error::from_raw_os_error(libc::ENODEV))
    })
}

pub(super) async fn set_link_up(handle: &Handle, index: u32, name: &str) -> Result<(), HostError> {
    let change = LinkUnspec::new_with_index(index).up().build();
    handle.link().change(change).execute().await.map_err(because(&format!("bring {name} up")))
}

pub(super) fn without_ipv6(index: u32) -> LinkMessage {
    let inet6 = vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)];
    let attribute = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(inet6)]);
    LinkMessageBuilder::<LinkUnspec>::new().index(index).append_extra_attribute(attribute).build()
}

fn read_link(message: &LinkMessage, addresses: &mut BTreeMap<u32, Vec<(Ipv4Addr, u8)>>) -> Option<Link> {
    let index = message.header.index;
    let (mut name, mut mac, mut mtu) = (None, [0; 6], 0);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Address(bytes) => mac = bytes.as_slice().try_into().unwrap_or(mac),
            // The loopback interface has 65,536 bytes, which no IPv4 packet has.
            LinkAttribute::Mtu(bytes) => mtu = u16::try_from(*bytes).unwrap_or(u16::MAX),
            _ => {}
        }
    }
    let addresses = addresses.remove(&index).unwrap_or_default();
    Some(Link {
        interface: Interface { index, name: name?, mac, mtu, addresses },
        up: message.header.flags.contains(LinkFlags::Up),
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
    })
}

fn ipv4_address(message: &AddressMessage) -> Option<(u32, (Ipv4Addr, u8))> {
    // On a point-to-point link `Address` is the peer's, and `Local` ours.
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    });
    match address? {
        IpAddr::V4(address) => Some((message.header.index, (address, message.header.prefix_len))),
        IpAddr::V6(_) => None,
    }
}

/// The unicast routes of the main table in a message: one, or one for each next hop.
fn main_routes(message: &RouteMessage) -> Vec<(u32, Route)> {
    let table = find_in(&message.attributes, |attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let main = table.unwrap_or(message.header.table.into()) == u32::from(RouteHeader::RT_TABLE_MAIN);
    if !main
        || message.header.address_family != AddressFamily::Inet
        || message.header.kind != RouteType::Unicast
    {
        return Vec::new();
    }
    let destination = find_in(&message.attributes, |attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    });
    let metric = find_in(&message.attributes, |attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    let destination =
        (destination.unwrap_or(Ipv4Addr::UNSPECIFIED), message.header.destination_prefix_length);
    let route = |gateway| Route { destination, gateway, metric: metric.unwrap_or(0) };
    let mut routes = Vec::new();
    if let Some(index) = find_in(&message.attributes, |attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    }) {
        routes.extend(gateway(&message.attributes).map(|gateway| (index, route(gateway))));
    }
    for hops in message.attributes.iter().filter_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    }) {
        routes.extend(
            hops.iter().filter_map(|hop| {
                gateway(&hop.attributes).map(|gateway| (hop.interface_index, route(gateway)))
            }),
        );
    }
    routes
}

/// The next hop: `Some(None)` when the destination is on the link itself, `None` when it is not an IPv4 address and
/// the route is of no use here.
fn gateway(attributes: &[RouteAttribute]) -> Option<Option<Ipv4Addr>> {
    let next = attributes
        .iter()
        .find(|attribute| matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_)));
    match next {
        None => Some(None),
        Some(RouteAttribute::Gateway(RouteAddress::Inet(address))) => Some(Some(*address)),
        Some(_) => None,
    }
}

fn find_in<T>(attributes: &[RouteAttribute], wanted: impl Fn(&RouteAttribute) -> Option<T>) -> Option<T> {
    attributes.iter().find_map(wanted)
}

/// For `map_err`: what netlink was asked to do.
pub(super) fn because(action: &str) -> impl FnOnce(Error) -> HostError {
    let action = action.to_owned();
    move |error| {
        let source = match error {
            Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other.to_string()),
        };
        HostError::Kernel { action, source }
    }
}
