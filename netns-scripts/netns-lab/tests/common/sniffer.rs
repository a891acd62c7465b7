//! An ear on a wire, by pnet: nothing of natbox's or of the probe's has a part in what it hears.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use netns_lab::{Host, LabError, Worker, wait_until};
use pnet::datalink::{self, Channel, Config};

/// An IPv4 packet on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) from: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
    pub(crate) ttl: u8,
    /// DSCP and ECN.
    pub(crate) tos: u8,
    /// Bytes of the packet: more than the link's MTU when segmentation is left to a device that doesn't exist.
    pub(crate) length: usize,
    pub(crate) what: What,
}

/// What a packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Udp { from: u16, to: u16, payload: Vec<u8> },
    Tcp { from: u16, to: u16, syn: bool, ack: bool, rst: bool },
    Icmp { kind: u8, code: u8 },
    Other(u8),
}

impl Heard {
    /// Source and destination of a UDP or TCP packet.
    pub(crate) fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        match self.what {
            What::Udp { from, to, .. } | What::Tcp { from, to, .. } => {
                Some(((self.from, from).into(), (self.to, to).into()))
            }
            What::Icmp { .. } | What::Other(_) => None,
        }
    }

    /// A TCP reset, or an ICMP destination unreachable: a "no" from somebody's stack.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self.what, What::Tcp { rst: true, .. } | What::Icmp { kind: 3, .. })
    }
}

/// Listens to one interface of a host, in both directions, until it is dropped.
pub(crate) struct Sniffer {
    heard: Arc<Mutex<Vec<Heard>>>,
    stop: Arc<AtomicBool>,
    worker: Option<Worker<()>>,
}

impl Sniffer {
    /// Returns when it listens.
    pub(crate) fn start(host: &Host, interface: &str) -> Result<Sniffer, LabError> {
        let heard = Arc::<Mutex<Vec<Heard>>>::default();
        let stop = Arc::<AtomicBool>::default();
        let (ready, started) = sync_channel(1);
        let (name, list, end) = (interface.to_owned(), heard.clone(), stop.clone());
        let worker = host.start(move || {
            let device = datalink::interfaces().into_iter().find(|device| device.name == name);
            let device = device.unwrap_or_else(|| panic!("no interface {name}"));
            let config = Config {
                // Super-frames cross a veth whole.
                read_buffer_size: 1 << 17,
                read_timeout: Some(Duration::from_millis(10)),
                ..Config::default()
            };
            let Ok(Channel::Ethernet(_, mut frames)) = datalink::channel(&device, config) else {
                panic!("can't listen on {name}");
            };
            ready.send(()).expect("the test waits for it");
            while !end.load(Ordering::Relaxed) {
                if let Ok(frame) = frames.next()
                    && let Some(packet) = parse(frame)
                {
                    list.lock().unwrap_or_else(PoisonError::into_inner).push(packet);
                }
            }
        })?;
        started.recv().expect("the sniffer starts");
        Ok(Sniffer { heard, stop, worker: Some(worker) })
    }

    /// Everything so far, in the order of the wire.
    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets everything so far.
    pub(crate) fn forget(&self) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Waits for a packet and says whether it came.
    pub(crate) fn hears(&self, within: Duration, which: impl Fn(&Heard) -> bool) -> bool {
        wait_until(within, || self.heard().iter().any(&which))
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            worker.join();
        }
    }
}

fn parse(frame: &[u8]) -> Option<Heard> {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let LaxNetSlice::Ipv4(ip) = packet.net? else { return None };
    let header = ip.header();
    let what = match packet.transport {
        Some(TransportSlice::Udp(udp)) => {
            What::Udp { from: udp.source_port(), to: udp.destination_port(), payload: udp.payload().to_vec() }
        }
        Some(TransportSlice::Tcp(tcp)) => What::Tcp {
            from: tcp.source_port(),
            to: tcp.destination_port(),
            syn: tcp.syn(),
            ack: tcp.ack(),
            rst: tcp.rst(),
        },
        Some(TransportSlice::Icmpv4(icmp)) => What::Icmp { kind: icmp.type_u8(), code: icmp.code_u8() },
        _ => What::Other(header.protocol().0),
    };
    Some(Heard {
        from: header.source_addr(),
        to: header.destination_addr(),
        ttl: header.ttl(),
        tos: header.slice()[1],
        length: usize::from(header.total_len()),
        what,
    })
}
