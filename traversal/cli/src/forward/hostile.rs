//! A hostile peer of `traverse forward` and `traverse expose`: whatever it says first on a stream, in the packets of a flow, and
//! in a datagram.

use std::{cell::Cell, future::Future, net::IpAddr, pin::pin, task};

use super::{
    address::Target,
    allow::{Allowed, Leads},
    flow::read_packets,
    wire::{self, Host, MAX_PACKET, Reply, Request, To, Transport},
};

/// Any bytes as what the peer says.
///
/// # Panics
/// What is read is not what is written again; a request leads where the list does not; or more packets come out than went in.
pub fn by_a_forwarder(bytes: &[u8]) {
    if let Some(Ok(request)) = now(wire::read::<Request>(&mut { bytes })) {
        let again = wire::encode(&request).expect("what was read can be said");
        assert_eq!(wire::decode::<Request>(&again[3..]), Ok(request.clone()));
        only_what_is_listed(&request);
    }
    if let Some(Ok(reply)) = now(wire::read::<Reply>(&mut { bytes })) {
        let again = wire::encode(&reply).expect("what was read can be said");
        assert_eq!(wire::decode::<Reply>(&again[3..]), Ok(reply));
    }
    if let Some((stream, packet)) = wire::read_datagram(bytes) {
        assert!(stream < 1 << 62 && bytes.ends_with(packet));
        let again = wire::datagram(stream, packet);
        assert_eq!(wire::read_datagram(&again), Some((stream, packet)));
    }
    let delivered = Cell::new(0);
    let ended = now(read_packets(&mut { bytes }, |packet| {
        assert!(packet.len() <= MAX_PACKET);
        delivered.set(delivered.get() + 2 + packet.len());
    }));
    assert!(ended.is_some() && delivered.get() <= bytes.len());
}

/// What comes of something that waits for nothing but its input.
fn now<T>(work: impl Future<Output = T>) -> Option<T> {
    match pin!(work).poll(&mut task::Context::from_waker(task::Waker::noop())) {
        task::Poll::Ready(done) => Some(done),
        task::Poll::Pending => None,
    }
}

/// Where a request leads, and where the list of this function does, as somebody would read it.
fn only_what_is_listed(request: &Request) {
    let entries = |all: &[&str]| all.iter().map(|text| text.parse().expect("an entry")).collect();
    let targets = entries(&["127.0.0.1:80", "10.1.0.0/16:8000-8100", "nas.lan:22", "udp:[2001:db8::/32]:53"]);
    let allowed = Allowed { targets, listeners: entries(&["8080"]) };
    match request {
        Request::Open { transport, to: To::Target(target) } | Request::Check { transport, target } => {
            match allowed.leads(*transport, target) {
                Some(Leads::To(addresses)) => {
                    assert!(addresses.iter().all(|address| is_listed(*transport, *address, target.port)));
                }
                Some(Leads::Name(name)) => {
                    let tcp = Transport::Tcp;
                    assert!((name.as_str(), target.port, *transport) == ("nas.lan", 22, tcp), "{target}");
                }
                None => assert!(!is_plainly_listed(*transport, target), "{target}"),
            }
        }
        Request::Open { to: To::Listener(_), .. } => {}
        Request::Listen { transport, at, .. } => {
            if allowed.may_listen(*transport, *at) {
                let is_loopback = at.ip().to_canonical() == IpAddr::from([127, 0, 0, 1]);
                assert!(is_loopback && at.port() == 8080 && *transport == Transport::Tcp, "{at}");
            }
        }
    }
}

fn is_listed(transport: Transport, address: IpAddr, port: u16) -> bool {
    match (transport, address) {
        (Transport::Tcp, IpAddr::V4(address)) => match address.octets() {
            [127, 0, 0, 1] => port == 80,
            [10, 1, ..] => (8000..=8100).contains(&port),
            _ => false,
        },
        (Transport::Udp, IpAddr::V6(address)) => address.segments()[..2] == [0x2001, 0xdb8] && port == 53,
        _ => false,
    }
}

fn is_plainly_listed(transport: Transport, target: &Target) -> bool {
    matches!(target.host, Host::Address(address) if is_listed(transport, address, target.port))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn nobody_reaches_what_is_not_listed(bytes in vec(any::<u8>(), 0..600)) {
            by_a_forwarder(&bytes);
            // With a header that is right more of it is understood.
            let body = &bytes[..bytes.len().min(512)];
            let header = [&[wire::VERSION][..], &(body.len() as u16).to_be_bytes()].concat();
            by_a_forwarder(&[&header, body].concat());
        }
    }
}
