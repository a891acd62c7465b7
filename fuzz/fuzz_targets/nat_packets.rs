//! Any bytes as packets of both sides, with any offload metadata, under any behaviour: the engine never panics, counts every
//! packet once, and keeps its limits.

#![no_main]

use libfuzzer_sys::fuzz_target;
use natbox_core::{
    Behavior, Config, InsidePort, Limits, Nat, Packet, Time, Verdict,
    behavior::AXES,
    packet::{Checksum, Gso, GsoKind, Offload},
    preset::PRESETS,
};

fuzz_target!(|data: &[u8]| {
    let [preset, axis, rest @ ..] = data else { return };
    let mut behavior = PRESETS[usize::from(*preset) % PRESETS.len()].behavior();
    // One axis from another preset.
    let other = PRESETS[usize::from(*axis / 16) % PRESETS.len()].behavior();
    let axis = &AXES[usize::from(*axis) % AXES.len()];
    let _ = axis.set(&mut behavior, &axis.get(&other));
    let mut nat = engine(behavior);
    let (mut now, mut rest) = (Time::ZERO, rest);
    let mut handed = 0;
    while let [kind, length, tail @ ..] = rest {
        let (bytes, tail) = tail.split_at(usize::from(*length).min(tail.len()));
        rest = tail;
        now = now + std::time::Duration::from_millis(u64::from(*kind >> 4) * 997);
        let mut bytes = bytes.to_vec();
        if kind & 8 != 0 {
            repair(&mut bytes);
        }
        let offload = offload(*kind, *length);
        let mut packet = Packet::new(&mut bytes, 0, offload);
        let inside = natbox_core::InsideId(u16::from(*kind & 2));
        let verdict = if kind & 1 == 0 {
            nat.outbound(inside, &mut packet, now)
        } else {
            nat.inbound(&mut packet, now)
        };
        handed += 1;
        if matches!(verdict, Verdict::Forward(_) | Verdict::Hairpin(_)) {
            let is_behind = bytes[6] & 0x1f | bytes[7] != 0;
            assert!(bytes.len() >= if is_behind { 21 } else { 28 }, "{verdict:?} of {bytes:02x?}");
        }
        nat.handle_timeout(now);
        while nat.poll_transmit().is_some() {}
    }
    let counters = nat.counters();
    let counted = counters.drops().map(|(_, count)| count).sum::<u64>()
        + counters.outbound_packets
        + counters.inbound_packets
        + counters.hairpin_packets
        + counters.routed_packets
        + counters.replies
        + counters.local_packets
        + nat.fragments_held() as u64;
    assert_eq!(counted, handed);
    assert!(nat.mapping_count() <= 4 && nat.session_count() <= 6);
});

fn engine(behavior: Behavior) -> Nat {
    let limits = Limits { mappings: 4, sessions: 6 };
    let config = Config { behavior, limits, ..Config::new([198, 51, 100, 1].into()) };
    let mut nat = Nat::new(config, 7).expect("a good configuration");
    for third in [0, 1] {
        let gateway = [10, third, 0, 1].into();
        nat.add_inside(InsidePort { gateway, prefix_len: 24, mtu: 1500, shared: third == 1 })
            .expect("an inside port");
    }
    nat
}

/// Makes what looks like IPv4 pass the first checks, so that what lies behind them is reached.
fn repair(bytes: &mut [u8]) {
    if bytes.len() < 20 {
        return;
    }
    let length = bytes.len() as u16;
    bytes[0] = 0x45;
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    // Some are fragments, near the start of their datagram.
    (bytes[6], bytes[7]) = (bytes[6] & 0x20, bytes[7] & 3);
    bytes[9] = [1, 6, 17, 17][usize::from(bytes[9] & 3)];
    bytes[10..12].fill(0);
    let sum: u32 = bytes[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn offload(kind: u8, length: u8) -> Offload {
    let checksum = match kind % 5 {
        0 => Checksum::Partial { start: 20, offset: if length & 1 == 0 { 6 } else { 16 } },
        1 => Checksum::Partial { start: u16::from(length), offset: u16::from(kind) },
        2 => Checksum::Verified,
        _ => Checksum::Unverified,
    };
    let kinds = [GsoKind::TcpV4, GsoKind::TcpV6, GsoKind::Udp];
    let gso = (kind % 7 == 0).then(|| Gso {
        kind: kinds[usize::from(length) % 3],
        segment: u16::from(length) * 8,
        header_len: u16::from(kind),
        ecn: false,
    });
    Offload { checksum, gso }
}
