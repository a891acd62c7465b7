//! What the tests share: times, hosts, and a node that punches holes the way ICE does.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of this")]

use std::{net::SocketAddr, time::Duration};

use natbox_sim::{Behavior, Conditions, HostId, Input, NatConfig, NatId, Net, NetworkId, Time};

pub mod punch;

pub const INTERNET: NetworkId = NetworkId::INTERNET;

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub fn at(millis: u64) -> Time {
    Time::ZERO + ms(millis)
}

pub fn delay(millis: u64) -> Conditions {
    Conditions::delayed(ms(millis))
}

/// A behaviour from what `natbox --flags` would say, such as `mapping=apdm filtering=eif`.
pub fn behavior(axes: &str) -> Behavior {
    let mut behavior = Behavior::RFC;
    for axis in axes.split_whitespace() {
        let (name, value) = axis.split_once('=').unwrap();
        behavior.set(name, value).unwrap();
    }
    behavior
}

/// A host behind a NAT of its own.
pub fn behind(net: &mut Net, at: impl Into<NetworkId>, axes: &str) -> (NatId, HostId) {
    let nat = net.add_nat(at, NatConfig::new(behavior(axes))).unwrap();
    (nat, net.add_host(nat, Conditions::PERFECT).unwrap())
}

/// The socket of a host with this port, as the host itself knows it.
pub fn socket(net: &Net, host: HostId, port: u16) -> SocketAddr {
    (net.address(host).unwrap(), port).into()
}

/// A datagram that reached a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Got {
    pub time: Time,
    pub host: HostId,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub payload: Vec<u8>,
}

/// Everything that reaches hosts until `until`, each at its own time; other packets than datagrams are left out.
pub fn deliveries(net: &mut Net, until: Time) -> Vec<Got> {
    let mut got = Vec::new();
    while let Some(time) = net.poll_timeout().filter(|time| *time <= until) {
        while let Some((host, input)) = net.poll_deliver(time) {
            if let Input::Datagram(d) = input {
                got.push(Got { time, host, from: d.from, to: d.to, payload: d.payload.to_vec() });
            }
        }
    }
    net.handle_timeout(until);
    got
}

/// Sends one datagram and returns the source that `to` saw, if it got there within a second.
pub fn probe(
    net: &mut Net,
    from: (HostId, u16),
    to: (HostId, SocketAddr),
    payload: &[u8],
) -> Option<SocketAddr> {
    let now = net.now();
    let datagram = natbox_sim::Datagram::new(socket(net, from.0, from.1), to.1, payload);
    net.send(from.0, datagram, now).unwrap();
    let got = deliveries(net, now + ms(1000));
    got.into_iter().find(|got| got.host == to.0 && got.payload == payload).map(|got| got.from)
}
