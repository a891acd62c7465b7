//! Axes of two kinds at once: what carriers limit, and what the field's quirks do.

mod common;

use common::*;
use natbox_core::{
    Config, DropReason, Ended, Endpoint, Event, Limits,
    Protocol::{Tcp, Udp},
    behavior::*,
    preset::Preset,
};

fn limited(behavior: Behavior, mappings: usize, sessions: usize) -> Net {
    let limits = Limits { mappings, sessions };
    Net::with(Config { behavior, limits, ..Config::new(N.into()) })
}

fn linux(change: impl FnOnce(&mut Behavior)) -> Behavior {
    let mut behavior = Preset::by_name("linux").expect("a preset").behavior();
    change(&mut behavior);
    behavior
}

/// A subscriber that has had its share is refused, full table or not; one that has not displaces somebody.
#[test]
fn who_is_beyond_its_share_displaces_nobody() {
    let shares: [fn(&mut Behavior); 4] = [
        |behavior| behavior.subscriber_mappings = Some(2),
        |behavior| behavior.subscriber_sessions = Some(2),
        |behavior| behavior.subscriber_mapping_rate = Rate::new(1, 2),
        |behavior| behavior.subscriber_session_rate = Rate::new(1, 2),
    ];
    for share in shares {
        for pressure in [Pressure::DropUnanswered, Pressure::DropOldest] {
            for (mappings, sessions) in [(4, 4), (4, 9), (9, 4)] {
                let behavior = rfc(|behavior| {
                    behavior.pressure = pressure;
                    share(behavior);
                });
                let mut net = limited(behavior, mappings, sessions);
                for host in [A, B] {
                    net.send_out(Udp, at(host, 1), S);
                    net.send_out(Udp, at(host, 2), S);
                }
                let before = net.mappings();
                let refused = net.try_out(Udp, at(A, 3), S).unwrap_err();
                assert_ne!(refused, DropReason::TableFull, "{pressure}: its own limit is the reason");
                assert_eq!((net.mappings(), net.nat.counters().displaced), (before, 0), "{pressure}");
                let other = Endpoint::v4([10, 0, 0, 77].into(), 1);
                net.send_out(Udp, other, S);
                assert_eq!(net.nat.counters().displaced, 1, "{pressure}: who has room of its own gets it");
            }
        }
    }
}

/// What is displaced is over like anything else: its port rests, its subscriber has room again.
#[test]
fn what_is_displaced_gives_everything_back() {
    let behavior = rfc(|behavior| {
        behavior.filtering = Filtering::EndpointIndependent;
        behavior.pressure = Pressure::DropOldest;
        behavior.port_quarantine = Some(secs(120));
        behavior.port_block = Some(16);
        behavior.subscriber_mappings = Some(2);
    });
    let mut net = limited(behavior, 2, 2);
    let first = net.send_out(Udp, A, S);
    net.wait(secs(1));
    net.send_out(Udp, B, S);
    net.wait(secs(1));
    let third = net.send_out(Udp, at(A, 9), S);
    assert_ne!(first, third, "the port rests");
    let told = |event: &&Event| matches!(event, Event::MappingEnded { why: Ended::Displaced, .. });
    assert_eq!(net.events.iter().filter(told).count(), 1);
    assert_eq!((net.nat.resting_count(), net.nat.block_count()), (1, 2));
    net.wait(secs(1));
    net.send_out(Udp, at(A, 10), S);
    assert_eq!(
        (net.nat.resting_count(), net.nat.block_count()),
        (2, 2),
        "a block is held by what rests in it"
    );
    assert_eq!(net.try_out(Udp, at(A, 11), S), Err(DropReason::SubscriberMappings));
    let stranger = Endpoint::v4([10, 0, 0, 77].into(), 1);
    assert_eq!(
        net.try_out(Udp, stranger, S),
        Err(DropReason::TableFull),
        "as many subscribers as there may be"
    );
    assert_eq!(net.nat.counters().displaced, 2, "and nobody goes in vain");
    net.wait(secs(1000));
    assert_eq!((net.nat.resting_count(), net.nat.block_count(), net.nat.subscriber_count()), (0, 0, 0));
}

/// The port that Linux gives again is one of the subscriber's own.
#[test]
fn linux_gives_the_last_port_again_in_blocks() {
    let mut net = Net::new(linux(|behavior| behavior.port_block = Some(64)));
    let twin = at(B, A.port);
    let first = net.send_out(Udp, A, S);
    let other = net.send_out(Udp, twin, S);
    assert_eq!(net.send_out(Udp, twin, P), other, "overloaded in its own block");
    assert_eq!(net.send_out(Udp, A, P), first);
    assert_eq!(net.nat.block_count(), 2);

    // A mapping from before the blocks lies in one that is nobody's.
    let mut net = Net::new(linux(|_| ()));
    net.send_out(Udp, A, S);
    let near = net.send_out(Udp, twin, S);
    net.forward(Udp, at(A, 9), near.port ^ 1);
    net.nat.set_behavior(linux(|behavior| behavior.port_block = Some(64)));
    assert_ne!(net.send_out(Udp, twin, P), near, "not from a block that several have");
}

/// A resting port is not given again, whoever had it.
#[test]
fn linux_gives_no_resting_port_again() {
    let behavior = linux(|behavior| {
        behavior.filtering = Filtering::EndpointIndependent;
        behavior.port_quarantine = Some(secs(120));
    });
    let mut net = Net::new(behavior);
    let twin = at(B, A.port);
    net.send_out(Udp, A, S);
    let other = net.send_out(Udp, twin, S);
    net.wait(secs(31));
    assert_eq!(net.nat.resting_count(), 2);
    let next = net.send_out(Udp, twin, P);
    assert!(next != other && next.port != A.port, "both rest: {next:?}");
}

/// A filter of its own for TCP is kept to, and then no permission is for both transports.
#[test]
fn a_filter_of_its_own_knows_its_protocol() {
    for udp in Filtering::ALL {
        for tcp in Filtering::ALL {
            let mut net = Net::new(rfc(|behavior| {
                behavior.filter_protocol = FilterProtocol::Any;
                behavior.filtering = *udp;
                behavior.tcp_filtering = ForTcp::Own(*tcp);
                behavior.ports = PortAssignment::Preserve;
            }));
            let external = net.send_out(Udp, A, S);
            assert_eq!(net.send_out(Tcp, A, P), external);
            let open = |filtering: &Filtering| *filtering == Filtering::EndpointIndependent;
            let name = format!("UDP {udp}, TCP {tcp}");
            assert_eq!(net.send_in(Tcp, S, external).is_some(), udp == tcp || open(tcp), "{name}");
            assert_eq!(net.send_in(Udp, P, external).is_some(), udp == tcp || open(udp), "{name}");
            net.wait(secs(8000));
            assert_eq!(net.nat.mapping_count(), 0, "{name}");
        }
    }
}

/// A flow with a lifetime of its own does not tell whether it was answered, and is not taken for one that was not.
#[test]
fn brief_flows_are_not_unanswered() {
    let behavior = rfc(|behavior| {
        behavior.pressure = Pressure::DropUnanswered;
        behavior.udp_port_timeouts = PortTimeouts::new(&[(53, secs(10))]).unwrap();
    });
    let mut net = limited(behavior, 1, 1);
    net.send_out(Udp, A, S);
    assert_eq!(net.try_out(Udp, B, S2), Err(DropReason::TableFull));
    net.wait(secs(11));
    net.send_out(Udp, B, S2);
}
