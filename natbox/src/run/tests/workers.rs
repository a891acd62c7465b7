//! Several workers on one engine.

use std::collections::{HashMap, HashSet};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Two workers that know the gateway.
fn two() -> Bench {
    let mut bench = Bench::with_workers(2);
    bench.wires[0][1].push(Delivered::ipv4(&udp((HOST, 1), (REMOTE, 1), b""), [0; 6]));
    bench.turn();
    bench.resolve_gateway();
    for wires in &bench.wires {
        while wires[OUTSIDE].take().is_some() {}
    }
    bench
}

#[test]
fn a_mapping_made_by_one_is_used_by_the_other() {
    let mut bench = two();
    bench.wires[1][1].push(Delivered::ipv4(&udp((HOST, 4242), (REMOTE, 53), b"there"), [0; 6]));
    let (_, ledger) = bench.turn();
    let sent = bench.wires[1][OUTSIDE].take().unwrap();
    let (address, port) = source(&sent.packet);
    assert_eq!((address, sent.peer), (EXTERNAL, GATEWAY_MAC));
    assert_eq!(ledger, [(port, 0)], "claimed before it left");
    assert_eq!(bench.wires[0][OUTSIDE].take(), None, "it leaves by the worker that it came by");

    let answer = udp((REMOTE, 53), (EXTERNAL, port), b"back");
    bench.wires[0][OUTSIDE].push(Delivered::ipv4(&answer, GATEWAY_MAC));
    bench.turn();
    let delivered = bench.wires[0][1].take().unwrap();
    assert_eq!((&delivered.packet[16..20], source(&delivered.packet)), (&HOST[..], (REMOTE, 53)));

    bench.wires[0][1].push(Delivered::ipv4(&udp((HOST, 4242), (REMOTE, 54), b"elsewhere"), [0; 6]));
    let (_, ledger) = bench.turn();
    let sent = bench.wires[0][OUTSIDE].take().unwrap();
    assert_eq!((source(&sent.packet), ledger), ((EXTERNAL, port), Vec::new()), "one mapping for both");
}

#[test]
fn whoever_hears_the_neighbour_lets_go_what_waited_for_it() {
    let mut bench = Bench::with_workers(2);
    bench.wires[0][1].push(Delivered::ipv4(&udp((HOST, 4242), (REMOTE, 53), b"where is it?"), [0; 6]));
    bench.turn();
    let asked = bench.wires[0][OUTSIDE].take().unwrap();
    assert_eq!((asked.protocol, asked.peer), (ETHERTYPE_ARP, BROADCAST));
    bench.resolve_gateway_at(1);
    let sent = bench.wires[1][OUTSIDE].take().unwrap();
    assert_eq!(
        (sent.protocol, sent.peer, bench.wires[0][OUTSIDE].take()),
        (ETHERTYPE_IPV4, GATEWAY_MAC, None)
    );
    // And from now on everybody knows it.
    bench.wires[0][1].push(Delivered::ipv4(&udp((HOST, 4242), (REMOTE, 53), b"again"), [0; 6]));
    bench.turn();
    assert_eq!(bench.wires[0][OUTSIDE].take().unwrap().peer, GATEWAY_MAC);
}

#[test]
fn an_address_of_ours_is_answered_for_at_either() {
    let mut bench = Bench::with_workers(2);
    bench.shared.lock().set_owned(vec![(EXTERNAL.into(), 32)]);
    bench.turn();
    let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
    for part in [&GATEWAY_MAC[..], &GATEWAY, &[0; 6], &EXTERNAL] {
        request.extend_from_slice(part);
    }
    for worker in [0, 1] {
        bench.wires[worker][OUTSIDE].push(Delivered {
            packet: request.clone(),
            offload: Offload::default(),
            protocol: ETHERTYPE_ARP,
            peer: GATEWAY_MAC,
        });
        bench.turn();
        let sent: Vec<_> = std::iter::from_fn(|| bench.wires[worker][OUTSIDE].take()).collect();
        let reply = sent.iter().find(|frame| frame.peer == GATEWAY_MAC).unwrap();
        assert_eq!((reply.protocol, &reply.packet[14..18]), (ETHERTYPE_ARP, &EXTERNAL[..]));
    }
}

/// The second worker's packet asks for the gateway, and nobody answers: the first one asks again a second later. It is
/// woken for that if it meant to sleep for longer, and only then.
#[test]
fn a_timer_that_another_worker_sets_wakes_the_first() {
    let mut bench = Bench::with_workers(2);
    let is_rung = |bench: &Bench| {
        let mut fds = [nix::poll::PollFd::new(bench.shared.bell(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).unwrap() > 0
    };
    let minute = Time::ZERO + 60 * SECOND;
    assert_eq!(bench.shared.due(), Time::NEVER);
    assert_eq!(bench.shared.fall_asleep(minute), minute);
    bench.wires[1][1].push(Delivered::ipv4(&udp((HOST, 4242), (REMOTE, 53), b"x"), [0; 6]));
    bench.turn();
    assert!(is_rung(&bench));
    bench.shared.quieten();
    bench.shared.wake_up();
    assert_eq!(bench.wires[1][OUTSIDE].take().unwrap().protocol, ETHERTYPE_ARP);

    let due = bench.shared.due();
    assert_eq!(due, Time::ZERO + SECOND);
    assert_eq!(bench.shared.fall_asleep(minute), due);
    bench.wires[1][1].push(Delivered::ipv4(&udp((HOST, 4243), (REMOTE, 53), b"x"), [0; 6]));
    bench.turn();
    assert!(!is_rung(&bench), "it will be awake by then");

    bench.forwarders[0].handle_timeout(due).unwrap();
    let again = bench.wires[0][OUTSIDE].take().unwrap();
    assert_eq!((again.protocol, again.peer), (ETHERTYPE_ARP, BROADCAST));
    assert!(bench.shared.due() > due);
}

#[test]
fn more_packets_of_our_own_than_a_batch_holds_all_leave() {
    let mut bench = Bench::with_workers(2);
    // Each of these hosts has to be asked for.
    let link = |host: u8| [198, 51, 100, host];
    for host in 10..110 {
        bench.wires[0][1].push(Delivered::ipv4(&udp((HOST, 9), (link(host), 9), &[host]), [0; 6]));
    }
    while bench.turn().0 > 0 {}
    let asked = std::iter::from_fn(|| bench.wires[0][OUTSIDE].take()).count();
    assert_eq!(asked, 100);
}

#[test]
fn what_each_has_counted_can_be_read() {
    let mut bench = two();
    let total = |bench: &Bench, side: usize| {
        let mut sum = PortStats::new("sum");
        bench.tallies.iter().for_each(|tallies| sum.add(&tallies[side].stats()));
        sum
    };
    let before = (total(&bench, 1), total(&bench, OUTSIDE));
    for (worker, count) in [(0, 3), (1, 5)] {
        for port in 0..count {
            let packet = udp((HOST, 5000 + port), (REMOTE, 53), b"");
            bench.wires[worker][1].push(Delivered::ipv4(&packet, [0; 6]));
        }
    }
    bench.turn();
    let after = (total(&bench, 1), total(&bench, OUTSIDE));
    assert_eq!(after.0.received_packets - before.0.received_packets, 8);
    assert_eq!(after.1.sent_packets - before.1.sent_packets, 8);
    for (worker, forwarder) in bench.forwarders.iter().enumerate() {
        for (side, stats) in forwarder.stats().enumerate() {
            assert_eq!(bench.tallies[worker][side].stats().values(), stats.values());
        }
    }
}

/// Three workers as threads, to the second of which this happens when it makes a mapping; how each of them ended.
fn ends_of_three(mishap: fn() -> std::io::Error) -> Vec<thread::Result<Result<(), RunError>>> {
    let Bench { shared, forwarders, wires, .. } = Bench::with_workers(3);
    shared.lock().claims.mishap = Some(mishap);
    wires[1][1].push(Delivered::ipv4(&udp((HOST, 4242), (REMOTE, 53), b"x"), [0; 6]));
    let worker = |forwarder| Worker::new(forwarder, Clock::start(), &[shared.end().as_raw_fd()], &[]);
    let (threads, started) = start(forwarders.into_iter().map(worker).collect(), &shared);
    started.unwrap();
    let ended = threads.into_iter().map(JoinHandle::join).collect();
    assert!(shared.is_ending());
    assert_eq!(shared.lock().nat.mapping_count(), 1, "who comes after it has the state");
    ended
}

#[test]
fn an_error_in_one_worker_ends_them_all() {
    let ended = ends_of_three(|| std::io::ErrorKind::Other.into());
    let [Ok(Ok(())), Ok(Err(RunError::Guard(_))), Ok(Ok(()))] = &ended[..] else { panic!("{ended:?}") };
}

#[test]
fn a_panic_in_one_worker_ends_them_all() {
    let ended = ends_of_three(|| panic!("a mishap of the test's own"));
    let [Ok(Ok(())), Err(panic), Ok(Ok(()))] = &ended[..] else { panic!("{ended:?}") };
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"a mishap of the test's own"));
}

/// Two threads, flows in both directions at the same time: every packet comes out, where it belongs, once and in order.
#[test]
fn two_threads_share_the_flows() {
    const FLOWS: u16 = 200;
    const ROUNDS: u8 = 20;
    let Bench { shared, forwarders, wires, .. } = two();
    thread::scope(|scope| {
        for (mut forwarder, wires) in forwarders.into_iter().zip(&wires) {
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    for flow in 0..FLOWS {
                        let packet = udp((HOST, 10_000 + flow), (REMOTE, 53), &[round]);
                        wires[1].push(Delivered::ipv4(&packet, [0; 6]));
                    }
                    while forwarder.pump(1, BUDGET, Time::ZERO).unwrap() > 0 {}
                }
            });
        }
    });
    let mut ports = HashMap::new();
    let mut rounds: HashMap<(usize, u16), Vec<u8>> = HashMap::new();
    for (worker, wires) in wires.iter().enumerate() {
        for frame in std::iter::from_fn(|| wires[OUTSIDE].take()) {
            let (address, port) = source(&frame.packet);
            assert_eq!(address, EXTERNAL);
            rounds.entry((worker, port)).or_default().push(frame.packet[28]);
        }
    }
    for mapping in shared.lock().nat.mappings() {
        ports.insert(mapping.inside.endpoint.port, mapping.external.0.port);
    }
    let flows: HashSet<_> = (10_000..10_000 + FLOWS).filter_map(|port| ports.get(&port)).collect();
    assert_eq!(flows.len(), usize::from(FLOWS), "a port for each flow, whichever worker saw it first");
    assert_eq!(rounds.len(), 2 * usize::from(FLOWS));
    for ((_, port), seen) in rounds {
        assert!(flows.contains(&port));
        assert_eq!(seen, (0..ROUNDS).collect::<Vec<_>>());
    }
}
