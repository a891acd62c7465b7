//! Hosts: sockets, several addresses, roaming, sleep, and a driver of one's own.

#![allow(clippy::unwrap_used, reason = "a helper of a test may panic as the test may")]

mod common;

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddr},
};

use common::{INTERNET, at, behavior, behind, delay, deliveries, ms, probe, socket};
use natbox_sim::{
    BindError, BuildError, ClockJump, Conditions, Datagram, HostId, IcmpErrorKind, Input, NatConfig, Net,
    Node, Point, SendError, Sim, Tap, Time, Transmit,
};

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn two(seed: u64) -> (Net, HostId, HostId) {
    let mut net = Net::new(seed);
    let hosts = [(); 2].map(|()| net.add_host(INTERNET, delay(10)).unwrap());
    (net, hosts[0], hosts[1])
}

#[test]
fn a_host_that_binds_has_closed_ports() {
    let (mut net, a, b) = two(1);
    let to = socket(&net, b, 53);
    assert!(probe(&mut net, (a, 1), (b, to), b"all open").is_some());
    assert_eq!(net.bind(b, (ANY, 80).into()).map(|bound| bound.port()), Ok(80));
    net.send(a, Datagram::new(socket(&net, a, 1), to, b"closed"), net.now()).unwrap();
    let (host, input) = net.poll_deliver(net.now() + ms(40)).unwrap();
    let Input::Error(error) = input else { panic!("{input:?}") };
    assert_eq!((host, error.kind, error.to, error.reporter), (a, IcmpErrorKind::Unreachable(3), to, to.ip()));
    net.bind(b, (ANY, 53).into()).unwrap();
    assert!(probe(&mut net, (a, 1), (b, to), b"open").is_some());
    assert!(net.close(b, 53) && !net.close(b, 53));
    assert_eq!(probe(&mut net, (a, 1), (b, to), b"closed again"), None);
    assert_eq!(net.counters().port_closed, 2);
}

#[test]
fn binds_are_checked_as_a_kernel_would() {
    let (mut net, a, b) = two(1);
    let addr = net.address(a).unwrap();
    let elsewhere = net.address(b).unwrap();
    assert_eq!(net.bind(a, (elsewhere, 1).into()), Err(BindError::NotOurs(elsewhere.into())));
    net.bind(a, (addr, 7).into()).unwrap();
    assert_eq!(net.bind(a, (ANY, 7).into()), Err(BindError::InUse(7)));
    let mut ports: Vec<u16> = (0..16_384).map(|_| net.bind(a, (ANY, 0).into()).unwrap().port()).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!((ports.len(), ports[0]), (16_384, 49_152), "each once");
    assert_eq!(net.bind(a, (ANY, 0).into()), Err(BindError::Exhausted));

    let to = socket(&net, b, 9);
    let send = |net: &mut Net, from: SocketAddr| net.send(a, Datagram::new(from, to, b""), at(0));
    assert_eq!(send(&mut net, (ANY, 8).into()), Err(SendError::NotBound(8)));
    assert_eq!(send(&mut net, (elsewhere, 7).into()), Err(SendError::NotOurs(elsewhere.into())));
    assert_eq!(send(&mut net, (ANY, 7).into()), Ok(()));
    let six = "[::1]:7".parse().unwrap();
    assert_eq!(send(&mut net, six), Err(SendError::NotV4(six)));
    net.remove_host(a, at(0));
    assert_eq!(send(&mut net, (ANY, 7).into()), Err(SendError::NoSuchHost(a)));
    let next = net.add_host(INTERNET, Conditions::PERFECT).unwrap();
    assert_ne!(next, a);
    net.bind(next, (ANY, 7).into()).unwrap();
}

#[test]
fn a_host_may_have_several_addresses() {
    let (mut net, a, b) = two(1);
    let (nat, _) = behind(&mut net, INTERNET, "");
    let second = net.add_interface(a, INTERNET, delay(1)).unwrap();
    let private = net.add_interface(a, nat, delay(1)).unwrap();
    assert_eq!(net.addresses(a).collect::<Vec<_>>(), [net.address(a).unwrap(), second, private]);
    let to = socket(&net, b, 1);
    for (from, seen) in [(second, second), (private, net.external(nat)[0])] {
        net.send(a, Datagram::new((from, 5).into(), to, b"x"), net.now()).unwrap();
        let until = net.now() + ms(100);
        assert_eq!(deliveries(&mut net, until)[0].from.ip(), seen);
    }
    assert!(net.host_link(a, second).is_some() && net.host_link(a, second) != net.host_link(a, ANY));
}

#[test]
fn a_host_moves_and_its_old_address_dies() {
    let mut net = Net::new(1);
    let server = net.add_host(INTERNET, delay(10)).unwrap();
    let to = socket(&net, server, 3478);
    let (home, host) = behind(&mut net, INTERNET, "filtering=eif");
    let mobile = net.add_nat(INTERNET, NatConfig::carrier(behavior("filtering=eif"))).unwrap();
    let old = probe(&mut net, (host, 4000), (server, to), b"at home").unwrap();
    let old_private = net.address(host).unwrap();
    net.send(server, Datagram::new(to, old, b"on its way"), net.now()).unwrap();
    let new_private = net.move_host(host, mobile, delay(30), net.now() + ms(1)).unwrap();
    assert_eq!(deliveries(&mut net, at(9_000)), [], "it was on its way to the old place");
    assert_eq!(net.address(host), Some(new_private));
    let from_old = Datagram::new((old_private, 4000).into(), to, b"");
    assert_eq!(net.send(host, from_old, net.now()), Err(SendError::NotOurs(old_private.into())));
    let new = probe(&mut net, (host, 4000), (server, to), b"on the road").unwrap();
    assert_eq!(new.ip(), net.external(mobile)[0]);
    assert!(probe(&mut net, (server, 3478), (host, new), b"found").is_some());
    net.remove_nat(home, net.now()).unwrap();
    assert_eq!(net.remove_nat(mobile, net.now()), Err(BuildError::InUse(mobile.into())));
}

#[test]
fn a_blocked_path_dies_alone_and_one_way() {
    let (mut net, a, b) = two(1);
    let c = net.add_host(INTERNET, delay(10)).unwrap();
    let [at_a, at_b, at_c] = [a, b, c].map(|host| socket(&net, host, 1));
    let [addr_a, addr_b] = [a, b].map(|host| net.address(host).unwrap());
    net.set_blocked(addr_a, addr_b, true, at(0));
    assert_eq!(probe(&mut net, (a, 1), (b, at_b), b"blocked"), None);
    assert_eq!(probe(&mut net, (b, 1), (a, at_a), b"other way"), Some(at_b));
    assert_eq!(probe(&mut net, (a, 1), (c, at_c), b"other path"), Some(at_a));
    net.set_blocked(addr_a, addr_b, false, net.now());
    assert_eq!(probe(&mut net, (a, 1), (b, at_b), b"again"), Some(at_a));
    assert_eq!(net.counters().blocked, 1);
}

#[test]
fn a_path_is_lossy_one_way() {
    let (mut net, a, b) = two(1);
    let [at_a, at_b] = [a, b].map(|host| socket(&net, host, 1));
    let [addr_a, addr_b] = [a, b].map(|host| net.address(host).unwrap());
    assert!(net.set_path_loss(addr_a, addr_b, 1.5, at(0)).is_err());
    net.set_path_loss(addr_a, addr_b, 0.25, at(0)).unwrap();
    let mut arrived = 0;
    for _ in 0..400 {
        arrived += u32::from(probe(&mut net, (a, 1), (b, at_b), b"lossy").is_some());
        assert_eq!(probe(&mut net, (b, 1), (a, at_a), b"sound"), Some(at_b));
    }
    assert!((270..330).contains(&arrived), "{arrived} of 400 arrived");
    assert_eq!(net.counters().blocked, 400 - u64::from(arrived));
    net.set_path_loss(addr_a, addr_b, 0.0, net.now()).unwrap();
    assert_eq!(probe(&mut net, (a, 1), (b, at_b), b"again"), Some(at_a));
}

#[test]
fn hosts_answer_pings_and_raw_ones_see_them() {
    let (mut net, a, b) = two(1);
    let mut ping = Vec::new();
    etherparse::PacketBuilder::ipv4(net.address(a).unwrap().octets(), net.address(b).unwrap().octets(), 64)
        .icmpv4_echo_request(1, 1)
        .write(&mut ping, b"ping")
        .unwrap();
    net.send_packet(a, &ping, at(0)).unwrap();
    let (host, input) = net.poll_deliver(at(40)).unwrap();
    let Input::Packet(reply) = input else { panic!("{input:?}") };
    assert_eq!((host, reply[20], reply.len()), (a, 0, ping.len()));
    assert!(net.set_raw(b, true));
    net.send_packet(a, &ping, at(40)).unwrap();
    let (host, input) = net.poll_deliver(at(80)).unwrap();
    assert!(host == b && matches!(input, Input::Packet(packet) if packet[20] == 8));
    let mut damaged = ping.clone();
    damaged[10] ^= 1;
    assert_eq!(net.send_packet(a, &damaged, at(80)), Err(SendError::Malformed));
}

#[test]
fn a_tap_keeps_the_last_packets_at_its_place() {
    let (mut net, a, b) = two(1);
    let c = net.add_host(INTERNET, delay(10)).unwrap();
    let tap = net.tap(Tap::Host(b), 3);
    let to = socket(&net, b, 2);
    for i in 0..5u8 {
        probe(&mut net, (a, 1), (b, to), &[i]);
        let elsewhere = socket(&net, c, 2);
        probe(&mut net, (a, 1), (c, elsewhere), &[i]);
    }
    let captured: Vec<_> = net.captured(tap).map(|seen| (seen.at, *seen.packet.last().unwrap())).collect();
    assert_eq!(captured, [2, 3, 4].map(|i| (Point::Delivered(b), i)));
    assert_eq!(net.forgotten(tap), 2);
    let line = net.captured(tap).next().unwrap().to_string();
    assert_eq!(line, "4.020000 host 1 gets: udp 11.0.0.2:1 > 11.0.0.3:2, 1 bytes");
}

// ---- Nodes ----

/// Sends its clock's reading every second, and notes what comes.
#[derive(Default)]
struct Ticker {
    to: Option<SocketAddr>,
    next: Option<Time>,
    out: VecDeque<Transmit>,
    fired: Vec<Time>,
    got: Vec<Time>,
    refused: Vec<SendError>,
}

impl Ticker {
    fn towards(to: SocketAddr) -> Ticker {
        Ticker { to: Some(to), next: Some(at(1000)), ..Ticker::default() }
    }
}

impl Node for Ticker {
    fn handle_input(&mut self, _: Input<'_>, now: Time) {
        self.got.push(now);
    }

    fn handle_timeout(&mut self, now: Time) {
        self.fired.push(now);
        self.out.extend(self.to.map(|to| Transmit::datagram(1, to, now.to_string())));
        self.next = self.next.map(|next| next + ms(1000));
    }

    fn poll_transmit(&mut self, _: Time) -> Option<Transmit> {
        self.out.pop_front()
    }

    fn poll_timeout(&self) -> Option<Time> {
        self.next
    }

    fn handle_refused(&mut self, _: Transmit, why: SendError, _: Time) {
        self.refused.push(why);
    }
}

fn ticking() -> (Sim<Ticker>, HostId, HostId) {
    let (net, a, b) = two(1);
    let to = socket(&net, b, 2);
    let mut sim = Sim::on(net);
    sim.add_node(a, Ticker::towards(to));
    sim.add_node(b, Ticker::default());
    (sim, a, b)
}

#[test]
fn a_sleeping_host_misses_what_happens() {
    let (mut sim, a, b) = ticking();
    sim.run_until(at(2500));
    assert!(sim.suspend(a) && sim.suspend(b));
    sim.run_until(at(5500));
    assert!(sim.resume(a) && sim.resume(b));
    sim.run_until(at(6500));
    let fired = &sim.node(a).unwrap().fired;
    let late: Vec<u64> = fired.iter().map(|time| time.as_nanos() / 1_000_000).collect();
    assert_eq!(late, [1000, 2000, 5500, 5500, 5500, 6000]);
    assert_eq!(sim.node(b).unwrap().got.len(), 6);
}

#[test]
fn a_clock_jumps_for_one_host_alone() {
    let (mut sim, a, b) = ticking();
    sim.run_until(at(1500));
    assert!(sim.jump_clock(a, ClockJump::Forward(ms(10_000))));
    sim.run_until(at(1600));
    assert_eq!(sim.node(a).unwrap().fired.len(), 11, "all that its clock passed");
    assert_eq!(sim.node(b).unwrap().got[..1], [at(1020)], "the other's clock is right");
    sim.jump_clock(a, ClockJump::Back(ms(10_000)));
    sim.run_until(at(11_900));
    assert_eq!(sim.node(a).unwrap().fired.len(), 11, "it waits for its clock to come by again");
    sim.run_until(at(12_000));
    assert_eq!(sim.node(a).unwrap().fired.last(), Some(&at(12_000)));
}

#[test]
fn the_world_jumps() {
    let (mut sim, a, b) = ticking();
    sim.run_until(at(1000));
    sim.jump(ms(60_000));
    let node = sim.node(b).unwrap();
    assert_eq!(node.got, [at(61_000)], "what arrived at 1.02 s is heard of late");
    sim.run_for(ms(1));
    assert_eq!(sim.node(a).unwrap().fired.len(), 61);
}

#[test]
fn nodes_come_go_and_hear_of_refused_packets() {
    let (mut sim, a, b) = ticking();
    sim.with(a, |node, _| node.out.push_back(Transmit::datagram(1, node.to.unwrap(), vec![0; 2000])))
        .unwrap();
    assert_eq!(sim.node(a).unwrap().refused, [SendError::TooBig { len: 2028, mtu: 1500 }]);
    assert!(sim.remove_node(a).is_some() && sim.remove_node(a).is_none());
    assert!(sim.with(a, |_, _| ()).is_none());
    sim.run_until(at(10_000));
    assert_eq!(sim.nodes().map(|(host, node)| (host, node.got.len())).collect::<Vec<_>>(), [(b, 0)]);
    assert!(!sim.step(), "nothing will ever happen");
}

/// A node whose deadline never moves on, and one that never stops sending: the clock gets on all the same.
#[test]
fn a_runaway_node_does_not_stop_the_clock() {
    struct Stuck(u64);
    impl Node for Stuck {
        fn handle_input(&mut self, _: Input<'_>, _: Time) {}
        fn handle_timeout(&mut self, _: Time) {
            self.0 += 1;
        }
        fn poll_transmit(&mut self, _: Time) -> Option<Transmit> {
            Some(Transmit::datagram(1, ([192, 0, 2, 1], 1).into(), *b"x"))
        }
        fn poll_timeout(&self) -> Option<Time> {
            Some(Time::ZERO)
        }
    }
    let (net, a, _) = two(1);
    let mut sim = Sim::on(net);
    sim.add_node(a, Stuck(0));
    sim.run_until(at(0) + std::time::Duration::from_micros(50));
    let calls = sim.node(a).unwrap().0;
    assert!((50..200).contains(&calls), "{calls}");
}

/// A node that wants to be called at once is, without any time passing.
#[test]
fn a_timer_may_be_due_at_once() {
    let (net, a, _) = two(1);
    let mut sim = Sim::on(net);
    sim.add_node(a, Ticker { next: Some(Time::ZERO), ..Ticker::default() });
    assert!(sim.step());
    assert_eq!((sim.now(), &sim.node(a).unwrap().fired[..]), (Time::ZERO, &[Time::ZERO][..]));
}

#[test]
fn a_net_may_be_driven_from_any_thread() {
    fn is_send<T: Send>(_: &T) {}
    is_send(&Net::new(1));
}
