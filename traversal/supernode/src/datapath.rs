//! The way of a datagram: a batch from the kernel, the engine's verdicts, a batch to the kernel.

use std::{
    future::poll_fn,
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use tokio::runtime::Handle;
use traversal_net::{
    RecvMeta, Stop,
    socket::{DatagramSocket, Inbound},
    udp::{BATCH_SIZE, KernelSocket, RecvBatch},
};
use traversal_proto::{
    SocketId, Time,
    supernode::{Target, Verdict},
};

use crate::{
    core::{Aftermath, Core, Shared},
    counters::add,
    gather::Gather,
    ledger::Ledger,
    outgoing::{Outgoing, Run},
};

/// Datagrams longer than this are cut off where the socket does not join them: no Ethernet frame carries them.
const DATAGRAM: usize = 2048;
/// Datagrams that a thread takes in before it sends: those of one destination go together, and nothing waits for what has
/// not come yet. So many are received in half a millisecond.
const TOGETHER: usize = 512;
/// How long an error that nothing is known of is waited out: it must not eat a core.
const PAUSE: Duration = Duration::from_millis(100);

/// One socket, and what its datagrams need.
pub(crate) struct Path {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: SocketId,
    pub(crate) shard: usize,
    pub(crate) socket: Arc<dyn DatagramSocket>,
    pub(crate) quic: Inbound,
    pub(crate) ledger: Ledger,
}

impl Path {
    /// Receives and does what the engine says, for ever. One turn handles one batch.
    pub(crate) async fn run(self) {
        let mut batch = RecvBatch::new(&*self.socket, BATCH_SIZE, DATAGRAM);
        let mut turn = Turn::default();
        loop {
            match poll_fn(|cx| batch.poll_recv(&*self.socket, cx)).await {
                Ok(count) => {
                    turn.decide(&self, &mut batch, count);
                    turn.carry_out(&self, &batch);
                }
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return,
                Err(error) => {
                    tracing::warn!(%error, "cannot receive");
                    tokio::time::sleep(PAUSE).await;
                }
            }
            tokio::task::coop::consume_budget().await;
        }
    }

    /// The same on a thread of its own, until it is told to stop: with one packet a time a runtime would cost as much as
    /// the packet.
    ///
    /// # Errors
    /// The system's: no more threads.
    pub(crate) fn spawn(self, stop: Stop) -> io::Result<JoinHandle<()>> {
        // For the clock, which is the runtime's.
        let runtime = Handle::current();
        let name = format!("udp-{}-{}", self.id.0, self.shard);
        thread::Builder::new().name(name).spawn(move || {
            let _inside = runtime.enter();
            let Some(socket) = self.socket.kernel() else { return };
            let mut batch = RecvBatch::new(socket, BATCH_SIZE, DATAGRAM);
            let (mut turn, mut gather) = (Turn::default(), Gather::new());
            loop {
                let result = stop.wait_readable(socket).and_then(|readable| {
                    if readable {
                        gather.wait();
                        self.take_turn(socket, &mut batch, &mut turn)?;
                        gather.served();
                    }
                    Ok(readable)
                });
                match result {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => {
                        tracing::warn!(%error, "cannot receive");
                        thread::sleep(PAUSE);
                    }
                }
            }
        })
    }

    /// Takes in what is there, within bounds, and sends what follows.
    fn take_turn(&self, socket: &KernelSocket, batch: &mut RecvBatch, turn: &mut Turn) -> io::Result<()> {
        loop {
            let received = batch.try_recv(socket);
            let count = received.as_ref().map_or(0, |count| *count);
            turn.decide(self, batch, count);
            if count == batch.buffers() && turn.waits_for_more() {
                turn.keep(batch);
                continue;
            }
            turn.carry_out(self, batch);
            return match received {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
                _ => Ok(()),
            };
        }
    }
}

/// What follows from the verdicts of one turn; empty between turns, and its room is used again.
#[derive(Default)]
struct Turn {
    outgoing: Outgoing,
    aftermath: Aftermath,
    packets: u64,
    bytes: u64,
}

impl Turn {
    /// Asks the engine about the first `count` buffers.
    fn decide(&mut self, path: &Path, batch: &mut RecvBatch, count: usize) {
        if count == 0 {
            return;
        }
        let now = path.shared.now();
        let mut core = path.shared.lock();
        for at in 0..count {
            let (meta, bytes) = batch.train(at);
            self.decide_train(path, &mut core, at, &meta, bytes, now);
        }
        path.shared.settle(&mut core, &mut self.aftermath, None);
    }

    fn decide_train(
        &mut self,
        path: &Path,
        core: &mut Core,
        at: usize,
        meta: &RecvMeta,
        bytes: &mut [u8],
        now: Time,
    ) {
        let (shared, stride) = (&path.shared, meta.stride.max(1));
        let (mut handed_on, mut settled) = (0..0, true);
        for start in (0..bytes.len()).step_by(stride) {
            let end = bytes.len().min(start + stride);
            match core.engine.handle_datagram(path.id, meta.addr, &mut bytes[start..end], now) {
                Verdict::Relay { to: Target::Datagram { socket, to }, range } => {
                    self.outgoing.push(Run::new(
                        at,
                        start + range.start..start + range.end,
                        socket,
                        to,
                        meta.ecn,
                    ));
                }
                Verdict::Relay { to: Target::Stream(to), range } => {
                    core.relay(to, &bytes[start + range.start..start + range.end], &shared.counters);
                }
                Verdict::NotOurs => {
                    if handed_on.end != start {
                        hand_on(path, meta, &bytes[handed_on]);
                        handed_on = start..start;
                    }
                    handed_on.end = end;
                }
                Verdict::Handled | Verdict::Drop(_) | Verdict::Verify(_) => settled = false,
            }
        }
        if !settled {
            shared.settle(core, &mut self.aftermath, meta.dst_ip.map(|ip| (path.id, ip)));
        }
        hand_on(path, meta, &bytes[handed_on]);
        self.packets += bytes.len().div_ceil(stride) as u64;
        self.bytes += bytes.len() as u64;
    }

    /// Whether what is there may be taken in before anything is sent: there is a way of joining it, in bounded room.
    fn waits_for_more(&self) -> bool {
        self.packets < TOGETHER as u64 && self.outgoing.has_room()
    }

    /// Leaves the batch to be used again.
    fn keep(&mut self, batch: &RecvBatch) {
        self.outgoing.keep(batch);
    }

    fn carry_out(&mut self, path: &Path, batch: &RecvBatch) {
        let shared = &path.shared;
        self.outgoing.send(batch, shared, path.shard);
        shared.finish(&mut self.aftermath, path.shard);
        add(&shared.counters.udp_received_packets, std::mem::take(&mut self.packets));
        add(&shared.counters.udp_received_bytes, std::mem::take(&mut self.bytes));
    }
}

/// Gives datagrams to QUIC.
fn hand_on(path: &Path, meta: &RecvMeta, bytes: &[u8]) {
    if !bytes.is_empty() {
        path.ledger.received(meta.addr, bytes.len());
        let meta = RecvMeta { len: bytes.len(), ..*meta };
        if !path.quic.push_train(meta, Bytes::copy_from_slice(bytes)) {
            add(&path.shared.counters.quic_dropped, bytes.len().div_ceil(meta.stride.max(1)) as u64);
        }
    }
}
