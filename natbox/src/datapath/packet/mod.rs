//! An Ethernet interface, through packet sockets (`packet(7)`).
//!
//! One socket receives everything that comes in for us (the tap binds `ETH_P_ALL`: one bound to a single protocol would
//! miss what a guard at tc ingress keeps from the host), another one sends and never receives. At its best the port
//! speaks virtio-net both ways and receives through a ring that the kernel writes into; what the kernel refuses is done
//! without, down to one plain socket without metadata, for which checksums are finished and super-frames cut here.
//!
//! Frames go out through the interface's queueing discipline like everybody else's. Bypassing it
//! (`PACKET_QDISC_BYPASS`) showed no gain for bulk TCP over veth, ignores the shaping that the host's owner has set up,
//! and loses every super-frame on a device that cannot cut it.
//!
//! Several ports on one interface, one for each worker, share what it receives between them by flow: each has both
//! sockets for itself, and the receiving ones are a fan-out group.

mod fanout;
mod plain;
mod ring;
mod socket;
mod transmit;

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;

use super::{Batch, Link, Mac, Outgoing, Port, PortError, PortStats, SuperFrames};
use plain::Plain;
use ring::Ring;
use socket::Socket;
use transmit::Transmitter;

/// Actions that can fail, for messages.
const BIND: &str = "bind a packet socket";
const FILTER: &str = "filter what is received";

/// How a [`PacketPort`] is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketOptions {
    /// Exchange offload metadata with the kernel, where it can.
    pub offload: bool,
    /// Receive through a ring, where the kernel can; only with `offload`.
    pub ring: bool,
    /// Largest IP packet of the link, in bytes: without offload, a longer one is taken for a super-frame.
    pub mtu: u16,
}

impl Default for PacketOptions {
    fn default() -> PacketOptions {
        PacketOptions { offload: true, ring: true, mtu: 1500 }
    }
}

/// An Ethernet interface. It may go down and come up again; when it is removed, the port is [`PortError::Gone`].
#[derive(Debug)]
pub struct PacketPort {
    index: u32,
    mac: Mac,
    socket: Socket,
    receiver: Receiver,
    transmitter: Transmitter,
    stats: PortStats,
}

#[derive(Debug)]
enum Receiver {
    Ring(Ring),
    Plain(Plain),
}

impl PacketPort {
    /// Opens the interface with this index and name, whose Ethernet address is `mac`. Receiving begins at once.
    ///
    /// # Errors
    /// When it is not Ethernet, packet sockets are not permitted, or there is no memory.
    pub fn open(name: &str, index: u32, mac: Mac, options: PacketOptions) -> Result<PacketPort, PortError> {
        let port = PacketPort::prepare(name, index, mac, options)?;
        port.socket.accept_only_ours().map_err(|error| PortError::io(name, FILTER, error))?;
        port.listen()?;
        Ok(port)
    }

    /// Opens it as [`open`](PacketPort::open) does, `count` times. Each frame is received by one of the ports: all of one
    /// flow's, whichever its direction, by the same one, ARP and fragments by any.
    ///
    /// # Errors
    /// As `open`, and when the kernel has no fan-out.
    pub fn open_several(
        name: &str,
        index: u32,
        mac: Mac,
        options: PacketOptions,
        count: usize,
    ) -> Result<Vec<PacketPort>, PortError> {
        if count == 1 {
            return Ok(vec![PacketPort::open(name, index, mac, options)?]);
        }
        let ports: Vec<_> =
            (0..count).map(|_| PacketPort::prepare(name, index, mac, options)).collect::<Result<_, _>>()?;
        let mut group = None;
        for port in &ports {
            // Deaf until everybody is a member: a frame in between would be received by the group and beside it.
            port.socket.accept_nothing().map_err(|error| PortError::io(name, FILTER, error))?;
            port.listen()?;
            group = Some(fanout::join(&port.socket, group).map_err(|error| PortError::fan_out(name, error))?);
        }
        for port in &ports {
            port.socket.accept_only_ours().map_err(|error| PortError::io(name, FILTER, error))?;
        }
        Ok(ports)
    }

    /// A port that does not receive yet, for want of a filter and of an address.
    fn prepare(name: &str, index: u32, mac: Mac, options: PacketOptions) -> Result<PacketPort, PortError> {
        let failed = |action| move |error: Errno| PortError::io(name, action, error);
        let no_memory = |error| PortError::io(name, "get memory for frames", error);

        let sending = Socket::new(name)?;
        sending.require_ethernet(name)?;
        let offload = options.offload && sending.enable_vnet_header().is_ok();
        sending.enlarge_send_buffer();
        sending.bind(index, 0).map_err(failed(BIND))?;
        let transmitter = Transmitter::new(sending, mac, offload).map_err(no_memory)?;

        let socket = Socket::new(name)?;
        socket.ignore_outgoing().map_err(failed("ignore its own transmissions"))?;
        // The header must be there before the ring.
        let offload = options.offload && socket.enable_vnet_header().is_ok();
        let ring = (offload && options.ring).then(|| Ring::new(&socket)).flatten();
        let receiver = match ring {
            Some(ring) => Receiver::Ring(ring),
            None => Receiver::Plain(Plain::new(&socket, offload, options.mtu).map_err(no_memory)?),
        };
        Ok(PacketPort { index, mac, socket, receiver, transmitter, stats: PortStats::new(name) })
    }

    fn listen(&self) -> Result<(), PortError> {
        let bound = self.socket.bind(self.index, libc::ETH_P_ALL as u16);
        bound.map_err(|error| PortError::io(&self.stats.name, BIND, error))
    }

    /// How packets are exchanged with the kernel, for people.
    pub fn mode(&self) -> &'static str {
        match &self.receiver {
            Receiver::Ring(_) => "receive ring, offload",
            Receiver::Plain(plain) if plain.offload() => "offload",
            Receiver::Plain(_) => "no offload",
        }
    }
}

impl Port for PacketPort {
    fn name(&self) -> &str {
        &self.stats.name
    }

    fn link(&self) -> Link {
        Link::Ethernet(self.mac)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn receive(&mut self, budget: usize) -> Result<Batch, PortError> {
        let received = match &mut self.receiver {
            Receiver::Ring(ring) => ring.receive(budget, &mut self.stats),
            Receiver::Plain(plain) => plain.receive(&self.socket, budget, &mut self.stats),
        };
        received.map_err(|error| PortError::io(&self.stats.name, "receive", error))
    }

    fn release(&mut self, batch: Batch) {
        match &mut self.receiver {
            Receiver::Ring(ring) => ring.release(batch),
            Receiver::Plain(plain) => plain.release(batch),
        }
    }

    fn send(&mut self, batch: &mut Batch, list: &[Outgoing]) {
        self.transmitter.send(batch, list, &mut self.stats);
    }

    fn takes(&self) -> SuperFrames {
        self.transmitter.takes()
    }

    fn check(&mut self) -> Result<(), PortError> {
        // Taking the error clears it; an interface that is down says so once, and receives again once it is up.
        let _ = self.socket.take_error();
        self.stats.dropped_overrun += self.socket.take_overruns();
        if self.socket.interface_exists(self.index) {
            return Ok(());
        }
        Err(PortError::Gone { name: self.stats.name.clone() })
    }

    fn stats(&self) -> &PortStats {
        &self.stats
    }

    fn stats_mut(&mut self) -> &mut PortStats {
        &mut self.stats
    }
}
