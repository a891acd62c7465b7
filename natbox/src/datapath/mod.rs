//! Moving packets between the kernel and the engine, in batches and without copying.
//!
//! Every place that packets come from or go to is a [`Port`]: a TUN device ([`TunPort`]), an Ethernet interface
//! ([`PacketPort`]), or, for tests that need no kernel, two queues ([`memory_port`]). A port hands out a [`Batch`] of
//! frames that lie where they were received (the kernel's ring, or a pool); the engine rewrites them there, and the
//! batch is lent to whatever port each frame leaves by. Frames have [`HEADROOM`](natbox_core::packet::HEADROOM) bytes
//! in front of the IP header, where the link header and the virtio-net header are written, so that what goes to the
//! kernel is one contiguous buffer.
//!
//! A frame may be a super-frame whose segmentation and checksum are still owed
//! ([`Offload`](natbox_core::packet::Offload)). Ports that speak virtio-net pass that on ([`virtio`]); the others
//! settle it themselves ([`segment`]). Small UDP datagrams of one flow can be joined into a super-frame before they
//! are sent ([`coalesce`]).

mod batch;
pub mod coalesce;
mod memory;
mod packet;
pub mod segment;
mod stats;
mod tun;
pub mod virtio;

use std::{io, os::fd::BorrowedFd};

pub use batch::{Batch, Frame, SLOT_LEN};
pub use coalesce::SuperFrames;
pub use memory::{Delivered, MemoryPort, MemoryWire, memory_port};
pub use packet::{PacketOptions, PacketPort};
pub use stats::PortStats;
pub use tun::TunPort;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// The Ethernet address that everybody listens to.
pub const BROADCAST: Mac = [0xff; 6];

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;

/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;

/// Length of an Ethernet header in bytes.
pub const ETHERNET_LEN: usize = 14;

/// Frames that a port hands out at the most at once: enough to make system calls cheap, few enough that the other
/// direction does not wait long (64 small frames take some 100 µs).
pub const BATCH_LEN: usize = 64;

/// A batch ends when it holds this much: what was just copied in should still be in the cache when it is copied out.
pub const BATCH_BYTES: usize = 256 << 10;

/// What lies under the IP packets of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Nothing: a TUN.
    Ip,
    /// Ethernet, with our own address there.
    Ethernet(Mac),
}

/// A frame of a batch that is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Its index in the batch.
    pub frame: usize,
    /// The Ethernet address that it goes to; without meaning on a TUN.
    pub to: Mac,
}

/// A place that packets come from and go to.
///
/// The order of use: [`receive`](Port::receive) a batch, translate its frames, lend it to [`send`](Port::send) of any
/// ports, give it back with [`release`](Port::release). Until it is back, `receive` gives empty batches.
pub trait Port {
    /// The name of the device.
    fn name(&self) -> &str;

    /// What lies under the IP packets.
    fn link(&self) -> Link;

    /// What to wait on for input; `None` when the port must be asked.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// The frames that have arrived, up to `budget` and [`BATCH_LEN`]; never waits. A device that is down has none.
    ///
    /// # Errors
    /// [`PortError::Gone`] when the device no longer exists; [`PortError::Io`] on what should not happen.
    fn receive(&mut self, budget: usize) -> Result<Batch, PortError>;

    /// Takes back what `receive` gave.
    fn release(&mut self, batch: Batch);

    /// Sends the frames that `list` names, in that order; never waits. What cannot be sent is dropped and counted in
    /// the statistics. Bytes in front of the packets are overwritten, and packets may be changed (joined, completed).
    fn send(&mut self, batch: &mut Batch, list: &[Outgoing]);

    /// Which super-frames are sent as they are: whether it is worth making some.
    fn takes(&self) -> SuperFrames;

    /// Looks after an error condition that poll reported for [`fd`](Port::fd), and reads the kernel's counters.
    ///
    /// # Errors
    /// [`PortError::Gone`] when the device no longer exists.
    fn check(&mut self) -> Result<(), PortError>;

    /// What has passed since the port was opened.
    fn stats(&self) -> &PortStats;

    /// The same, for whoever drops packets on their way to this port.
    fn stats_mut(&mut self) -> &mut PortStats;
}

/// Why a port cannot be opened, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The device was removed.
    #[error("the interface {name} no longer exists")]
    Gone {
        /// The device.
        name: String,
    },
    /// The device carries something other than Ethernet.
    #[error(
        "{name} is not an Ethernet interface: use one that is (a TUN, PPP or WireGuard interface will not do)"
    )]
    NotEthernet {
        /// The device.
        name: String,
    },
    /// The TUN was opened without the header that carries offload metadata.
    #[error("the TUN device {name} was opened without IFF_VNET_HDR")]
    NoVnetHeader {
        /// The device.
        name: String,
    },
    /// A raw socket needs a capability.
    #[error("opening a packet socket on {name} needs root or CAP_NET_RAW")]
    NotPermitted {
        /// The device.
        name: String,
    },
    /// The kernel does not share an interface's frames between several ports.
    #[error("{name}: frames cannot be shared between workers: {source}; leave --workers out")]
    NoFanOut {
        /// The device.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A system call failed that should not.
    #[error("{name}: cannot {action}: {source}")]
    Io {
        /// The device.
        name: String,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl PortError {
    fn io(name: &str, action: &'static str, source: impl Into<io::Error>) -> PortError {
        PortError::Io { name: name.to_owned(), action, source: source.into() }
    }

    fn fan_out(name: &str, source: impl Into<io::Error>) -> PortError {
        PortError::NoFanOut { name: name.to_owned(), source: source.into() }
    }
}
