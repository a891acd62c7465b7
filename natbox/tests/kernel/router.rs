//! A Linux router in a namespace of the test's own: two TUN devices, masquerade between them, and a home router's firewall.
//!
//! A packet that is written into a TUN goes all the way through the kernel before the write returns: what it becomes can
//! be read at once, and nothing waits for anything.

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    net::Ipv4Addr,
    os::fd::{FromRawFd, IntoRawFd},
    process::Stdio,
};

use natbox_core::Side;

use super::{Inward, Raw, host_space::Space};

/// The rules of `netns-scripts/nat.sh` for `kernel`, with the TUN's name.
const MASQUERADE: &str = "table ip nat_test {
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname \"outside\" masquerade
    }
}";
const FIREWALL: &str = "table ip nat_test {
    chain input {
        type filter hook input priority filter
        iifname \"outside\" ct state established,related accept
        iifname \"outside\" drop
    }
    chain forward {
        type filter hook forward priority filter
        ct state invalid drop
        iifname \"outside\" ct state new drop
    }
}";

/// Every timer of connection tracking that the sequences meet.
const TIMERS: [&str; 13] = [
    "udp_timeout",
    "udp_timeout_stream",
    "icmp_timeout",
    "tcp_timeout_syn_sent",
    "tcp_timeout_syn_recv",
    "tcp_timeout_established",
    "tcp_timeout_max_retrans",
    "tcp_timeout_unacknowledged",
    "tcp_timeout_fin_wait",
    "tcp_timeout_close_wait",
    "tcp_timeout_last_ack",
    "tcp_timeout_time_wait",
    "tcp_timeout_close",
];

pub(crate) struct Router {
    inside: File,
    outside: File,
    pub(crate) space: Space,
}

impl Router {
    /// `open`: without a firewall, as `kernel-open`.
    pub(crate) fn new(gateway: Ipv4Addr, external: Ipv4Addr, open: bool) -> Router {
        let space = Space::new();
        let [inside, outside] = ["inside", "outside"].map(|name| {
            let file = space.run(|| tun(name));
            space.ip(&format!("link set {name} addrgenmode none"));
            space.ip(&format!("link set {name} txqueuelen 1000 up"));
            file
        });
        space.ip(&format!("addr add {gateway}/8 dev inside"));
        space.ip(&format!("addr add {external}/24 dev outside"));
        space.ip("route add default dev outside");
        space.sysctl("net/ipv4/ip_forward", "1");
        space.sysctl("net/ipv4/icmp_ratelimit", "0");
        nft(&space, MASQUERADE);
        if !open {
            nft(&space, FIREWALL);
        }
        Router { inside, outside, space }
    }

    /// Sets every timer to so many seconds.
    pub(crate) fn set_timers(&self, seconds: u64) {
        self.space.run(|| {
            for timer in TIMERS {
                let path = format!("/proc/sys/net/netfilter/nf_conntrack_{timer}");
                std::fs::write(path, seconds.to_string()).unwrap();
            }
        });
    }

    /// Whoever lists the table of connections clears out what is over.
    pub(crate) fn forget_expired(&self) {
        self.space.run(|| std::fs::read("/proc/thread-self/net/nf_conntrack").map(drop)).unwrap();
    }

    /// What a timer of connection tracking is set to, in seconds.
    pub(crate) fn timer(&self, name: &str) -> u64 {
        self.space
            .run(|| std::fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}")))
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }

    /// A packet comes in from one side; what leaves, and where.
    pub(crate) fn handle(&mut self, from: Inward, packet: &Raw) -> Vec<(Side, Raw)> {
        let device = if from == Inward::Outbound { &mut self.inside } else { &mut self.outside };
        device.write_all(&packet.bytes).unwrap();
        let mut out = Vec::new();
        read_all(&mut self.outside, Side::Outside, &mut out);
        read_all(&mut self.inside, Side::Inside(super::INSIDE), &mut out);
        out
    }
}

fn read_all(device: &mut File, side: Side, out: &mut Vec<(Side, Raw)>) {
    let mut buffer = [0; 2048];
    loop {
        match device.read(&mut buffer) {
            // Whatever else the kernel says by itself is not about our packets.
            Ok(length) if buffer[0] >> 4 == 4 && [1, 6, 17].contains(&buffer[9]) => {
                out.push((side, Raw::new(buffer[..length].to_vec())));
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("{error}"),
        }
    }
}

fn tun(name: &str) -> File {
    let mut configuration = tun::Configuration::default();
    configuration.tun_name(name).platform_config(|platform| {
        platform.ensure_root_privileges(false);
    });
    let device = tun::create(&configuration).unwrap();
    device.set_nonblock().unwrap();
    // SAFETY: the device gives its descriptor up, and nobody else knows it.
    unsafe { File::from_raw_fd(device.into_raw_fd()) }
}

fn nft(space: &Space, rules: &str) {
    let mut command = space.command("nft");
    let mut child = command.args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "nft refuses the rules");
}
