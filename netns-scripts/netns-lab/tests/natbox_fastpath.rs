//! Quick flows are moved by programs in the kernel, and nobody outside can tell but by the speed.

mod common;

use std::error::Error;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::machine::{difference, state};
use common::pmtu::{IcmpError, Unfragmented};
use common::quick::{Exchange, fast};
use common::sniffer::Sniffer;
use common::tools::{Echo, connect, exchange, receive_all, run, send_all, text};
use common::{EXTERNAL, PATIENCE, Tested, endpoint, mappings};
use netns_lab::harness::{self, Test};
use netns_lab::{Host, Lab, Nat, program, wait_until};
use nix::sys::socket::{setsockopt, sockopt::BindToDevice};

type Body = fn() -> Tested;

const ON: &str = "--fast-path=on";

fn main() -> ExitCode {
    let tests: [(&str, Body); 16] = [
        ("bulk_of_a_lan_both_ways", bulk_of_a_lan_both_ways),
        ("bulk_through_a_tun_of_the_gateway", bulk_through_a_tun_of_the_gateway),
        ("a_packet_comes_once_and_as_the_engine_would_send_it", packets_are_the_same),
        ("what_is_too_big_is_told", what_is_too_big_is_told),
        ("fragments_of_a_quick_flow_pass", fragments_pass),
        ("a_quick_flow_outlives_its_timer_and_no_more", timers_hold),
        ("an_absolute_lifetime_ends_a_quick_flow", an_absolute_lifetime_holds),
        ("what_is_changed_holds_at_once", changes_hold_at_once),
        ("a_connection_is_seen_to_close", a_close_is_seen),
        ("another_ethernet_address_is_followed", another_address_is_followed),
        ("the_end_undoes_it", || the_end_undoes_it(Nat::stop)),
        ("a_kill_undoes_it", || the_end_undoes_it(Nat::kill)),
        ("tuns_in_other_namespaces_are_reached", || tuns_elsewhere_are_reached(Nat::stop)),
        ("a_kill_takes_the_wires_along", || tuns_elsewhere_are_reached(Nat::kill)),
        ("a_tun_that_is_moved_away_is_noticed", a_moved_tun_is_noticed),
        ("where_it_cannot_be_it_is_told", where_it_cannot_be),
    ];
    harness::main(tests.into_iter().map(|(name, body)| Test::new(name, body).needs_root()).collect())
}

/// A LAN behind a NAT with an address of its own, and an echo at S.
fn lan(flags: &[&str]) -> Result<(Lab, Echo), Box<dyn Error + Send + Sync>> {
    let lab =
        Lab::up("lan-gateway").nat("N1", "symmetric").nat_args("N1", &[&[EXTERNAL, ON], flags].concat());
    let lab = lab.start()?;
    let echo = Echo::start(lab.host("S")?, 7)?;
    Ok((lab, echo))
}

/// Bytes both ways at once between a stream and its other end, whatever moves them.
fn bulk((near, a): (TcpStream, &Host), (far, s): (TcpStream, &Host)) -> Tested {
    const BULK: usize = 64 << 20;
    let mut ends = Vec::new();
    for (seed, stream, host) in [(1, near, a), (2, far, s)] {
        let (mut from, mut to) = (stream.try_clone()?, stream);
        to.set_read_timeout(Some(PATIENCE))?;
        ends.push((
            host.start(move || send_all(&mut from, seed, BULK))?,
            host.start(move || receive_all(&mut to))?,
        ));
    }
    let [(one, two), (three, four)] = <[_; 2]>::try_from(ends).map_err(|_| "two ends")?;
    assert_eq!(four.join()?, (BULK, one.join()?));
    assert_eq!(two.join()?, (BULK, three.join()?));
    Ok(())
}

/// Every packet is counted by the engine, by its port, and as one that was moved; nearly all of them were.
fn counted(nat: &Nat, inside: &str) -> Tested {
    let [_, given, packets] = fast(nat)?;
    let shown: serde_json::Value =
        serde_json::from_str(&nat.control(&["show", "--ports", "--counters", "--json"])?)?;
    let number = |value: &serde_json::Value| value.as_u64().ok_or(format!("a number in {shown}"));
    let of_nat = ["outbound-packets", "inbound-packets"].map(|name| number(&shown["counters"][name]));
    let [out, inn] = of_nat.map(|number| number.unwrap_or_default());
    assert!(given >= 1 && packets > (out + inn) / 2, "{packets} of {out} and {inn}");
    for port in shown["ports"].as_array().ok_or("ports")? {
        let counters = &port["counters"];
        let (sent, received) = (number(&counters["sent-packets"])?, number(&counters["received-packets"])?);
        let (least_sent, least_received) = if port["name"] == inside { (inn, out) } else { (out, inn) };
        // ARP, and what comes joined, is counted by ports alone or once.
        assert!(sent + 200 > least_sent && received + 200 > least_received, "{shown}");
    }
    Ok(())
}

fn bulk_of_a_lan_both_ways() -> Tested {
    for workers in ["--workers=1", "--workers=2"] {
        let (lab, _echo) = lan(&[workers])?;
        let (a, s, nat) = (lab.host("A")?, lab.host("S")?, lab.nat("N1")?);
        let listener = s.run(|| TcpListener::bind((s.addr(), 80)))??;
        let near = connect(a, endpoint(s.addr(), 80))?;
        bulk((near, a), (listener.accept()?.0, s))?;
        counted(nat, "lan0")?;
    }
    Ok(())
}

/// The gateway of `natbox --inside tun0 --outside eth0`: a program of its own host uses the TUN.
fn bulk_through_a_tun_of_the_gateway() -> Tested {
    let lab = Lab::up("shared-address").start()?;
    let (h, s, nat) = (lab.host("H")?, lab.host("S")?, lab.nat("H")?);
    let _natbox = common::instead_of(nat, h, &["--inside=tun0", "--outside=eth0", "--nat=home", ON])?;
    let listener = s.run(|| TcpListener::bind((s.addr(), 80)))??;
    let near = h.run(|| {
        let socket = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Inet,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::empty(),
            None,
        )?;
        setsockopt(&socket.as_fd(), BindToDevice, &"tun0".into())?;
        let to = nix::sys::socket::SockaddrIn::from(std::net::SocketAddrV4::new(s.addr(), 80));
        nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &to)?;
        Ok::<_, nix::Error>(TcpStream::from(socket))
    })??;
    bulk((near, h), (listener.accept()?.0, s))?;
    counted(nat, "tun0")
}

/// Whether the engine moves a packet or the kernel does, S sees the same endpoint and the same number of hops, and each
/// packet once; so does A.
fn packets_are_the_same() -> Tested {
    let (lab, _echo) = lan(&[])?;
    let (a, s, nat) = (lab.host("A")?, lab.host("S")?, lab.nat("N1")?);
    let mut exchange = Exchange::new(a, &lab)?;
    let (at_s, at_a) = (Sniffer::start(s, "eth0")?, Sniffer::start(a, "eth0")?);
    exchange.once()?;
    exchange.until_quick(nat)?;
    exchange.once()?;
    for (sniffer, from_s) in [(at_s, false), (at_a, true)] {
        let is_it = |heard: &common::sniffer::Heard| {
            heard.ends().is_some_and(|(from, _)| (from == exchange.to) == from_s && heard.length == 36)
        };
        assert!(sniffer.hears(PATIENCE, |heard| is_it(heard) && matches!(&heard.what, common::sniffer::What::Udp { payload, .. } if payload[..] == exchange.count.to_be_bytes())));
        let heard: Vec<_> = sniffer.heard().into_iter().filter(is_it).collect();
        assert_eq!(heard.len() as u64, exchange.count, "each once");
        let first = &heard[0];
        let same = heard.iter().all(|it| (it.ends(), it.ttl, it.tos) == (first.ends(), first.ttl, first.tos));
        assert!(same, "{first:?}");
    }
    Ok(())
}

fn what_is_too_big_is_told() -> Tested {
    let lab = Lab::up("lan-gateway").nat("N1", "symmetric").nat_args("N1", &[EXTERNAL, ON]).start()?;
    let (a, n1, s, nat) = (lab.host("A")?, lab.host("N1")?, lab.host("S")?, lab.nat("N1")?);
    let _echo = Echo::start(s, 7)?;
    text(n1, "ip", &["link", "set", "dev", "eth0", "mtu", "1300"])?;
    nat.restart()?;
    let mut exchange = Exchange::new(a, &lab)?;
    exchange.until_quick(nat)?;
    let Exchange { socket, to, .. } = exchange;
    socket.connect(to)?;
    let probe = Unfragmented::new(socket);
    assert_eq!(probe.send(1300)?, 1272);
    let mut heard = [0; 2000];
    assert_eq!(probe.socket().recv(&mut heard)?, 1272, "it just fits");
    let told = probe.refused(1301).ok_or("no error")?;
    let gateway = n1.addrs()[1];
    assert_eq!(told, IcmpError { from: gateway, kind: 3, code: 4, mtu: 1300 });
    Ok(())
}

fn fragments_pass() -> Tested {
    let (lab, _echo) = lan(&[])?;
    let (a, nat) = (lab.host("A")?, lab.nat("N1")?);
    let mut exchange = Exchange::new(a, &lab)?;
    exchange.until_quick(nat)?;
    let large = vec![9; 20_000];
    for _ in 0..20 {
        exchange.socket.send_to(&large, exchange.to)?;
        let mut heard = vec![0; 30_000];
        let (length, from) = exchange.socket.recv_from(&mut heard)?;
        assert!(from == exchange.to && heard[..length] == large);
        exchange.once()?;
    }
    assert_eq!(mappings(nat)?.len(), 1);
    Ok(())
}

/// Packets that natbox never sees keep a flow alive; when they end, so does the flow.
fn timers_hold() -> Tested {
    let (lab, _echo) = lan(&["--udp-timeout=2s", "--udp-replied-timeout=2s"])?;
    let (a, nat) = (lab.host("A")?, lab.nat("N1")?);
    let mut exchange = Exchange::new(a, &lab)?;
    exchange.until_quick(nat)?;
    let external = exchange.external(nat)?;
    let before = fast(nat)?;
    exchange.go_on(Duration::from_secs(5))?;
    let after = fast(nat)?;
    assert!(after[1] == before[1] && after[2] > before[2] + 1000, "{before:?} {after:?}");
    assert_eq!(exchange.external(nat)?, external);
    let ended = Instant::now();
    assert!(wait_until(PATIENCE, || mappings(nat).is_ok_and(|it| it.is_empty())));
    let lived = ended.elapsed();
    assert!(lived > Duration::from_millis(1500), "{lived:?}");
    assert_eq!(fast(nat)?[0], 0);
    Ok(())
}

fn an_absolute_lifetime_holds() -> Tested {
    let (lab, _echo) = lan(&["--mapping-lifetime=4s"])?;
    let (a, nat) = (lab.host("A")?, lab.nat("N1")?);
    let mut exchange = Exchange::new(a, &lab)?;
    exchange.until_quick(nat)?;
    let external = exchange.external(nat)?;
    // An answer may be on its way when its mapping ends.
    exchange.socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let lost = (0..2).filter(|_| exchange.go_on(Duration::from_secs(3)).is_err()).count();
    assert!(lost <= 1, "{lost} answers are lost");
    exchange.once()?;
    assert_ne!(exchange.external(nat)?, external, "however busy it is");
    exchange.until_quick(nat)
}

fn changes_hold_at_once() -> Tested {
    let (lab, _echo) = lan(&[])?;
    let (a, nat) = (lab.host("A")?, lab.nat("N1")?);
    let mut exchange = Exchange::new(a, &lab)?;
    exchange.until_quick(nat)?;
    let external = exchange.external(nat)?;
    nat.flush()?;
    assert_eq!((mappings(nat)?.len(), fast(nat)?[0]), (0, 0));
    exchange.once()?;
    assert_ne!(exchange.external(nat)?, external, "another port at random");
    exchange.until_quick(nat)?;
    nat.set(&["--udp-replied-timeout", "3s"])?;
    assert_eq!(fast(nat)?[0], 0);
    exchange.until_quick(nat)?;
    assert!(
        wait_until(PATIENCE, || mappings(nat).is_ok_and(|it| it.is_empty())),
        "it is the new timer that holds"
    );
    Ok(())
}

/// FIN and RST of a connection that was quick come to the engine, and its state is what it was without.
fn a_close_is_seen() -> Tested {
    let (lab, _echo) = lan(&[])?;
    let (a, s, nat) = (lab.host("A")?, lab.host("S")?, lab.nat("N1")?);
    for (word, is_reset) in [("closed", false), ("reset", true)] {
        nat.flush()?;
        let mut stream = connect(a, endpoint(s.addr(), 7))?;
        let before = fast(nat)?[2];
        assert!(wait_until(PATIENCE, || {
            (0..50).for_each(|_| exchange(&mut stream, b"hello").expect("an echo"));
            fast(nat).is_ok_and(|it| it[2] > before + 100)
        }));
        if is_reset {
            setsockopt(
                &stream,
                nix::sys::socket::sockopt::Linger,
                &libc::linger { l_onoff: 1, l_linger: 0 },
            )?;
        }
        drop(stream);
        let mut states = String::new();
        let seen = wait_until(PATIENCE, || {
            states = nat.control(&["show", "--sessions", "--json"]).unwrap_or_default();
            states.contains(&format!("\"state\":\"{word}\""))
        });
        assert!(seen, "{word}: {states}");
        assert!(wait_until(PATIENCE, || fast(nat).is_ok_and(|it| it[0] == 0)), "{word}");
    }
    Ok(())
}

fn another_address_is_followed() -> Tested {
    let (lab, _echo) = lan(&[])?;
    let (a, nat) = (lab.host("A")?, lab.nat("N1")?);
    let mut exchange = Exchange::new(a, &lab)?;
    exchange.until_quick(nat)?;
    text(a, "ip", &["link", "set", "dev", "eth0", "address", "02:00:00:00:77:77"])?;
    exchange.socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    assert!(wait_until(PATIENCE, || exchange.once().is_ok()), "A is found under its new address");
    Ok(())
}

fn the_end_undoes_it(end: fn(&Nat) -> Result<(), netns_lab::LabError>) -> Tested {
    let (lab, _echo) = lan(&[])?;
    let (a, n1, nat) = (lab.host("A")?, lab.host("N1")?, lab.nat("N1")?);
    nat.stop()?;
    let clean = state(n1)?;
    for _ in 0..2 {
        nat.start()?;
        let mut exchange = Exchange::new(a, &lab)?;
        exchange.until_quick(nat)?;
        end(nat)?;
        let mut now = String::new();
        wait_until(PATIENCE, || {
            now = state(n1).unwrap_or_default();
            now == clean
        });
        assert!(now == clean, "{}", difference(&clean, &now));
    }
    Ok(())
}

/// Two TUNs in other namespaces, each at the end of a wire: fast both ways, and gone with the process.
fn tuns_elsewhere_are_reached(end: fn(&Nat) -> Result<(), netns_lab::LabError>) -> Tested {
    let lab = Lab::up("hairpin").nat("N1", "symmetric").nat_args("N1", &[EXTERNAL, ON]).start()?;
    let [a, b, n1, s] = ["A", "B", "N1", "S"].map(|name| lab.host(name));
    let (a, b, n1, s, nat) = (a?, b?, n1?, s?, lab.nat("N1")?);
    nat.stop()?;
    let clean = [a, b, n1].map(state);
    nat.start()?;
    let _echo = Echo::start(s, 7)?;
    let listener = s.run(|| TcpListener::bind((s.addr(), 80)))??;
    bulk((connect(a, endpoint(s.addr(), 80))?, a), (listener.accept()?.0, s))?;
    let (mut of_a, mut of_b) = (Exchange::new(a, &lab)?, Exchange::new(b, &lab)?);
    of_a.until_quick(nat)?;
    of_b.until_quick(nat)?;
    assert!(fast(nat)?[0] >= 2);
    end(nat)?;
    for (host, before) in [a, b, n1].into_iter().zip(clean) {
        let (mut now, before) = (String::new(), before?);
        wait_until(PATIENCE, || {
            now = state(host).unwrap_or_default();
            now == before
        });
        assert!(now == before, "left in {}:{}", host.name(), difference(&before, &now));
    }
    Ok(())
}

/// A TUN may be moved away: its flows are natbox's again, and the other TUN's go on.
fn a_moved_tun_is_noticed() -> Tested {
    let lab = Lab::up("hairpin").nat("N1", "symmetric").nat_args("N1", &[EXTERNAL, ON]).start()?;
    let (a, b, nat) = (lab.host("A")?, lab.host("B")?, lab.nat("N1")?);
    let _echo = Echo::start(lab.host("S")?, 7)?;
    let (mut of_a, mut of_b) = (Exchange::new(a, &lab)?, Exchange::new(b, &lab)?);
    of_a.until_quick(nat)?;
    of_b.until_quick(nat)?;
    text(a, "ip", &["link", "set", "dev", "tun0", "netns", b.netns(), "name", "other0"])?;
    assert!(wait_until(PATIENCE, || fast(nat).is_ok_and(|it| it[0] <= 1)), "A's flow is taken back");
    of_b.until_quick(nat)
}

fn where_it_cannot_be() -> Tested {
    let lab = Lab::up("lan-gateway").nat("N1", "home").nat_args("N1", &["--log-packets"]).start()?;
    let (n1, nat) = (lab.host("N1")?, lab.nat("N1")?);
    assert!(nat.show()?["status"]["fast_path"].is_null(), "every packet is printed");
    nat.stop()?;
    let natbox = program("natbox")?;
    let natbox = natbox.to_str().ok_or("a path in UTF-8")?;
    for (flags, why) in [
        (&["--lan=lan0", "--log-packets", ON][..], "--fast-path on would hide most"),
        (&["--lan=lan0", "--fast-path=perhaps"], "neither auto nor on nor off"),
    ] {
        let output = run(n1, natbox, &[&["--outside=eth0"][..], flags].concat())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(why), "{flags:?}: {said}");
    }
    Ok(())
}
