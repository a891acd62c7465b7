//! What a carrier sets, with real sockets behind the real program: shares that run out and are told, rates, port blocks,
//! ports at rest, and a pool of external addresses.

mod common;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::Instant;

use common::tools::{Echo, answers, connect, set_option};
use common::{EXTERNAL, OWN, PATIENCE, Tested, drops, endpoint, seen, udp};
use netns_lab::harness::{self, Test};
use netns_lab::{Host, Lab, LabError, Nat, wait_until};
use serde_json::Value;

/// The server's port.
const PORT: u16 = 7000;

fn main() -> ExitCode {
    harness::main(vec![
        Test::new("who_has_had_his_share_is_told", who_has_had_his_share_is_told),
        Test::new("a_share_of_sessions_is_told_too", a_share_of_sessions_is_told_too),
        Test::new("mappings_are_made_at_a_rate", mappings_are_made_at_a_rate),
        Test::new("ports_come_in_blocks", ports_come_in_blocks),
        Test::new("ports_rest", ports_rest),
        Test::new("a_pool_is_shared_out_in_pairs", a_pool_is_shared_out_in_pairs),
    ])
}

/// A client that sends to `to` and learns what becomes of it: nothing of an ICMP error is kept from it.
fn client(host: &Host, to: SocketAddr) -> Result<UdpSocket, Box<dyn std::error::Error + Send + Sync>> {
    let socket = udp(host, 0)?;
    set_option(&socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1)?;
    socket.connect(to)?;
    Ok(socket)
}

/// What a client hears: an echo of what it sends, or why not.
fn exchanged(socket: &UdpSocket) -> io::Result<()> {
    socket.send(b"hello")?;
    let length = socket.recv(&mut [0; 16])?;
    assert_eq!(length, 5);
    Ok(())
}

fn errno(result: io::Result<()>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// `natbox show --subscribers` for one host.
fn subscriber(nat: &Nat, host: &Host) -> Result<Value, LabError> {
    let said = nat.control(&["show", "--subscribers", "--json", "--host", &host.addr().to_string()])?;
    let state: Value = serde_json::from_str(&said).expect("JSON");
    let all = state["subscribers"].as_array().expect("a list");
    assert_eq!(all.len(), 1, "{state}");
    Ok(all[0].clone())
}

/// By whichever code it is told: a client's connection fails at once, with an errno, and others go on.
fn who_has_had_his_share_is_told() -> Tested {
    let flags = [EXTERNAL, "--subscriber-mappings=3"];
    let lab = Lab::up("hairpin").nat("N1", "cgnat").nat_args("N1", &flags).start()?;
    let (a, b, s, nat) = (lab.host("A")?, lab.host("B")?, lab.host("S")?, lab.nat("N1")?);
    let _echo = Echo::start(s, PORT)?;
    let to = endpoint(s.addr(), PORT);
    let held: Vec<_> = (0..3).map(|_| client(a, to)).collect::<Result<_, _>>()?;
    for socket in &held {
        exchanged(socket)?;
    }
    let mut refused = 0;
    for exhaustion in ["host-unreachable", "prohibited"] {
        nat.set(&["--exhaustion", exhaustion])?;
        assert_eq!(errno(exchanged(&client(a, to)?)), Some(libc::EHOSTUNREACH), "{exhaustion}: UDP");
        let asked = Instant::now();
        assert_eq!(errno(connect(a, to).map(drop)), Some(libc::EHOSTUNREACH), "{exhaustion}: TCP");
        assert!(asked.elapsed() < PATIENCE, "{exhaustion}: the client gave up by itself");
        refused += 2;
    }
    assert_eq!(drops(nat, "subscriber-mappings")?, refused);
    let shown = subscriber(nat, a)?;
    assert_eq!((&shown["mappings"], &shown["refused"]), (&3.into(), &refused.into()), "{shown}");
    exchanged(&client(b, to)?)?;
    assert_eq!(subscriber(nat, b)?["refused"], 0, "nobody else feels it");
    for socket in &held {
        exchanged(socket)?;
    }

    // In silence, where that is the behaviour; and a share that grows is there at once.
    nat.set(&["--exhaustion", "drop"])?;
    let patient = client(a, to)?;
    patient.send(b"hello")?;
    assert!(wait_until(PATIENCE, || drops(nat, "subscriber-mappings").is_ok_and(|count| count > refused)));
    nat.set(&["--subscriber-mappings", "4"])?;
    exchanged(&patient)?;
    Ok(())
}

fn a_share_of_sessions_is_told_too() -> Tested {
    let flags = [EXTERNAL, "--subscriber-sessions=4"];
    let lab = Lab::up("hairpin").nat("N1", "cgnat").nat_args("N1", &flags).start()?;
    let (a, s, p, nat) = (lab.host("A")?, lab.host("S")?, lab.host("P")?, lab.nat("N1")?);
    let _echo = Echo::start(s, PORT)?;
    let open: Vec<_> = (0..4).map(|_| connect(a, endpoint(s.addr(), PORT))).collect::<Result<_, _>>()?;
    let refused = connect(a, endpoint(p.addr(), PORT)).map(drop);
    assert_eq!(errno(refused), Some(libc::EHOSTUNREACH));
    assert_eq!(drops(nat, "subscriber-sessions")?, 1);
    let shown = subscriber(nat, a)?;
    assert_eq!((&shown["sessions"], &shown["refused"]), (&4.into(), &1.into()), "{shown}");
    drop(open);
    Ok(())
}

/// Five at once and one a second after that.
fn mappings_are_made_at_a_rate() -> Tested {
    let flags = [EXTERNAL, "--subscriber-mapping-rate=1/5"];
    let lab = Lab::up("hairpin").nat("N1", "cgnat").nat_args("N1", &flags).start()?;
    let (a, b, s, nat) = (lab.host("A")?, lab.host("B")?, lab.host("S")?, lab.nat("N1")?);
    let _echo = Echo::start(s, PORT)?;
    let to = endpoint(s.addr(), PORT);
    let begun = Instant::now();
    let mut passed = 0;
    let late = loop {
        let socket = client(a, to)?;
        match errno(exchanged(&socket)) {
            None => passed += 1,
            Some(code) => {
                assert_eq!(code, libc::EHOSTUNREACH);
                break socket;
            }
        }
    };
    let earned = begun.elapsed().as_secs() + 1;
    assert!((5..=5 + earned).contains(&passed), "{passed} in {:?}", begun.elapsed());
    assert!(drops(nat, "subscriber-rate")? >= 1);
    exchanged(&client(b, to)?)?;
    assert!(answers(&late, to, PATIENCE), "its time never comes");
    Ok(())
}

/// Where the server has seen so many sockets of a host come from.
fn sources(
    host: &Host,
    server: &UdpSocket,
    count: usize,
) -> Result<Vec<SocketAddr>, Box<dyn std::error::Error + Send + Sync>> {
    let to = server.local_addr()?;
    // All are open at once, so that no port is used twice.
    let sockets: Vec<_> = (0..count).map(|_| udp(host, 0)).collect::<Result<_, _>>()?;
    sockets.iter().map(|socket| Ok(seen(socket, to, server, b"who am I?")?)).collect()
}

/// All of a host's ports are in its block, which `natbox show` names; when that is full, it is told.
fn ports_come_in_blocks() -> Tested {
    let flags = [EXTERNAL, "--port-block=16", "--subscriber-blocks=1", "--port-parity=off"];
    let lab = Lab::up("hairpin").nat("N1", "cgnat-blocks").nat_args("N1", &flags).start()?;
    let (a, b, s, nat) = (lab.host("A")?, lab.host("B")?, lab.host("S")?, lab.nat("N1")?);
    let server = udp(s, PORT)?;
    let mut blocks = BTreeSet::new();
    for host in [a, b] {
        let seen = sources(host, &server, 16)?;
        let ports: BTreeSet<u16> = seen.iter().map(SocketAddr::port).collect();
        let (first, last) = (ports.first().expect("ports"), ports.last().expect("ports"));
        assert_eq!(
            (ports.len(), first % 16, last - first),
            (16, 0, 15),
            "every port of one block: {ports:?}"
        );
        let shown = subscriber(nat, host)?;
        assert_eq!(shown["blocks"], serde_json::json!([format!("{OWN}:{first}-{last}")]));
        assert_eq!(shown["external"], serde_json::json!([OWN.to_string()]));
        blocks.insert(*first);
    }
    assert_eq!(blocks.len(), 2, "one for each");
    let to = endpoint(s.addr(), PORT);
    assert_eq!(errno(exchanged(&client(a, to)?)), Some(libc::EHOSTUNREACH), "the seventeenth");
    assert_eq!(nat.show()?["status"]["port_blocks"], 2);
    Ok(())
}

/// A port that was given back is nobody's before its time.
fn ports_rest() -> Tested {
    let flags = [EXTERNAL, "--port-range=5000-5001", "--port-parity=off", "--port-quarantine=1h"];
    let lab = Lab::up("hairpin").nat("N1", "cgnat").nat_args("N1", &flags).start()?;
    let (a, b, s, nat) = (lab.host("A")?, lab.host("B")?, lab.host("S")?, lab.nat("N1")?);
    let server = udp(s, PORT)?;
    let mut ports = BTreeSet::new();
    for host in [a, b] {
        ports.extend(sources(host, &server, 1)?.iter().map(SocketAddr::port));
        nat.flush()?;
    }
    assert_eq!(ports, BTreeSet::from([5000, 5001]), "the second got the port that didn't rest");
    assert_eq!(nat.show()?["status"]["resting_ports"], 2);
    let to = endpoint(s.addr(), PORT);
    assert_eq!(errno(exchanged(&client(a, to)?)), Some(libc::EHOSTUNREACH));
    assert_eq!(drops(nat, "ports-exhausted")?, 1);
    drop(server);
    let _echo = Echo::start(s, PORT)?;
    nat.set(&["--port-quarantine", "1s"])?;
    let socket = udp(a, 0)?;
    assert!(answers(&socket, to, PATIENCE), "they rest for ever");
    Ok(())
}

/// Two addresses: a host keeps to one of them, for whatever it does, unless the pool is arbitrary.
fn a_pool_is_shared_out_in_pairs() -> Tested {
    const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 22);
    let both = ["--external=203.0.113.21", "--external=203.0.113.22"];
    let lab = Lab::up("hairpin").nat("N1", "cgnat").nat_args("N1", &both).start()?;
    let (a, b, s, nat) = (lab.host("A")?, lab.host("B")?, lab.host("S")?, lab.nat("N1")?);
    let server = udp(s, PORT)?;
    let at = (s.addr(), PORT);
    let listener = s.run(|| std::net::TcpListener::bind(at))??;
    let of = |host: &Host| -> Result<BTreeSet<IpAddr>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(sources(host, &server, 40)?.iter().map(SocketAddr::ip).collect())
    };
    for host in [a, b] {
        let mut addresses = of(host)?;
        let _stream = connect(host, at.into())?;
        addresses.insert(listener.accept()?.1.ip());
        let [address] = addresses.iter().collect::<Vec<_>>()[..] else { panic!("{addresses:?}") };
        assert!([OWN, OTHER].map(IpAddr::V4).contains(address));
        assert_eq!(subscriber(nat, host)?["external"], serde_json::json!([address.to_string()]));
    }
    nat.set(&["--pooling", "arbitrary"])?;
    assert_eq!(of(a)?, BTreeSet::from([OWN, OTHER].map(IpAddr::V4)));
    let shown = subscriber(nat, a)?;
    assert_eq!(shown["external"], serde_json::json!([OWN.to_string(), OTHER.to_string()]));
    Ok(())
}
