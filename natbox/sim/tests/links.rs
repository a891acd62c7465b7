//! What links do to packets, seen from the hosts at their ends.

#![allow(clippy::unwrap_used, reason = "a helper of a test may panic as the test may")]

mod common;

use common::{INTERNET, at, delay, deliveries, ms, socket};
use natbox_sim::{
    Conditions, ConditionsError, ControlError, Datagram, Direction, HostId, IcmpErrorKind, Input,
    LinkConditions, LinkCounters, LinkId, Net, SendError, Time,
};

/// Two hosts on the internet; what one sends meets `conditions` on the sender's way up.
fn pair(seed: u64, conditions: Conditions) -> (Net, HostId, HostId, LinkId) {
    let mut net = Net::new(seed);
    let up = LinkConditions { up: conditions, down: Conditions::PERFECT };
    let (a, b) = (net.add_host(INTERNET, up).unwrap(), net.add_host(INTERNET, Conditions::PERFECT).unwrap());
    let link = net.host_link(a, "0.0.0.0".parse().unwrap()).unwrap();
    (net, a, b, link)
}

fn send(net: &mut Net, from: HostId, to: HostId, payload: &[u8], now: Time) -> Result<(), SendError> {
    let (from_socket, to) = (socket(net, from, 1000), socket(net, to, 2000));
    net.send(from, Datagram::new(from_socket, to, payload), now)
}

/// Sends `count` numbered packets, one every `gap`, and returns the number and time of each that arrives.
fn stream(net: &mut Net, a: HostId, b: HostId, count: u32, gap: std::time::Duration) -> Vec<(u32, Time)> {
    let mut got = Vec::new();
    for i in 0..count {
        let now = Time::ZERO + gap * i;
        got.extend(deliveries(net, now));
        send(net, a, b, &i.to_be_bytes(), now).unwrap();
    }
    got.extend(deliveries(net, Time::NEVER));
    got.iter().map(|got| (u32::from_be_bytes(got.payload[..].try_into().unwrap()), got.time)).collect()
}

fn counters(net: &Net, link: LinkId) -> LinkCounters {
    net.link_counters(link, Direction::Up).unwrap()
}

fn is_about(measured: u64, of: u64, expected: f64) {
    let deviation = (of as f64 * expected * (1.0 - expected)).sqrt();
    let off = (measured as f64 - of as f64 * expected).abs();
    assert!(off < 4.0 * deviation, "{measured} of {of} is not {expected}");
}

#[test]
fn packets_arrive_in_order_after_the_delays_of_both_links() {
    let mut net = Net::new(1);
    let (a, b) = (net.add_host(INTERNET, delay(10)).unwrap(), net.add_host(INTERNET, delay(25)).unwrap());
    let got = stream(&mut net, a, b, 100, ms(1));
    let expected: Vec<_> = (0..100).map(|i| (i, at(u64::from(i) + 35))).collect();
    assert_eq!(got, expected);
    assert_eq!((net.in_flight(), net.poll_timeout()), (0, None));
}

#[test]
fn loss_duplication_and_reordering_are_as_frequent_as_said() {
    const COUNT: u32 = 50_000;
    for loss in [0.001, 0.05, 0.5] {
        let (mut net, a, b, link) = pair(3, Conditions { loss, ..delay(5) });
        let got = stream(&mut net, a, b, COUNT, ms(1));
        let counters = counters(&net, link);
        is_about(counters.lost, COUNT.into(), loss);
        assert_eq!(got.len() as u64, counters.carried());
        assert!(got.is_sorted(), "loss does not reorder");
    }
    let (mut net, a, b, link) = pair(4, Conditions { duplicate: 0.1, ..delay(5) });
    let got = stream(&mut net, a, b, COUNT, ms(1));
    is_about(counters(&net, link).duplicated, COUNT.into(), 0.1);
    assert_eq!(got.len() as u64, u64::from(COUNT) + counters(&net, link).duplicated);

    let (mut net, a, b, link) = pair(5, Conditions { reorder: 0.1, reorder_by: ms(3), ..delay(5) });
    let got = stream(&mut net, a, b, COUNT, ms(1));
    is_about(counters(&net, link).reordered, COUNT.into(), 0.1);
    let late = got.iter().filter(|(i, time)| *time == at(u64::from(*i) + 8)).count() as u64;
    assert_eq!(late, counters(&net, link).reordered);
    assert!(!got.iter().map(|(i, _)| i).is_sorted());
}

#[test]
fn certain_loss_and_duplication_are_certain() {
    let (mut net, a, b, _) = pair(1, Conditions { loss: 1.0, ..Conditions::PERFECT });
    assert_eq!(stream(&mut net, a, b, 1000, ms(1)), []);
    let (mut net, a, b, _) = pair(1, Conditions { duplicate: 1.0, ..Conditions::PERFECT });
    assert_eq!(stream(&mut net, a, b, 1000, ms(1)).len(), 2000);
}

#[test]
fn jitter_spreads_arrivals_and_keeps_their_order() {
    let (mut net, a, b, _) = pair(6, Conditions { jitter: ms(20), ..delay(10) });
    let got = stream(&mut net, a, b, 10_000, ms(100));
    let extra: Vec<u64> =
        got.iter().map(|(i, time)| (*time - at(u64::from(*i) * 100 + 10)).as_micros() as u64).collect();
    let mean = extra.iter().sum::<u64>() / extra.len() as u64;
    assert!((9_700..10_300).contains(&mean), "{mean} µs");
    assert!(extra.iter().all(|extra| *extra <= 20_000) && extra.iter().any(|extra| *extra > 19_900));

    let (mut net, a, b, _) = pair(6, Conditions { jitter: ms(20), ..delay(10) });
    assert!(stream(&mut net, a, b, 10_000, ms(1)).is_sorted(), "also where it is larger than the gap");
}

/// 972 bytes of payload are 1,000 of IP: 8 Mbit/s are 1,000 packets a second.
#[test]
fn a_rate_shapes_and_a_queue_bounds() {
    let conditions = Conditions { rate: Some(8_000_000), queue: 10_000, ..delay(5) };
    let (mut net, a, b, link) = pair(7, conditions);
    for _ in 0..15 {
        send(&mut net, a, b, &[0; 972], at(0)).unwrap();
    }
    assert_eq!(net.backlog(link, Direction::Up), Some(10_000));
    let got = deliveries(&mut net, at(1000));
    assert_eq!(
        got.iter().map(|got| got.time).collect::<Vec<_>>(),
        (1..=10).map(|i| at(i + 5)).collect::<Vec<_>>()
    );
    let LinkCounters { sent, queued, dropped_rate, sent_bytes, .. } = counters(&net, link);
    assert_eq!((sent, queued, dropped_rate, sent_bytes), (15, 9, 5, 15_000));

    // Offered twice the rate for ten seconds, the link carries the rate.
    for i in 0..20_000 {
        send(&mut net, a, b, &[0; 972], at(1000) + ms(1) * i / 2).unwrap();
    }
    let carried = deliveries(&mut net, Time::NEVER).len();
    assert!((10_000..=10_011).contains(&carried), "{carried}");
}

#[test]
fn a_packet_that_does_not_fit_is_refused_at_home_and_reported_on_the_way() {
    let mut net = Net::new(1);
    let narrow =
        LinkConditions { up: Conditions::PERFECT, down: Conditions { mtu: 1280, ..Conditions::PERFECT } };
    let (a, b) =
        (net.add_host(INTERNET, Conditions::PERFECT).unwrap(), net.add_host(INTERNET, narrow).unwrap());
    assert_eq!(send(&mut net, a, b, &[0; 1473], at(0)), Err(SendError::TooBig { len: 1501, mtu: 1500 }));
    send(&mut net, a, b, &[0; 1252], at(0)).unwrap();
    send(&mut net, a, b, &[0; 1253], at(0)).unwrap();
    let (to, input) = net.poll_deliver(at(0)).unwrap();
    assert!(to == b && matches!(input, Input::Datagram(d) if d.payload.len() == 1252));
    let (from, to) = (socket(&net, a, 1000), socket(&net, b, 2000));
    let Some((host, Input::Error(error))) = net.poll_deliver(at(0)) else { panic!("no error") };
    assert_eq!((host, error.kind, error.from, error.to), (a, IcmpErrorKind::TooBig { mtu: 1280 }, from, to));
}

#[test]
fn a_cut_link_swallows_and_a_mended_one_carries() {
    let (mut net, a, b, link) = pair(1, delay(10));
    send(&mut net, a, b, b"on the wire", at(0)).unwrap();
    net.cut(link, at(5)).unwrap();
    send(&mut net, a, b, b"swallowed", at(6)).unwrap();
    net.restore(link, at(7)).unwrap();
    send(&mut net, a, b, b"carried", at(8)).unwrap();
    net.set_cut(link, Direction::Down, true, at(9)).unwrap();
    send(&mut net, b, a, b"no answer", at(9)).unwrap();
    let got = deliveries(&mut net, Time::NEVER);
    let payloads: Vec<_> = got.iter().map(|got| &got.payload[..]).collect();
    assert_eq!(payloads, [&b"on the wire"[..], b"carried"]);
    assert_eq!(counters(&net, link).blackholed, 1);
    assert_eq!(net.link_counters(link, Direction::Down).unwrap().blackholed, 1);
}

#[test]
fn conditions_change_while_packets_are_on_their_way() {
    let (mut net, a, b, link) = pair(1, delay(50));
    send(&mut net, a, b, b"slow", at(0)).unwrap();
    net.set_link(link, delay(10), at(1)).unwrap();
    assert_eq!(net.conditions(link, Direction::Down), Some(delay(10)));
    send(&mut net, a, b, b"fast", at(1)).unwrap();
    let got = deliveries(&mut net, Time::NEVER);
    assert_eq!(got.iter().map(|got| got.time).collect::<Vec<_>>(), [at(11), at(50)]);
}

#[test]
fn conditions_that_no_link_can_have_are_refused() {
    let (mut net, _, _, link) = pair(1, delay(50));
    let bad = [
        (Conditions { loss: 1.5, ..delay(0) }, ConditionsError::NotAProbability { what: "loss", value: 1.5 }),
        (Conditions { rate: Some(0), ..delay(0) }, ConditionsError::NoRate),
        (Conditions { mtu: 67, ..delay(0) }, ConditionsError::MtuTooSmall(67)),
    ];
    for (conditions, error) in bad {
        assert_eq!(net.set_link(link, conditions, at(0)), Err(error.into()));
        assert!(net.add_host(INTERNET, conditions).is_err());
    }
    assert_eq!(net.conditions(link, Direction::Up), Some(delay(50)));
    let gone = net.add_host(INTERNET, delay(0)).unwrap();
    let its = net.host_link(gone, std::net::Ipv4Addr::UNSPECIFIED).unwrap();
    net.remove_host(gone, at(0));
    assert_eq!(net.cut(its, at(0)), Err(ControlError::NoSuchLink(its)));
}
