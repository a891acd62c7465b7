//! `traverse forward` and `traverse expose` on this machine: what goes through is what it was, and ends as it ended.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, UdpSocket},
    process::Stdio,
    time::{Duration, Instant},
};

use crate::common::{Program, World, wait_until};
use crate::services::{connect, echo, free_port, peak_memory, reset, udp, udp_echo};
use nix::sys::signal::Signal;

/// `traverse expose`, when it does, and its id.
fn expose(world: &World, who: &str, arguments: &[&str]) -> (Program, String) {
    let program = world.start(who, &[&["expose"], arguments].concat(), Stdio::null());
    program.tells("exposing");
    let said = program.said();
    let words: Vec<_> = said.lines().find(|line| line.starts_with("exposing")).unwrap().split(' ').collect();
    let at = words.iter().position(|word| *word == "PORT").unwrap();
    (program, words[at + 1].to_owned())
}

/// `traverse forward`, when it does.
fn forward(world: &World, arguments: &[&str]) -> Program {
    let program = world.start("a", &[&["forward"], arguments].concat(), Stdio::null());
    program.tells("leads to");
    program
}

/// Somebody who exposes `target`, somebody who forwards a port to it, and that port.
fn joined(world: &World, target: SocketAddr) -> (Program, Program, SocketAddr) {
    let (exposing, id) = expose(world, "s", &[&target.to_string()]);
    let local = free_port();
    let forwarding = forward(world, &["--local", &local.to_string(), &id, &target.to_string()]);
    (exposing, forwarding, local)
}

#[test]
fn each_direction_has_its_own_end() {
    let world = World::new("half-close");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_exposing, _forwarding, local) = joined(&world, listener.local_addr().unwrap());

    let mut client = connect(local);
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let mut heard = String::new();
    // To its end, while the other direction is open.
    server.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "question");
    server.write_all(b"answer").unwrap();
    drop(server);
    heard.clear();
    client.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "answer");

    // And the other way round.
    let mut client = connect(local);
    let (mut server, _) = listener.accept().unwrap();
    server.write_all(b"welcome").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    heard.clear();
    client.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "welcome");
    client.write_all(b"thanks").unwrap();
    drop(client);
    heard.clear();
    server.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "thanks");
}

#[test]
fn a_reset_is_a_reset_at_the_other_end() {
    let world = World::new("reset");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_exposing, _forwarding, local) = joined(&world, listener.local_addr().unwrap());
    for from_client in [true, false] {
        let mut client = connect(local);
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
        let (gone, mut left) = if from_client { (client, server) } else { (server, client) };
        left.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // Also while one direction has ended already.
        left.shutdown(Shutdown::Write).unwrap();
        reset(gone);
        assert_eq!(left.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

#[test]
fn who_does_not_read_is_not_written_to() {
    /// More than all windows and buffers on the way, and less than a program may take.
    const MUCH: usize = 96 << 20;
    let world = World::new("back-pressure");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (exposing, forwarding, local) = joined(&world, listener.local_addr().unwrap());
    let mut client = connect(local);
    let (mut server, _) = listener.accept().unwrap();
    let content: Vec<u8> = (0..MUCH).map(|at| ((at * 31) >> 7) as u8).collect();

    client.set_nonblocking(true).unwrap();
    let (mut sent, mut last) = (0, Instant::now());
    // Nothing has gone any further for as long as it takes to be sure.
    while sent < MUCH && last.elapsed() < Duration::from_secs(2) {
        match client.write(&content[sent..]) {
            Ok(length) => (sent, last) = (sent + length, Instant::now()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(sent < MUCH / 2, "{sent} bytes were taken for somebody who does not read");
    for program in [&exposing, &forwarding] {
        let peak = peak_memory(program.id());
        assert!(peak < 64 << 20, "{peak} bytes of memory");
    }
    // Others are not held up by it.
    let mut other = connect(local);
    let (mut its_server, _) = listener.accept().unwrap();
    other.write_all(b"x").unwrap();
    its_server.read_exact(&mut [0]).unwrap();

    client.set_nonblocking(false).unwrap();
    let rest = content[sent..].to_vec();
    let writing = std::thread::spawn(move || {
        client.write_all(&rest).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        client
    });
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).unwrap();
    assert!(heard == content, "{} bytes of {MUCH} arrived, or others", heard.len());
    drop(writing.join().unwrap());
}

#[test]
fn many_connections_at_a_time() {
    let world = World::new("many");
    let target = echo();
    let (_exposing, forwarding, local) = joined(&world, target);
    let mut clients: Vec<_> = (0..200).map(|_| connect(local)).collect();
    for round in 0..3u8 {
        for (number, client) in clients.iter_mut().enumerate() {
            client.write_all(&[round, number as u8]).unwrap();
        }
        for (number, client) in clients.iter_mut().enumerate() {
            let mut heard = [0; 2];
            client.read_exact(&mut heard).unwrap();
            assert_eq!(heard, [round, number as u8]);
        }
    }
    // As many as may be, and then one more: it is turned away, and told of.
    clients.extend((200..256).map(|_| connect(local)));
    for client in &mut clients {
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
    let mut more = connect(local);
    assert!(matches!(more.read(&mut [0]), Err(error) if error.kind() == ErrorKind::ConnectionReset));
    forwarding.tells("as many connections as may be are open");
    drop(clients);
    let again = wait_until(|| {
        let mut client = connect(local);
        client.write_all(b"x").is_ok() && client.read_exact(&mut [0]).is_ok()
    });
    assert!(again, "no room again: {}", forwarding.said());
}

#[test]
fn refusals_are_told_apart() {
    let world = World::new("refusals");
    let nobody = free_port();
    let (exposing, id) = expose(&world, "s", &[&nobody.to_string(), "no-such-host.invalid:80"]);
    let local = free_port().to_string();
    let refused = |target: &str, words: &[&str]| {
        let mut forwarding = world.start("a", &["forward", "--local", &local, &id, target], Stdio::null());
        forwarding.exits(1, words);
    };
    refused(
        "127.0.0.1:22",
        &["traverse: the peer does not allow 127.0.0.1:22: there, traverse expose 127.0.0.1:22"],
    );
    refused("udp.example:22", &["the peer does not allow udp.example:22"]);
    exposing.tells("tcp 127.0.0.1:22, which is not allowed here");
    let remote = ["forward", "--remote", "8080", &id, "127.0.0.1:22"];
    world
        .start("a", &remote, Stdio::null())
        .exits(1, &["does not allow listening at 127.0.0.1:8080", "--listen 127.0.0.1:8080"]);

    let forwarding = forward(&world, &["--local", &local, &id, &nobody.to_string()]);
    let mut client = connect(local.parse().unwrap());
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    forwarding.tells(&format!("the peer cannot reach {nobody}: connection refused, nobody listens there"));
    exposing.tells(&format!("tcp {nobody}, wanted by"));
    drop(forwarding);

    let forwarding = forward(&world, &["--local", &local, &id, "no-such-host.invalid:80"]);
    let mut client = connect(local.parse().unwrap());
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    forwarding.tells("the peer cannot reach no-such-host.invalid:80: its name is unknown there");
}

#[test]
fn what_is_wrong_is_said_at_once() {
    let world = World::new("wrong");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let (_listener, id) = world.listen("s", &["--keep"], Stdio::null());
    let refused = |arguments: &[&str], code, words: &[&str]| {
        let mut forwarding = world.start("a", &[&["forward"], arguments].concat(), Stdio::null());
        forwarding.exits(code, words);
    };
    refused(&["--local", &at, &id, "80"], 1, &["cannot listen at tcp", &at, "another program listens there"]);
    refused(&["--local", "192.0.2.1:80", &id, "80"], 1, &["192.0.2.1:80", "the address is not"]);
    let local = free_port().to_string();
    refused(&["--local", &local, &id, "80"], 1, &["the peer exposes nothing: there, traverse expose"]);
    refused(&["--local", &local, &id], 2, &["where does", &local]);
    refused(&["--local", &format!("{local}=80"), &id, "81"], 2, &["no port leads to 127.0.0.1:81"]);
    refused(&[&id, "81"], 2, &["--local"]);
    refused(&["--local", "x", &id, "81"], 2, &["--local", "no port"]);
    let mut exposing = world.start("b", &["expose"], Stdio::null());
    exposing.exits(2, &["TARGET"]);
    let mut exposing = world.start("b", &["expose", "10.0.0.0/40:80"], Stdio::null());
    exposing.exits(2, &["no range of addresses"]);
    let (_exposing, id) = expose(&world, "c", &["80", "--allow", &id]);
    refused(&["--local", &local, &id, "80"], 1, &["does not admit us"]);
}

#[test]
fn the_other_way_round() {
    let world = World::new("reverse");
    let (tcp, datagrams) = (echo(), udp_echo());
    let [at, udp_at] = [free_port(), free_port()];
    let (exposing, id) =
        expose(&world, "s", &["--listen", &at.to_string(), "--listen", &format!("udp:{udp_at}")]);
    let mut forwarding = forward(
        &world,
        &["--remote", &format!("{at}={tcp}"), "-R", &format!("udp:{udp_at}={datagrams}"), &id],
    );
    exposing.tells(&format!("listening at tcp {at}"));
    let mut client = connect(at);
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut heard = String::new();
    client.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "hello");
    let client = udp();
    client.send_to(b"hello", udp_at).unwrap();
    let mut buffer = [0; 9];
    assert_eq!(client.recv_from(&mut buffer).unwrap(), (5, udp_at));
    // When the one who asked has gone, nobody listens any more.
    forwarding.signal(Signal::SIGTERM);
    forwarding.exits(143, &[]);
    exposing.tells("is gone");
    assert!(wait_until(|| TcpListener::bind(at).is_ok()));
}

#[test]
fn packets_stay_whole_whatever_their_size() {
    let world = World::new("packets");
    let target = udp_echo();
    let (_exposing, id) = expose(&world, "s", &[&format!("udp:{target}")]);
    let local = free_port();
    let _forwarding = forward(&world, &["--udp", "--local", &local.to_string(), &id, &target.to_string()]);
    let clients = [udp(), udp()];
    let mut buffer = vec![0; 65_535];
    for length in [0, 1, 1000, 1200, 1300, 1472, 9000, 65_507] {
        let packet: Vec<u8> = (0..length).map(|at| (at * 7) as u8).collect();
        for client in &clients {
            client.send_to(&packet, local).unwrap();
        }
        for client in &clients {
            let (heard, from) = client.recv_from(&mut buffer).unwrap();
            assert_eq!((heard, from), (length, local));
            assert!(buffer[..heard] == packet, "{length} bytes have changed");
        }
    }
}

#[test]
fn an_idle_flow_ends_and_a_dead_target_is_told() {
    let world = World::new("idle");
    let (target, nobody) = (udp_echo(), free_port());
    let (_exposing, id) = expose(&world, "s", &[&format!("udp:{target}"), &format!("udp:{nobody}")]);
    let [local, dead] = [free_port(), free_port()];
    let (to_echo, to_nobody) = (format!("udp:{local}={target}"), format!("udp:{dead}={nobody}"));
    let arguments = ["--json", "--udp-idle", "1", "--local", &to_echo, "--local", &to_nobody, &id];
    let forwarding = world.start("a", &[&["forward"], &arguments[..]].concat(), Stdio::null());
    forwarding.tells("\"forwarding\"");
    let client = udp();
    for _ in 0..2 {
        let before = forwarding.said().matches("\"flows\":0").count();
        client.send_to(b"hello", local).unwrap();
        assert_eq!(client.recv_from(&mut [0; 9]).unwrap(), (5, local));
        let ended = || forwarding.said().matches("\"flows\":0").count() > before;
        assert!(wait_until(ended), "the flow goes on: {}", forwarding.said());
    }
    client.send_to(b"hello", dead).unwrap();
    let told = || {
        // The first packet finds it out, the next one is told.
        client.send_to(b"hello", dead).is_ok() && forwarding.said().contains("\"why\":\"refused\"")
    };
    assert!(wait_until(told), "{}", forwarding.said());
}

#[test]
fn the_port_stays_when_the_peer_goes_and_comes_back() {
    let world = World::new("again");
    let target = echo();
    let (mut exposing, id) = expose(&world, "s", &[&target.to_string()]);
    let local = free_port();
    let mut forwarding = forward(&world, &["--local", &local.to_string(), &id, &target.to_string()]);
    let mut open = connect(local);
    open.write_all(b"x").unwrap();
    open.read_exact(&mut [0]).unwrap();

    exposing.signal(Signal::SIGINT);
    exposing.exits(130, &[]);
    // What was open is cut off, which is no end.
    assert_eq!(open.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    forwarding.tells("the connection is lost (the peer ended it (interrupted)); making it again");
    let mut early = connect(local);
    assert_eq!(early.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    forwarding.tells("is not registered");

    let (_exposing, _) = expose(&world, "s", &[&target.to_string()]);
    let back = wait_until(|| {
        let mut client = connect(local);
        client.write_all(b"x").is_ok() && client.read_exact(&mut [0]).is_ok()
    });
    assert!(back, "not again: {}", forwarding.said());
    forwarding.signal(Signal::SIGINT);
    forwarding.exits(130, &["sent", "received"]);
}

/// The same with the supernode gone as well, and nobody has said goodbye.
#[test]
fn all_of_it_is_killed_and_comes_back() {
    let mut world = World::new("killed");
    let target = echo();
    let (exposing, forwarding, local) = joined(&world, target);
    let answers = || {
        let mut client = connect(local);
        client.write_all(b"x").is_ok() && client.read_exact(&mut [0]).is_ok()
    };
    assert!(wait_until(answers));
    exposing.signal(Signal::SIGKILL);
    world.supernode_ends();
    drop(exposing);
    world.supernode_begins();
    let (_exposing, _) = expose(&world, "s", &[&target.to_string()]);
    // Nothing tells that the connection is over, but that nobody answers.
    assert!(wait_until(answers), "{}", forwarding.said());
}

#[test]
fn a_socket_that_is_there_for_another_protocol_is_no_hindrance() {
    let world = World::new("both");
    let (tcp, datagrams) = (echo(), udp_echo());
    let (_exposing, id) = expose(&world, "s", &[&tcp.to_string(), &format!("udp:{datagrams}")]);
    let local = free_port();
    let (one, other) = (format!("{local}={tcp}"), format!("udp:{local}={datagrams}"));
    let forwarding = forward(&world, &["--local", &one, "--local", &other, &id]);
    forwarding.tells(&format!("udp {local} leads to {datagrams}"));
    let client: UdpSocket = udp();
    client.send_to(b"x", local).unwrap();
    assert_eq!(client.recv_from(&mut [0; 9]).unwrap(), (1, local));
    let mut client = connect(local);
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
}
