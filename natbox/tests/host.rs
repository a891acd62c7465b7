//! What natbox changes on a machine, and that it is undone, in namespaces of its own.

#![allow(clippy::unwrap_used)] // a test fails by a panic

mod host_space;

use std::{
    ffi::OsString,
    fs,
    io::Read,
    net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    path::PathBuf,
    process::{Command, ExitCode},
    sync::mpsc,
};

use host_space::{
    Net, PATIENCE, Ready, Space, actor, cable, eventually, play, ready, self_in, settings, succeeds, trial,
    with_inside,
};
use libtest_mimic::Arguments;
use natbox::{
    host::{self, HostPorts, InsideDevice, Plan, Wiring, exit_code, routes, spawn_behind},
    settings::Settings,
};
use nix::sys::signal::{SigSet, Signal};

type Part = fn() -> ExitCode;

const PARTS: [(&str, Part); 3] = [
    ("tun-and-command", hold_tun_and_command),
    ("run-a-command", run_a_command),
    ("tun-in-user-namespace", tun_in_user_namespace),
];

fn main() -> ExitCode {
    if let Some(part) = actor() {
        let play = PARTS.into_iter().find(|(name, _)| *name == part).unwrap().1;
        return play();
    }
    let tests: [(&str, fn()); 11] = [
        ("a TUN in the own namespace", a_tun_here),
        ("a TUN in other namespaces", tuns_in_other_namespaces),
        ("a namespace keeps its default route", a_default_route_stays),
        ("default networks overlap nothing", default_networks_overlap_nothing),
        ("a strict reverse-path filter is loosened", reverse_path_filter),
        ("offload can be off", offload_off),
        ("all or nothing", all_or_nothing),
        ("the sockets of the host", sockets_of_the_host),
        ("a command behind the NAT", a_command),
        ("a command's user and name servers", a_command_s_environment),
        ("SIGKILL undoes everything", sigkill_undoes_everything),
    ];
    let mut tests: Vec<_> = tests.into_iter().map(|(name, test)| trial(name, test)).collect();
    tests.push(trial("in a user namespace", || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net"]).arg(std::env::current_exe().unwrap());
        succeeds(play(command, "tun-in-user-namespace"));
    }));
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn a_tun_here() {
    let net = Net::new();
    let before = net.host.state();
    let wiring = net.apply(&with_inside(&["tun0"]));
    let [
        InsideDevice::Tun {
            name,
            queues,
            offload,
            udp_offload: _,
            gateway,
            host,
            prefix_len,
            mtu,
            netns,
            reach: _,
        },
    ] = &wiring.inside[..]
    else {
        panic!("{:?}", wiring.inside);
    };
    assert_eq!((name.as_str(), *offload, *mtu, netns.as_ref()), ("tun0", true, 1500, None));
    assert_eq!((*gateway, *host, *prefix_len), ([10, 64, 0, 1].into(), [10, 64, 0, 2].into(), 24));
    assert!(wiring.shared);
    assert_eq!(wiring.external, [Ipv4Addr::new(192, 0, 2, 10)]);
    assert_eq!(wiring.outside.addresses, [([192, 0, 2, 10].into(), 24)]);
    assert_eq!(wiring.warnings, <[String; 0]>::default());

    let link = net.host.ip("-d link show tun0");
    for part in ["mtu 1500", "UP", "qlen 8192", "vnet_hdr on", "persist off", "addrgenmode none"] {
        assert!(link.contains(part), "{part:?} is not in {link}");
    }
    assert!(!link.contains("multi_queue"), "{link}");
    assert!(net.host.ip("addr show tun0").contains("inet 10.64.0.2/24"));
    let routes = net.host.ip("route");
    assert!(
        routes.contains("default via 192.0.2.1 dev eth0") && routes.matches("default").count() == 1,
        "{routes}"
    );

    // A packet for the gateway comes out of it, behind a virtio-net header; reading never blocks.
    let mut file = fs::File::from(queues[0].try_clone().unwrap());
    let mut packet = [0; 2048];
    assert_eq!(file.read(&mut packet).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    let socket = net.host.run(|| UdpSocket::bind((*host, 0)).unwrap());
    socket.send_to(b"x", (*gateway, 9)).unwrap();
    let len = eventually("a packet", || file.read(&mut packet).ok());
    assert_eq!((len, packet[10], &packet[26..30]), (10 + 20 + 8 + 1, 0x45, &gateway.octets()[..]));

    drop(file);
    drop(wiring);
    eventually("the TUN device is gone", || (net.host.state() == before).then_some(()));
    // And a second run just works.
    drop(net.apply(&with_inside(&["tun0"])));
}

fn tuns_in_other_namespaces() {
    let net = Net::new();
    let (by_path, by_pid) = (Space::new(), Space::new());
    let sleeper = Ready::start({
        let mut command = by_pid.command("sh");
        command.args(["-c", "echo ready; read line"]);
        command
    });
    // One with a name, which this test takes away again.
    let name = format!("natbox-host-{}", std::process::id());
    struct Named(String);
    impl Drop for Named {
        fn drop(&mut self) {
            let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
        }
    }
    let _named = Named(name.clone());
    succeeds({
        let mut command = Command::new("ip");
        command.args(["netns", "add", &name]);
        command
    });
    let settings = with_inside(&[
        &format!("up@{}", by_path.path()),
        &format!("tun0@pid:{}=10.0.0.2/30", sleeper.id()),
        &format!("tun0@{name}=10.0.0.1/24"),
    ]);
    let here = net.host.state();
    let wiring = net.apply(&Settings { mtu: Some(1400), ..settings });
    assert_eq!(net.host.state(), here, "nothing of it is in natbox's own namespace");
    assert!(
        wiring.usage.contains(&format!("behind the NAT: ip netns exec {name} COMMAND")),
        "{:?}",
        wiring.usage
    );
    let in_named = Command::new("ip").args(["-n", &name, "route"]).output().unwrap().stdout;
    for (routes, expected) in [
        (by_path.ip("route"), "default via 10.64.0.1 dev up"),
        (by_pid.ip("route"), "default via 10.0.0.1 dev tun0"),
        (String::from_utf8(in_named).unwrap(), "default via 10.0.0.2 dev tun0"),
    ] {
        assert!(routes.contains(expected), "{expected:?} is not in {routes}");
    }
    assert!(by_path.ip("link show up").contains("mtu 1400"));
    let side = |device: &InsideDevice| match device {
        InsideDevice::Tun { gateway, netns, .. } => (*gateway, netns.is_some()),
        InsideDevice::Lan { .. } => panic!("{device:?}"),
    };
    let networks: Vec<_> = wiring.inside.iter().map(side).collect();
    assert_eq!(
        networks,
        [([10, 64, 0, 1].into(), true), ([10, 0, 0, 1].into(), true), ([10, 0, 0, 2].into(), true)]
    );
    drop(wiring);
    eventually("the devices are gone", || by_path.ip("route").is_empty().then_some(()));

    // Its own namespace by another name is its own namespace: no default route.
    let wiring = net.apply(&with_inside(&[&format!("tun0@{}", net.host.path())]));
    assert!(net.host.ip("addr show tun0").contains("10.64.0.2/24"));
    assert_eq!(net.host.ip("route").matches("default").count(), 1);
    drop(wiring);
}

fn a_default_route_stays() {
    let (net, inside) = (Net::new(), Space::new());
    cable((&inside, "eth0", "10.9.0.2/24"), (&net.router, "eth1", "10.9.0.1/24"));
    inside.ip("route add default via 10.9.0.1");
    let tun = |name: &str| format!("{name}@{}", inside.path());
    let wiring = net.apply(&with_inside(&[&tun("tun0"), &tun("tun1")]));
    let routes = inside.ip("route");
    assert_eq!(routes.matches("default").count(), 1, "{routes}");
    assert_eq!(wiring.warnings.len(), 2);
    assert!(wiring.warnings[0].contains("has a default route by eth0 already: tun0 gets none"));
    drop(wiring);
    eventually("the devices are gone", || (!inside.ip("link").contains("tun")).then_some(()));
    // Of two TUNs in one namespace the first gets it.
    inside.ip("route del default");
    let wiring = net.apply(&with_inside(&[&tun("tun2"), &tun("tun3")]));
    assert!(inside.ip("route").contains("default via 10.64.0.1 dev tun2"));
    assert!(wiring.warnings[0].contains("another TUN of this plan already: tun3"), "{:?}", wiring.warnings);
}

fn default_networks_overlap_nothing() {
    let (net, inside) = (Net::new(), Space::new());
    let networks = |wiring: &Wiring| -> Vec<Ipv4Addr> {
        wiring
            .inside
            .iter()
            .map(|device| match device {
                InsideDevice::Tun { host, .. } => *host,
                InsideDevice::Lan { gateway, .. } => *gateway,
            })
            .collect()
    };
    net.host.ip("addr add 10.64.0.9/24 dev eth0");
    cable((&inside, "eth0", "10.64.1.9/25"), (&net.router, "eth1", ""));
    inside.ip("route add 10.64.2.128/25 dev eth0");
    // Each with a name of its own: a device may outlast its drop for a moment, while another test starts a process.
    let inside_tun = |name: &str| format!("{name}@{}", inside.path());
    let both = net.apply(&with_inside(&["tun0", &inside_tun("tun0")]));
    assert_eq!(networks(&both), [[10, 64, 1, 2], [10, 64, 3, 2]].map(Ipv4Addr::from));
    drop(both);
    eventually("the first device is gone", || (!inside.ip("link").contains("tun0")).then_some(()));
    // A route to everything private takes the whole range away; a default route in two halves does not.
    inside.ip("route add 0.0.0.0/1 dev eth0");
    let first = net.apply(&with_inside(&[&inside_tun("tun1")]));
    assert_eq!(networks(&first), [Ipv4Addr::new(10, 64, 3, 2)]);
    inside.ip("route add 10.0.0.0/8 dev eth0");
    let second = net.apply(&with_inside(&[&inside_tun("tun2")]));
    assert_eq!(networks(&second), [Ipv4Addr::new(172, 30, 0, 2)]);
}

fn reverse_path_filter() {
    let net = Net::new();
    net.host.sysctl("net/ipv4/conf/default/rp_filter", "1");
    let settings = with_inside(&["tun0"]);
    let filter = |name: &str| {
        let path = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
        net.host.run(|| fs::read_to_string(path)).unwrap().trim().to_owned()
    };
    let text = net.plan(&settings).unwrap().to_string();
    assert!(text.contains("+ net.ipv4.conf.tun0.rp_filter = 2 (loose)"), "{text}");
    let wiring = net.apply(&settings);
    assert_eq!(
        (filter("tun0").as_str(), filter("default").as_str(), filter("all").as_str()),
        ("2", "1", "0")
    );
    drop(wiring);
    // Where the TUN is the default route, the filter is right.
    let inside = Space::new();
    inside.sysctl("net/ipv4/conf/all/rp_filter", "1");
    let _wiring = net.apply(&with_inside(&[&format!("tun0@{}", inside.path())]));
    let value = inside.run(|| fs::read_to_string("/proc/sys/net/ipv4/conf/tun0/rp_filter")).unwrap();
    assert_eq!(value.trim(), "0");
}

fn offload_off() {
    let net = Net::new();
    let wiring = net.apply(&Settings { offload: false, ..with_inside(&["tun0"]) });
    let InsideDevice::Tun { offload: false, udp_offload: false, .. } = wiring.inside[0] else {
        panic!("{:?}", wiring.inside);
    };
    assert!(wiring.done.contains(&"tun0 has no offload".to_owned()), "{:?}", wiring.done);
    assert!(net.host.ip("-d link show tun0").contains("vnet_hdr on"));
}

fn all_or_nothing() {
    let net = Net::new();
    let plan = net.plan(&with_inside(&["tun0", "tun1"])).unwrap();
    // Somebody takes the second name between plan and deed.
    net.host.ip("link add tun1 type bridge");
    let before = net.host.state();
    let error = net.host.run(|| plan.apply()).unwrap_err().to_string();
    assert!(error.contains("tun1"), "{error}");
    eventually("the first is gone again", || (net.host.state() == before).then_some(()));
}

fn tun_in_user_namespace() -> ExitCode {
    let (net, inside) = (Net::new(), Space::new());
    let wiring = net.apply(&with_inside(&["tun0", &format!("tun0@{}", inside.path())]));
    assert!(inside.ip("route").contains("default via 10.64.1.1 dev tun0"));
    let wiring_with_command = net.apply(&Settings { command: Some(vec!["true".into()]), ..settings("eth0") });
    let command = wiring_with_command.command.as_ref().unwrap();
    assert_eq!(exit_code(spawn_behind(command, &["true".into()], || ()).unwrap().wait().unwrap()), 0);
    drop(wiring);
    ExitCode::SUCCESS
}

fn sockets_of_the_host() {
    let net = Net::new();
    let ours = Ipv4Addr::new(192, 0, 2, 10);
    net.host.run(|| {
        let mut ports = HostPorts::new(vec![ours]).unwrap();
        assert_eq!((ports.tcp(), ports.udp()), (&[][..], &[][..]));
        let any = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 2001)).unwrap();
        let here = TcpListener::bind((ours, 2002)).unwrap();
        let loopback = TcpListener::bind((Ipv4Addr::LOCALHOST, 2003)).unwrap();
        let dual = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 2004)).unwrap();
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 3001)).unwrap();
        let udp_dual = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 3002)).unwrap();
        assert!(ports.refresh().unwrap());
        assert_eq!((ports.tcp(), ports.udp()), (&[2001, 2002, 2004][..], &[3001, 3002][..]));
        assert!(!ports.refresh().unwrap(), "nothing has changed");
        drop((any, here, loopback, dual, udp, udp_dual));
        // A process that another test is just starting may hold them for a moment.
        eventually("the ports are free", || {
            ports.refresh().unwrap();
            (ports.tcp().is_empty() && ports.udp().is_empty()).then_some(())
        });
    });
    // A connection abroad holds its port, too.
    let abroad = net.router.run(|| TcpListener::bind("192.0.2.1:80").unwrap());
    let connection = net.host.run(|| TcpStream::connect("192.0.2.1:80").unwrap());
    abroad.accept().unwrap();
    let port = connection.local_addr().unwrap().port();
    assert_eq!(net.host.run(|| HostPorts::new(vec![ours]).unwrap().tcp().to_vec()), [port]);
    // The routes of an interface, and nobody else's.
    let index = net.host.run(|| host::interface("eth0")).unwrap().index;
    net.host.ip("route add 203.0.113.0/24 via 192.0.2.254 metric 7");
    net.host.ip("route add 198.51.100.0/24 dev lo");
    net.host.ip("route add unreachable 203.0.113.128/25");
    let mut found: Vec<_> = net.host.run(|| routes(index)).unwrap();
    found.sort_by_key(|route| route.destination);
    let found: Vec<_> =
        found.iter().map(|route| (route.destination.1, route.gateway, route.metric)).collect();
    let hop = |last| Some(Ipv4Addr::new(192, 0, 2, last));
    assert_eq!(found, [(0, hop(1), 0), (24, None, 0), (24, hop(254), 7)]);
}

/// What a shell prints behind the NAT, and its exit code.
fn behind(net: &Net, script: &str) -> (String, u8) {
    let file = Scratch::new("out");
    let settings = Settings { command: Some(Vec::new()), ..settings("eth0") };
    let wiring = net.apply(&settings);
    let script = format!("{{ {script}; }} > {}", file.0.display());
    let words: Vec<OsString> = ["sh", "-c", &script].map(OsString::from).to_vec();
    let (ended, end) = mpsc::channel();
    let on_exit = move || ended.send(()).unwrap();
    let command = net.host.run(|| spawn_behind(wiring.command.as_ref().unwrap(), &words, on_exit)).unwrap();
    end.recv_timeout(PATIENCE).unwrap();
    let code = exit_code(command.wait().unwrap());
    (fs::read_to_string(&file.0).unwrap(), code)
}

/// A file that is taken away again.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Scratch(std::env::temp_dir().join(format!("natbox-host-{}-{number}-{name}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn a_command() {
    let net = Net::new();
    let before = net.host.state();
    // A signal that is blocked here must not be blocked there.
    SigSet::from(Signal::SIGTERM).thread_block().unwrap();
    let (text, code) = behind(&net, "ip -o -4 addr; ip route; grep SigBlk /proc/self/status; exit 3");
    assert_eq!(code, 3);
    for part in [
        "127.0.0.1/8",
        "tun0    inet 10.64.0.2/24",
        "default via 10.64.0.1 dev tun0",
        "SigBlk:\t0000000000000000",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert_eq!(behind(&net, "kill -9 $$").1, 137);
    assert_eq!(net.host.state(), before);

    let wiring = net.apply(&Settings { command: Some(Vec::new()), ..settings("eth0") });
    let space = wiring.command.as_ref().unwrap();
    let fails = |word: &str| spawn_behind(space, &[OsString::from(word)], || ()).unwrap_err().to_string();
    assert!(fails("/no/such/program").starts_with("cannot run \"/no/such/program\": No such file"));
    let text = Scratch::new("text");
    fs::write(&text.0, "not a program").unwrap();
    assert!(fails(text.0.to_str().unwrap()).contains("Permission denied"));
    assert!(spawn_behind(space, &[], || ()).is_err());
    let command = spawn_behind(space, &["sleep".into(), "1000".into()], || ()).unwrap();
    command.signal(Signal::SIGTERM).unwrap();
    assert_eq!(exit_code(command.wait().unwrap()), 143, "SIGTERM is not blocked there");
}

/// A second process, as sudo would start it: prints who its command is and what name servers it has.
fn run_a_command() -> ExitCode {
    let wiring =
        Plan::new(&Settings { command: Some(Vec::new()), ..settings("eth0") }).unwrap().apply().unwrap();
    for line in wiring.done.iter().chain(&wiring.warnings) {
        println!("{line}");
    }
    let script = "id -u; id -G; echo home=$HOME user=$USER; cat /etc/resolv.conf";
    let words = ["sh", "-c", script].map(OsString::from);
    let status = spawn_behind(wiring.command.as_ref().unwrap(), &words, || ()).unwrap().wait().unwrap();
    ExitCode::from(exit_code(status))
}

fn a_command_s_environment() {
    let net = Net::new();
    let me = std::env::current_exe().unwrap();
    let resolv = [Scratch::new("stub"), Scratch::new("real")];
    fs::write(&resolv[0].0, "nameserver 127.0.0.53\n").unwrap();
    fs::write(&resolv[1].0, "nameserver 198.51.100.53\n").unwrap();
    // A mount namespace with another resolv.conf, as hosts with a resolver of their own have it.
    let run = |real: bool, user: Option<&str>| {
        let mut script =
            format!("mount --bind {} /etc/resolv.conf && mount -t tmpfs none /run", resolv[0].0.display());
        if real {
            script += &format!(
                " && mkdir -p /run/systemd/resolve && cp {} /run/systemd/resolve/resolv.conf",
                resolv[1].0.display()
            );
        }
        let mut command = net.host.command("unshare");
        command.args(["--mount", "sh", "-c", &format!("{script} && exec {}", me.display())]);
        if let Some(user) = user {
            command.env("SUDO_UID", user).env("SUDO_GID", user);
        }
        succeeds(play(command, "run-a-command"))
    };
    let text = run(true, None);
    assert!(text.contains("/run/systemd/resolve/resolv.conf in the place of /etc/resolv.conf"), "{text}");
    assert!(text.contains("\n0\n") && text.contains("nameserver 198.51.100.53"), "{text}");
    let text = run(false, Some("65534"));
    assert!(
        text.contains("names will not resolve behind the NAT") && text.contains("(127.0.0.53)"),
        "{text}"
    );
    assert!(text.contains("\n65534\n65534\nhome=/nonexistent user=nobody\nnameserver 127.0.0.53"), "{text}");
    // A user without a name.
    let text = run(true, Some("54321"));
    assert!(text.contains("\n54321\n54321\n") && text.contains("nameserver 198.51.100.53"), "{text}");
}

/// A second process that holds a TUN and runs a command until it is killed.
fn hold_tun_and_command() -> ExitCode {
    let settings = Settings { command: Some(Vec::new()), ..with_inside(&["tun0"]) };
    let wiring = Plan::new(&settings).unwrap().apply().unwrap();
    let words = ["sleep", "1000"].map(OsString::from);
    let command = spawn_behind(wiring.command.as_ref().unwrap(), &words, || ()).unwrap();
    fs::write(std::env::var_os("NATBOX_TEST_FILE").unwrap(), command.pid().to_string()).unwrap();
    ready()
}

fn sigkill_undoes_everything() {
    let net = Net::new();
    let before = net.host.state();
    let file = Scratch::new("pid");
    let start = || {
        let mut command = play(self_in(&net.host), "tun-and-command");
        command.env("NATBOX_TEST_FILE", &file.0);
        Ready::start(command)
    };
    for _ in 0..2 {
        let running = start();
        assert!(net.host.ip("addr show tun0").contains("10.64.0.2/24"));
        let pid: i32 = fs::read_to_string(&file.0).unwrap().parse().unwrap();
        let process = fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
        assert!(process.as_raw_fd() >= 0);
        running.kill();
        eventually("the device is gone", || (net.host.state() == before).then_some(()));
        eventually("the command has hung up", || {
            let status = fs::read_to_string(format!("/proc/{pid}/stat")).ok();
            status.is_none_or(|status| status.contains(") Z ")).then_some(())
        });
    }
}
