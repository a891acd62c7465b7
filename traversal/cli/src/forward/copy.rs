//! A TCP connection joined to a stream. The end of each direction is its own, and so is its pace: nothing is read from one side
//! before the other has taken what was read before.

use std::{
    io::{self, ErrorKind},
    net::Shutdown,
    time::Duration,
};

use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream, sync::Notify};
use traversal::{RecvStream, SendStream};

use super::meter::Meter;

/// Bytes in one step: many packets, so that few system calls are made.
const CHUNK: usize = 128 * 1024;
/// Why a stream ends before its time: the code of its reset, and of its stop.
pub(crate) const ABORTED: u32 = 0x20;

/// Both directions of a stream. Unless they were ended well they end with a reset: half of something must not look like all of
/// it.
#[derive(Debug)]
pub(crate) struct Both {
    pub(crate) send: SendStream,
    pub(crate) receive: RecvStream,
    pub(crate) is_whole: bool,
}

impl Both {
    pub(crate) fn new((send, receive): (SendStream, RecvStream)) -> Both {
        Both { send, receive, is_whole: false }
    }

    /// The stream's id, as QUIC counts (RFC 9000 §2.1): a two-way stream's.
    pub(crate) fn id(&self) -> u64 {
        let id = self.send.id();
        id.index() << 2 | u64::from(id.initiator().is_server())
    }

    /// Nothing more is to be said here.
    pub(crate) fn finish(mut self) {
        // Fails only for a stream that is over.
        let _ = self.send.finish();
        self.is_whole = true;
    }
}

impl Drop for Both {
    fn drop(&mut self) {
        if !self.is_whole {
            // These fail only for a stream that is over.
            let _ = self.send.reset(ABORTED.into());
            let _ = self.receive.stop(ABORTED.into());
        }
    }
}

/// Ends a TCP connection with a reset.
pub(crate) fn abort(tcp: TcpStream) {
    // Fails only for a connection that is over.
    let _ = SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
}

/// Copies both ways until both have ended. What comes from the peer waits for `before`, which reads what comes before it.
///
/// # Errors
/// Those of `before`, and a reset from either side.
pub(crate) async fn join<E: From<io::Error>>(
    tcp: &TcpStream,
    both: &mut Both,
    meter: &Meter,
    before: impl AsyncFnOnce(&mut RecvStream) -> Result<(), E>,
) -> Result<(), E> {
    let Both { send, receive, is_whole } = both;
    let begun = Notify::new();
    let inward = async {
        before(receive).await?;
        begun.notify_one();
        Ok::<_, E>(inward(receive, tcp, meter).await?)
    };
    let outward = async {
        if let Err(error) = outward(tcp, send, meter).await {
            // A peer that refuses takes nothing either: what it says tells more.
            begun.notified().await;
            return Err(error.into());
        }
        Ok::<_, E>(())
    };
    tokio::select! {
        biased;
        joined = async { tokio::try_join!(outward, inward) } => joined?,
        // Nobody may be reading when it is reset.
        _ = tcp.ready(Interest::ERROR) => return Err(io::Error::from(ErrorKind::ConnectionReset).into()),
    };
    *is_whole = true;
    Ok(())
}

/// From TCP to the peer, to the end, and until the peer has all of it.
async fn outward(tcp: &TcpStream, send: &mut SendStream, meter: &Meter) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut stopped = std::pin::pin!(send.stopped());
    loop {
        let length = tokio::select! {
            biased;
            length = read(tcp, &mut buffer) => length?,
            _ = &mut stopped => return Err(ErrorKind::ConnectionReset.into()),
        };
        if length == 0 {
            break;
        }
        send.write_all(&buffer[..length]).await?;
        meter.count(|figures| figures.sent += length as u64);
    }
    drop(buffer);
    send.finish().map_err(|_| ErrorKind::ConnectionReset)?;
    match stopped.await {
        Ok(None) => Ok(()),
        _ => Err(ErrorKind::ConnectionReset.into()),
    }
}

async fn read(tcp: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        tcp.readable().await?;
        match tcp.try_read(buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

/// From the peer to TCP, to the end.
async fn inward(receive: &mut RecvStream, tcp: &TcpStream, meter: &Meter) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    while let Some(length) = receive.read(&mut buffer).await? {
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            tcp.writable().await?;
            match tcp.try_write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        meter.count(|figures| figures.received += length as u64);
    }
    SockRef::from(tcp).shutdown(Shutdown::Write)
}
