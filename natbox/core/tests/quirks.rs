//! What real NATs do beside the RFCs, each by its switch. docs/field.md names the report of each.

mod common;

use common::*;
use natbox_core::{
    Config, DropReason, Ended, Endpoint, Event, Limits,
    Protocol::{Icmp, Tcp, Udp},
    behavior::*,
    preset::Preset,
};

fn limited(behavior: Behavior, sessions: usize) -> Net {
    let limits = Limits { mappings: sessions, sessions };
    Net::with(Config { behavior, limits, ..Config::new(N.into()) })
}

#[test]
fn a_reset_may_end_its_connection_at_once() {
    for tcp_reset in TcpReset::ALL {
        for (answered, outbound) in [(true, true), (true, false), (false, true), (false, false)] {
            let mut net = Net::new(rfc(|behavior| behavior.tcp_reset = *tcp_reset));
            let external = if answered { net.connect(A, S) } else { net.send_out(Tcp, A, S) };
            if outbound {
                assert_eq!(net.tcp_out(A, S, RST), Ok(external));
            } else {
                assert_eq!(net.tcp_in(S, external, RST), Ok(A), "it passes all the same");
            }
            let ends = match tcp_reset {
                TcpReset::Keep => false,
                TcpReset::EndUnanswered => !answered,
                TcpReset::End => true,
            };
            let name = format!("{tcp_reset} answered: {answered}, outbound: {outbound}");
            assert_eq!(net.nat.session_count(), usize::from(!ends), "{name}");
            assert_eq!(net.nat.mapping_count(), usize::from(!ends), "{name}: and its port is free");
        }
    }
}

/// One that is too long for the next link, and may be cut, is cut and passes as any other.
#[test]
fn a_long_reset_may_end_its_connection_as_well() {
    let long = |from, to| tcp(from, to, RST, &[7; 3000]).ip(|header| header.dont_fragment = false);
    for tcp_reset in TcpReset::ALL {
        let sessions = |count| if *tcp_reset == TcpReset::End { 0 } else { count };
        let mut net = Net::new(rfc(|behavior| {
            behavior.tcp_reset = *tcp_reset;
            behavior.filtering = Filtering::EndpointIndependent;
        }));
        let external = net.connect(A, S);
        let came = net.in_pieces(&[long(S, external)]);
        assert_eq!(came.len(), 3, "{tcp_reset}, from outside");
        assert_eq!(whole(&came).map(|view| (view.to, view.payload.len())), Some((A, 3000)));
        assert_eq!(net.nat.session_count(), sessions(1));

        let mut net = Net::new(net.nat.behavior().clone());
        let b = net.connect(B, S);
        let (a, _) = net.hairpin(&mut tcp(A, b, SYN, b"")).unwrap();
        net.hairpin(&mut tcp(B, a, SYN_ACK, b"")).unwrap();
        let came = net.out_pieces(&[long(A, b)]);
        assert_eq!(came.len(), 3, "{tcp_reset}, from a neighbour");
        assert_eq!(whole(&came).map(|view| (view.from, view.to)), Some((a, B)));
        assert_eq!(net.nat.session_count(), 1 + sessions(2), "that with S goes on");
    }
}

/// A connection that was picked up in the middle has not been answered before something comes back.
#[test]
fn a_reset_ends_what_was_picked_up() {
    let linux = Preset::by_name("linux").unwrap().behavior();
    let mut net = Net::new(linux);
    let external = net.tcp_out(A, S, ACK).unwrap();
    assert_eq!(net.tcp_in(S, external, RST), Ok(A));
    assert_eq!(net.nat.session_count(), 0);
    let external = net.tcp_out(A, S, ACK).unwrap();
    net.tcp_in(S, external, ACK).unwrap();
    net.tcp_in(S, external, RST).unwrap();
    assert_eq!(net.states(), ["reset"]);
}

/// The rest of a connection that the NAT has forgotten is answered by a reset.
#[test]
fn a_reset_is_sent_after_idle_expiry() {
    for stray_tcp in [StrayTcp::Drop, StrayTcp::Reset] {
        let mut net = Net::new(rfc(|behavior| {
            behavior.stray_tcp = stray_tcp;
            behavior.tcp_established_timeout = secs(350);
        }));
        net.connect(A, S);
        net.wait(secs(351));
        assert_eq!(net.tcp_out(A, S, ACK), Err(DropReason::StrayTcp));
        let resets = net.take_sent().iter().filter(|(_, view)| view.flags & RST != 0).count();
        assert_eq!(resets, usize::from(stray_tcp == StrayTcp::Reset), "{stray_tcp}");
    }
}

#[test]
fn flows_are_dropped_under_pressure() {
    for pressure in Pressure::ALL {
        for mapping in [Mapping::EndpointIndependent, Mapping::AddressAndPortDependent] {
            let behavior = rfc(|behavior| {
                behavior.pressure = *pressure;
                behavior.mapping = mapping;
            });
            let mut net = limited(behavior, 8);
            let host = |i: u16| at(A, 5000 + i);
            for i in 0..8 {
                let external = net.send_out(Udp, host(i), S);
                if i != 5 {
                    net.send_in(Udp, S, external).unwrap();
                }
                net.wait(secs(1));
            }
            let gone = |net: &Net| {
                let lost = (0..8).filter(|i| net.mappings().iter().all(|m| m.inside.endpoint != host(*i)));
                lost.collect::<Vec<_>>()
            };
            let result = net.try_out(Udp, B, S);
            let expected: &[u16] = match pressure {
                Pressure::Refuse => &[],
                Pressure::DropUnanswered => &[5],
                Pressure::DropOldest => &[0],
            };
            assert_eq!((result.is_ok(), gone(&net)), (*pressure != Pressure::Refuse, expected.to_vec()));
            assert_eq!(net.nat.counters().displaced, expected.len() as u64);
            let told = |event: &&Event| matches!(event, Event::MappingEnded { why: Ended::Displaced, .. });
            assert_eq!(net.events.iter().filter(told).count(), expected.len());
            assert!(net.nat.session_count() <= 8 && net.nat.mapping_count() <= 8);
        }
    }
}

/// Linux drops nothing that has been answered; nobody drops a static forward; nobody outside makes room.
#[test]
fn pressure_has_its_bounds() {
    let behavior = rfc(|behavior| {
        behavior.pressure = Pressure::DropUnanswered;
        behavior.filtering = Filtering::EndpointIndependent;
    });
    let mut net = limited(behavior.clone(), 2);
    let first = net.connect(A, S);
    net.connect(B, S);
    assert_eq!(net.try_out(Udp, A, P), Err(DropReason::TableFull));
    assert_eq!(net.tcp_in(P, first, SYN), Err(DropReason::TableFull));

    let mut net = limited(Behavior { pressure: Pressure::DropOldest, ..behavior }, 2);
    let forward = net.forward(Udp, A, 7000);
    let other = net.forward(Udp, B, 7001);
    net.send_out(Udp, A, S);
    net.send_out(Udp, B, S);
    assert_eq!(net.try_out(Udp, at(A, 9), P), Err(DropReason::TableFull));
    assert_eq!((net.send_in(Udp, Q, forward), net.send_in(Udp, Q, other)), (Some(A), Some(B)));
}

/// With a filter that ignores the protocol, what was sent by one opens the same external port for the other.
#[test]
fn a_filter_may_ignore_the_protocol() {
    for filter_protocol in FilterProtocol::ALL {
        for scope in FilterScope::ALL {
            for filtering in [Filtering::AddressDependent, Filtering::AddressAndPortDependent] {
                let mut net = Net::new(rfc(|behavior| {
                    behavior.filter_protocol = *filter_protocol;
                    behavior.filter_scope = *scope;
                    behavior.filtering = filtering;
                    behavior.ports = PortAssignment::Preserve;
                    behavior.refresh = Refresh::Both;
                }));
                let external = net.send_out(Udp, A, S);
                assert_eq!(net.send_out(Tcp, A, P), external);
                let name = format!("{filter_protocol} {scope} {filtering}");
                let any = *filter_protocol == FilterProtocol::Any;
                assert_eq!(net.send_in(Tcp, S, external).is_some(), any, "{name}: TCP");
                assert_eq!(net.send_in(Udp, P, external).is_some(), any, "{name}: UDP");
                assert_eq!(net.send_in(Tcp, Q, external), None, "{name}: a stranger");
                let by_address = filtering == Filtering::AddressDependent;
                assert_eq!(net.send_in(Udp, at(P, 9), external).is_some(), any && by_address, "{name}");
                // Queries have no ports: their filter is their own.
                let query = net.send_out(Icmp, at(A, A.port), at(Q, 0));
                assert_eq!(net.send_in(Icmp, at(S, 0), query), None, "{name}: ICMP");
                net.wait(secs(8000));
                assert_eq!(net.nat.mapping_count(), 0, "{name}");
            }
        }
    }
}

/// A host that could not keep its port gets the other one again for the next destination, as long as it has it.
#[test]
fn linux_gives_the_last_port_again() {
    let mut net = Net::new(Preset::by_name("linux").unwrap().behavior());
    let twin = at(B, A.port);
    assert_eq!(net.send_out(Udp, A, S).port, A.port);
    let other = net.send_out(Udp, twin, S);
    assert_ne!(other.port, A.port);
    assert_eq!(net.send_out(Udp, twin, P), other, "nobody else has this port there, and yet");
    assert_eq!(net.send_out(Tcp, twin, P).port, A.port, "another protocol");
    assert_eq!(net.send_out(Udp, A, P).port, A.port, "another host");
    net.wait(secs(31));
    assert_eq!(net.send_out(Udp, twin, P).port, A.port, "forgotten");
    assert_eq!(net.send_out(Udp, twin, Q).port, A.port);
}

/// Identifiers of queries are no ports: they have no classes.
#[test]
fn identifiers_have_no_class() {
    let mut net = Net::new(Preset::by_name("linux").unwrap().behavior());
    let low = |i: u8| Endpoint::v4([10, 0, 0, 10 + i].into(), 7);
    let identifiers: Vec<_> = (0..40).map(|i| net.send_out(Icmp, low(i), at(S, 0)).port).collect();
    assert!(identifiers.iter().any(|id| *id > 1023), "{identifiers:?}");
}
