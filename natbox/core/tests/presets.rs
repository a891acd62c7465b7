//! Each preset passes traffic as its words say.

mod common;

use std::collections::BTreeSet;

use common::*;
use natbox_core::{
    DropReason,
    Protocol::{Tcp, Udp},
    behavior::{Filtering, Mapping},
    preset::{PRESETS, Preset},
};

fn net(name: &str) -> Net {
    Net::new(Preset::by_name(name).unwrap_or_else(|| panic!("no preset {name}")).behavior())
}

/// What a behaviour test sees with fresh sockets.
fn classify(net: &mut Net) -> (Mapping, Filtering) {
    let [to_s, to_s2, to_p] = [at(S, 443), at(S, 80), at(P, 443)].map(|remote| net.send_out(Tcp, A, remote));
    let mapping = match (to_s == to_s2, to_s == to_p) {
        (true, true) => Mapping::EndpointIndependent,
        (true, false) => Mapping::AddressDependent,
        _ => Mapping::AddressAndPortDependent,
    };
    let external = net.send_out(Tcp, B, at(S, 443));
    let filtering = match (net.send_in(Tcp, at(S, 80), external), net.send_in(Tcp, at(P, 443), external)) {
        (Some(_), Some(_)) => Filtering::EndpointIndependent,
        (Some(_), None) => Filtering::AddressDependent,
        _ => Filtering::AddressAndPortDependent,
    };
    (mapping, filtering)
}

#[test]
fn every_preset_passes_the_web_and_dns() {
    for preset in PRESETS {
        let mut net = Net::new(preset.behavior());
        let external = net.send_out(Udp, A, S);
        assert_eq!(net.send_in(Udp, S, external), Some(A), "{}", preset.name);
        net.connect(A, at(S, 443));
        assert_eq!(net.states(), ["established", "replied"], "{}", preset.name);
        net.wait(preset.behavior().tcp_established_timeout + secs(1));
        assert_eq!(net.nat.mapping_count(), 0, "{}: everything ends", preset.name);
    }
}

#[test]
fn presets_look_as_their_words_say() {
    use Filtering::{AddressAndPortDependent as Apdf, AddressDependent as Adf, EndpointIndependent as Eif};
    use Mapping::{AddressAndPortDependent as Apdm, EndpointIndependent as Eim};
    let expected = [
        ("rfc", Eim, Adf),
        // While ports can be preserved, they are: nf_nat looks endpoint-independent.
        ("linux", Eim, Apdf),
        ("home", Eim, Apdf),
        ("linux-open", Eim, Apdf),
        ("full-cone", Eim, Eif),
        ("restricted-cone", Eim, Adf),
        ("port-restricted", Eim, Apdf),
        ("symmetric", Apdm, Apdf),
        ("symmetric-sequential", Apdm, Apdf),
        ("aws", Apdm, Apdf),
        ("azure", Apdm, Apdf),
        ("gcp", Apdm, Apdf),
        ("cgnat", Eim, Eif),
        ("cgnat-blocks", Eim, Eif),
        ("mobile", Apdm, Apdf),
        ("corporate", Apdm, Apdf),
    ];
    assert_eq!(
        expected.map(|(name, ..)| name).to_vec(),
        PRESETS.iter().map(|preset| preset.name).collect::<Vec<_>>()
    );
    for (name, mapping, filtering) in expected {
        assert_eq!(classify(&mut net(name)), (mapping, filtering), "{name}");
    }
}

#[test]
fn linux_gives_up_the_port_only_under_conflict() {
    let mut net = net("linux");
    let twin = at(B, A.port);
    assert_eq!(net.send_out(Udp, A, S).port, A.port);
    assert_eq!(net.send_out(Udp, twin, P).port, A.port, "another destination: no conflict");
    assert_ne!(net.send_out(Udp, twin, S).port, A.port);
    assert_eq!(net.tcp_out(A, S, ACK).map(|external| external.port), Ok(A.port), "picked up in the middle");
    // 30 s unanswered, 120 s once it is a stream.
    let external = net.send_out(Udp, at(A, 77), S);
    net.wait(secs(29));
    net.send_in(Udp, S, external).unwrap();
    net.wait(secs(119));
    assert_eq!(net.send_in(Udp, S, external), Some(at(A, 77)));
}

#[test]
fn symmetric_sequential_can_be_predicted_and_symmetric_cannot() {
    let steps = |name: &str| {
        let mut net = net(name);
        let ports: Vec<_> = (0..20).map(|i| net.send_out(Udp, A, at(S, 100 + i)).port).collect();
        ports.windows(2).filter(|pair| pair[1] == pair[0].wrapping_add(1).max(1024)).count()
    };
    assert_eq!(steps("symmetric-sequential"), 19);
    assert!(steps("symmetric") < 3);
}

#[test]
fn clouds_forget_and_some_say_so() {
    for (name, idle, says_so) in [("aws", 350, true), ("azure", 240, true), ("gcp", 1200, false)] {
        let mut net = net(name);
        let external = net.connect(A, at(S, 443));
        net.wait(secs(idle - 1));
        assert_eq!(net.tcp_in(at(S, 443), external, ACK), Ok(A), "{name}");
        net.wait(secs(idle));
        assert_eq!(net.tcp_out(A, at(S, 443), ACK), Err(DropReason::StrayTcp), "{name}");
        assert_eq!(net.take_sent().len(), usize::from(says_so), "{name}");
    }
}

#[test]
fn mobile_mappings_do_not_get_older_than_a_minute() {
    let mut net = net("mobile");
    let first = net.send_out(Udp, A, S);
    let mut seen = BTreeSet::from([first]);
    for _ in 0..18 {
        net.wait(secs(10));
        seen.insert(net.send_out(Udp, A, S));
    }
    assert_eq!(seen.len(), 4, "three minutes, a packet every ten seconds");
}

#[test]
fn corporate_lets_out_dns_and_the_web() {
    let mut net = net("corporate");
    for (protocol, port, may) in
        [(Udp, 53, true), (Udp, 443, false), (Tcp, 80, true), (Tcp, 443, true), (Tcp, 22, false)]
    {
        assert_eq!(net.try_out(protocol, A, at(S, port)).is_ok(), may, "{protocol} {port}");
    }
}

#[test]
fn full_cone_hairpins_and_symmetric_does_not() {
    for (name, hairpins) in [("full-cone", true), ("cgnat", true), ("symmetric", false), ("linux", false)] {
        let mut net = net(name);
        let b = net.send_out(Udp, B, S);
        let seen = net.hairpin(&mut udp(A, b, b"neighbour"));
        assert_eq!(seen.is_ok(), hairpins, "{name}: {seen:?}");
    }
}
