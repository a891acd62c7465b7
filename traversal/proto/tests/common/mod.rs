//! A supernode in memory, and peers that talk to it.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::{net::SocketAddr, time::Duration};

use traversal_proto::{
    PeerId, SocketId, Time, Transmit, UnixTime,
    supernode::{Config, ConnectionId, Listen, Outgoing, Supernode, Target, Verdict},
    wire::{
        Identity, Record, RelayToken, SignedRecord,
        frame::{Bind, ChannelId, Frame, SessionId, data_header},
        message::{Code, FromSupernode, ToSupernode},
    },
};

pub(crate) const WALL: UnixTime = UnixTime(1_800_000_000);
pub(crate) const MAIN: SocketId = SocketId(0);

pub(crate) fn supernode_identity() -> Identity {
    Identity::from_secret(&[1; 32])
}

pub(crate) fn config() -> Config {
    let address = "203.0.113.10:3478".parse().unwrap();
    Config::new(supernode_identity().peer_id(), Listen { socket: MAIN, address })
}

pub(crate) struct Net {
    pub(crate) node: Supernode,
    pub(crate) now: Time,
    pub(crate) wall: UnixTime,
    connections: u64,
}

pub(crate) struct Peer {
    pub(crate) identity: Identity,
    pub(crate) connection: ConnectionId,
    pub(crate) addr: SocketAddr,
    pub(crate) session: SessionId,
    pub(crate) token: RelayToken,
    pub(crate) sequence: u64,
    pub(crate) bind_sequence: u32,
}

impl Peer {
    pub(crate) fn id(&self) -> PeerId {
        self.identity.peer_id()
    }

    pub(crate) fn record(&self, sequence: u64, lifetime: u64, net: &Net) -> SignedRecord {
        let supernode = supernode_identity().peer_id();
        let record =
            Record { peer: self.id(), supernode, sequence, expires: UnixTime(net.unix().0 + lifetime) };
        SignedRecord::sign(record, &self.identity)
    }

    /// A Bind with this cookie, made with the right token.
    pub(crate) fn bind_frame(&self, cookie: [u8; 16]) -> Vec<u8> {
        let (session, sequence) = (self.session, self.bind_sequence);
        let proof = self.token.bind(session, sequence, &cookie);
        Frame::Bind(Bind { session, sequence, cookie, proof }).to_vec()
    }
}

impl Net {
    pub(crate) fn new(config: Config) -> Net {
        let node = Supernode::new(config, [42; 32], Time::ZERO, WALL).unwrap();
        Net { node, now: Time::ZERO, wall: WALL, connections: 0 }
    }

    pub(crate) fn unix(&self) -> UnixTime {
        self.wall + self.now.since(Time::ZERO)
    }

    /// Lets time pass, deadline by deadline.
    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(due) = self.node.poll_timeout().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.node.handle_timeout(self.now);
        }
        self.now = until;
        self.node.handle_timeout(until);
    }

    /// Another connection of the peer with this secret, from `addr`; what the supernode says at once is left in the queue.
    pub(crate) fn dial(&mut self, secret: u32, addr: SocketAddr) -> Peer {
        let mut bytes = [9; 32];
        bytes[..4].copy_from_slice(&secret.to_be_bytes());
        let identity = Identity::from_secret(&bytes);
        self.connections += 1;
        let connection = ConnectionId(self.connections);
        self.node.handle_connected(connection, identity.peer_id(), addr, self.now);
        let (session, token) = (SessionId(0), RelayToken([0; 16]));
        Peer { identity, connection, addr, session, token, sequence: 0, bind_sequence: 0 }
    }

    /// A registered, accepting peer with a bound address of its own.
    pub(crate) fn peer(&mut self, secret: u32) -> Peer {
        let host = u8::try_from(secret % 250 + 1).unwrap();
        let addr = SocketAddr::from(([198, 51, (secret / 250) as u8, host], 40_000));
        let mut peer = self.dial(secret, addr);
        self.register(&mut peer, true, false).unwrap();
        self.bind(&mut peer);
        peer
    }

    pub(crate) fn register(
        &mut self,
        peer: &mut Peer,
        accepting: bool,
        resume: bool,
    ) -> Result<(), (Code, u64)> {
        peer.sequence += 1;
        let record = peer.record(peer.sequence, 300, self);
        self.say(peer, ToSupernode::Register { record, accepting, resume });
        for message in self.heard(peer) {
            match message {
                FromSupernode::Registered { session, token, .. } => {
                    (peer.session, peer.token) = (session, token);
                    return Ok(());
                }
                FromSupernode::Refused { request: 0, code, detail, .. } => return Err((code, detail)),
                _ => {}
            }
        }
        panic!("neither registered nor refused");
    }

    pub(crate) fn say(&mut self, peer: &Peer, message: ToSupernode) {
        assert_eq!(self.frame(peer.connection, &mut message.encode()), Verdict::Handled);
    }

    /// A frame on a connection; a signature is looked at at once.
    pub(crate) fn frame(&mut self, connection: ConnectionId, body: &mut [u8]) -> Verdict {
        match self.node.handle_frame(connection, body, self.now) {
            Verdict::Verify(registration) => {
                self.node.handle_verified(registration.verify(), self.now);
                Verdict::Handled
            }
            verdict => verdict,
        }
    }

    /// Everything that waits to be sent to connections.
    pub(crate) fn outgoing(&mut self) -> Vec<Outgoing> {
        std::iter::from_fn(|| self.node.poll_message()).collect()
    }

    /// What waits for this peer; what waits for others is lost.
    pub(crate) fn heard(&mut self, peer: &Peer) -> Vec<FromSupernode> {
        let mine = |outgoing| match outgoing {
            Outgoing::Message(connection, message) if connection == peer.connection => {
                assert_eq!(FromSupernode::decode(&message.encode()).unwrap(), message);
                Some(message)
            }
            _ => None,
        };
        self.outgoing().into_iter().filter_map(mine).collect()
    }

    pub(crate) fn transmits(&mut self) -> Vec<Transmit> {
        std::iter::from_fn(|| self.node.poll_transmit()).collect()
    }

    pub(crate) fn datagram(&mut self, from: SocketAddr, bytes: &[u8]) -> (Verdict, Vec<u8>) {
        let mut bytes = bytes.to_vec();
        let verdict = self.node.handle_datagram(MAIN, from, &mut bytes, self.now);
        (verdict, bytes)
    }

    /// The cookie that the supernode sends to `from` for this session.
    pub(crate) fn cookie(&mut self, peer: &Peer, from: SocketAddr) -> [u8; 16] {
        assert_eq!(self.datagram(from, &peer.bind_frame([0; 16])).0, Verdict::Handled);
        let transmit = self.transmits().pop().unwrap();
        assert_eq!(transmit.to, from);
        match Frame::decode(&transmit.bytes).unwrap() {
            Frame::Challenge { cookie, .. } => cookie,
            other => panic!("{other:?} instead of a challenge"),
        }
    }

    /// Binds the peer's session to its address, as a peer does.
    pub(crate) fn bind(&mut self, peer: &mut Peer) {
        peer.bind_sequence += 1;
        let cookie = self.cookie(peer, peer.addr);
        let (verdict, _) = self.datagram(peer.addr, &peer.bind_frame(cookie));
        assert_eq!(verdict, Verdict::Handled);
        let transmit = self.transmits().pop().unwrap();
        match Frame::decode(&transmit.bytes).unwrap() {
            Frame::Bound { session, sequence, proof, .. } => {
                assert_eq!((session, sequence), (peer.session, peer.bind_sequence));
                assert_eq!(proof, peer.token.bound(session, sequence, &cookie));
            }
            other => panic!("{other:?} instead of a confirmation"),
        }
    }

    /// A channel from `a` to `b`: both ends.
    pub(crate) fn open(&mut self, a: &Peer, b: &Peer) -> (ChannelId, ChannelId) {
        self.say(a, ToSupernode::Connect { request: 7, peer: b.id(), hops: 0 });
        let (mut near, mut far) = (None, None);
        for outgoing in self.outgoing() {
            match outgoing {
                Outgoing::Message(to, FromSupernode::Opened { request: Some(7), peer, channel, .. }) => {
                    assert_eq!((to, peer), (a.connection, b.id()));
                    near = Some(channel);
                }
                Outgoing::Message(to, FromSupernode::Opened { request: None, peer, channel, .. }) => {
                    assert_eq!((to, peer), (b.connection, a.id()));
                    far = Some(channel);
                }
                other => panic!("{other:?} instead of a channel"),
            }
        }
        (near.unwrap(), far.unwrap())
    }

    /// Sends `payload` from `from` on its end `channel`.
    pub(crate) fn send(
        &mut self,
        from: SocketAddr,
        channel: ChannelId,
        payload: &[u8],
    ) -> (Verdict, Vec<u8>) {
        let mut frame = data_header(channel).to_vec();
        frame.extend_from_slice(payload);
        self.datagram(from, &frame)
    }

    /// Sends, and asserts that it arrives at `to` on `expected`.
    pub(crate) fn relays(&mut self, from: &Peer, near: ChannelId, to: &Peer, far: ChannelId, payload: &[u8]) {
        let (verdict, bytes) = self.send(from.addr, near, payload);
        let target = Target::Datagram { socket: MAIN, to: to.addr };
        assert_eq!(verdict, Verdict::Relay { to: target, range: 0..bytes.len() });
        assert_eq!(Frame::decode(&bytes).unwrap(), Frame::Data { channel: far, payload });
    }
}
