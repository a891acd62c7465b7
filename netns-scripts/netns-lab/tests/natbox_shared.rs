//! natbox on an address that its host uses as well: the host doesn't notice it, nobody hears the host answer for it,
//! and nothing of it is left when it ends, however it ends.

mod common;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::machine::{difference, state, tcx_programs};
use common::sniffer::{Heard, Sniffer, What};
use common::tools::{Echo, answers, connect, exchange, ping, text};
use common::{PATIENCE, Tested, endpoint, mappings, reflector, seen, udp};
use netns_lab::harness::{self, Test};
use netns_lab::probe::{self, Source};
use netns_lab::{Host, Lab, LabError, Nat, wait_until};

fn main() -> ExitCode {
    let mut tests = Vec::new();
    for guard in ["tcx", "nftables"] {
        tests.push(Test::new(format!("{guard}_the_host_lives_on"), move || the_host_lives_on(guard)));
        tests.push(Test::new(format!("{guard}_the_host_is_silent"), move || the_host_is_silent(guard)));
        tests.push(Test::new(format!("{guard}_sigkill_undoes_everything"), move || {
            the_end_undoes_everything(guard, Nat::kill)
        }));
        tests.push(Test::new(format!("{guard}_sigterm_undoes_everything"), move || {
            the_end_undoes_everything(guard, Nat::stop)
        }));
    }
    tests.push(Test::new("without_a_guard_the_host_is_heard", without_a_guard_the_host_is_heard));
    tests.push(Test::new("ports_of_the_host_are_left_alone", ports_of_the_host_are_left_alone));
    harness::main(tests)
}

/// A lab whose H guards itself so. Inside a user namespace the kernel refuses tcx, and natbox has to say so; `None` then.
fn shared(guard: &str) -> Result<Option<Lab>, LabError> {
    let flag = format!("--guard={guard}");
    match Lab::up("shared-address")
        .nat("H", "port-restricted")
        .nat_args("H", &[flag, "--unsolicited-syn=drop".into()])
        .start()
    {
        Ok(lab) => {
            let status = lab.nat("H")?.show()?["status"].clone();
            assert_eq!((&status["guard"], &status["shared"]), (&guard.into(), &true.into()));
            Ok(Some(lab))
        }
        Err(error) if guard == "tcx" && in_user_namespace() => {
            let said = error.to_string();
            assert!(
                said.contains("the tcx guard cannot be attached") && said.contains("--guard nftables"),
                "{said}"
            );
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// What H does of its own: services, connections out and in that stay open, datagrams, ping.
struct HostLife {
    h: Host,
    s: Host,
    _services: [Echo; 2],
    held: [TcpStream; 2],
    datagrams: [(UdpSocket, SocketAddr); 2],
}

/// H's service, at a port that natbox might have chosen.
const SERVICE: u16 = 2222;
/// A service that H starts late, and a port on which nobody listens: below 1024, where natbox puts no flow of A's. Elsewhere
/// one of A's many might have taken them first.
const LATE: u16 = 222;
const CLOSED: u16 = 223;
const ECHO: u16 = 7;

impl HostLife {
    fn begin(lab: &Lab) -> Result<HostLife, Box<dyn std::error::Error + Send + Sync>> {
        let (h, s) = (lab.host("H")?.clone(), lab.host("S")?.clone());
        let services = [Echo::start(&h, SERVICE)?, Echo::start(&s, ECHO)?];
        let (to_h, to_s) = (endpoint(h.addr(), SERVICE), endpoint(s.addr(), ECHO));
        let held = [connect(&h, to_s)?, connect(&s, to_h)?];
        let datagrams = [(udp(&h, 0)?, to_s), (udp(&s, 0)?, to_h)];
        Ok(HostLife { h, s, _services: services, held, datagrams })
    }

    /// Old connections and new ones, both ways.
    fn goes_on(&mut self, when: &str) -> Tested {
        let [to_s, to_h] = [endpoint(self.s.addr(), ECHO), endpoint(self.h.addr(), SERVICE)];
        for (stream, way) in self.held.iter_mut().zip(["H to S", "S to H"]) {
            exchange(stream, when.as_bytes())
                .map_err(|error| format!("{when}: held connection {way}: {error}"))?;
        }
        for (from, to) in [(&self.h, to_s), (&self.s, to_h)] {
            let fresh = connect(from, to).and_then(|mut stream| exchange(&mut stream, when.as_bytes()));
            fresh.map_err(|error| format!("{when}: new connection from {} to {to}: {error}", from.name()))?;
        }
        for (socket, to) in &self.datagrams {
            assert!(answers(socket, *to, PATIENCE), "{when}: UDP to {to}");
        }
        assert!(ping(&self.h, self.s.addr(), &[])?, "{when}: ping from H");
        assert!(ping(&self.s, self.h.addr(), &[])?, "{when}: ping to H");
        // A service that starts only now, and a port on which nobody listens: H refuses it itself, at once.
        let late = Echo::start(&self.h, LATE)?;
        exchange(&mut connect(&self.s, endpoint(self.h.addr(), LATE))?, b"late")?;
        drop(late);
        let refused = connect(&self.s, endpoint(self.h.addr(), CLOSED)).expect_err("nobody listens");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{when}: {refused}");
        Ok(())
    }
}

/// A's traffic crosses natbox.
fn a_is_served(lab: &Lab) -> Tested {
    let (a, s) = (lab.host("A")?, lab.host("S")?);
    assert!(ping(a, s.addr(), &[])?);
    exchange(&mut connect(a, endpoint(s.addr(), ECHO))?, b"from A")?;
    assert!(answers(&udp(a, 0)?, endpoint(s.addr(), ECHO), PATIENCE));
    Ok(())
}

fn the_host_lives_on(guard: &str) -> Tested {
    let Some(lab) = shared(guard)? else { return Ok(()) };
    let nat = lab.nat("H")?;
    nat.stop()?;
    let mut life = HostLife::begin(&lab)?;
    life.goes_on("before")?;

    nat.start()?;
    a_is_served(&lab)?;
    life.goes_on("during, with an idle NAT")?;
    // Now with A's traffic beside it, all the time.
    let stop = Arc::new(AtomicBool::new(false));
    let (end, a, to) = (stop.clone(), lab.host("A")?.clone(), endpoint(lab.host("S")?.addr(), ECHO));
    let busy = lab.host("A")?.start(move || {
        let mut stream = connect(&a, to)?;
        let mut rounds = 0;
        while !end.load(Ordering::Relaxed) {
            exchange(&mut stream, &[7; 50_000])?;
            exchange(&mut connect(&a, to)?, b"another one")?;
            rounds += 1;
        }
        Ok::<u32, std::io::Error>(rounds)
    })?;
    for _ in 0..3 {
        life.goes_on("during, with a busy NAT")?;
    }
    stop.store(true, Ordering::Relaxed);
    assert!(busy.join()? > 0);

    nat.stop()?;
    life.goes_on("after")?;
    nat.start()?;
    a_is_served(&lab)?;
    nat.kill()?;
    life.goes_on("after SIGKILL")?;
    Ok(())
}

/// Three flows of A's, and strangers who try them.
struct Flows {
    /// External endpoint of a UDP mapping that P knows and S doesn't.
    udp: SocketAddr,
    tcp: SocketAddr,
    _held: (UdpSocket, probe::TcpMapping),
}

fn flows_of_a(lab: &Lab) -> Result<Flows, Box<dyn std::error::Error + Send + Sync>> {
    let (reflector, a) = (reflector(lab)?, lab.host("A")?);
    let socket = udp(a, 0)?;
    let udp = probe::udp_mapping(reflector.endpoints(), &socket, Source::Same)?;
    let held = a.run(|| probe::tcp_mapping(reflector.endpoints(), a.addr().into()))??;
    Ok(Flows { udp, tcp: held.external, _held: (socket, held) })
}

/// Strangers knock on A's external ports, then ping H. When the answer to the ping is heard, so is everything that H
/// had to say before: one cable keeps the order.
fn strangers_knock(lab: &Lab, flows: &Flows, outside: &Sniffer) -> Tested {
    let (s, h) = (lab.host("S")?, lab.nat("H")?.addr());
    udp(s, 0)?.send_to(b"knock", flows.udp)?;
    let tcp = flows.tcp;
    let calling = s.start(move || TcpStream::connect_timeout(&tcp, common::SECOND / 2).is_ok())?;
    assert!(!calling.join(), "a stranger got through to A, or H has taken the call");
    assert!(outside.hears(PATIENCE, |packet| packet.ends().is_some_and(|(_, to)| to == flows.tcp)), "no SYN");
    assert!(ping(s, h, &[])?);
    assert!(
        outside
            .hears(PATIENCE, |packet| packet.from == h && packet.what == (What::Icmp { kind: 0, code: 0 }))
    );
    Ok(())
}

/// What H says by a reset or an ICMP error.
fn refusals(outside: &Sniffer, h: Ipv4Addr) -> Vec<Heard> {
    outside.heard().into_iter().filter(|packet| packet.from == h && packet.is_refusal()).collect()
}

fn the_host_is_silent(guard: &str) -> Tested {
    let Some(lab) = shared(guard)? else { return Ok(()) };
    let (h, s) = (lab.nat("H")?.addr(), lab.host("S")?);
    let outside = Sniffer::start(lab.host("internet")?, "to-H")?;
    let echo = Echo::start(s, ECHO)?;
    a_is_served(&lab)?;
    let flows = flows_of_a(&lab)?;
    strangers_knock(&lab, &flows, &outside)?;
    drop(echo);
    assert_eq!(refusals(&outside, h), []);
    let translated =
        outside.heard().into_iter().filter(|packet| packet.from == h && packet.ends().is_some()).count();
    assert!(translated > 10, "the sniffer heard {translated} packets of natbox's");

    // The sniffer is not deaf, and H not mute: where H itself is meant, it refuses.
    assert!(connect(s, endpoint(h, 9)).is_err());
    let own = |packet: &Heard| {
        packet.from == h && packet.is_refusal() && packet.ends().is_some_and(|(from, _)| from.port() == 9)
    };
    assert!(outside.hears(PATIENCE, own));
    assert_eq!(refusals(&outside, h).len(), 1);
    Ok(())
}

/// Why there is a guard; and that the other tests would notice if it did nothing.
fn without_a_guard_the_host_is_heard() -> Tested {
    let lab = shared("off")?.expect("nothing can refuse that");
    let (a, h, s) = (lab.host("A")?, lab.nat("H")?.addr(), lab.host("S")?);
    let outside = Sniffer::start(lab.host("internet")?, "to-H")?;
    let _echo = Echo::start(s, ECHO)?;
    assert!(connect(a, endpoint(s.addr(), ECHO)).and_then(|mut it| exchange(&mut it, b"hello")).is_err());
    let reset = |packet: &Heard| packet.from == h && matches!(packet.what, What::Tcp { rst: true, .. });
    assert!(outside.hears(PATIENCE, reset), "H answers the SYN-ACK that it never asked for");
    udp(a, 0)?.send_to(b"hello", endpoint(s.addr(), ECHO))?;
    let unreachable =
        |packet: &Heard| packet.from == h && matches!(packet.what, What::Icmp { kind: 3, code: 3 });
    assert!(outside.hears(PATIENCE, unreachable), "H answers the datagram that it never asked for");
    Ok(())
}

fn the_end_undoes_everything(guard: &str, end: fn(&Nat) -> Result<(), LabError>) -> Tested {
    let Some(lab) = shared(guard)? else { return Ok(()) };
    let (a, h, s, nat) = (lab.host("A")?, lab.host("H")?, lab.host("S")?, lab.nat("H")?);
    nat.stop()?;
    let clean = (state(a)?, state(h)?);
    let _echo = Echo::start(s, ECHO)?;
    for round in 1..=3 {
        nat.start()?;
        a_is_served(&lab)?;
        let flows = flows_of_a(&lab)?;
        // It is really there, so that its absence means something.
        assert!(text(a, "ip", &["route", "show", "default"])?.contains("tun0"));
        let rules = text(h, "nft", &["list", "ruleset"])?;
        assert_eq!(rules.contains("natbox"), guard == "nftables", "{rules}");
        if let Some(programs) = tcx_programs(h)? {
            assert_eq!(programs, u32::from(guard == "tcx"));
        }

        end(nat)?;
        for (host, before) in [(a, &clean.0), (h, &clean.1)] {
            // A process that was killed counts as gone before the last of its threads has closed its files.
            let mut now = String::new();
            wait_until(PATIENCE, || {
                now = state(host).unwrap_or_default();
                now == *before
            });
            assert!(now == *before, "round {round}: left in {}:{}", host.name(), difference(before, &now));
        }
        // H's stack answers again for the ports that were natbox's.
        let refused = connect(s, flows.tcp).expect_err("nobody is there");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "round {round}: {refused}");
        drop(flows);
        // The next one doesn't wait for the end to be complete.
        nat.start()?;
        end(nat)?;
    }
    Ok(())
}

/// Sixteen ports, two of which H's own sockets hold.
fn ports_of_the_host_are_left_alone() -> Tested {
    let flags = ["--port-range=20000-20015", "--ports=sequential"];
    let lab = Lab::up("shared-address").nat("H", "full-cone").nat_args("H", &flags).start()?;
    let (a, h, s, nat) = (lab.host("A")?, lab.host("H")?, lab.host("S")?, lab.nat("H")?);
    nat.stop()?;
    let services = [Echo::start(h, 20_003)?, Echo::start(h, 20_007)?];
    nat.start()?;
    let listener = udp(s, 53)?;
    let to = endpoint(s.addr(), 53);
    let mut ports = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..14 {
        let client = udp(a, 0)?;
        let source = seen(&client, to, &listener, b"hello")?;
        assert_eq!(source.ip(), IpAddr::from(h.addr()));
        ports.push(source.port());
        clients.push(client);
    }
    ports.sort();
    let free: Vec<u16> = (20_000..=20_015).filter(|port| ![20_003, 20_007].contains(port)).collect();
    assert_eq!(ports, free);
    for port in [20_003, 20_007] {
        exchange(&mut connect(s, endpoint(h.addr(), port))?, b"hello")?;
        assert!(answers(&udp(s, 0)?, endpoint(h.addr(), port), PATIENCE));
    }
    // No port is left; nobody is pushed out.
    udp(a, 0)?.send_to(b"hello", to)?;
    assert!(wait_until(PATIENCE, || common::drops(nat, "ports-exhausted").is_ok_and(|count| count > 0)));
    assert_eq!(mappings(nat)?.len(), 14);
    drop(services);
    Ok(())
}
