//! The control socket over a NAT in memory: a loop that owns the NAT, the real server, real clients.

#![allow(clippy::unwrap_used, reason = "a helper of a test may panic as the test may")]

mod control_lab;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::Ipv4Addr,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    sync::{atomic::Ordering, mpsc::channel},
    thread,
    time::Instant,
};

use control_lab::{DEADLINE, EXTERNAL, Lab, about, place};
use natbox::control::{self, Only, PlaceError, Request, Server};
use serde_json::{Value, json};

fn axes(pairs: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    pairs.iter().map(|(axis, value)| ((*axis).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn show_tells_the_whole_state() {
    let lab = Lab::start(false);
    lab.send_from(4242..4244);
    let state = lab.show(Only::default());
    let status = state.status.unwrap();
    assert_eq!((status.mappings, status.sessions, status.external), (2, 2, vec![EXTERNAL.into()]));
    assert_eq!((status.pid, status.preset.as_deref()), (std::process::id(), Some("rfc")));
    assert_eq!(status.behavior["mapping"], "endpoint-independent");
    let mappings = state.mappings.unwrap();
    let inside: Vec<_> = mappings.iter().map(|mapping| mapping.inside.to_string()).collect();
    assert_eq!(inside, ["10.64.0.2:4242", "10.64.0.2:4243"], "in order");
    assert_eq!(
        (mappings[0].external.ip(), mappings[0].remote, mappings[0].forward),
        (EXTERNAL.into(), None, false)
    );
    assert!(mappings[0].expires_in_ms.is_some_and(|millis| millis <= 300_000 && millis > 250_000));
    assert_eq!(state.sessions.unwrap()[0].remote.to_string(), "203.0.113.2:53");
    let counted = state.counted.unwrap();
    assert_eq!((counted.get("outbound-packets"), counted.dropped()), (2, 0));
    assert!(counted.drops.contains_key("no-mapping"));
    assert_eq!(state.ports.unwrap()[0].counters["received-packets"], 3);
    let only = Only { port: Some(mappings[1].external.port()), ..Only::default() };
    let selected = lab.show(only).mappings.unwrap();
    assert_eq!(selected.iter().map(|mapping| mapping.inside).collect::<Vec<_>>(), [mappings[1].inside]);
}

#[test]
fn set_changes_axes_or_everything_or_nothing() {
    let lab = Lab::start(false);
    let set = |nat: Option<&str>, pairs: &[(&str, &str)]| Request::Set {
        nat: nat.map(str::to_owned),
        axes: axes(pairs),
    };
    let done =
        lab.client().request(&set(None, &[("filtering", "eif"), ("udp-timeout", "7s")]), |_| ()).unwrap();
    assert_eq!(done.behavior.unwrap()["filtering"], "endpoint-independent");
    let status = lab.show(Only::default()).status.unwrap();
    assert_eq!(
        (&*status.behavior["udp-timeout"], &*status.behavior["mapping"]),
        ("7s", "endpoint-independent")
    );
    lab.client().request(&set(Some("symmetric"), &[("hairpin", "internal")]), |_| ()).unwrap();
    let status = lab.show(Only::default()).status.unwrap();
    assert_eq!((status.preset.as_deref(), &*status.behavior["hairpin"]), (Some("symmetric"), "internal"));
    assert_eq!(status.behavior["udp-timeout"], "5m");
    assert!(lab.refused(&set(Some("nope"), &[])).contains("no preset"));
    assert!(lab.refused(&set(Some("linux"), &[("mapping", "round")])).contains("is not a value of mapping"));
    assert!(lab.refused(&set(None, &[("colour", "red")])).contains("one of mapping, filtering"));
    assert_eq!(
        lab.show(Only::default()).status.unwrap().behavior,
        status.behavior,
        "a refusal changes nothing"
    );
}

#[test]
fn flush_rebind_and_forwards() {
    let lab = Lab::start(false);
    lab.send_from(5000..5010);
    let add = |text: &str| Request::ForwardAdd { forward: text.to_owned() };
    let done = lab.client().request(&add("udp:5353=10.64.0.2:53"), |_| ()).unwrap();
    assert_eq!(done.external.unwrap().to_string(), "198.51.100.7:5353");
    lab.client().request(&add("tcp:80=10.65.0.9:80"), |_| ()).unwrap();
    let forwards: Vec<_> =
        lab.show(Only::default()).mappings.unwrap().into_iter().filter(|m| m.forward).collect();
    assert_eq!(forwards.iter().map(|m| m.inside_port).collect::<Vec<_>>(), [0, 1], "found by their networks");
    assert!(lab.refused(&add("udp:5353=10.64.0.3:53")).contains("in use by"));
    assert!(lab.refused(&add("udp:1=172.16.0.1:1")).contains("is in no inside network; say which with #N"));
    assert!(lab.refused(&add("udp:1=10.64.0.2:1#2")).contains("there is no inside port 2"));
    let own = "is this NAT's own address: name a host behind it";
    assert_eq!(lab.refused(&add("udp:1=10.64.0.1:1")), format!("10.64.0.1 {own}"));
    assert_eq!(lab.refused(&add("udp:1=198.51.100.7:1#0")), format!("198.51.100.7 {own}"));

    let flush = |only, forwards| Request::Flush { only, forwards };
    let host = Only { host: Some("10.64.0.9".parse().unwrap()), ..Only::default() };
    assert_eq!(lab.client().request(&flush(host, false), |_| ()).unwrap().removed, Some(0));
    let udp = Only { protocol: Some("udp".to_owned()), ..Only::default() };
    assert_eq!(lab.client().request(&flush(udp, false), |_| ()).unwrap().removed, Some(10));
    assert!(
        lab.refused(&flush(Only { protocol: Some("sctp".to_owned()), ..Only::default() }, false))
            .contains("udp, tcp")
    );

    let remove = |protocol: &str, port| Request::ForwardRemove { protocol: protocol.to_owned(), port };
    lab.client().request(&remove("tcp", 80), |_| ()).unwrap();
    assert_eq!(lab.refused(&remove("tcp", 80)), "there is no forward of tcp port 80");

    lab.send_from(5000..5003);
    let rebind = Request::Rebind { external: vec!["198.51.100.8".parse().unwrap()] };
    lab.client().request(&rebind, |_| ()).unwrap();
    let state = lab.show(Only::default());
    assert_eq!(state.status.unwrap().external, vec!["198.51.100.8".parse::<std::net::IpAddr>().unwrap()]);
    assert!(state.mappings.is_none(), "the forward was on the old address");
}

#[test]
fn a_shared_address_cannot_be_exchanged() {
    let lab = Lab::start(true);
    let rebind = |addrs: &[Ipv4Addr]| Request::Rebind { external: addrs.to_vec() };
    assert!(lab.refused(&rebind(&[Ipv4Addr::new(1, 2, 3, 4)])).contains("start it with --external"));
    lab.send_from(1..4);
    assert_eq!(lab.client().request(&rebind(&[]), |_| ()).unwrap().removed, Some(3));
}

#[test]
fn the_hosts_own_address_is_not_taken_by_a_rebind() {
    let lab = Lab::start(false);
    let refused = lab.refused(&Request::Rebind { external: vec![Ipv4Addr::LOCALHOST] });
    assert!(refused.contains("127.0.0.1 is the host's own"), "{refused}");
    let refused = lab.refused(&Request::Rebind { external: vec![Ipv4Addr::new(10, 65, 0, 1)] });
    assert!(refused.contains("gateway of an inside network"), "{refused}");
}

#[test]
fn a_port_range_that_cannot_be_had_is_refused() {
    let lab = Lab::start(true);
    let set = |range: &str| Request::Set {
        nat: None,
        axes: [("port-range".to_owned(), range.to_owned())].into_iter().collect(),
    };
    assert!(lab.refused(&set("1-1000")).contains("keeps to 1024-32767"));
    lab.client().request(&set("1000-2000"), |_| ()).unwrap();
}

#[test]
fn events_arrive_in_order_until_the_client_hangs_up() {
    let lab = Lab::start(false);
    let (ready, subscribed) = channel();
    let path = lab.path.clone();
    let listener = thread::spawn(move || {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(b"{\"natbox\":1,\"request\":\"events\"}\n").unwrap();
        let mut lines =
            BufReader::new(stream).lines().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
        assert_eq!(lines.next().unwrap()["type"], "done");
        ready.send(()).unwrap();
        lines.take(4).collect::<Vec<_>>()
    });
    subscribed.recv_timeout(DEADLINE).unwrap();
    lab.send_from(7000..7002);
    lab.client().request(&Request::Flush { only: Only::default(), forwards: false }, |_| ()).unwrap();
    let events = listener.join().unwrap();
    let seen: Vec<_> =
        events.iter().map(|event| (event["event"].as_str().unwrap(), event["why"].as_str())).collect();
    assert_eq!(
        seen,
        [("created", None), ("created", None), ("ended", Some("removed")), ("ended", Some("removed"))]
    );
    assert_eq!((&events[0]["inside"], &events[0]["protocol"]), (&json!("10.64.0.2:7000"), &json!("udp")));
}

/// The log of a carrier: whose the ports were, and nothing of the mappings; the status counts what limits count.
#[test]
fn events_of_port_blocks_alone() {
    let lab = Lab::start(false);
    let set = axes(&[("port-block", "64"), ("filtering", "eif"), ("port-quarantine", "1h")]);
    lab.client().request(&Request::Set { nat: None, axes: set }, |_| ()).unwrap();
    let mut stream = UnixStream::connect(&lab.path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"{\"natbox\":1,\"request\":\"events\",\"blocks\":true}\n").unwrap();
    let mut lines =
        BufReader::new(stream).lines().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    assert_eq!(lines.next().unwrap()["type"], "done");
    lab.send_from(7000..7003);
    let status = lab.show(Only::default()).status.unwrap();
    assert_eq!((status.subscribers, status.port_blocks, status.resting_ports), (1, 1, 0));
    lab.client().request(&Request::Flush { only: Only::default(), forwards: false }, |_| ()).unwrap();
    let state = lab.show(Only::default());
    let status = state.status.as_ref().unwrap();
    assert_eq!((status.mappings, status.port_blocks, status.resting_ports), (0, 1, 3));
    let mut page = Vec::new();
    state.write(&mut page, false).unwrap();
    let page = String::from_utf8(page).unwrap();
    assert!(page.contains("0 mappings, 0 sessions, 1 subscriber, 1 port block, 3 resting ports"), "{page}");

    let set = axes(&[("port-quarantine", "none")]);
    lab.client().request(&Request::Set { nat: None, axes: set }, |_| ()).unwrap();
    lab.send_from(8000..8001); // what has rested is given back first
    let log: Vec<_> = lines.take(3).collect();
    let events: Vec<_> = log.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["assigned", "released", "assigned"]);
    assert_eq!(log[0]["ports"], log[1]["ports"]);
    for event in &log {
        assert_eq!(
            (&event["subscriber"], &event["address"]),
            (&json!("10.64.0.2/32"), &json!("198.51.100.7"))
        );
        let (first, last) = event["ports"].as_str().unwrap().split_once('-').unwrap();
        let (first, last): (u16, u16) = (first.parse().unwrap(), last.parse().unwrap());
        assert!((first % 64 == 0 || first == 1) && last % 64 == 63, "{event}");
        assert!(event.get("inside").is_none() && event.get("protocol").is_none());
    }
}

#[test]
fn fifty_thousand_mappings_and_a_client_that_does_not_read() {
    let lab = Lab::start(false);
    lab.send_from(1..50_001);
    let mut stuck = UnixStream::connect(&lab.path).unwrap();
    let request = b"{\"natbox\":1,\"request\":\"show\",\"mappings\":true,\"sessions\":true}\n";
    stuck.write_all(request).unwrap();
    let asked = Instant::now();
    let state = lab.show(Only::default());
    assert_eq!(state.mappings.unwrap().len(), 50_000);
    assert_eq!(state.sessions.unwrap().len(), 50_000);
    let turns = lab.turns.load(Ordering::Relaxed);
    while lab.turns.load(Ordering::Relaxed) < turns + 10 {
        assert!(asked.elapsed() < DEADLINE, "the loop stands still");
        thread::yield_now();
    }
}

#[test]
fn what_is_no_request_is_refused_in_one_line() {
    let lab = Lab::start(false);
    let mut stream = UnixStream::connect(&lab.path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut ask = |text: &str| {
        stream.write_all(format!("{text}\n").as_bytes()).unwrap();
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(line["type"], "error", "{line}");
        line["message"].as_str().unwrap().to_owned()
    };
    assert!(ask("hello").starts_with("not JSON: "));
    assert!(ask("[]").contains("\"natbox\":1"));
    assert_eq!(
        ask("{\"natbox\":2,\"request\":\"show\"}"),
        "this natbox speaks version 1 of the protocol, not 2"
    );
    assert!(ask("{\"natbox\":1,\"request\":\"fly\"}").contains("fly"));
    assert!(ask("{\"natbox\":1,\"request\":\"flush\",\"forward\":true}").contains("forward"));
    assert!(ask(&"x".repeat(70_000)).contains("at most 65536 bytes"));
    assert!(lines.next().is_none_or(|line| line.is_err()), "and the connection ends");
}

/// Bytes that are no text are no reason to hang up.
#[test]
fn what_is_no_text_is_refused_as_well() {
    let lab = Lab::start(false);
    let mut stream = UnixStream::connect(&lab.path).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    for _ in 0..2 {
        stream.write_all(b"{\"natbox\":1,\"request\":\"show\xff\"}\n").unwrap();
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(line["type"], "error");
        let message = line["message"].as_str().unwrap();
        assert!(message.starts_with("not UTF-8: ") && message.contains("byte 28"), "{message}");
    }
    stream.write_all(b"{\"natbox\":1,\"request\":\"show\"}\n").unwrap();
    let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(line["type"], "status", "and it may ask again");
}

/// Whoever holds most comes first; what was refused is told where somebody counts.
#[test]
fn subscribers_are_listed_by_their_use() {
    let lab = Lab::start(false);
    assert_eq!(lab.show(Only::default()).subscribers, None);
    lab.send_from(4000..4003);
    let state = lab.show(Only::default());
    let all = state.subscribers.clone().unwrap();
    assert_eq!((all.len(), &*all[0].subscriber, all[0].refused), (1, "10.64.0.2/32", None), "nobody counts");

    let set = axes(&[("port-block", "64"), ("subscriber-mappings", "5"), ("subscriber-prefix", "31")]);
    lab.client().request(&Request::Set { nat: None, axes: set }, |_| ()).unwrap();
    lab.send_from(4000..4005);
    lab.refuse(5000..5007);
    lab.client()
        .request(&Request::ForwardAdd { forward: "udp:5353=10.65.0.9:53".to_owned() }, |_| ())
        .unwrap();
    let state = lab.show(Only::default());
    let all = state.subscribers.clone().unwrap();
    let summed: Vec<_> =
        all.iter().map(|s| (&*s.subscriber, s.inside_port, s.mappings, s.sessions, s.refused)).collect();
    assert_eq!(summed, [("10.64.0.2/31", 0, 5, 5, Some(7)), ("10.65.0.8/31", 1, 1, 0, Some(0))]);
    assert_eq!(all[0].external, [std::net::IpAddr::from(EXTERNAL)]);
    assert_eq!(all[1].blocks, ["198.51.100.7:5312-5375"]);
    let mut page = Vec::new();
    state.write(&mut page, false).unwrap();
    let page = String::from_utf8(page).unwrap();
    let row = page.lines().find(|line| line.starts_with("10.65.0.8/31%tun1")).unwrap();
    let cells: Vec<_> = row.split_whitespace().collect();
    assert_eq!(cells[1..], ["1", "0", "198.51.100.7", "198.51.100.7:5312-5375", "0"]);

    let only = Only { host: Some("10.65.0.8".parse().unwrap()), ..Only::default() };
    let chosen = lab.show(only).subscribers.unwrap();
    assert_eq!(chosen.iter().map(|s| &*s.subscriber).collect::<Vec<_>>(), ["10.65.0.8/31"]);
}

#[test]
fn only_so_many_clients_are_served_at_once() {
    let lab = Lab::start(false);
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let mut client = lab.client();
            client.request(&Request::Flush { only: Only::default(), forwards: false }, |_| ()).unwrap();
            client
        })
        .collect();
    let message = lab.refused(&Request::Flush { only: Only::default(), forwards: false });
    assert_eq!(message, "16 clients are connected already: try again later");
    drop(clients);
    let asked = Instant::now();
    while lab.client().request(&Request::Flush { only: Only::default(), forwards: false }, |_| ()).is_err() {
        assert!(asked.elapsed() < DEADLINE, "places are not given back");
        thread::yield_now();
    }
}

#[test]
fn the_socket_is_its_owner_s_and_a_dead_one_is_replaced() {
    let lab = Lab::start(false);
    assert_eq!(fs::metadata(&lab.path).unwrap().permissions().mode() & 0o777, 0o600);
    let second = |path: &Path| {
        let (handle, _inbox) = control::channel().unwrap();
        Server::start(Some(path), handle, about(false))
    };
    assert!(matches!(second(&lab.path), Err(PlaceError::InUse(_))));

    let dead = place();
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    assert!(dead.exists(), "as after SIGKILL");
    drop(second(&dead).unwrap());
    assert!(!dead.exists());

    let file = place();
    fs::write(&file, "").unwrap();
    assert!(matches!(second(&file), Err(PlaceError::InTheWay(_))));
    fs::remove_file(&file).unwrap();
    let long = PathBuf::from("/tmp").join("x".repeat(200));
    assert!(matches!(second(&long), Err(PlaceError::TooLong(_))));
    assert!(matches!(second(Path::new("/nonexistent/x.sock")), Err(PlaceError::System { .. })));
}
