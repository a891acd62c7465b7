//! UDP at full speed.

use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBufForce, SendTimeout, UdpGroSegment, UdpGsoSegment};
use nix::sys::time::{TimeVal, TimeValLike};

use super::meter::measure;
use super::mmsg::{BATCH, Inbox, send_many};
use super::{Direction, Ends, Load, LoadError, Plan, Report, TICK, failed, is_timeout};

/// Payload of one datagram of a burst.
const SEGMENT: usize = 1400;

/// Datagrams of one burst: what fits into the 65,507 B of a send, and below the 64 segments that older kernels allow.
const SEGMENTS: usize = 45;

/// Bursts in one system call: 360 datagrams.
const BURSTS: usize = 8;

/// A receiver that waits in the socket is woken for every packet, which costs more than the packet did: the measurement
/// would be of wake-ups. So it looks this often, and takes all that has come.
const NAP: Duration = Duration::from_micros(200);

/// What comes during several naps fits in here; the kernel counts what it keeps besides the payload too.
const RECEIVE_BUFFER: usize = 16 << 20;

/// How datagrams are handed to the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// One by one, with a payload of so many bytes.
    Single(usize),
    /// In bursts that it segments.
    Gso,
}

impl Kind {
    fn size(self) -> usize {
        match self {
            Self::Single(size) => size,
            Self::Gso => SEGMENT,
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    sent: AtomicU64,
    received: AtomicU64,
    stop: AtomicBool,
}

pub(super) fn run(
    load: Load,
    ends: &Ends,
    plan: &Plan,
    direction: Direction,
    kind: Kind,
) -> Result<Report, LoadError> {
    let (client, server) = ends.udp_flow()?;
    let (from, to) = if direction == Direction::Up { (&client, &server) } else { (&server, &client) };
    prepare(from, to, kind).map_err(failed(format!("{load}: can't set up the sockets")))?;

    let shared = Shared::default();
    let (measured, sender, receiver) = thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(to, kind, &shared));
        let sender = scope.spawn(|| send(from, kind, &shared));
        let measured =
            measure(plan, || [shared.sent.load(Ordering::Relaxed), shared.received.load(Ordering::Relaxed)]);
        shared.stop.store(true, Ordering::Relaxed);
        (measured, sender.join(), receiver.join())
    });
    for (what, outcome) in [("sender", sender), ("receiver", receiver)] {
        outcome
            .unwrap_or_else(|_| Err(io::Error::other("the thread died")))
            .map_err(failed(format!("{load}: the {what} failed")))?;
    }
    let ([sent, bytes], window) = measured?;
    let count = bytes / kind.size() as u64;
    Report { bytes, count, lost: sent.saturating_sub(count), ..Report::new(load, &window) }.unless_empty()
}

fn prepare(from: &UdpSocket, to: &UdpSocket, kind: Kind) -> io::Result<()> {
    setsockopt(to, RcvBufForce, &RECEIVE_BUFFER)?;
    // A full device queue holds the sender back where the kernel can tell (a TUN device): it must still see `stop`.
    setsockopt(from, SendTimeout, &TimeVal::milliseconds(TICK.as_millis() as i64))?;
    if let Kind::Gso = kind {
        setsockopt(from, UdpGsoSegment, &(SEGMENT as i32))?;
        setsockopt(to, UdpGroSegment, &true)?;
    }
    Ok(())
}

fn send(socket: &UdpSocket, kind: Kind, shared: &Shared) -> io::Result<()> {
    let (payload, count, datagrams) = match kind {
        Kind::Single(size) => (vec![0x5a; size], BATCH, 1),
        Kind::Gso => (vec![0x5a; SEGMENT * SEGMENTS], BURSTS, SEGMENTS),
    };
    while !shared.stop.load(Ordering::Relaxed) {
        match send_many(socket, &payload, count) {
            Ok(sent) => {
                shared.sent.fetch_add((sent * datagrams) as u64, Ordering::Relaxed);
            }
            // A full queue, told by the device.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) || is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn receive(socket: &UdpSocket, kind: Kind, shared: &Shared) -> io::Result<()> {
    let mut inbox = match kind {
        Kind::Single(size) => Inbox::new(BATCH, size),
        Kind::Gso => Inbox::new(BURSTS, usize::from(u16::MAX)),
    };
    while !shared.stop.load(Ordering::Relaxed) {
        match inbox.receive(socket) {
            Ok(bytes) => {
                shared.received.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            Err(error) if is_timeout(&error) => thread::sleep(NAP),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
