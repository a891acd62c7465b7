//! A node's session with a supernode that says anything: no panic, bounded output, frames that always fit, and no
//! datagram to anybody but the supernode.
#![no_main]

use std::{net::SocketAddr, time::Duration};

use libfuzzer_sys::fuzz_target;
use traversal_proto::{
    PeerId, SocketId, Time,
    client::{Carrier, Client, Config},
    wire::{
        Identity, RelayToken,
        frame::{ChannelId, Frame, FrameError, SessionId},
        message::{Code, FromSupernode, RelayMode},
        stream::MAX_FRAME,
    },
};

const SUPERNODE: PeerId = PeerId::from_bytes([9; 32]);
const TOKEN: RelayToken = RelayToken([3; 16]);

fn peer(byte: u8) -> PeerId {
    PeerId::from_bytes([byte % 8; 32])
}

fuzz_target!(|bytes: &[u8]| {
    let to = SocketAddr::from(([203, 0, 113, 10], 3478));
    let mut config = Config::new(Identity::from_secret(&[1; 32]));
    config.max_channels = 4;
    let (mut client, mut now) = (Client::new(config, [7; 32], Time::ZERO, 1_800_000_000_000), Time::ZERO);
    let mut bound = (0, [0; 16]);
    let mut rest = bytes;
    // One byte says what happens, one says with whom and how long the input is.
    while let [what, who, tail @ ..] = rest {
        let (what, who) = (*what, *who);
        let (input, after) = tail.split_at(usize::from(who / 4 * 4).min(tail.len()));
        rest = after;
        match what % 16 {
            0 => {
                let datagrams = Carrier::Datagrams { socket: SocketId(0), to };
                let stream = Carrier::Stream { udp: (who & 2 != 0).then_some((SocketId(0), to)) };
                client.handle_connected(SUPERNODE, if who & 1 == 0 { datagrams } else { stream }, now);
            }
            1 => client.handle_disconnected(now),
            2 => client.connect(peer(who), now),
            3 => client.close(&peer(who), now),
            4 => drop(client.lookup(peer(who))),
            5 => drop(client.watch(peer(who))),
            6 => match who % 4 {
                0 => client.unregister(now),
                1 => client.suspect(now),
                _ => client.rebind(now),
            },
            7 => {
                let (session, lifetime) = (SessionId(u32::from(who % 2)), u32::from(who) * 8);
                let relay = RelayMode::Full;
                client.handle_message(
                    FromSupernode::Registered { session, token: TOKEN, lifetime, relay },
                    now,
                );
            }
            8 => {
                let (channel, relay) = (ChannelId(u32::from(who % 16)), RelayMode::Full);
                let request = (who & 16 != 0).then_some(u32::from(who % 8));
                client
                    .handle_message(FromSupernode::Opened { request, peer: peer(who), channel, relay }, now);
            }
            9 => {
                let (request, code) = (u32::from(who % 16), Code::from(u16::from(who % 32)));
                client.handle_message(
                    FromSupernode::Refused { request, code, detail: 5, elsewhere: None },
                    now,
                );
            }
            // The right answers to the last Bind, so that what comes after them is reached.
            10 => {
                let (session, cookie) = (SessionId(u32::from(who % 2)), [who; 16]);
                let frame = Frame::Challenge { session, sequence: bound.0, cookie }.to_vec();
                client.handle_datagram(SocketId(0), to, &frame, now);
            }
            11 => {
                let session = SessionId(u32::from(who % 2));
                let proof = TOKEN.bound(session, bound.0, &bound.1);
                let frame = Frame::Bound { session, sequence: bound.0, lifetime: who.into(), proof }.to_vec();
                client.handle_datagram(SocketId(0), to, &frame, now);
            }
            12 => {
                let frame =
                    Frame::Error { code: FrameError::from_byte(who % 4), id: u32::from(who % 16) }.to_vec();
                client.handle_datagram(SocketId(0), to, &frame, now);
            }
            13 => {
                let from = if who & 1 == 0 { to } else { SocketAddr::from(([192, 0, 2, 1], 9)) };
                if let Some((_, range)) = client.handle_datagram(SocketId(0), from, input, now) {
                    assert!(from == to && range.end <= input.len());
                }
            }
            14 => {
                if let Ok(Some((_, range))) = client.handle_frame(input, now) {
                    assert!(range.end <= input.len());
                }
            }
            _ => now = now + Duration::from_millis(u64::from(who) * u64::from(who)),
        }
        // What is due at once comes back a bounded number of times.
        for _ in 0..64 {
            if client.poll_timeout().is_none_or(|due| due > now) {
                break;
            }
            client.handle_timeout(now);
        }
        assert!(client.poll_timeout().is_none_or(|due| due > now), "it is due for ever");
        while let Some(message) = client.poll_message() {
            assert!((1..=MAX_FRAME).contains(&message.encode().len()));
        }
        while let Some(transmit) = client.poll_transmit() {
            assert_eq!((transmit.socket, transmit.to), (SocketId(0), to));
            let Ok(Frame::Bind(bind)) = Frame::decode(&transmit.bytes) else {
                panic!("no Bind: {transmit:?}")
            };
            bound = (bind.sequence, bind.cookie);
        }
        while client.poll_event().is_some() {}
        while let Some((_, packet)) = client.poll_early() {
            assert!(packet.len() <= MAX_FRAME);
        }
        assert!((0..8).filter(|n| client.channel(&peer(*n)).is_some()).count() <= 4);
    }
});
