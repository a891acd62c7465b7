//! ARP for IPv4 over Ethernet (RFC 826), from behind the Ethernet header.

use std::net::Ipv4Addr;

use pnet::{
    packet::{
        arp::{ArpHardwareTypes, ArpOperations, ArpPacket, MutableArpPacket},
        ethernet::EtherTypes,
    },
    util::MacAddr,
};

use crate::datapath::Mac;

const LEN: usize = 28;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Request,
    Reply,
}

/// One ARP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arp {
    pub(super) operation: Operation,
    pub(super) sender_mac: Mac,
    pub(super) sender: Ipv4Addr,
    pub(super) target_mac: Mac,
    pub(super) target: Ipv4Addr,
}

impl Arp {
    /// Reads a message; `None` for anything but a request or reply of a single host.
    pub(super) fn parse(bytes: &[u8]) -> Option<Arp> {
        let packet = ArpPacket::new(bytes)?;
        let is_ours = packet.get_hardware_type() == ArpHardwareTypes::Ethernet
            && packet.get_protocol_type() == EtherTypes::Ipv4
            && packet.get_hw_addr_len() == 6
            && packet.get_proto_addr_len() == 4;
        let operation = match packet.get_operation() {
            ArpOperations::Request => Operation::Request,
            ArpOperations::Reply => Operation::Reply,
            _ => return None,
        };
        let sender_mac = packet.get_sender_hw_addr();
        if !is_ours || sender_mac.is_multicast() || sender_mac == MacAddr::zero() {
            return None;
        }
        Some(Arp {
            operation,
            sender_mac: sender_mac.octets(),
            sender: packet.get_sender_proto_addr(),
            target_mac: packet.get_target_hw_addr().octets(),
            target: packet.get_target_proto_addr(),
        })
    }

    pub(super) fn to_bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        // The buffer is as long as the packet, so there is always one.
        if let Some(mut packet) = MutableArpPacket::new(&mut bytes) {
            packet.set_hardware_type(ArpHardwareTypes::Ethernet);
            packet.set_protocol_type(EtherTypes::Ipv4);
            packet.set_hw_addr_len(6);
            packet.set_proto_addr_len(4);
            packet.set_operation(match self.operation {
                Operation::Request => ArpOperations::Request,
                Operation::Reply => ArpOperations::Reply,
            });
            packet.set_sender_hw_addr(self.sender_mac.into());
            packet.set_sender_proto_addr(self.sender);
            packet.set_target_hw_addr(self.target_mac.into());
            packet.set_target_proto_addr(self.target);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_refuses_the_rest() {
        let arp = Arp {
            operation: Operation::Request,
            sender_mac: [2, 0, 0, 0, 0, 1],
            sender: Ipv4Addr::new(192, 0, 2, 1),
            target_mac: [0; 6],
            target: Ipv4Addr::new(192, 0, 2, 2),
        };
        let bytes = arp.to_bytes();
        assert_eq!(bytes[..8], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(Arp::parse(&bytes), Some(arp));
        let reply = Arp { operation: Operation::Reply, ..arp };
        assert_eq!(Arp::parse(&reply.to_bytes()), Some(reply));
        for len in 0..LEN {
            assert_eq!(Arp::parse(&bytes[..len]), None);
        }
        for (at, value) in [(1, 6), (3, 1), (4, 8), (5, 16), (7, 3), (8, 1)] {
            let mut bad = bytes;
            bad[at] = value;
            assert_eq!(Arp::parse(&bad), None, "byte {at}");
        }
    }
}
