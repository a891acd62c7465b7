//! The gateway between namespaces of a test's own.

use std::{
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::Arc,
    thread::{self, JoinHandle},
};

use natbox::{
    control::{Ask, Handle, Reply, Show, channel},
    guard::Guard,
    host,
    run::{Gateway, RunError},
    settings::Settings,
};
use nix::{
    sched::{CloneFlags, setns},
    sys::{
        eventfd::EventFd,
        socket::{setsockopt, sockopt},
    },
};

use crate::{
    ROUTER, With,
    host_space::{Net, PATIENCE, Space, cable, eventually, with_inside},
};

/// Enough for many super-frames, and for a window to open.
const BULK: usize = 8 << 20;

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

pub(crate) fn bulk(offload: bool, workers: usize) {
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

pub(crate) fn bulk_of_single_segments() {
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

pub(crate) fn udp_super_frames(offload: bool) {
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

pub(crate) fn outside_comes_and_goes() {
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

pub(crate) fn outside_is_removed(workers: usize) {
    let (net, inside) = (Net::new(), [Space::new()]);
    let running = Running::start(&net, &behind(&["tun0"], &inside).with(workers));
    net.host.ip("link del eth0");
    let error = running.thread.join().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the interface eth0 no longer exists");
}

pub(crate) fn owned_address(workers: usize) {
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

pub(crate) fn lan(workers: usize) {
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

pub(crate) fn many_inside(workers: usize) {
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
