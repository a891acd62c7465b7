//! The way of a datagram: a batch from the kernel, the engine's verdicts, a batch to the kernel.

use std::{future::poll_fn, io, net::SocketAddr, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use traversal_net::{
    EcnCodepoint, RecvMeta, Transmit,
    socket::{DatagramSocket, Inbound},
    udp::{BATCH_SIZE, RecvBatch},
};
use traversal_proto::{
    SocketId, Time,
    supernode::{Target, Verdict},
};

use crate::{
    core::{Answer, Shared},
    counters::add,
};

/// Datagrams longer than this are cut off where the socket does not join them: no Ethernet frame carries them.
const DATAGRAM: usize = 2048;

/// Receives on one socket and does what the engine says, for ever. One turn handles one batch.
pub(crate) async fn run(
    shared: Arc<Shared>,
    id: SocketId,
    shard: usize,
    socket: Arc<dyn DatagramSocket>,
    quic: Inbound,
) {
    let mut batch = RecvBatch::new(&*socket, BATCH_SIZE, DATAGRAM);
    let mut todo = Todo::default();
    loop {
        match poll_fn(|cx| batch.poll_recv(&*socket, cx)).await {
            Ok(count) => {
                let now = shared.now();
                for at in 0..count {
                    todo.decide(&shared, id, &mut batch, at, now, &quic);
                }
                todo.carry_out(&shared, shard, &batch);
            }
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return,
            Err(error) => {
                // Nothing is known that makes this last; if something does, it must not eat a core.
                tracing::warn!(%error, "cannot receive");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        tokio::task::coop::consume_budget().await;
    }
}

/// What follows from the verdicts on one batch; empty between batches, and its room is used again.
#[derive(Default)]
struct Todo {
    runs: Vec<Run>,
    answers: Vec<Answer>,
    /// Where runs of one destination are joined.
    joined: Vec<u8>,
    packets: u64,
    bytes: u64,
}

/// The most bytes in one system call: a UDP datagram's length field bounds the whole train.
const JOINED: usize = 60_000;

/// Neighbours in one buffer with one destination: all of one size, the last may be shorter.
struct Run {
    buffer: usize,
    bytes: Range<usize>,
    segment: usize,
    socket: SocketId,
    to: SocketAddr,
    ecn: Option<EcnCodepoint>,
}

impl Todo {
    /// Asks the engine about one train.
    fn decide(
        &mut self,
        shared: &Shared,
        socket: SocketId,
        batch: &mut RecvBatch,
        at: usize,
        now: Time,
        quic: &Inbound,
    ) {
        let (meta, bytes) = batch.train(at);
        let stride = meta.stride.max(1);
        let mut handed_on = 0..0;
        let mut core = shared.lock();
        for start in (0..bytes.len()).step_by(stride) {
            let end = bytes.len().min(start + stride);
            match core.engine.handle_datagram(socket, meta.addr, &mut bytes[start..end], now) {
                Verdict::Relay { to: Target::Datagram { socket, to }, range } => {
                    let bytes = start + range.start..start + range.end;
                    self.relay(Run { buffer: at, segment: bytes.len(), bytes, socket, to, ecn: meta.ecn });
                }
                Verdict::Relay { to: Target::Stream(to), range } => {
                    core.relay(to, &bytes[start + range.start..start + range.end], &shared.counters);
                }
                Verdict::NotOurs => {
                    if handed_on.end != start {
                        hand_on(shared, quic, &meta, &bytes[handed_on]);
                        handed_on = start..start;
                    }
                    handed_on.end = end;
                }
                Verdict::Handled | Verdict::Drop(_) => {}
            }
        }
        shared.settle(&mut core, &mut self.answers, meta.dst_ip.map(|ip| (socket, ip)));
        drop(core);
        self.packets += bytes.len().div_ceil(stride) as u64;
        self.bytes += bytes.len() as u64;
        hand_on(shared, quic, &meta, &bytes[handed_on]);
    }

    /// Joins a relayed datagram to its neighbour, if they go the same way.
    fn relay(&mut self, next: Run) {
        if let Some(last) = self.runs.last_mut()
            && (last.buffer, last.socket, last.to) == (next.buffer, next.socket, next.to)
            && last.bytes.end == next.bytes.start
            && last.bytes.len().is_multiple_of(last.segment)
            && next.segment <= last.segment
        {
            last.bytes.end = next.bytes.end;
        } else {
            self.runs.push(next);
        }
    }

    /// Sends everything. Runs of one destination go in one call: copying a packet costs a small part of what a call
    /// does. Each destination's packets stay in order.
    fn carry_out(&mut self, shared: &Shared, shard: usize, batch: &RecvBatch) {
        self.runs.sort_unstable_by_key(|run| (run.socket, run.to, run.buffer, run.bytes.start));
        let mut rest = &self.runs[..];
        while let Some(first) = rest.first() {
            let (together, others) = rest.split_at(joinable(rest, shared.segments(first.socket, shard)));
            rest = others;
            let contents = match together {
                [only] => &batch.bytes(only.buffer)[only.bytes.clone()],
                several => {
                    self.joined.clear();
                    for run in several {
                        self.joined.extend_from_slice(&batch.bytes(run.buffer)[run.bytes.clone()]);
                    }
                    &self.joined
                }
            };
            let segment_size = (contents.len() > first.segment).then_some(first.segment);
            let transmit =
                Transmit { destination: first.to, ecn: first.ecn, contents, segment_size, src_ip: None };
            shared.send(first.socket, shard, &transmit);
        }
        self.runs.clear();
        shared.answer(&self.answers, shard);
        self.answers.clear();
        add(&shared.counters.udp_received_packets, std::mem::take(&mut self.packets));
        add(&shared.counters.udp_received_bytes, std::mem::take(&mut self.bytes));
    }
}

/// How many of `runs`, from the first on, can be sent as one train of at most `most` datagrams: all of one size, only
/// the last may be shorter.
fn joinable(runs: &[Run], most: usize) -> usize {
    let Some((first, others)) = runs.split_first() else { return 0 };
    let mut bytes = first.bytes.len();
    let joins = |next: &&Run| {
        let same_way = (next.socket, next.to, next.ecn) == (first.socket, first.to, first.ecn);
        let continues = bytes.is_multiple_of(first.segment)
            && (next.segment == first.segment
                || (next.segment < first.segment && next.bytes.len() == next.segment));
        bytes += next.bytes.len();
        same_way && continues && bytes <= JOINED && bytes.div_ceil(first.segment) <= most
    };
    1 + others.iter().take_while(joins).count()
}

/// Gives datagrams to QUIC.
fn hand_on(shared: &Shared, quic: &Inbound, meta: &RecvMeta, bytes: &[u8]) {
    if !bytes.is_empty() {
        let meta = RecvMeta { len: bytes.len(), ..*meta };
        if !quic.push_train(meta, Bytes::copy_from_slice(bytes)) {
            add(&shared.counters.quic_dropped, bytes.len().div_ceil(meta.stride.max(1)) as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(buffer: usize, start: usize, length: usize, port: u16) -> Run {
        let to = SocketAddr::from(([192, 0, 2, 1], port));
        let bytes = start..start + length;
        Run { buffer, bytes, segment: length, socket: SocketId(0), to, ecn: None }
    }

    #[test]
    fn runs_of_one_way_are_sent_together() {
        let runs =
            [run(0, 0, 100, 1), run(1, 0, 100, 1), run(2, 0, 60, 1), run(3, 0, 60, 1), run(4, 0, 60, 2)];
        assert_eq!(joinable(&runs, 64), 3, "the shorter one is the last");
        assert_eq!(joinable(&runs, 2), 2);
        assert_eq!(joinable(&runs, 1), 1);
        assert_eq!(joinable(&runs[2..], 64), 2, "another destination");
        assert_eq!(joinable(&runs[2..3], 64), 1);
        assert_eq!(joinable(&[run(0, 0, 60, 1), run(1, 0, 100, 1)], 64), 1, "a longer one");
        let many: Vec<Run> = (0..100).map(|at| run(at, 0, 1400, 1)).collect();
        assert_eq!(joinable(&many, 100), JOINED / 1400);
    }

    #[test]
    fn neighbours_of_one_way_go_together() {
        let mut todo = Todo::default();
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
            todo.relay(next);
        }
        let runs: Vec<_> = todo.runs.iter().map(|run| (run.bytes.clone(), run.segment)).collect();
        assert_eq!(
            runs,
            [(0..260, 100), (260..320, 60), (320..380, 60), (400..460, 60), (460..550, 90), (550..640, 90)]
        );
    }
}
