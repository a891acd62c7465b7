//! Ports by themselves.

use std::{fs::File, net::UdpSocket};

use natbox::{
    datapath::{Batch, ETHERTYPE_IPV4, Outgoing, PacketOptions, PacketPort, Port, PortError, TunPort},
    host::{self, InsideDevice},
};
use natbox_core::packet::{Checksum, GsoKind, Offload};
use nix::sys::socket::{setsockopt, sockopt};

use crate::{
    ROUTER, With,
    host_space::{Net, PATIENCE, Space, eventually, with_inside},
};

/// EtherType of a VLAN tag.
const VLAN: u16 = 0x8100;

/// A port on `eth0` of a namespace.
fn open(space: &Space, options: PacketOptions) -> PacketPort {
    space.run(|| {
        let interface = host::interface("eth0").unwrap();
        PacketPort::open(&interface.name, interface.index, interface.mac, options).unwrap()
    })
}

/// Received frames that `wanted` chooses, as soon as there is one.
fn receive(port: &mut impl Port, wanted: impl Fn(&[u8]) -> bool) -> (Vec<u8>, Offload) {
    eventually("a frame", || {
        let batch = port.receive(64).unwrap();
        let found = (0..batch.len()).find(|i| wanted(batch.bytes(*i)));
        let found = found.map(|i| (batch.bytes(i).to_vec(), batch.frame(i).offload));
        port.release(batch);
        found
    })
}

fn is_udp_to(port: u16) -> impl Fn(&[u8]) -> bool {
    move |packet| packet[9] == 17 && packet[22..24] == port.to_be_bytes()
}

pub(crate) fn receives_what_is_owed(ring: bool) {
    let net = Net::new();
    let mut port = open(&net.host, PacketOptions { ring, ..PacketOptions::default() });
    assert_eq!(port.mode(), if ring { "receive ring, offload" } else { "offload" });
    let socket = net.router.run(|| UdpSocket::bind((ROUTER, 53)).unwrap());
    socket.send_to(&[1; 100], "192.0.2.10:9").unwrap();
    let (packet, offload) = receive(&mut port, is_udp_to(9));
    assert_eq!(packet.len(), 128);
    assert_eq!(offload, Offload { checksum: Checksum::Partial { start: 20, offset: 6 }, gso: None });

    setsockopt(&socket, sockopt::UdpGsoSegment, &1000).unwrap();
    socket.send_to(&[2; 10_500], "192.0.2.10:10").unwrap();
    let (packet, offload) = receive(&mut port, is_udp_to(10));
    let gso = offload.gso.unwrap();
    assert_eq!((packet.len(), gso.kind, gso.segment), (10_528, GsoKind::Udp, 1000));
    assert_eq!(port.stats().received_super_frames, 1);

    // Back to the router as it is, with nothing but addresses and ports exchanged: the sums stay right.
    let mut batch = Batch::new().unwrap();
    batch.push(&packet, offload, ETHERTYPE_IPV4);
    let bytes = batch.bytes_mut(0);
    bytes[12..20].rotate_left(4);
    bytes[20..24].rotate_left(2);
    port.send(&mut batch, &[Outgoing { frame: 0, to: mac(&net.router) }]);
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 2000];
    for expected in [1000; 10].into_iter().chain([500]) {
        assert_eq!(socket.recv_from(&mut buffer).unwrap(), (expected, "192.0.2.10:10".parse().unwrap()));
        assert!(buffer[..expected].iter().all(|byte| *byte == 2));
    }
    assert_eq!((port.stats().sent_super_frames, port.stats().segmented), (1, 0));
}

fn mac(space: &Space) -> [u8; 6] {
    space.run(|| host::interface("eth0").unwrap().mac)
}

pub(crate) fn receives_without_offload() {
    let net = Net::new();
    let options = PacketOptions { offload: false, ..PacketOptions::default() };
    let mut port = open(&net.host, options);
    assert_eq!(port.mode(), "no offload");
    let socket = net.router.run(|| UdpSocket::bind((ROUTER, 53)).unwrap());
    socket.send_to(&[1; 100], "192.0.2.10:9").unwrap();
    let (packet, offload) = receive(&mut port, is_udp_to(9));
    assert_eq!(offload.checksum, Checksum::Partial { start: 20, offset: 6 });
    // Sent back, the checksum is finished here.
    let mut batch = Batch::new().unwrap();
    batch.push(&packet, offload, ETHERTYPE_IPV4);
    batch.bytes_mut(0)[12..20].rotate_left(4);
    batch.bytes_mut(0)[20..24].rotate_left(2);
    port.send(&mut batch, &[Outgoing { frame: 0, to: mac(&net.router) }]);
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(socket.recv_from(&mut [0; 200]).unwrap().0, 100);
    assert_eq!((port.stats().sent_packets, port.stats().dropped_offload), (1, 0));
    // The boundaries of a super-frame are not to be had: it is dropped and counted.
    setsockopt(&socket, sockopt::UdpGsoSegment, &1000).unwrap();
    socket.send_to(&[2; 5000], "192.0.2.10:10").unwrap();
    eventually("a drop", || {
        let batch = port.receive(64).unwrap();
        port.release(batch);
        (port.stats().dropped_offload == 1).then_some(())
    });
}

pub(crate) fn only_ours() {
    for options in [PacketOptions::default(), PacketOptions { offload: false, ..PacketOptions::default() }] {
        let net = Net::new();
        let mut port = open(&net.host, options);
        // Our own transmissions, broadcasts and VLANs are somebody else's.
        net.host.output("ping -c 1 -W 0.1 192.0.2.1");
        let mut tagged = vec![0, 7, 8, 0];
        etherparse::PacketBuilder::ipv4([192, 0, 2, 1], [192, 0, 2, 10], 64)
            .udp(2, 77)
            .write(&mut tagged, b"tagged")
            .unwrap();
        let mut batch = Batch::new().unwrap();
        batch.push(&tagged, Offload::default(), VLAN);
        let mut router = open(&net.router, PacketOptions { offload: false, ..options });
        router.send(&mut batch, &[Outgoing { frame: 0, to: mac(&net.host) }]);
        assert_eq!(router.stats().sent_packets, 1);
        let socket = net.router.run(|| UdpSocket::bind((ROUTER, 2)).unwrap());
        socket.set_broadcast(true).unwrap();
        socket.send_to(b"everybody", "192.0.2.127:77").unwrap();
        socket.send_to(b"everybody", "255.255.255.255:77").unwrap();
        socket.send_to(b"the last one", "192.0.2.10:78").unwrap();
        receive(&mut port, |packet| {
            assert!(packet[12..16] != [192, 0, 2, 10], "our own transmission: {packet:?}");
            assert!(!is_udp_to(77)(packet), "{packet:?}");
            is_udp_to(78)(packet)
        });
    }
}

pub(crate) fn interface_comes_and_goes() {
    for options in [PacketOptions::default(), PacketOptions { offload: false, ..PacketOptions::default() }] {
        let net = Net::new();
        let mut port = open(&net.host, options);
        let mut batch = Batch::new().unwrap();
        batch.push(&[0x45; 60], Offload::default(), ETHERTYPE_IPV4);
        let there = [Outgoing { frame: 0, to: mac(&net.router) }];
        net.host.ip("link set eth0 down");
        port.check().unwrap();
        port.send(&mut batch, &there);
        assert_eq!(port.stats().dropped_down, 1);
        let empty = port.receive(64).unwrap();
        assert!(empty.is_empty());
        port.release(empty);

        net.host.ip("link set eth0 up");
        eventually("a carrier", || {
            net.router.output("ping -c 1 -W 0.1 192.0.2.10").status.success().then_some(())
        });
        receive(&mut port, |packet| packet[9] == 1);
        let sent = port.stats().sent_packets;
        port.send(&mut batch, &there);
        assert_eq!(port.stats().sent_packets, sent + 1);

        net.host.ip("link del eth0");
        assert!(matches!(port.check(), Err(PortError::Gone { name }) if name == "eth0"));
        assert_eq!(port.check().unwrap_err().to_string(), "the interface eth0 no longer exists");
        port.send(&mut batch, &there);
        port.receive(64).unwrap();
    }
}

pub(crate) fn tun_comes_and_goes() {
    let net = Net::new();
    let elsewhere = Space::new();
    let mut wiring = net.apply(&with_inside(&["tun0"]));
    let InsideDevice::Tun { name, mut queues, offload, .. } = wiring.inside.remove(0) else { panic!() };
    let mut port = TunPort::new(&name, queues.remove(0), offload).unwrap();
    let mut batch = Batch::new().unwrap();
    batch.push(&[0x45; 60], Offload::default(), ETHERTYPE_IPV4);
    let there = [Outgoing { frame: 0, to: [0; 6] }];
    port.send(&mut batch, &there);
    assert_eq!((port.stats().sent_packets, port.stats().sent_bytes), (1, 60));

    net.host.ip("link set tun0 down");
    port.send(&mut batch, &there);
    assert_eq!((port.stats().sent_packets, port.stats().dropped_down), (1, 1));
    port.check().unwrap();
    let empty = port.receive(64).unwrap();
    port.release(empty);

    net.host.ip(&format!("link set tun0 netns {}", elsewhere.path()));
    for command in ["addr add 10.99.0.2/24 dev tun0", "link set tun0 up", "route add default dev tun0"] {
        elsewhere.ip(command);
    }
    let socket = elsewhere.run(|| UdpSocket::bind("10.99.0.2:4242").unwrap());
    socket.send_to(b"from elsewhere", "203.0.113.9:53").unwrap();
    let (packet, offload) = receive(&mut port, is_udp_to(53));
    assert_eq!(&packet[12..20], [10, 99, 0, 2, 203, 0, 113, 9]);
    assert_eq!(offload.checksum, Checksum::Partial { start: 20, offset: 6 });
    port.send(&mut batch, &there);
    assert_eq!(port.stats().sent_packets, 2);

    elsewhere.ip("link del tun0");
    assert!(matches!(port.receive(64), Err(PortError::Gone { name }) if name == "tun0"));
    assert!(matches!(port.check(), Err(PortError::Gone { .. })));
    port.send(&mut batch, &there);
    assert_eq!(port.stats().dropped_down, 2);
}

pub(crate) fn wrong_devices() {
    let net = Net::new();
    let wiring = net.apply(&with_inside(&["tun0"]));
    net.host.run(|| {
        let error = PacketPort::open("tun0", 1, [0; 6], PacketOptions::default()).unwrap_err();
        assert!(error.to_string().starts_with("tun0 is not an Ethernet interface"), "{error}");
        let error = PacketPort::open("none0", 1, [0; 6], PacketOptions::default()).unwrap_err();
        assert_eq!(error.to_string(), "the interface none0 no longer exists");
    });
    drop(wiring);
    let null = File::open("/dev/null").unwrap().into();
    let error = TunPort::new("tun0", null, true).unwrap_err().to_string();
    assert!(error.starts_with("tun0: cannot ask for its flags"), "{error}");
}

/// UDP packets to ports 1000 to 1099, as often as they have come by any of `ports`; and which of them by each.
fn arrived(ports: &mut [impl Port]) -> (Vec<u16>, Vec<Vec<u16>>) {
    let mut by_port: Vec<Vec<u16>> = ports.iter().map(|_| Vec::new()).collect();
    eventually("a hundred packets", || {
        for (port, arrived) in ports.iter_mut().zip(&mut by_port) {
            let batch = port.receive(64).unwrap();
            for packet in (0..batch.len()).map(|i| batch.bytes(i)).filter(|packet| packet[9] == 17) {
                let to = u16::from_be_bytes([packet[22], packet[23]]);
                arrived.extend((1000..1100).contains(&to).then_some(to));
            }
            port.release(batch);
        }
        (by_port.iter().map(Vec::len).sum::<usize>() >= 100).then_some(())
    });
    let mut all = by_port.concat();
    all.sort_unstable();
    (all, by_port)
}

pub(crate) fn shared_between_two() {
    let net = Net::new();
    for options in [PacketOptions::default(), PacketOptions { offload: false, ..PacketOptions::default() }] {
        let mut ports = net.host.run(|| {
            let host::Interface { index, name, mac, .. } = host::interface("eth0").unwrap();
            PacketPort::open_several(&name, index, mac, options, 2).unwrap()
        });
        let socket = net.router.run(|| UdpSocket::bind((ROUTER, 0)).unwrap());
        for _ in 0..2 {
            for port in 1000..1100 {
                socket.send_to(b"x", ("192.0.2.10", port)).unwrap();
            }
            let (all, by_port) = arrived(&mut ports);
            assert_eq!(all, (1000..1100).collect::<Vec<_>>(), "each once");
            assert!(by_port.iter().all(|arrived| arrived.len() > 10), "{by_port:?}");
        }
        // What leaves by the interface does not come back by either.
        let here = net.host.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        here.send_to(b"out", (ROUTER, 1000)).unwrap();
        socket.send_to(b"last", "192.0.2.10:1099").unwrap();
        let came = eventually("the last packet", || {
            let mut came = Vec::new();
            for port in &mut ports {
                let batch = port.receive(64).unwrap();
                came.extend((0..batch.len()).map(|i| batch.bytes(i)[16..20].to_vec()));
                port.release(batch);
            }
            (!came.is_empty()).then_some(came)
        });
        assert!(came.iter().all(|to| to[..] != ROUTER.octets()), "{came:?}");
    }
}

pub(crate) fn queues_of_a_tun() {
    let net = Net::new();
    let mut wiring = net.apply(&with_inside(&["tun0"]).with(2));
    let link = net.host.ip("-d link show tun0");
    assert!(link.contains("vnet_hdr on multi_queue numqueues 2"), "{link}");
    let InsideDevice::Tun { name, queues, offload, host, gateway, .. } = wiring.inside.remove(0) else {
        panic!()
    };
    let mut ports: Vec<_> = queues.into_iter().map(|fd| TunPort::new(&name, fd, offload).unwrap()).collect();
    assert_eq!(ports.len(), 2);
    let socket = net.host.run(|| UdpSocket::bind((host, 0)).unwrap());
    let send = || (1000..1100).for_each(|port| assert_eq!(socket.send_to(b"x", (gateway, port)).unwrap(), 1));
    send();
    let (all, by_port) = arrived(&mut ports);
    assert_eq!(all, (1000..1100).collect::<Vec<_>>(), "each once");
    assert!(by_port.iter().all(|arrived| arrived.len() > 10), "{by_port:?}");

    // A flow stays with the queue that its answers come by.
    let from = socket.local_addr().unwrap().port();
    for port in 1000..1100_u16 {
        let mut packet = Vec::new();
        etherparse::PacketBuilder::ipv4(gateway.octets(), host.octets(), 64)
            .udp(port, from)
            .write(&mut packet, b"y")
            .unwrap();
        let mut batch = Batch::new().unwrap();
        batch.push(&packet, Offload::default(), ETHERTYPE_IPV4);
        ports[usize::from(port % 2)].send(&mut batch, &[Outgoing { frame: 0, to: [0; 6] }]);
    }
    send();
    let (_, by_port) = arrived(&mut ports);
    for (queue, arrived) in by_port.iter().enumerate() {
        assert!(arrived.iter().all(|port| usize::from(port % 2) == queue), "{by_port:?}");
    }
}
