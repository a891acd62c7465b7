//! The questions about UDP.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::class::{Classification, Protocol};
use super::endpoints::{Endpoints, Outcome, Source};
use super::judge::{self, Observed};
use super::wire::{Message, SIZE, fresh_token};
use super::{ProbeError, Prober, Timing, failed, hairpin};

/// What the reflector told a socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    /// The external endpoint that it saw.
    pub(super) mapped: SocketAddr,
    /// Whether the answer in question arrived, too.
    pub(super) passed: bool,
    /// From the last sending to the answer.
    pub(super) round_trip: Duration,
}

pub(super) async fn classify(prober: &Prober) -> Result<Classification, ProbeError> {
    let (local, mapped) = map_to_all(prober).await?;
    let (port, addr, both) = tokio::try_join!(
        fate_of(prober, Source::OtherPort),
        fate_of(prober, Source::OtherAddress),
        fate_of(prober, Source::Both),
    )?;
    let foreign = [(Source::OtherPort, port), (Source::OtherAddress, addr), (Source::Both, both)];
    let samples = sample_ports(prober).await?;
    let mut class = judge::classify(Observed { protocol: Protocol::Udp, local, mapped, foreign, samples })?;
    if judge::hairpin_observable(&class) {
        class.hairpin = hairpin::udp(prober).await?;
    }
    Ok(class)
}

/// The external endpoint of somebody else's socket.
pub(super) async fn mapping_of(
    reflector: Endpoints,
    socket: std::net::UdpSocket,
    at: Source,
) -> Result<SocketAddr, ProbeError> {
    let socket = adopt(socket)?;
    Ok(ask(reflector, &Timing::default(), &socket, at, None).await?.mapped)
}

/// Makes a socket of the caller's usable here. Its file is shared with the caller's, and so is its mode: a blocking one
/// blocks again when the [`Adopted`] is dropped.
pub(super) fn adopt(socket: std::net::UdpSocket) -> Result<Adopted, ProbeError> {
    let at = socket.local_addr().map_err(ProbeError::Thread)?;
    let flags = fcntl(&socket, FcntlArg::F_GETFL)
        .map_err(io::Error::from)
        .map_err(failed("use the UDP socket of", at))?;
    let was_blocking = !OFlag::from_bits_truncate(flags).contains(OFlag::O_NONBLOCK);
    let original = socket.try_clone().map_err(failed("share the UDP socket of", at))?;
    socket.set_nonblocking(true).map_err(failed("use the UDP socket of", at))?;
    let socket = UdpSocket::from_std(socket).map_err(failed("use the UDP socket of", at))?;
    Ok(Adopted { socket, original, was_blocking })
}

/// A caller's socket, borrowed.
pub(super) struct Adopted {
    socket: UdpSocket,
    original: std::net::UdpSocket,
    was_blocking: bool,
}

impl std::ops::Deref for Adopted {
    type Target = UdpSocket;

    fn deref(&self) -> &UdpSocket {
        &self.socket
    }
}

impl Drop for Adopted {
    fn drop(&mut self) {
        let _ = self.original.set_nonblocking(!self.was_blocking);
    }
}

/// A socket on a port of its own.
pub(super) async fn fresh(prober: &Prober) -> Result<UdpSocket, ProbeError> {
    let any = SocketAddr::new(prober.local, 0);
    loop {
        let socket = UdpSocket::bind(any).await.map_err(failed("bind a UDP socket to", any))?;
        if prober.first_use(local_of(&socket)?.port()) {
            return Ok(socket);
        }
    }
}

pub(super) fn local_of(socket: &UdpSocket) -> Result<SocketAddr, ProbeError> {
    socket.local_addr().map_err(ProbeError::Thread)
}

async fn map_to_all(prober: &Prober) -> Result<(SocketAddr, [SocketAddr; 4]), ProbeError> {
    let socket = fresh(prober).await?;
    let local = local_of(&socket)?;
    let mut mapped = [local; 4];
    for (at, mapped) in Source::ALL.into_iter().zip(&mut mapped) {
        *mapped = ask(prober.reflector, &prober.timing, &socket, at, None).await?.mapped;
    }
    Ok((local, mapped))
}

async fn fate_of(prober: &Prober, source: Source) -> Result<Outcome, ProbeError> {
    for _ in 0..prober.timing.rounds.max(1) {
        let socket = fresh(prober).await?;
        if ask(prober.reflector, &prober.timing, &socket, Source::Same, Some(source)).await?.passed {
            return Ok(Outcome::Accepted);
        }
    }
    Ok(Outcome::Dropped)
}

async fn sample_ports(prober: &Prober) -> Result<Vec<(u16, SocketAddr)>, ProbeError> {
    let mut samples = Vec::new();
    // Kept open, so that no port is free again before the last sample.
    let mut sockets = Vec::new();
    for _ in 0..prober.timing.samples.max(2) {
        let socket = fresh(prober).await?;
        let heard = ask(prober.reflector, &prober.timing, &socket, Source::Same, None).await?;
        samples.push((local_of(&socket)?.port(), heard.mapped));
        sockets.push(socket);
    }
    Ok(samples)
}

/// Asks the endpoint `at` for an answer, preceded by one from `wanted` if given. Returns when the wanted one is there,
/// or some grace after the other one.
pub(super) async fn ask(
    reflector: Endpoints,
    timing: &Timing,
    socket: &UdpSocket,
    at: Source,
    wanted: Option<Source>,
) -> Result<Heard, ProbeError> {
    let to = reflector.at(at);
    let local = local_of(socket)?;
    let token = fresh_token();
    let request = Message::Ask { token, answers: [wanted, Some(Source::Same), None, None] }.encode();
    let mut until = Instant::now() + timing.answer;
    let (mut sent, mut send_at) = (Instant::now(), Instant::now());
    let mut control = None;
    let mut buf = [0; SIZE + 1];
    while Instant::now() < until {
        if control.is_none() && Instant::now() >= send_at {
            socket.send_to(&request, to).await.map_err(failed("send UDP to", to))?;
            sent = Instant::now();
            send_at = sent + timing.resend;
        }
        let wake = if control.is_none() { until.min(send_at) } else { until };
        let Ok(received) = timeout_at(wake, socket.recv_from(&mut buf)).await else { continue };
        let (len, from) = received.map_err(failed("receive UDP at", local))?;
        let Some(Message::Answer { token: of, source, mapped }) = Message::decode(&buf[..len]) else {
            continue;
        };
        if of != token {
            continue;
        }
        let sent_from = reflector.at(at.then(source));
        if from != sent_from {
            return Err(ProbeError::RemoteRewritten { sent_from, seen: from, local });
        }
        let round_trip = sent.elapsed();
        if wanted == Some(source) || (wanted.is_none() && source == Source::Same) {
            return Ok(Heard { mapped, passed: wanted.is_some(), round_trip });
        }
        if control.is_none() {
            control = Some(Heard { mapped, passed: false, round_trip });
            until = Instant::now() + timing.grace + 2 * round_trip;
        }
    }
    control.ok_or(ProbeError::NoAnswer { protocol: Protocol::Udp, at: to, within: timing.answer })
}
