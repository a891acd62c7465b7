//! What the fast path must not take: frames that are odd, and the edges of what it does.

mod common;

use std::error::Error;
use std::net::{SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::quick::{Exchange, fast};
use common::tools::{Echo, text};
use common::{EXTERNAL, PATIENCE, Tested};
use etherparse::{IpNumber, Ipv4Header, PacketBuilder};
use netns_lab::harness::{self, Test};
use netns_lab::{Host, Lab, wait_until};
use pnet::datalink::{self, Channel, NetworkInterface};

type Body = fn() -> Tested;

const ON: &str = "--fast-path=on";

fn main() -> ExitCode {
    let tests: [(&str, Body); 5] = [
        ("a_checksum_around_one_that_is_left_open_is_right", a_tunnel_passes),
        ("a_length_that_is_none_is_left_to_natbox", no_length),
        ("what_is_padded_beyond_the_mtu_is_left_to_natbox", padded_beyond_the_mtu),
        ("timers_are_the_engines", timers_are_the_engines),
        ("a_wire_that_is_cut_is_noticed", a_cut_wire_is_noticed),
    ];
    harness::main(tests.into_iter().map(|(name, body)| Test::new(name, body).needs_root()).collect())
}

fn interface(host: &Host, name: &str) -> Result<NetworkInterface, Box<dyn Error + Send + Sync>> {
    let all = host.run(datalink::interfaces)?;
    Ok(all.into_iter().find(|interface| interface.name == name).ok_or("no such interface")?)
}

/// Sends a frame from A to the gateway `count` times: these bytes from the EtherType on.
fn send(lab: &Lab, rest: &[u8], count: usize) -> Tested {
    let (eth0, lan0) = (interface(lab.host("A")?, "eth0")?, interface(lab.host("N1")?, "lan0")?);
    let mut frame = Vec::new();
    for mac in [lan0.mac, eth0.mac] {
        frame.extend(mac.ok_or("an Ethernet address")?.octets());
    }
    frame.extend(rest);
    lab.host("A")?.run(move || {
        let Ok(Channel::Ethernet(mut to, _)) = datalink::channel(&eth0, datalink::Config::default()) else {
            return Err("no channel");
        };
        (0..count).try_for_each(|_| {
            to.send_to(&frame, None).is_some_and(|sent| sent.is_ok()).then_some(()).ok_or("not sent")
        })
    })??;
    Ok(())
}

/// From the EtherType on: a datagram of a flow.
fn datagram(exchange: &Exchange, payload: &[u8]) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (exchange.socket.local_addr()?, exchange.to) else {
        return Err("IPv4".into());
    };
    let builder = PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), 64).udp(from.port(), to.port());
    let mut bytes = vec![8, 0];
    builder.write(&mut bytes, payload)?;
    Ok(bytes)
}

/// A packet that says that it is shorter than its headers is none, however right its checksum.
fn no_length() -> Tested {
    let lab = Lab::up("lan-gateway").nat("N1", "symmetric").nat_args("N1", &[EXTERNAL, ON]).start()?;
    let (a, nat) = (lab.host("A")?, lab.nat("N1")?);
    let _echo = Echo::start(lab.host("S")?, 7)?;
    let mut exchange = Exchange::new(a, &lab)?;
    exchange.until_quick(nat)?;
    let before = fast(nat)?[2];
    let whole = datagram(&exchange, b"0123456789")?;
    for length in [0u16, 19, 20, 27] {
        let mut frame = whole.clone();
        let (header, _) = Ipv4Header::from_slice(&frame[2..])?;
        assert_eq!(header.protocol, IpNumber::UDP);
        frame[4..6].copy_from_slice(&length.to_be_bytes());
        // What the length loses the checksum gains.
        let sum = u32::from(header.header_checksum) + u32::from(header.total_len - length);
        frame[12..14].copy_from_slice(&((sum & 0xffff) as u16 + (sum >> 16) as u16).to_be_bytes());
        send(&lab, &frame, 20)?;
    }
    assert_eq!(fast(nat)?[2], before, "none of them is moved");
    exchange.go_on(Duration::from_millis(100))
}

/// Whatever lies behind a packet is sent along with it, so it counts; natbox cuts it off.
fn padded_beyond_the_mtu() -> Tested {
    let lab = Lab::up("lan-gateway").nat("N1", "symmetric").nat_args("N1", &[EXTERNAL, ON]).start()?;
    let (a, n1, nat) = (lab.host("A")?, lab.host("N1")?, lab.nat("N1")?);
    let _echo = Echo::start(lab.host("S")?, 7)?;
    text(n1, "ip", &["link", "set", "dev", "eth0", "mtu", "1300"])?;
    nat.restart()?;
    let mut exchange = Exchange::new(a, &lab)?;
    exchange.until_quick(nat)?;
    let before = fast(nat)?[2];
    let mut frame = datagram(&exchange, b"padded")?;
    frame.resize(1400, 0);
    send(&lab, &frame, 1)?;
    let mut heard = [0; 16];
    assert_eq!(exchange.socket.recv(&mut heard)?, 6);
    assert_eq!(fast(nat)?[2], before + 1, "the answer is moved");
    // Padding as every short frame has it does no harm.
    frame.truncate(2 + 60);
    send(&lab, &frame, 1)?;
    assert_eq!(exchange.socket.recv(&mut heard)?, 6);
    assert_eq!(fast(nat)?[2], before + 3);
    Ok(())
}

/// What a tunnel carries has a checksum that is left to a device; the tunnel's own is complete.
fn a_tunnel_passes() -> Tested {
    const COUNT: usize = 500;
    for flag in ["--fast-path=off", ON] {
        let lab = Lab::up("lan-gateway").nat("N1", "symmetric").nat_args("N1", &[EXTERNAL, flag]).start()?;
        let (a, s, nat) = (lab.host("A")?, lab.host("S")?, lab.nat("N1")?);
        let ends = [(a, s, "10.9.0.1/24", "02:00:00:00:09:01"), (s, a, "10.9.0.2/24", "02:00:00:00:09:02")];
        for (host, other, addr, mac) in ends {
            let (local, remote) = (host.addr().to_string(), other.addr().to_string());
            let link = ["link", "add", "vx0", "address", mac, "type", "vxlan", "id", "5", "local", &local];
            let tunnel = ["remote", &remote, "dstport", "4789", "udpcsum"];
            text(host, "ip", &[&link[..], &tunnel].concat())?;
            text(host, "ip", &["addr", "add", addr, "dev", "vx0"])?;
            text(host, "ip", &["link", "set", "dev", "vx0", "up"])?;
        }
        text(a, "ip", &["neigh", "replace", "10.9.0.2", "lladdr", ends[1].3, "dev", "vx0"])?;
        let to = s.run(|| UdpSocket::bind("10.9.0.2:9"))??;
        to.set_read_timeout(Some(Duration::from_secs(1)))?;
        let from = a.run(|| UdpSocket::bind("10.9.0.1:9"))??;
        for number in 0..COUNT {
            from.send_to(b"inside", "10.9.0.2:9")?;
            to.recv(&mut [0; 16]).map_err(|error| format!("{flag}: the datagram {number}: {error}"))?;
        }
        assert!(flag != ON || fast(nat)?[2] > 300);
    }
    Ok(())
}

/// The deadline that a program sets is the one that the engine would have set.
fn timers_are_the_engines() -> Tested {
    const TIMEOUT: Duration = Duration::from_secs(300);
    let flags = [EXTERNAL, ON, "--udp-timeout=300s", "--udp-replied-timeout=300s"];
    let lab = Lab::up("hairpin").nat("N1", "symmetric").nat_args("N1", &flags).start()?;
    let (a, nat) = (lab.host("A")?, lab.nat("N1")?);
    let _echo = Echo::start(lab.host("S")?, 7)?;
    let mut exchange = Exchange::new(a, &lab)?;
    exchange.until_quick(nat)?;
    exchange.go_on(Duration::from_millis(100))?;
    let last = Instant::now();
    exchange.once()?;
    let answered = Instant::now();
    let shown: serde_json::Value = serde_json::from_str(&nat.control(&["show", "--sessions", "--json"])?)?;
    let left = shown["sessions"][0]["expires_in_ms"].as_u64().ok_or("a session")?;
    let left = Duration::from_millis(left);
    assert!(fast(nat)?[0] == 1 && left <= TIMEOUT, "{left:?}");
    // One millisecond is cut off.
    let least = TIMEOUT.saturating_sub(last.elapsed() + Duration::from_millis(1));
    assert!(left >= least, "{left:?} are left, {:?} after the last answer", answered.elapsed());
    Ok(())
}

/// A wire's ends are in the hands of others, who may take one away or set it down: then natbox moves packets by itself.
fn a_cut_wire_is_noticed() -> Tested {
    for (at, how) in [("A", "delete"), ("A", "down"), ("N1", "delete"), ("N1", "down")] {
        let lab = Lab::up("hairpin").nat("N1", "symmetric").nat_args("N1", &[EXTERNAL, ON]).start()?;
        let (a, nat) = (lab.host("A")?, lab.nat("N1")?);
        let _echo = Echo::start(lab.host("S")?, 7)?;
        let mut exchange = Exchange::new(a, &lab)?;
        exchange.until_quick(nat)?;
        let links = text(a, "ip", &["-o", "link"])?;
        let wire = links.split([' ', ':', '@']).find(|word| word.starts_with("nb") && word.ends_with("w0"));
        let wire = wire.ok_or("a wire")?;
        let cut: &[&str] =
            if how == "delete" { &["delete", "dev", wire] } else { &["set", "dev", wire, how] };
        text(lab.host(at)?, "ip", &[&["link"][..], cut].concat())?;
        exchange.socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        assert!(wait_until(PATIENCE, || exchange.once().is_ok()), "{how} at {at}: nothing passes");
        exchange.go_on(Duration::from_secs(1))?;
        assert_eq!(fast(nat)?[0], 0, "{how} at {at}");
    }
    Ok(())
}
