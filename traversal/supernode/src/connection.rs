//! A control connection, whatever carries it: frames in to the engine, frames out from its outbox.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use traversal_net::framing::FrameReader;
use traversal_proto::{
    supernode::ConnectionId,
    wire::{PeerId, message::Code},
};

use crate::{
    core::Shared,
    counters::add,
    outbox::{End, Next, Outbox},
};

/// A peer whose connection takes nothing for so long does not read.
const STALLED: Duration = Duration::from_secs(20);
/// What is written in one go: each such piece has the time above.
const PIECE: usize = 16 << 10;
/// A buffer that grew beyond this is given back: most connections are silent most of the time.
const KEPT: usize = 4 << 10;

/// A connection that the engine knows of; when this is dropped, it is told that the connection is gone.
pub(crate) struct Registered {
    shared: Arc<Shared>,
    id: ConnectionId,
    pub(crate) outbox: Arc<Outbox>,
}

impl Registered {
    pub(crate) fn new(shared: &Arc<Shared>, peer: PeerId, remote: SocketAddr) -> Registered {
        let (id, outbox) = shared.connected(peer, remote);
        Registered { shared: Arc::clone(shared), id, outbox }
    }

    /// Until the engine closes it, even if nothing can be written to it yet; then why.
    pub(crate) async fn ended(&self) -> Code {
        loop {
            match self.outbox.end() {
                Some(end) => return code(end),
                None => self.outbox.changed().await,
            }
        }
    }

    /// Carries frames both ways until either side ends it; then why.
    pub(crate) async fn run(
        &self,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Code {
        tokio::select! {
            code = self.read(reader) => code,
            code = self.write(writer) => code,
        }
    }

    async fn read(&self, stream: impl AsyncRead + Unpin) -> Code {
        let mut frames = FrameReader::new(stream);
        loop {
            match frames.next().await {
                Ok(Some(body)) => self.shared.frame(self.id, body),
                Ok(None) => return Code::PeerGone,
                Err(error) => {
                    tracing::debug!(%error, "a control connection ended");
                    return Code::Malformed;
                }
            }
            tokio::task::coop::consume_budget().await;
        }
    }

    async fn write(&self, stream: &mut (impl AsyncWrite + Unpin)) -> Code {
        let mut buffer = Vec::new();
        loop {
            match self.outbox.take(&mut buffer) {
                Next::Wait => self.outbox.changed().await,
                Next::End(end) => {
                    if end == End::TooSlow {
                        return self.too_slow();
                    }
                    let _ = timeout(STALLED, stream.shutdown()).await;
                    return code(end);
                }
                Next::Write => {
                    for piece in buffer.chunks(PIECE) {
                        if let Err(code) = self.write_piece(stream, piece).await {
                            return code;
                        }
                    }
                    buffer.clear();
                    buffer.shrink_to(KEPT);
                }
            }
        }
    }

    /// Writes within its time, and not beyond the point at which more has gathered than a reader may be behind.
    async fn write_piece(&self, stream: &mut (impl AsyncWrite + Unpin), piece: &[u8]) -> Result<(), Code> {
        let writing = timeout(STALLED, write_all(stream, piece));
        tokio::pin!(writing);
        loop {
            tokio::select! {
                written = &mut writing => {
                    return match written {
                        Ok(written) => written.map_err(|_| Code::PeerGone),
                        Err(_) => Err(self.too_slow()),
                    };
                }
                () = self.outbox.changed() => {
                    if self.outbox.end() == Some(End::TooSlow) {
                        return Err(self.too_slow());
                    }
                }
            }
        }
    }

    fn too_slow(&self) -> Code {
        add(&self.shared.counters.slow_readers, 1);
        code(End::TooSlow)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.shared.disconnected(self.id);
    }
}

/// Takes in what still comes and forgets it, until the other end has closed too: a TCP connection closed with unread
/// bytes is reset, and the last words on it are lost.
pub(crate) async fn linger(stream: &mut (impl AsyncRead + Unpin), time: Duration) {
    let mut unwanted = [0; 1024];
    let reading = async { while stream.read(&mut unwanted).await.is_ok_and(|read| read > 0) {} };
    let _ = timeout(time, reading).await;
}

async fn write_all(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

fn code(end: End) -> Code {
    match end {
        End::Closed(code) => code,
        End::TooSlow => Code::TooFast,
    }
}
