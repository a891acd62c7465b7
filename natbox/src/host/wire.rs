//! A way for frames between natbox's namespace and that of a TUN, which programs alone use: two virtual cables and a
//! namespace between them.
//!
//! ```text
//!   TUN's namespace         between         natbox's namespace
//!   tun0    w ═════════════ far   near ═════════════ w    eth0
//! ```
//!
//! A cable would outlast natbox, were both of its ends in namespaces of others: nobody takes it away when the process is
//! killed. The namespace between is held by a descriptor, and takes all ends along when it goes. No end has an address,
//! and no stack gets anything from one: what programs do not send on they drop.

use std::{fs::File, net::UdpSocket, os::fd::AsRawFd};

use rtnetlink::{LinkUnspec, LinkVeth};

use super::{
    error::{HostError, failed},
    netlink::{because, index_of, run, set_link_up, without_ipv6},
    netns::{Netns, OWN, on_thread},
};

/// No packet is longer; the next link's own limit is the engine's business.
const MTU: u32 = 65_535;

/// The wire of one TUN, and where its ends are. It goes when this is dropped.
#[derive(Debug)]
pub struct Wire {
    /// The namespaces.
    pub(crate) far: Netns,
    pub(crate) between: Netns,
    /// In the TUN's namespace: the TUN, and the end of the wire.
    pub(crate) tun: u32,
    pub(crate) there: u32,
    /// In the namespace between: the ends of both cables.
    pub(crate) middle: [u32; 2],
    /// In natbox's namespace.
    pub(crate) here: u32,
    /// Sockets to ask by, in natbox's namespace and in the TUN's.
    pub(crate) probes: [UdpSocket; 2],
}

impl Wire {
    /// Lays the wire for the TUN with this index in `far`, from the namespace of the calling thread. `number` tells the
    /// wires of one process apart.
    pub(crate) fn lay(tun: u32, far: &Netns, number: usize) -> Result<Wire, HostError> {
        let name = format!("nb{}w{number}", std::process::id());
        let here = File::open(OWN).map_err(failed(format!("open {OWN}")))?;
        let between = Netns::anonymous()?;
        let there = far.try_clone().map_err(failed("duplicate a descriptor"))?;
        let middle = between
            .run(|| Ok([cable("far", &name, there.as_raw_fd())?, cable("near", &name, here.as_raw_fd())?]))?;
        let end = || {
            let probe = UdpSocket::bind("0.0.0.0:0").map_err(failed("open a socket"))?;
            Ok((rouse(&name)?, probe))
        };
        let (there, at_tun) = far.run(end)?;
        let (here, at_home) = on_thread(end)?;
        let far = far.duplicate().map_err(failed("duplicate a descriptor"))?;
        Ok(Wire { far, between, tun, there, middle, here, probes: [at_home, at_tun] })
    }

    /// Whether the TUN is where it was, and so are both ends, for either belongs to somebody who may take it away or set
    /// it down.
    pub(crate) fn is_whole(&self) -> bool {
        let [at_home, at_tun] = &self.probes;
        flags(at_tun, self.tun).is_some()
            && [(at_home, self.here), (at_tun, self.there)]
                .into_iter()
                .all(|(socket, end)| flags(socket, end).is_some_and(|flags| flags & libc::IFF_UP != 0))
    }
}

/// The flags of an interface of the namespace that a socket is of; `None` when there is none with this index.
fn flags(socket: &UdpSocket, index: u32) -> Option<libc::c_int> {
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_ifindex = index as libc::c_int;
    // The first one puts the name where the second one looks for it.
    for question in [libc::SIOCGIFNAME, libc::SIOCGIFFLAGS] {
        // SAFETY: the kernel reads and fills in an ifreq that outlives the call.
        if unsafe { libc::ioctl(socket.as_raw_fd(), question as _, &raw mut request) } != 0 {
            return None;
        }
    }
    // SAFETY: after SIOCGIFFLAGS this member is the one that is set.
    Some(libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags }))
}

/// A cable of which one end stays here, and the other, by this name, goes to another namespace. Returns the index of the
/// end that stays.
fn cable(stays: &str, goes: &str, to: libc::c_int) -> Result<u32, HostError> {
    run(async |handle| {
        let made = LinkVeth::new(stays, goes).mtu(MTU).build();
        handle.link().add(made).execute().await.map_err(because("make a virtual cable"))?;
        let index = index_of(&handle, stays).await?;
        let _ = handle.link().change(without_ipv6(index)).execute().await;
        let going = index_of(&handle, goes).await?;
        let moved = LinkUnspec::new_with_index(going).setns_by_fd(to).build();
        handle.link().change(moved).execute().await.map_err(because(&format!("give {goes} away")))?;
        set_link_up(&handle, index, stays).await?;
        Ok(index)
    })
}

/// Brings an end up that has come to this namespace; returns its index.
fn rouse(name: &str) -> Result<u32, HostError> {
    run(async |handle| {
        let index = index_of(&handle, name).await?;
        // No address of its own making, and nobody is solicited.
        let _ = handle.link().change(without_ipv6(index)).execute().await;
        let change = LinkUnspec::new_with_index(index).mtu(MTU).arp(false).build();
        handle.link().change(change).execute().await.map_err(because(&format!("set {name} up")))?;
        set_link_up(&handle, index, name).await?;
        Ok(index)
    })
}
