//! The datapath on a real kernel: ports by themselves, and the gateway between namespaces of a test's own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod gateway;
#[path = "../host_space/mod.rs"]
mod host_space;
mod ports;

use std::{net::Ipv4Addr, process::ExitCode};

use host_space::trial;
use libtest_mimic::Arguments;
use natbox::settings::Settings;

/// Where the router is that namespaces of a [`Net`](host_space::Net) go out by.
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Settings for several workers.
trait With {
    /// The same with so many workers.
    fn with(self, workers: usize) -> Settings;
}

impl With for Settings {
    fn with(self, workers: usize) -> Settings {
        Settings { workers: workers.to_string().parse().unwrap(), ..self }
    }
}

fn main() -> ExitCode {
    let tests: [(&str, fn()); 24] = [
        ("a ring receives what the kernel owes", || ports::receives_what_is_owed(true)),
        ("a plain socket receives what the kernel owes", || ports::receives_what_is_owed(false)),
        ("without offload nothing is owed that is not known", ports::receives_without_offload),
        ("only what is ours is received", ports::only_ours),
        (
            "an interface that is down is waited for, one that is gone is told",
            ports::interface_comes_and_goes,
        ),
        ("a TUN may be taken down, moved and removed", ports::tun_comes_and_goes),
        ("what is not a TUN or not Ethernet is refused", ports::wrong_devices),
        ("two ports on one interface share its frames, each once", ports::shared_between_two),
        ("two queues of a TUN share its flows", ports::queues_of_a_tun),
        ("bulk TCP crosses in super-frames", || gateway::bulk(true, 1)),
        ("bulk TCP crosses without offload", || gateway::bulk(false, 1)),
        ("bulk TCP crosses two workers", || gateway::bulk(true, 2)),
        ("bulk TCP in single segments is joined", gateway::bulk_of_single_segments),
        ("UDP super-frames are cut where they were joined", || gateway::udp_super_frames(true)),
        ("UDP super-frames are cut here without offload", || gateway::udp_super_frames(false)),
        ("the gateway outlives an outside that goes down", gateway::outside_comes_and_goes),
        ("the gateway ends when its outside is removed", || gateway::outside_is_removed(1)),
        ("three workers end when their outside is removed", || gateway::outside_is_removed(3)),
        ("an address of natbox's own answers ARP and ping", || gateway::owned_address(1)),
        ("an address of natbox's own answers at any worker", || gateway::owned_address(3)),
        ("a LAN is served", || gateway::lan(1)),
        ("a LAN is served by two workers", || gateway::lan(2)),
        ("many inside devices, one of which is removed", || gateway::many_inside(1)),
        ("many inside devices of two workers", || gateway::many_inside(2)),
    ];
    let tests = tests.into_iter().map(|(name, test)| trial(name, test)).collect();
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}
