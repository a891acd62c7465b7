//! The datapath on a real kernel: ports by themselves, and the gateway between namespaces of a test's own.

#![allow(clippy::unwrap_used)] // a test fails by a panic

mod host_space;

use std::{
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    process::ExitCode,
    sync::Arc,
    thread::{self, JoinHandle},
};

use host_space::{Net, PATIENCE, Space, cable, eventually, trial, with_inside};
use libtest_mimic::Arguments;
use natbox::{
    control::{Ask, Handle, Reply, Show, channel},
    datapath::{Batch, ETHERTYPE_IPV4, Outgoing, PacketOptions, PacketPort, Port, PortError, TunPort},
    guard::Guard,
    host::{self, InsideDevice},
    run::{Gateway, RunError},
    settings::Settings,
};
use natbox_core::packet::{Checksum, GsoKind, Offload};
use nix::{
    sched::{CloneFlags, setns},
    sys::{
        eventfd::EventFd,
        socket::{setsockopt, sockopt},
    },
};

/// Enough for many super-frames, and for a window to open.
const BULK: usize = 8 << 20;

/// EtherType of a VLAN tag.
const VLAN: u16 = 0x8100;

const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

fn main() -> ExitCode {
    let tests: [(&str, fn()); 24] = [
        ("a ring receives what the kernel owes", || receives_what_is_owed(true)),
        ("a plain socket receives what the kernel owes", || receives_what_is_owed(false)),
        ("without offload nothing is owed that is not known", receives_without_offload),
        ("only what is ours is received", only_ours),
        ("an interface that is down is waited for, one that is gone is told", interface_comes_and_goes),
        ("a TUN may be taken down, moved and removed", tun_comes_and_goes),
        ("what is not a TUN or not Ethernet is refused", wrong_devices),
        ("two ports on one interface share its frames, each once", shared_between_two),
        ("two queues of a TUN share its flows", queues_of_a_tun),
        ("bulk TCP crosses in super-frames", || bulk(true, 1)),
        ("bulk TCP crosses without offload", || bulk(false, 1)),
        ("bulk TCP crosses two workers", || bulk(true, 2)),
        ("bulk TCP in single segments is joined", bulk_of_single_segments),
        ("UDP super-frames are cut where they were joined", || udp_super_frames(true)),
        ("UDP super-frames are cut here without offload", || udp_super_frames(false)),
        ("the gateway outlives an outside that goes down", outside_comes_and_goes),
        ("the gateway ends when its outside is removed", || outside_is_removed(1)),
        ("three workers end when their outside is removed", || outside_is_removed(3)),
        ("an address of natbox's own answers ARP and ping", || owned_address(1)),
        ("an address of natbox's own answers at any worker", || owned_address(3)),
        ("a LAN is served", || lan(1)),
        ("a LAN is served by two workers", || lan(2)),
        ("many inside devices, one of which is removed", || many_inside(1)),
        ("many inside devices of two workers", || many_inside(2)),
    ];
    let tests = tests.into_iter().map(|(name, test)| trial(name, test)).collect();
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

// ---- Ports ----

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

fn receives_what_is_owed(ring: bool) {
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

fn receives_without_offload() {
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

fn only_ours() {
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

fn interface_comes_and_goes() {
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

fn tun_comes_and_goes() {
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

fn wrong_devices() {
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

fn shared_between_two() {
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

fn queues_of_a_tun() {
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

// ---- The gateway ----

trait With {
    /// The same with so many workers.
    fn with(self, workers: usize) -> Settings;
}

impl With for Settings {
    fn with(self, workers: usize) -> Settings {
        Settings { workers: workers.to_string().parse().unwrap(), ..self }
    }
}

/// A gateway at work in the host of a [`Net`].
struct Running {
    handle: Handle,
    stop: Arc<EventFd>,
    thread: JoinHandle<Result<(), RunError>>,
}

impl Running {
    fn start(net: &Net, settings: &Settings) -> Running {
        let (handle, inbox) = channel().unwrap();
        let stop = Arc::new(EventFd::new().unwrap());
        let stop_fd = stop.as_fd().try_clone_to_owned().unwrap();
        let gateway = net.host.run(|| {
            let wiring = host::Plan::new(settings).unwrap().apply().unwrap();
            let guard = Guard::attach(&wiring, settings.guard).unwrap();
            Gateway::new(wiring, settings, guard, inbox, None, stop_fd).unwrap()
        });
        let space = File::open(net.host.path()).unwrap();
        let thread = thread::spawn(move || {
            setns(space, CloneFlags::CLONE_NEWNET).unwrap();
            gateway.run()
        });
        Running { handle, stop, thread }
    }

    fn counter(&self, port: &str, name: &str) -> u64 {
        let Ok(Reply::Shown(shown)) = self.handle.ask(Ask::Show(Show { ports: true, ..Show::default() }))
        else {
            panic!("no answer")
        };
        let port = shown.ports.iter().find(|stats| stats.name == port).unwrap();
        port.counters.iter().find(|(known, _)| *known == name).unwrap().1
    }

    fn stop(self) {
        self.stop.write(1).unwrap();
        self.thread.join().unwrap().unwrap();
    }
}

/// A host behind `tun0`, and settings for it.
fn behind(names: &[&str], spaces: &[Space]) -> Settings {
    let specs: Vec<_> =
        names.iter().zip(spaces).map(|(name, space)| format!("{name}@{}", space.path())).collect();
    with_inside(&specs.iter().map(String::as_str).collect::<Vec<_>>())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// Bytes that arrive at the far end when these are sent, both ways at once.
fn exchange(client: &Space, server: &Space, to: (Ipv4Addr, u16), bytes: &[u8]) -> [Vec<u8>; 2] {
    let listener = server.run(|| TcpListener::bind(to).unwrap());
    let stream = client.run(|| TcpStream::connect(to).unwrap());
    let accepted = listener.accept().unwrap().0;
    let all = |mut stream: TcpStream| {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        thread::scope(|scope| {
            let mut writer = stream.try_clone().unwrap();
            scope.spawn(move || {
                writer.write_all(bytes).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            received
        })
    };
    thread::scope(|scope| {
        let far = scope.spawn(|| all(accepted));
        [all(stream), far.join().unwrap()]
    })
}

fn bulk(offload: bool, workers: usize) {
    let (net, inside) = (Net::new(), [Space::new()]);
    let settings = Settings { offload, ..behind(&["tun0"], &inside) }.with(workers);
    let running = Running::start(&net, &settings);
    let bytes = pattern(BULK);
    let received = exchange(&inside[0], &net.router, (ROUTER, 80), &bytes);
    assert!(received.iter().all(|received| *received == bytes), "bytes were changed on the way");
    for (port, direction) in [
        ("tun0", "received_super_frames"),
        ("eth0", "received_super_frames"),
        ("tun0", "sent_super_frames"),
        ("eth0", "sent_super_frames"),
    ] {
        // Without offload the far end still sends them, as its side of the cable has it.
        let some = offload || (port, direction) == ("eth0", "received_super_frames");
        assert_eq!(running.counter(port, direction) > 0, some, "{port} {direction}");
    }
    assert_eq!(running.counter("tun0", "segmented") > 0, !offload);
    assert_eq!(running.counter("eth0", "segmented"), 0);
    for port in ["tun0", "eth0"] {
        for drop in ["dropped_offload", "dropped_truncated", "dropped_refused", "dropped_too_big"] {
            assert_eq!(running.counter(port, drop), 0, "{port} {drop}");
        }
    }
    running.stop();
}

fn bulk_of_single_segments() {
    let (net, inside) = (Net::new(), [Space::new()]);
    let running = Running::start(&net, &behind(&["tun0"], &inside));
    inside[0].ip("link set dev tun0 gso_max_segs 1");
    net.router.ip("link set dev eth0 gso_max_segs 1");
    let bytes = pattern(BULK);
    let received = exchange(&inside[0], &net.router, (ROUTER, 80), &bytes);
    assert!(received.iter().all(|received| *received == bytes), "bytes were changed on the way");
    for port in ["tun0", "eth0"] {
        assert_eq!(running.counter(port, "received_super_frames"), 0, "{port}");
        assert!(
            running.counter(port, "coalesced") > 0 && running.counter(port, "sent_super_frames") > 0,
            "{port}"
        );
    }
    running.stop();
}

fn udp_super_frames(offload: bool) {
    let (net, inside) = (Net::new(), [Space::new()]);
    let running = Running::start(&net, &Settings { offload, ..behind(&["tun0"], &inside) });
    let server = net.router.run(|| UdpSocket::bind((ROUTER, 53)).unwrap());
    let client = inside[0].run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    setsockopt(&client, sockopt::UdpGsoSegment, &700).unwrap();
    let bytes = pattern(700 * 20 + 33);
    client.send_to(&bytes, (ROUTER, 53)).unwrap();
    let mut buffer = [0; 2000];
    let mut mapped = None;
    for i in 0..bytes.chunks(700).len() {
        let (len, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(bytes.chunks(700).position(|piece| piece == &buffer[..len]), Some(i), "{len} bytes");
        mapped = Some(from);
    }
    if offload {
        assert_eq!(running.counter("tun0", "received_super_frames"), 1);
        assert_eq!(running.counter("eth0", "sent_super_frames"), 1);
        setsockopt(&server, sockopt::UdpGsoSegment, &700).unwrap();
    }
    // The way back: as one super-frame, or datagram for datagram where its boundaries would be lost.
    for part in bytes.chunks(if offload { bytes.len() } else { 700 }) {
        server.send_to(part, mapped.unwrap()).unwrap();
    }
    for i in 0..bytes.chunks(700).len() {
        let len = client.recv(&mut buffer).unwrap();
        assert_eq!(bytes.chunks(700).position(|piece| piece == &buffer[..len]), Some(i), "{len} bytes");
    }
    running.stop();
}

/// Whether a datagram goes from `client` to `server` and an answer comes back.
fn answers(client: &UdpSocket, server: &UdpSocket, word: &[u8]) -> bool {
    let short = std::time::Duration::from_millis(100);
    client.set_read_timeout(Some(short)).unwrap();
    server.set_read_timeout(Some(short)).unwrap();
    let mut buffer = [0; 100];
    if client.send_to(word, (ROUTER, 53)).is_err() {
        return false;
    }
    while let Ok((len, from)) = server.recv_from(&mut buffer) {
        server.send_to(&buffer[..len], from).unwrap();
        if &buffer[..len] == word {
            return client.recv(&mut buffer).is_ok_and(|len| &buffer[..len] == word);
        }
    }
    false
}

fn outside_comes_and_goes() {
    let (net, inside) = (Net::new(), [Space::new()]);
    let running = Running::start(&net, &behind(&["tun0"], &inside));
    let server = net.router.run(|| UdpSocket::bind((ROUTER, 53)).unwrap());
    let client = inside[0].run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    assert!(answers(&client, &server, b"before"));
    net.host.ip("link set eth0 down");
    client.send_to(b"lost", (ROUTER, 53)).unwrap();
    eventually("a drop", || {
        (running.counter("eth0", "dropped_down") + running.counter("eth0", "dropped_unresolved") > 0)
            .then_some(())
    });
    net.host.ip("link set eth0 up");
    eventually("an answer", || answers(&client, &server, b"after").then_some(()));
    running.stop();
}

fn outside_is_removed(workers: usize) {
    let (net, inside) = (Net::new(), [Space::new()]);
    let running = Running::start(&net, &behind(&["tun0"], &inside).with(workers));
    net.host.ip("link del eth0");
    let error = running.thread.join().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the interface eth0 no longer exists");
}

fn owned_address(workers: usize) {
    let (net, inside) = (Net::new(), [Space::new()]);
    let external = vec![(Ipv4Addr::new(192, 0, 2, 77), 32)];
    let settings = Settings { external, ..behind(&["tun0"], &inside) }.with(workers);
    let running = Running::start(&net, &settings);
    net.router.prints("ping -c 2 -i 0.2 -W 5 192.0.2.77");
    let server = net.router.run(|| UdpSocket::bind((ROUTER, 53)).unwrap());
    let client = inside[0].run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    client.send_to(b"whose?", (ROUTER, 53)).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let from = server.recv_from(&mut [0; 100]).unwrap().1;
    assert_eq!(from.ip(), Ipv4Addr::new(192, 0, 2, 77));
    assert!(answers(&client, &server, b"and back"));
    running.stop();
}

fn lan(workers: usize) {
    let net = Net::new();
    let host = Space::new();
    cable((&net.host, "eth1", ""), (&host, "eth0", "10.7.0.2/24"));
    host.ip("route add default via 10.7.0.1");
    let settings =
        Settings { lan: vec!["eth1=10.7.0.1/24".parse().unwrap()], ..with_inside(&[]) }.with(workers);
    let running = Running::start(&net, &settings);
    host.prints("ping -c 1 -W 5 10.7.0.1");
    let bytes = pattern(BULK);
    let received = exchange(&host, &net.router, (ROUTER, 80), &bytes);
    assert!(received.iter().all(|received| *received == bytes), "bytes were changed on the way");
    assert!(running.counter("eth1", "sent_super_frames") > 0);
    assert_eq!(running.counter("eth1", "dropped_unresolved"), 0);
    running.stop();
}

fn many_inside(workers: usize) {
    const NAMES: [&str; 6] = ["tun0", "tun1", "tun2", "tun3", "tun4", "tun5"];
    let (net, inside) = (Net::new(), NAMES.map(|_| Space::new()));
    let running = Running::start(&net, &behind(&NAMES, &inside).with(workers));
    let server = net.router.run(|| UdpSocket::bind((ROUTER, 53)).unwrap());
    let clients: Vec<_> =
        inside.iter().map(|space| space.run(|| UdpSocket::bind("0.0.0.0:0").unwrap())).collect();
    for client in &clients {
        assert!(answers(client, &server, b"hello"));
    }
    inside[2].ip("link del tun2");
    for (i, client) in clients.iter().enumerate().filter(|(i, _)| *i != 2) {
        assert!(answers(client, &server, b"still there"), "{i}");
    }
    running.stop();
}
