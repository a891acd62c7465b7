//! A reflector with two addresses and two ports, and a relay for whoever has sent something.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use natbox_sim::{Datagram, Transmit};
use traversal_proto::wire::stun::{Reflection, ReflectorReply, ReflectorRequest};

use super::{HUB_PORTS, call::REGISTER};

/// First byte of a packet for the relay: then the sender, the receiver, and what the receiver gets.
pub const RELAY: u8 = 0x80;

pub struct Hub {
    addresses: Vec<Ipv4Addr>,
    /// Where each peer is, and the hub's own address that it sends to.
    peers: BTreeMap<u8, (SocketAddr, SocketAddr)>,
    pub out: VecDeque<Transmit>,
    /// Datagrams relayed.
    pub relayed: u64,
}

impl Hub {
    pub fn new(addresses: Vec<Ipv4Addr>) -> Hub {
        Hub { addresses, peers: BTreeMap::new(), out: VecDeque::new(), relayed: 0 }
    }

    pub fn handle(&mut self, datagram: Datagram<'_>) {
        match datagram.payload {
            [RELAY, from, to, rest @ ..] => {
                self.peers.insert(*from, (datagram.from, datagram.to));
                let is_answered = from != to || rest == [REGISTER];
                if let Some((address, home)) = self.peers.get(to).copied().filter(|_| is_answered) {
                    self.send(home, address, datagram.payload.to_vec());
                    self.relayed += u64::from(from != to);
                }
            }
            bytes => self.reflect(bytes, datagram.from, datagram.to),
        }
    }

    fn reflect(&mut self, bytes: &[u8], from: SocketAddr, at: SocketAddr) {
        let Ok(request) = ReflectorRequest::decode(bytes) else { return };
        let other = |ip: IpAddr, port: u16| {
            let ip = self.addresses.iter().copied().map(IpAddr::V4).find(|other| *other != ip).unwrap();
            (ip, HUB_PORTS[usize::from(port == HUB_PORTS[0])])
        };
        let (other_ip, other_port) = other(at.ip(), at.port());
        let change = request.change.unwrap_or_default();
        let ip = if change.address { other_ip } else { at.ip() };
        let port = if change.port { other_port } else { at.port() };
        let reflection = Reflection {
            id: request.id,
            mapped: from,
            origin: None,
            other: Some((other_ip, other_port).into()),
            padding: 0,
            fingerprint: true,
        };
        let to = SocketAddr::new(from.ip(), request.response_port.unwrap_or(from.port()));
        self.send((ip, port).into(), to, ReflectorReply::Success(reflection).encode());
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, payload: Vec<u8>) {
        self.out.push_back(Transmit::Datagram { from, to, ttl: 64, payload });
    }
}
