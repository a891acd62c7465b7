//! The guard in namespaces of its own: a host that shares its address and forwards for a LAN, a peer outside, and a
//! host on the LAN. Every test runs with tcx and with nf_tables, and those of nf_tables once more in a user namespace,
//! where bpf(2) is refused.
//!
//! That the host stays silent is proved without waiting: after the packet that it must not answer goes one that it
//! does answer, on the same cable, which keeps the order.

#![allow(clippy::unwrap_used)] // a test fails by a panic

mod host_space;

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::{Command, ExitCode},
    time::Duration,
};

use host_space::{PATIENCE, Ready, Space, actor, cable, eventually, play, ready, self_in, settings, trial};
use libtest_mimic::{Arguments, Trial};
use natbox::{
    guard::Guard,
    host::Plan,
    settings::{GuardChoice, LanSpec},
};
use natbox_core::{Claim, Endpoint, External, Protocol};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, connect, getsockopt, recv,
        socket, sockopt,
    },
};

const SHARED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OWNED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const LAN_HOST: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
/// The actor that guards OUTSIDE until it is killed, with TCP and UDP port 5000 claimed.
const GUARDIAN: &str = "guardian-";
/// The actor that runs the tests of nf_tables where it is.
const IN_USERNS: &str = "tests-in-user-namespace";

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    match actor().as_deref() {
        None => libtest_mimic::run(&arguments, all_tests()).exit_code(),
        Some(IN_USERNS) => {
            let mut tests = tests(GuardChoice::Nftables);
            tests.push(trial("auto falls back to nftables", || {
                assert_eq!(guard_kind(GuardChoice::Auto), "nftables")
            }));
            libtest_mimic::run(&arguments, tests).exit_code()
        }
        Some(part) => {
            let choice = part.strip_prefix(GUARDIAN).unwrap();
            let choice = GuardChoice::ALL.into_iter().find(|known| known.word() == choice).unwrap();
            let mut guard = attach(choice, None);
            claim_both(&mut guard, 5000, true);
            ready()
        }
    }
}

fn all_tests() -> Vec<Trial> {
    let mut all = tests(GuardChoice::Tcx);
    all.extend(tests(GuardChoice::Nftables));
    all.push(trial("auto takes tcx", || assert_eq!(guard_kind(GuardChoice::Auto), "tcx")));
    all.push(trial("off warns", off_warns));
    all.push(trial("in a user namespace", || {
        let mut command = Command::new("unshare");
        // The terminal's test filter is for this process.
        command.args(["--user", "--map-root-user", "--net"]).arg(std::env::current_exe().unwrap());
        let output = play(command, IN_USERNS).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }));
    all
}

fn tests(choice: GuardChoice) -> Vec<Trial> {
    type Test = fn(GuardChoice);
    let tests: [(&str, Test); 11] = [
        ("claimed ports are silent and the rest of the host is not", claimed_ports_are_silent),
        ("claims take effect at once and end at once", claims_come_and_go),
        ("many claims in one flush", many_claims),
        ("fragments of a claimed port are silent", fragments_are_silent),
        ("a tap sees what the guard drops", a_tap_sees_it),
        ("connection tracking sees nothing of it", conntrack_sees_nothing),
        ("SIGKILL ends the guard", sigkill_ends_it),
        ("the host does not forward for a LAN", a_lan_is_not_forwarded),
        ("the host does not forward an owned address", an_owned_address_is_not_forwarded),
        ("the host does not forward an address owned since", an_address_owned_since_is_not_forwarded),
        ("two guards at once", two_at_once),
    ];
    tests.into_iter().map(|(name, test)| trial(format!("{choice}: {name}"), move || test(choice))).collect()
}

/// LAN host — host — peer.
struct Net {
    host: Space,
    peer: Space,
    lan: Space,
}

impl Net {
    fn new() -> Net {
        let net = Net { host: Space::new(), peer: Space::new(), lan: Space::new() };
        cable((&net.host, "eth0", "192.0.2.1/24"), (&net.peer, "eth0", "192.0.2.2/24"));
        cable((&net.host, "eth1", "10.1.0.1/24"), (&net.lan, "eth0", "10.1.0.2/24"));
        net.lan.ip("route add default via 10.1.0.1");
        net.peer.ip("route add 10.1.0.0/24 via 192.0.2.1");
        net
    }

    /// What a TCP connection from the peer meets.
    fn try_tcp(&self, to: (Ipv4Addr, u16)) -> Attempt {
        self.peer.run(|| Attempt::start(to))
    }

    fn guard(&self, choice: GuardChoice) -> Guard {
        self.host.run(|| attach(choice, None))
    }

    /// Everything that was sent from the peer before has been answered, as far as it ever will be.
    fn settle(&self) {
        assert_eq!(self.try_tcp((SHARED, 9)).outcome(), Err(ErrorKind::ConnectionRefused));
    }
}

/// A guard on eth0 and eth1 of the calling thread's namespace.
fn attach(choice: GuardChoice, external: Option<Ipv4Addr>) -> Guard {
    let mut settings = settings("eth0");
    settings.lan = vec![LanSpec { interface: "eth1".to_owned(), net: None }];
    settings.external = external.map(|address| (address, 32)).into_iter().collect();
    let wiring = Plan::new(&settings).unwrap().apply().unwrap();
    Guard::attach(&wiring, choice).unwrap()
}

fn guard_kind(choice: GuardChoice) -> &'static str {
    let guard = Net::new().guard(choice);
    assert_eq!(guard.warnings(), <[String; 0]>::default());
    guard.kind()
}

fn claim(protocol: Protocol, port: u16, held: bool) -> Claim {
    Claim { protocol, external: External(Endpoint::v4(SHARED, port)), held }
}

fn claim_both(guard: &mut Guard, port: u16, held: bool) {
    guard.apply(claim(Protocol::Tcp, port, held));
    guard.apply(claim(Protocol::Udp, port, held));
    guard.flush().unwrap();
}

/// A TCP connection in the making.
struct Attempt(OwnedFd);

impl Attempt {
    fn start((address, port): (Ipv4Addr, u16)) -> Attempt {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        let [a, b, c, d] = address.octets();
        assert_eq!(
            connect(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, port)),
            Err(nix::errno::Errno::EINPROGRESS)
        );
        Attempt(socket)
    }

    /// Whether it is neither made nor refused.
    fn pending(&self) -> bool {
        self.poll(Duration::ZERO).is_none()
    }

    fn outcome(&self) -> Result<(), ErrorKind> {
        self.poll(PATIENCE).expect("neither connected nor refused")
    }

    fn poll(&self, timeout: Duration) -> Option<Result<(), ErrorKind>> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut fds, PollTimeout::try_from(timeout).unwrap()).unwrap() == 0 {
            return None;
        }
        let code = getsockopt(&self.0, sockopt::SocketError).unwrap();
        Some(if code == 0 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(code).kind()) })
    }
}

fn udp(space: &Space, address: Ipv4Addr, port: u16) -> UdpSocket {
    let socket = space.run(|| UdpSocket::bind((address, port)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A datagram from the peer, and whether the host refused it by the time that it answers.
fn udp_refused(net: &Net, port: u16, len: usize) -> bool {
    let socket = udp(&net.peer, PEER, 0);
    socket.connect((SHARED, port)).unwrap();
    socket.send(&vec![0; len]).unwrap();
    net.settle();
    socket.set_nonblocking(true).unwrap();
    match socket.recv(&mut [0; 1]) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => true,
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        other => panic!("{other:?}"),
    }
}

/// Sends "after" until something arrives, and says what. A guard may outlast its drop for a moment: a process that
/// another test is just starting holds its descriptors until it becomes its program.
fn first_after(from: &UdpSocket, to: (Ipv4Addr, u16), at: &UdpSocket) -> String {
    at.set_nonblocking(true).unwrap();
    eventually("a datagram after the guard is gone", || {
        from.send_to(b"after", to).unwrap();
        let mut word = [0; 16];
        let len = at.recv(&mut word).ok()?;
        Some(String::from_utf8_lossy(&word[..len]).into_owned())
    })
}

fn claimed_ports_are_silent(choice: GuardChoice) {
    let net = Net::new();
    let listener = net.host.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 22)).unwrap());
    let mut guard = net.guard(choice);
    assert_eq!(guard.kind(), choice.word());
    claim_both(&mut guard, 5000, true);

    let claimed = net.try_tcp((SHARED, 5000));
    net.settle();
    assert!(claimed.pending(), "the host answered for a claimed port");
    assert!(!udp_refused(&net, 5000, 1));
    assert!(udp_refused(&net, 5001, 1), "an unclaimed port is the host's");
    assert_eq!(net.try_tcp((SHARED, 5001)).outcome(), Err(ErrorKind::ConnectionRefused));

    // The host's listener, in both directions.
    let mut to_host = net.peer.run(|| TcpStream::connect((SHARED, 22)).unwrap());
    let (mut at_host, _) = listener.accept().unwrap();
    to_host.write_all(b"ping").unwrap();
    let mut word = [0; 4];
    at_host.read_exact(&mut word).unwrap();
    at_host.write_all(b"pong").unwrap();
    to_host.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"pong");

    // The host's own connections, TCP and UDP.
    let abroad = net.peer.run(|| TcpListener::bind((PEER, 80)).unwrap());
    let at_host = net.host.run(|| TcpStream::connect((PEER, 80)).unwrap());
    abroad.accept().unwrap();
    drop(at_host);
    let (from_host, at_peer) = (udp(&net.host, SHARED, 0), udp(&net.peer, PEER, 53));
    from_host.send_to(b"?", (PEER, 53)).unwrap();
    let (_, source) = at_peer.recv_from(&mut word).unwrap();
    at_peer.send_to(b"!", source).unwrap();
    assert_eq!(from_host.recv(&mut word).unwrap(), 1);

    // Ping, both ways, and from the LAN to the host's address there.
    net.peer.prints("ping -c 1 -W 10 192.0.2.1");
    net.host.prints("ping -c 1 -W 10 192.0.2.2");
    net.lan.prints("ping -c 1 -W 10 10.1.0.1");

    // A claimed port is silent from the LAN too, and the LAN reaches the host's listener.
    let from_lan = net.lan.run(|| Attempt::start((SHARED, 5000)));
    assert_eq!(net.lan.run(|| Attempt::start((SHARED, 5001))).outcome(), Err(ErrorKind::ConnectionRefused));
    assert!(from_lan.pending());
    assert_eq!(net.lan.run(|| Attempt::start((SHARED, 22))).outcome(), Ok(()));
}

fn claims_come_and_go(choice: GuardChoice) {
    let net = Net::new();
    let mut guard = net.guard(choice);
    for _ in 0..3 {
        assert_eq!(net.try_tcp((SHARED, 5000)).outcome(), Err(ErrorKind::ConnectionRefused));
        assert!(udp_refused(&net, 5000, 1));
        claim_both(&mut guard, 5000, true);
        let attempt = net.try_tcp((SHARED, 5000));
        net.settle();
        assert!(attempt.pending());
        assert!(!udp_refused(&net, 5000, 1));
        drop(attempt);
        claim_both(&mut guard, 5000, false);
    }
    // TCP and UDP ports are claimed apart.
    guard.apply(claim(Protocol::Udp, 5000, true));
    guard.flush().unwrap();
    assert_eq!(net.try_tcp((SHARED, 5000)).outcome(), Err(ErrorKind::ConnectionRefused));
    assert!(!udp_refused(&net, 5000, 1));
    // Claims that need no guard are no error; neither is a claim that ends without having begun.
    guard.apply(Claim { external: External(Endpoint::v4(OWNED, 1)), ..claim(Protocol::Tcp, 1, true) });
    guard.apply(claim(Protocol::Icmp, 7, true));
    claim_both(&mut guard, 6000, false);
    claim_both(&mut guard, 5000, true);
    claim_both(&mut guard, 5000, true);
    drop(guard);
    eventually("a guard that is dropped is gone", || udp_refused(&net, 5000, 1).then_some(()));
}

fn many_claims(choice: GuardChoice) {
    let net = Net::new();
    let mut guard = net.guard(choice);
    let all = |guard: &mut Guard, held| {
        for port in 1024..=u16::MAX {
            guard.apply(claim(Protocol::Udp, port, held));
        }
        guard.flush().unwrap();
    };
    all(&mut guard, true);
    for port in [1024, 5000, 65535] {
        assert!(!udp_refused(&net, port, 1), "{port}");
    }
    assert!(udp_refused(&net, 1023, 1));
    all(&mut guard, false);
    for port in [1024, 5000, 65535] {
        assert!(udp_refused(&net, port, 1), "{port}");
    }
}

fn fragments_are_silent(choice: GuardChoice) {
    let net = Net::new();
    let mut guard = net.guard(choice);
    assert!(udp_refused(&net, 5000, 4000));
    claim_both(&mut guard, 5000, true);
    assert!(!udp_refused(&net, 5000, 4000));
    assert!(udp_refused(&net, 5001, 4000));
}

fn a_tap_sees_it(choice: GuardChoice) {
    let net = Net::new();
    let mut guard = net.guard(choice);
    claim_both(&mut guard, 5000, true);
    // A packet socket on all protocols, as natbox's own is.
    let tap = net.host.run(|| {
        socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )
        .unwrap()
    });
    let _attempt = net.try_tcp((SHARED, 5000));
    let seen = |port: u16| {
        let mut frame = [0; 2048];
        eventually("the frame at the tap", || {
            let len = recv(tap.as_raw_fd(), &mut frame, MsgFlags::empty()).ok()?;
            let packet = etherparse::SlicedPacket::from_ethernet(&frame[..len]).ok()?;
            match packet.transport? {
                etherparse::TransportSlice::Tcp(tcp) => {
                    (tcp.destination_port() == port && tcp.syn()).then_some(())
                }
                _ => None,
            }
        });
    };
    seen(5000);
}

fn conntrack_sees_nothing(choice: GuardChoice) {
    let net = Net::new();
    let entries =
        || net.host.run(|| std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap());
    // A rule that asks for it switches connection tracking on.
    net.host.prints("nft add table ip watch");
    net.host.prints("nft add chain ip watch in { type filter hook input priority 0; }");
    net.host.prints("nft add rule ip watch in ct state new counter");
    let mut guard = net.guard(choice);
    claim_both(&mut guard, 5000, true);
    let silent = net.try_tcp((SHARED, 5000));
    assert_eq!(net.try_tcp((SHARED, 5001)).outcome(), Err(ErrorKind::ConnectionRefused));
    assert!(silent.pending());
    let claimed = udp(&net.peer, PEER, 0);
    claimed.send_to(b"x", (SHARED, 5000)).unwrap();
    net.settle();
    // A connection that was refused may linger or not.
    let count: u32 = entries().trim().parse().unwrap();
    assert!(count <= 2, "{count} entries");
    let rules = net.host.prints("nft list chain ip watch in");
    assert!(rules.contains("counter packets 2 "), "two new connections, both of unclaimed ports: {rules}");
}

fn sigkill_ends_it(choice: GuardChoice) {
    let net = Net::new();
    let guardian = Ready::start(play(self_in(&net.host), &format!("{GUARDIAN}{choice}")));
    let attempt = net.try_tcp((SHARED, 5000));
    assert!(!udp_refused(&net, 5000, 1));
    assert!(attempt.pending());
    guardian.kill();
    eventually("the host answers again", || udp_refused(&net, 5000, 1).then_some(()));
    assert_eq!(net.try_tcp((SHARED, 5000)).outcome(), Err(ErrorKind::ConnectionRefused));
    assert!(!net.host.state().contains("natbox"));
    // And the next run just works.
    let guardian = Ready::start(play(self_in(&net.host), &format!("{GUARDIAN}{choice}")));
    assert!(!udp_refused(&net, 5000, 1));
    drop(guardian);
}

fn a_lan_is_not_forwarded(choice: GuardChoice) {
    let net = Net::new();
    net.host.sysctl("net/ipv4/ip_forward", "1");
    let (from, to) = (udp(&net.lan, LAN_HOST, 4000), udp(&net.peer, PEER, 4000));
    let received = || {
        let mut word = [0; 16];
        let (len, source) = to.recv_from(&mut word).unwrap();
        assert_eq!(source.ip(), IpAddr::V4(LAN_HOST));
        String::from_utf8_lossy(&word[..len]).into_owned()
    };
    from.send_to(b"before", (PEER, 4000)).unwrap();
    assert_eq!(received(), "before");
    let mut guard = net.guard(choice);
    from.send_to(b"guarded", (PEER, 4000)).unwrap();
    // What the LAN sends to the host still arrives there, also at an address that is new.
    net.lan.prints("ping -c 1 -W 10 10.1.0.1");
    net.host.ip("addr add 10.1.0.77/24 dev eth1");
    net.host.run(|| guard.refresh()).unwrap();
    net.lan.prints("ping -c 1 -W 10 10.1.0.77");
    net.host.ip("addr del 10.1.0.77/24 dev eth1");
    net.host.run(|| guard.refresh()).unwrap();
    // The host's own traffic into the LAN, with its answers.
    net.host.prints("ping -c 1 -W 10 10.1.0.2");
    drop(guard);
    assert_eq!(first_after(&from, (PEER, 4000), &to), "after", "the guarded datagram was forwarded");
}

/// A net whose host forwards OWNED to the LAN: whoever routes it to the host sees what the host would do with it.
fn forwarding() -> (Net, UdpSocket, UdpSocket) {
    let net = Net::new();
    net.host.sysctl("net/ipv4/ip_forward", "1");
    net.lan.ip("addr add 192.0.2.100/32 dev lo");
    net.host.ip("route add 192.0.2.100/32 via 10.1.0.2");
    net.peer.ip("route add 192.0.2.100/32 via 192.0.2.1");
    let (from, to) = (udp(&net.peer, PEER, 4000), udp(&net.lan, OWNED, 4000));
    (net, from, to)
}

fn an_address_owned_since_is_not_forwarded(choice: GuardChoice) {
    let (net, from, to) = forwarding();
    let mut guard = net.host.run(|| attach(choice, Some(Ipv4Addr::new(192, 0, 2, 99))));
    guard.set_owned(&[OWNED]).unwrap();
    from.send_to(b"guarded", (OWNED, 4000)).unwrap();
    guard.set_owned(&[]).unwrap();
    assert_eq!(first_after(&from, (OWNED, 4000), &to), "after", "the guarded datagram was forwarded");
}

fn an_owned_address_is_not_forwarded(choice: GuardChoice) {
    let (net, from, to) = forwarding();
    let received = || {
        let mut word = [0; 16];
        let len = to.recv(&mut word).unwrap();
        String::from_utf8_lossy(&word[..len]).into_owned()
    };
    from.send_to(b"before", (OWNED, 4000)).unwrap();
    assert_eq!(received(), "before");
    let mut guard = net.host.run(|| attach(choice, Some(OWNED)));
    from.send_to(b"guarded", (OWNED, 4000)).unwrap();
    // The host's own address is none of natbox's now: a claim there changes nothing.
    claim_both(&mut guard, 5000, true);
    assert!(udp_refused(&net, 5000, 1));
    net.peer.prints("ping -c 1 -W 10 192.0.2.1");
    drop(guard);
    assert_eq!(first_after(&from, (OWNED, 4000), &to), "after", "the guarded datagram was forwarded");
}

fn two_at_once(choice: GuardChoice) {
    let net = Net::new();
    let mut one = net.guard(choice);
    let mut other = net.guard(choice);
    claim_both(&mut one, 5000, true);
    claim_both(&mut other, 6000, true);
    assert!(!udp_refused(&net, 5000, 1) && !udp_refused(&net, 6000, 1));
    drop(one);
    eventually("one guard is gone", || udp_refused(&net, 5000, 1).then_some(()));
    assert!(!udp_refused(&net, 6000, 1));
}

fn off_warns() {
    let net = Net::new();
    let mut guard = net.guard(GuardChoice::Off);
    assert_eq!(guard.kind(), "off");
    let warnings = guard.warnings().concat();
    assert!(warnings.contains("TCP resets") && warnings.contains("forwards"), "{warnings}");
    claim_both(&mut guard, 5000, true);
    assert!(udp_refused(&net, 5000, 1));
}
