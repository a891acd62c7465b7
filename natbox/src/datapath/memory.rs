//! A port made of two queues, for tests that need no kernel.

use std::{
    collections::VecDeque,
    io,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use natbox_core::packet::Offload;

use super::{BATCH_LEN, Batch, ETHERTYPE_IPV4, Link, Mac, Outgoing, Port, PortError, PortStats, SuperFrames};

/// Frames that a queue holds at the most; more are dropped, as by a device.
const QUEUE_LEN: usize = 4096;

/// A frame on the wire of a [`MemoryPort`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// From the network header on.
    pub packet: Vec<u8>,
    /// What is owed to it.
    pub offload: Offload,
    /// Its EtherType.
    pub protocol: u16,
    /// The Ethernet address of the far end: who sent it to us, or whom we sent it to.
    pub peer: Mac,
}

impl Delivered {
    /// An IPv4 packet without offload metadata.
    pub fn ipv4(packet: &[u8], peer: Mac) -> Delivered {
        Delivered { packet: packet.to_vec(), offload: Offload::default(), protocol: ETHERTYPE_IPV4, peer }
    }
}

#[derive(Debug, Default)]
struct Queues {
    towards_port: VecDeque<Delivered>,
    from_port: VecDeque<Delivered>,
    down: bool,
    removed: bool,
}

/// The far end of a [`MemoryPort`].
#[derive(Clone, Debug, Default)]
pub struct MemoryWire(Arc<Mutex<Queues>>);

impl MemoryWire {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the port receive a frame.
    pub fn push(&self, frame: Delivered) {
        let mut queues = self.queues();
        if queues.towards_port.len() < QUEUE_LEN {
            queues.towards_port.push_back(frame);
        }
    }

    /// The next frame that the port has sent.
    pub fn take(&self) -> Option<Delivered> {
        self.queues().from_port.pop_front()
    }

    /// How many frames that the port has sent wait to be taken.
    pub fn len(&self) -> usize {
        self.queues().from_port.len()
    }

    /// True when the port has sent nothing that was not taken.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the device down, or brings it up again.
    pub fn set_down(&self, down: bool) {
        self.queues().down = down;
    }

    /// Removes the device.
    pub fn remove(&self) {
        self.queues().removed = true;
    }
}

/// A port without a kernel.
#[derive(Debug)]
pub struct MemoryPort {
    link: Link,
    wire: MemoryWire,
    pool: Option<Batch>,
    stats: PortStats,
}

/// A port and its far end.
///
/// # Errors
/// When the kernel gives no memory for frames.
pub fn memory_port(name: &str, link: Link) -> io::Result<(MemoryPort, MemoryWire)> {
    let wire = MemoryWire::default();
    let port =
        MemoryPort { link, wire: wire.clone(), pool: Some(Batch::new()?), stats: PortStats::new(name) };
    Ok((port, wire))
}

impl Port for MemoryPort {
    fn name(&self) -> &str {
        &self.stats.name
    }

    fn link(&self) -> Link {
        self.link
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn receive(&mut self, budget: usize) -> Result<Batch, PortError> {
        self.check()?;
        let Some(mut batch) = self.pool.take() else {
            return Batch::new().map_err(|source| PortError::io(self.name(), "get memory", source));
        };
        let mut queues = self.wire.queues();
        while batch.len() < budget.min(BATCH_LEN) && !queues.down {
            let Some(frame) = queues.towards_port.pop_front() else { break };
            if !batch.push(&frame.packet, frame.offload, frame.protocol) {
                self.stats.dropped_truncated += 1;
                continue;
            }
            if let Some(last) = batch.frames.last_mut() {
                last.source = frame.peer;
            }
            self.stats.received(frame.packet.len(), frame.offload.gso.is_some());
        }
        drop(queues);
        Ok(batch)
    }

    fn release(&mut self, mut batch: Batch) {
        batch.clear();
        self.pool = Some(batch);
    }

    fn send(&mut self, batch: &mut Batch, list: &[Outgoing]) {
        let mut queues = self.wire.queues();
        for outgoing in list {
            let (frame, packet) = (*batch.frame(outgoing.frame), batch.bytes(outgoing.frame));
            if queues.down || queues.removed {
                self.stats.dropped_down += 1;
            } else if queues.from_port.len() == QUEUE_LEN {
                self.stats.dropped_queue_full += 1;
            } else {
                self.stats.sent(packet.len(), frame.offload.gso.is_some());
                queues.from_port.push_back(Delivered {
                    packet: packet.to_vec(),
                    offload: frame.offload,
                    protocol: frame.protocol,
                    peer: outgoing.to,
                });
            }
        }
    }

    fn takes(&self) -> SuperFrames {
        SuperFrames::default()
    }

    fn check(&mut self) -> Result<(), PortError> {
        if self.wire.queues().removed {
            return Err(PortError::Gone { name: self.stats.name.clone() });
        }
        Ok(())
    }

    fn stats(&self) -> &PortStats {
        &self.stats
    }

    fn stats_mut(&mut self) -> &mut PortStats {
        &mut self.stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_cross_in_order_and_with_what_is_owed_to_them() {
        let (mut port, wire) = memory_port("twin", Link::Ethernet([2; 6])).unwrap();
        for i in 0..3u8 {
            wire.push(Delivered::ipv4(&[0x45, i], [i; 6]));
        }
        let mut batch = port.receive(2).unwrap();
        assert_eq!((batch.len(), batch.frame(1).source), (2, [1; 6]));
        port.send(&mut batch, &[Outgoing { frame: 1, to: [9; 6] }, Outgoing { frame: 0, to: [8; 6] }]);
        port.release(batch);
        assert_eq!(wire.take(), Some(Delivered::ipv4(&[0x45, 1], [9; 6])));
        assert_eq!(wire.take(), Some(Delivered::ipv4(&[0x45, 0], [8; 6])));
        assert_eq!(wire.take(), None);
        let batch = port.receive(BATCH_LEN).unwrap();
        assert_eq!(batch.len(), 1);
        port.release(batch);
        assert_eq!((port.stats().received_packets, port.stats().sent_packets), (3, 2));
    }

    #[test]
    fn a_device_that_is_down_drops_and_one_that_is_removed_says_so() {
        let (mut port, wire) = memory_port("twin", Link::Ip).unwrap();
        let mut frames = Batch::new().unwrap();
        frames.push(&[0x45], Offload::default(), ETHERTYPE_IPV4);
        wire.set_down(true);
        port.send(&mut frames, &[Outgoing { frame: 0, to: [0; 6] }]);
        assert_eq!((wire.take(), port.stats().dropped_down), (None, 1));
        wire.remove();
        assert!(matches!(port.receive(1), Err(PortError::Gone { name }) if name == "twin"));
    }
}
