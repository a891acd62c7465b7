//! A UDP flow: what one client and one target say to each other. It has a stream of its own, whose life is the flow's; a packet
//! that fits goes as a QUIC datagram with the stream's id before it, a larger one on the stream itself, which cuts nothing off.
//!
//! What cannot be sent at once waits in short queues; when these are full the newest packet is dropped, and counted.

use std::{
    cell::Cell,
    io::{self, ErrorKind},
    rc::Rc,
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::{Notify, mpsc},
    time::Instant,
};
use traversal::{DatagramError, SendStream};

use super::{
    session::Session,
    wire::{self, MAX_PACKET, NO_PACKET, Refusal, Reply},
};

/// Packets of one flow that wait for its stream: what a client says before the peer has answered.
const QUEUE: usize = 64;
/// Packets taken from a socket in a row: then others have their turn.
pub(crate) const BUDGET: usize = 64;

/// One end of a flow.
pub(crate) struct Flow {
    session: Rc<Session>,
    /// Its id, once the peer knows it: a datagram before that would be nobody's.
    stream: Cell<Option<u64>>,
    queue: mpsc::Sender<Queued>,
    /// When the last packet went through, either way.
    latest: Cell<Instant>,
    /// Why it is over.
    failure: Cell<Option<Refusal>>,
    failed: Notify,
    /// A packet is half on the stream.
    pub(crate) is_writing: Cell<bool>,
}

/// A packet that waits for the stream.
pub(crate) struct Queued {
    packet: Vec<u8>,
    session: Rc<Session>,
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.session.queued.set(self.session.queued.get() - self.packet.len());
    }
}

impl Flow {
    /// A new one, and the packets that are to go on its stream.
    pub(crate) fn new(session: &Rc<Session>) -> (Rc<Flow>, mpsc::Receiver<Queued>) {
        let (queue, queued) = mpsc::channel(QUEUE);
        let flow = Flow {
            session: Rc::clone(session),
            stream: Cell::new(None),
            queue,
            latest: Cell::new(Instant::now()),
            failure: Cell::new(None),
            failed: Notify::new(),
            is_writing: Cell::new(false),
        };
        (Rc::new(flow), queued)
    }

    /// The peer knows the flow by this id from now on.
    pub(crate) fn is_known_as(&self, stream: u64) {
        self.stream.set(Some(stream));
    }

    /// A packet went through.
    pub(crate) fn touch(&self) {
        self.latest.set(Instant::now());
    }

    /// Ends the flow.
    pub(crate) fn fail(&self, why: Refusal) {
        self.failure.set(Some(why));
        self.failed.notify_one();
    }

    /// Sends a packet to the peer, or drops it.
    pub(crate) fn send(&self, packet: &[u8]) {
        self.touch();
        let (session, connection) = (&self.session, &self.session.connection);
        if let Some(stream) = self.stream.get() {
            let length = wire::header_length(stream) + packet.len();
            if length <= connection.max_datagram_size() {
                if connection.datagram_send_space() < length {
                    session.meter.count(|figures| figures.dropped.queue_full += 1);
                    return;
                }
                match connection.send_datagram(wire::datagram(stream, packet)) {
                    Ok(()) => {
                        session.meter.count(|figures| figures.sent += packet.len() as u64);
                        return;
                    }
                    // The path has just changed.
                    Err(DatagramError::TooLong { .. }) => {}
                    Err(_) => return,
                }
            }
        }
        let queued = session.queue(packet);
        if queued.is_none_or(|queued| self.queue.try_send(queued).is_err()) {
            session.meter.count(|figures| figures.dropped.queue_full += 1);
        }
    }

    /// Waits until nothing has gone through for so long.
    pub(crate) async fn idles(&self, limit: Duration) {
        while self.latest.get().elapsed() < limit {
            tokio::time::sleep_until(self.latest.get() + limit).await;
        }
    }

    /// Waits until it has [failed](Self::fail).
    pub(crate) async fn fails(&self) -> Refusal {
        loop {
            if let Some(why) = self.failure.get() {
                return why;
            }
            self.failed.notified().await;
        }
    }
}

impl Queued {
    pub(super) fn new(packet: &[u8], session: &Rc<Session>) -> Queued {
        session.queued.set(session.queued.get() + packet.len());
        Queued { packet: packet.to_vec(), session: Rc::clone(session) }
    }
}

/// Writes what is queued, for as long as the flow lives.
pub(crate) async fn write_packets(
    send: &mut SendStream,
    flow: &Flow,
    queued: &mut mpsc::Receiver<Queued>,
) -> io::Result<()> {
    while let Some(queued) = queued.recv().await {
        let packet = &queued.packet;
        let length = u16::try_from(packet.len()).map_err(io::Error::other)?;
        flow.is_writing.set(true);
        send.write_all(&length.to_be_bytes()).await?;
        send.write_all(packet).await?;
        flow.is_writing.set(false);
        queued.session.meter.count(|figures| figures.sent += u64::from(length));
    }
    Ok(())
}

/// Hands on what comes on the stream, until the peer ends it; then why it did, if it tells.
pub(crate) async fn read_packets(
    receive: &mut (impl AsyncRead + Unpin),
    deliver: impl Fn(&[u8]),
) -> io::Result<Option<Refusal>> {
    loop {
        let length = match receive.read_u16().await {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        if length == NO_PACKET {
            return match wire::read(receive).await? {
                Reply::No(why) => Ok(Some(why)),
                Reply::Yes => Err(ErrorKind::InvalidData.into()),
            };
        }
        if usize::from(length) > MAX_PACKET {
            return Err(ErrorKind::InvalidData.into());
        }
        // Not kept: most flows have no packet that is so large.
        let mut packet = vec![0; length.into()];
        AsyncReadExt::read_exact(receive, &mut packet).await?;
        deliver(&packet);
    }
}
