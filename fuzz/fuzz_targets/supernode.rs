//! A supernode under a stream of datagrams, frames, connections and time: no panic, every limit kept, and nothing sent
//! to an address that has proved nothing beyond three times what it sent.
#![no_main]

use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;
use traversal_proto::{
    PeerId, SocketId, Time, UnixTime,
    supernode::{Config, ConnectionId, Listen, Supernode, Verdict},
};

fuzz_target!(|bytes: &[u8]| {
    let address = SocketAddr::from(([203, 0, 113, 10], 3478));
    let mut config = Config::new(PeerId::from_bytes([1; 32]), Listen { socket: SocketId(0), address });
    config.limits.connections = 8;
    config.directory = true;
    let Ok(mut node) = Supernode::new(config, [0; 32], Time::ZERO, UnixTime(1_800_000_000)) else { return };
    let mut now = Time::ZERO;
    let mut rest = bytes;
    // One byte says what happens, one says to whom and how long the input is.
    while let [what, who, tail @ ..] = rest {
        let (input, after) = tail.split_at(usize::from(who / 8 * 8).min(tail.len()));
        rest = after;
        let from = SocketAddr::from(([192, 0, 2, *who], 1000 + u16::from(*who % 8)));
        let connection = ConnectionId(u64::from(*who % 8));
        match what % 6 {
            0 => node.handle_connected(connection, PeerId::from_bytes([*who; 32]), from, now),
            1 => node.handle_disconnected(connection, now),
            2 => {
                now = now + std::time::Duration::from_millis(u64::from(*who) * 100);
                node.handle_timeout(now);
            }
            3 => {
                if let Verdict::Verify(asked) = node.handle_frame(connection, &mut input.to_vec(), now) {
                    node.handle_verified(asked.verify(), now);
                }
            }
            _ => {
                let _ = node.handle_datagram(SocketId(0), from, &mut input.to_vec(), now);
                let back: usize = std::iter::from_fn(|| node.poll_transmit()).map(|t| t.bytes.len()).sum();
                assert!(back <= 3 * input.len());
            }
        }
        while node.poll_message().is_some() || node.poll_query().is_some() || node.poll_transmit().is_some() {
        }
        assert!(node.gauges().connections <= 8);
    }
});
