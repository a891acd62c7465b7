//! What is relayed in one turn: joined by destination, and sent in few system calls.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use traversal_net::{EcnCodepoint, Transmit, udp::RecvBatch};
use traversal_proto::SocketId;

use crate::core::Shared;

/// The most bytes in one train: a UDP datagram's length field bounds the whole of it.
const JOINED: usize = 60_000;
/// The most bytes that are copied in one turn to be sent a little later: the processor's cache holds them.
const KEPT: usize = 256 << 10;

/// Datagrams to be relayed; empty between turns, and its room is used again.
#[derive(Default)]
pub(crate) struct Outgoing {
    runs: Vec<Run>,
    /// Contents of runs whose batch is used again.
    kept: Vec<u8>,
    /// The runs in the order of their destinations.
    order: Vec<(u64, u32)>,
    trains: Vec<Run>,
    /// Where runs of one destination are joined.
    joined: Vec<u8>,
}

/// Neighbours in one place with one destination: all of one size, the last may be shorter.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    place: Place,
    bytes: Range<usize>,
    segment: usize,
    socket: SocketId,
    to: SocketAddr,
    ecn: Option<EcnCodepoint>,
}

/// What a run's range is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// This buffer of the batch.
    Batch(usize),
    Kept,
    Joined,
}

impl Run {
    /// One datagram, in this buffer of the batch.
    pub(crate) fn new(
        buffer: usize,
        bytes: Range<usize>,
        socket: SocketId,
        to: SocketAddr,
        ecn: Option<EcnCodepoint>,
    ) -> Run {
        Run { place: Place::Batch(buffer), segment: bytes.len(), bytes, socket, to, ecn }
    }

    /// Whether both go from the same socket to the same place.
    fn goes_with(&self, other: &Run) -> bool {
        (self.socket, self.to, self.ecn) == (other.socket, other.to, other.ecn)
    }

    /// Runs of one socket and destination have the same key, and those of one socket are neighbours.
    fn key(&self) -> u64 {
        let address = match self.to.ip() {
            IpAddr::V4(ip) => u64::from(u32::from(ip)),
            // Two destinations that meet here are told apart later: only the order is worse.
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, h] = ip.segments().map(u64::from);
                (a ^ c ^ e ^ g) << 16 | (b ^ d ^ f ^ h)
            }
        };
        u64::from(self.socket.0) << 48 | address << 16 | u64::from(self.to.port())
    }
}

impl Outgoing {
    /// Datagrams of one destination are sent in the order in which they are pushed.
    pub(crate) fn push(&mut self, next: Run) {
        if let Some(last) = self.runs.last_mut()
            && last.place == next.place
            && last.goes_with(&next)
            && last.bytes.end == next.bytes.start
            && last.bytes.len().is_multiple_of(last.segment.max(1))
            && next.segment <= last.segment
        {
            last.bytes.end = next.bytes.end;
        } else {
            self.runs.push(next);
        }
    }

    /// Whether another batch may be taken in first: not if that means to copy much.
    pub(crate) fn has_room(&self) -> bool {
        let unkept = self.runs.iter().rev().take_while(|run| run.place != Place::Kept);
        self.kept.len() + unkept.map(|run| run.bytes.len()).sum::<usize>() <= KEPT
    }

    /// Copies what is in the batch, so that it can be used again.
    pub(crate) fn keep(&mut self, batch: &RecvBatch) {
        for run in self.runs.iter_mut().rev() {
            let Place::Batch(buffer) = run.place else { break };
            let start = self.kept.len();
            self.kept.extend_from_slice(&batch.bytes(buffer)[run.bytes.clone()]);
            (run.place, run.bytes) = (Place::Kept, start..self.kept.len());
        }
    }

    /// Sends everything. Datagrams of one destination go as one train: to the kernel a train is little more than a single
    /// one.
    pub(crate) fn send(&mut self, batch: &RecvBatch, shared: &Shared, shard: usize) {
        if self.runs.is_empty() {
            return;
        }
        self.join(batch, |socket| shared.segments(socket, shard));
        let transmits: Vec<Transmit<'_>> =
            self.trains.iter().map(|train| self.transmit(train, batch)).collect();
        let mut rest = &transmits[..];
        for together in self.trains.chunk_by(|one, other| one.socket == other.socket) {
            let (here, others) = rest.split_at(together.len());
            rest = others;
            shared.send_many(together[0].socket, shard, here);
        }
        drop(transmits);
        self.clear();
    }

    fn clear(&mut self) {
        let Outgoing { runs, kept, order, trains, joined } = self;
        runs.clear();
        kept.clear();
        order.clear();
        trains.clear();
        joined.clear();
    }

    /// Makes trains of the runs, those of one socket next to each other; `most` datagrams each.
    fn join(&mut self, batch: &RecvBatch, most: impl Fn(SocketId) -> usize) {
        self.order.extend(self.runs.iter().zip(0..).map(|(run, at)| (run.key(), at)));
        self.order.sort_unstable();
        let mut rest = &self.order[..];
        while let Some((_, first)) = rest.first() {
            let first = &self.runs[*first as usize];
            let count = joinable(rest.iter().map(|(_, at)| &self.runs[*at as usize]), most(first.socket));
            let (together, others) = rest.split_at(count);
            rest = others;
            let mut train = first.clone();
            if count > 1 {
                let start = self.joined.len();
                for (_, at) in together {
                    let run = &self.runs[*at as usize];
                    let from = match run.place {
                        Place::Batch(buffer) => batch.bytes(buffer),
                        Place::Kept | Place::Joined => &self.kept,
                    };
                    self.joined.extend_from_slice(&from[run.bytes.clone()]);
                }
                (train.place, train.bytes) = (Place::Joined, start..self.joined.len());
            }
            self.trains.push(train);
        }
    }

    fn transmit<'a>(&'a self, train: &Run, batch: &'a RecvBatch) -> Transmit<'a> {
        let from = match train.place {
            Place::Batch(buffer) => batch.bytes(buffer),
            Place::Kept => &self.kept,
            Place::Joined => &self.joined,
        };
        let contents = &from[train.bytes.clone()];
        let segment_size = (contents.len() > train.segment).then_some(train.segment);
        Transmit { destination: train.to, ecn: train.ecn, contents, segment_size, src_ip: None }
    }
}

/// How many of `runs`, from the first on, can be sent as one train of at most `most` datagrams: all of one size, only
/// the last may be shorter.
fn joinable<'a>(mut runs: impl Iterator<Item = &'a Run>, most: usize) -> usize {
    let Some(first) = runs.next() else { return 0 };
    let mut bytes = first.bytes.len();
    let joins = |next: &&Run| {
        let continues = bytes.is_multiple_of(first.segment.max(1))
            && (next.segment == first.segment
                || (next.segment < first.segment && next.bytes.len() == next.segment));
        bytes += next.bytes.len();
        next.goes_with(first) && continues && bytes <= JOINED && bytes.div_ceil(first.segment.max(1)) <= most
    };
    1 + runs.take_while(joins).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(buffer: usize, start: usize, length: usize, port: u16) -> Run {
        let to = SocketAddr::from(([192, 0, 2, 1], port));
        Run::new(buffer, start..start + length, SocketId(0), to, None)
    }

    #[test]
    fn runs_of_one_way_are_sent_together() {
        let runs =
            [run(0, 0, 100, 1), run(1, 0, 100, 1), run(2, 0, 60, 1), run(3, 0, 60, 1), run(4, 0, 60, 2)];
        assert_eq!(joinable(runs.iter(), 64), 3, "the shorter one is the last");
        assert_eq!(joinable(runs.iter(), 2), 2);
        assert_eq!(joinable(runs.iter(), 1), 1);
        assert_eq!(joinable(runs[2..].iter(), 64), 2, "another destination");
        assert_eq!(joinable(runs[2..3].iter(), 64), 1);
        assert_eq!(joinable([run(0, 0, 60, 1), run(1, 0, 100, 1)].iter(), 64), 1, "a longer one");
        let many: Vec<Run> = (0..100).map(|at| run(at, 0, 1400, 1)).collect();
        assert_eq!(joinable(many.iter(), 100), JOINED / 1400);
    }

    #[test]
    fn neighbours_of_one_way_go_together() {
        let mut outgoing = Outgoing::default();
        for next in [
            run(0, 0, 100, 1),
            run(0, 100, 100, 1),
            run(0, 200, 60, 1),
            // After a shorter one nothing may follow.
            run(0, 260, 60, 1),
            // Another destination, a gap, a longer one, another buffer.
            run(0, 320, 60, 2),
            run(0, 400, 60, 2),
            run(0, 460, 90, 2),
            run(1, 550, 90, 2),
        ] {
            outgoing.push(next);
        }
        let runs: Vec<_> = outgoing.runs.iter().map(|run| (run.bytes.clone(), run.segment)).collect();
        assert_eq!(
            runs,
            [(0..260, 100), (260..320, 60), (320..380, 60), (400..460, 60), (460..550, 90), (550..640, 90)]
        );
    }

    /// What came in several batches goes out in one train for each destination, in order, whole.
    #[tokio::test(start_paused = true)]
    async fn batches_are_joined() {
        use std::{future::poll_fn, time::Duration};
        use traversal_net::{memory::MemoryNet, socket::Sink};

        let network = MemoryNet::new(Duration::ZERO);
        let (near, far) = ("192.0.2.8:8".parse().unwrap(), "192.0.2.9:9".parse().unwrap());
        let (sender, receiver) = (network.socket(near), network.socket(far));
        let mut batch = RecvBatch::new(&receiver, 4, 2048);
        let mut outgoing = Outgoing::default();
        for round in 0..3_u8 {
            // Each longer than the one before, so that the queue does not join them.
            for contents in [&[round; 100][..], &[round + 10; 101], &[round + 20; 102]] {
                let transmit =
                    Transmit { destination: far, ecn: None, contents, segment_size: None, src_ip: None };
                sender.try_send(&transmit).unwrap();
            }
            let count = poll_fn(|cx| batch.poll_recv(&receiver, cx)).await.unwrap();
            assert_eq!(count, 3);
            for (buffer, port, socket) in [(0, 1, 0), (1, 1, 1), (2, 2, 0)] {
                let bytes = 0..batch.bytes(buffer).len();
                let to = SocketAddr::from(([192, 0, 2, 1], port));
                outgoing.push(Run::new(buffer, bytes, SocketId(socket), to, None));
            }
            if round < 2 {
                assert!(outgoing.has_room());
                outgoing.keep(&batch);
            }
        }
        outgoing.join(&batch, |_| 64);
        let sent: Vec<_> = outgoing.trains.iter().map(|train| outgoing.transmit(train, &batch)).collect();
        let expected = [(1, [0, 1, 2], 100), (2, [20, 21, 22], 102), (1, [10, 11, 12], 101)];
        assert_eq!(sent.len(), expected.len());
        for (sent, (port, values, length)) in sent.iter().zip(expected) {
            assert_eq!((sent.destination.port(), sent.segment_size), (port, Some(length)));
            assert_eq!(sent.contents, values.map(|value| vec![value; length]).concat());
        }
        let sockets: Vec<u16> = outgoing.trains.iter().map(|train| train.socket.0).collect();
        assert_eq!(sockets, [0, 0, 1]);
        outgoing.clear();
        outgoing.join(&batch, |_| 64);
        assert!(outgoing.trains.is_empty());
    }

    /// One key for one way; the sockets are apart.
    #[test]
    fn keys_keep_destinations_together() {
        let to = |socket: u16, to: &str| Run::new(0, 0..1, SocketId(socket), to.parse().unwrap(), None).key();
        let keys = [
            to(0, "192.0.2.1:1"),
            to(0, "192.0.2.1:2"),
            to(0, "192.0.2.2:1"),
            to(0, "[2001:db8::1]:1"),
            to(0, "[2001:db8::2]:1"),
            to(1, "192.0.2.1:1"),
        ];
        let different: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(different.len(), keys.len());
        assert!(keys[..5].iter().all(|key| *key < keys[5]));
    }
}
