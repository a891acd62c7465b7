//! What the tests of natbox in the lab share.

#![allow(dead_code, reason = "each test program uses its own part of it")]

pub(crate) mod machine;
pub(crate) mod matrix;
pub(crate) mod peers;
pub(crate) mod pmtu;
pub(crate) mod quick;
pub(crate) mod sniffer;
pub(crate) mod tools;

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use netns_lab::probe::Reflector;
use netns_lab::{Host, Lab, LabError, Nat, Process, program, wait_until};
use serde_json::Value;

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// Deadline for what must happen on a machine that is busy with other tests as well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// The reflector's ports.
pub(crate) const PORTS: [u16; 2] = [3478, 3479];

/// An address beside the lab's N1 that is free for a natbox to own: with it, every port is the NAT's.
pub(crate) const OWN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 21);

/// [`OWN`] as a flag.
pub(crate) const EXTERNAL: &str = "--external=203.0.113.21";

/// What a test returns: any error fails it.
pub(crate) type Tested = Result<(), Box<dyn Error + Send + Sync>>;

/// A reflector on both addresses of the lab's P.
pub(crate) fn reflector(lab: &Lab) -> Result<Reflector, Box<dyn Error + Send + Sync>> {
    let p = lab.host("P")?;
    let [first, second, ..] = *p.addrs() else { return Err("P has two addresses".into()) };
    Ok(p.run(|| Reflector::start([first.into(), second.into()], PORTS))??)
}

/// A UDP socket on a host's first address, which gives up receiving after [`PATIENCE`]; port 0 stands for any.
pub(crate) fn udp(host: &Host, port: u16) -> Result<UdpSocket, Box<dyn Error + Send + Sync>> {
    let at = (host.addr(), port);
    let socket = host.run(|| UdpSocket::bind(at))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends `bytes` and returns where they came from, as the receiver sees it. Sends once: nothing may be lost.
pub(crate) fn seen(
    from: &UdpSocket,
    to: SocketAddr,
    at: &UdpSocket,
    bytes: &[u8],
) -> std::io::Result<SocketAddr> {
    from.send_to(bytes, to)?;
    let mut buffer = [0; 2048];
    let (length, source) = at.recv_from(&mut buffer)?;
    assert_eq!(&buffer[..length], bytes, "another datagram arrived first");
    Ok(source)
}

/// One address of a socket.
pub(crate) fn endpoint(addr: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(addr.into(), port)
}

/// Starts a natbox by hand in the place of a lab's own, with its control socket: for wirings that no topology has. It is
/// killed when the process is dropped.
pub(crate) fn instead_of(nat: &Nat, host: &Host, arguments: &[&str]) -> Result<Process, LabError> {
    nat.stop()?;
    let mut command = host.command(program("natbox")?)?;
    command.args(arguments).arg("--control").arg(nat.control_path());
    let mut natbox = Process::spawn(command)?;
    let up = wait_until(PATIENCE, || nat.show().is_ok() || natbox.wait(Duration::ZERO).is_ok());
    assert!(up && nat.show().is_ok(), "natbox {}: {}", arguments.join(" "), natbox.said());
    Ok(natbox)
}

/// The mappings of a natbox, as `natbox show --json` prints them.
pub(crate) fn mappings(nat: &Nat) -> Result<Vec<Value>, LabError> {
    Ok(nat.show()?["mappings"].as_array().cloned().unwrap_or_default())
}

/// How many mappings of this protocol (`udp`, `tcp`, `icmp`) a natbox has.
pub(crate) fn count(nat: &Nat, protocol: &str) -> Result<usize, LabError> {
    Ok(mappings(nat)?.iter().filter(|mapping| mapping["protocol"] == protocol).count())
}

/// How often a natbox has dropped a packet for this reason.
pub(crate) fn drops(nat: &Nat, reason: &str) -> Result<u64, LabError> {
    let drops = &nat.show()?["drops"];
    Ok(drops[reason].as_u64().unwrap_or_else(|| panic!("there is no reason '{reason}': {drops}")))
}
