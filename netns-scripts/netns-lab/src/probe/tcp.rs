//! The questions about TCP.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use super::class::{Classification, Protocol};
use super::endpoints::{Outcome, Source};
use super::judge::{self, Observed};
use super::tcp_open::{GREETING_WITHIN, bound, fresh, read_message};
use super::wire::{Message, fresh_token};
use super::{ProbeError, Prober, failed, hairpin};

/// What the reflector saw of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) mapped: SocketAddr,
    pub(super) round_trip: Duration,
}

/// A connection to the reflector's primary endpoint from a fresh local port. It holds the port's mapping.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) stream: TcpStream,
    pub(super) local: SocketAddr,
    pub(super) seen: Seen,
}

impl Line {
    pub(super) async fn open(prober: &Prober) -> Result<Self, ProbeError> {
        let (socket, local) = fresh(prober)?;
        let (stream, seen) = dial(prober, socket, Source::Same).await?;
        Ok(Self { stream, local, seen })
    }

    /// A listener on the line's own port: whatever the mapping lets in from elsewhere ends there.
    pub(super) fn listen(&self) -> Result<TcpListener, ProbeError> {
        bound(self.local)?.listen(16).map_err(failed("listen for TCP on", self.local))
    }
}

/// How long to wait for a connect that may be dropped silently.
pub(super) fn patience(prober: &Prober, round_trip: Duration) -> Duration {
    prober.timing.connect_back + 4 * round_trip
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
    let mut class = judge::classify(Observed { protocol: Protocol::Tcp, local, mapped, foreign, samples })?;
    if judge::hairpin_observable(&class) {
        class.hairpin = hairpin::tcp(prober).await?;
    }
    Ok(class)
}

async fn map_to_all(prober: &Prober) -> Result<(SocketAddr, [SocketAddr; 4]), ProbeError> {
    let first = Line::open(prober).await?;
    let mut mapped = [first.seen.mapped; 4];
    // All stay connected: a closed connection may take its mapping with it.
    let mut streams = vec![first.stream];
    for (at, mapped) in Source::ALL.into_iter().zip(&mut mapped).skip(1) {
        let (stream, seen) = dial(prober, bound(first.local)?, at).await?;
        *mapped = seen.mapped;
        streams.push(stream);
    }
    Ok((first.local, mapped))
}

async fn sample_ports(prober: &Prober) -> Result<Vec<(u16, SocketAddr)>, ProbeError> {
    let mut lines = Vec::new();
    for _ in 0..prober.timing.samples.max(2) {
        lines.push(Line::open(prober).await?);
    }
    Ok(lines.iter().map(|line| (line.local.port(), line.seen.mapped)).collect())
}

async fn fate_of(prober: &Prober, source: Source) -> Result<Outcome, ProbeError> {
    let mut fate = Outcome::Dropped;
    for _ in 0..prober.timing.rounds.max(1) {
        fate = match connect_back(prober, source).await? {
            Outcome::Accepted => return Ok(Outcome::Accepted),
            // A refusal was seen, a drop only inferred: the refusal stands.
            Outcome::Dropped if fate == Outcome::Refused => fate,
            seen => seen,
        };
    }
    Ok(fate)
}

/// One fresh port that listens, talks to the primary endpoint only, and has another one connect back. The report comes
/// over the first connection, which shows that the path was alive all the time.
async fn connect_back(prober: &Prober, source: Source) -> Result<Outcome, ProbeError> {
    let mut line = Line::open(prober).await?;
    let listener = line.listen()?;
    let token = fresh_token();
    let patience = patience(prober, line.seen.round_trip);
    let timeout_ms = u16::try_from(patience.as_millis()).unwrap_or(u16::MAX);
    let ask = Message::ConnectBack { token, from: source, timeout_ms };
    let mut caller = None;
    let report = async {
        line.stream.write_all(&ask.encode()).await?;
        tokio::select! {
            report = read_message(&mut line.stream) => report,
            never = echo(&listener, &mut caller) => match never {},
        }
    };
    // Connecting, the greeting, and the line's own round trip.
    let within = patience + GREETING_WITHIN + prober.timing.answer;
    let report = timeout(within, report).await;
    let sent_from = prober.reflector.at(source);
    match report {
        Ok(Ok(Message::ConnectedBack { token: of, outcome, mapped: to })) if of == token => {
            match (outcome, caller) {
                (Outcome::Accepted, Some(seen)) if seen != sent_from => {
                    Err(ProbeError::RemoteRewritten { sent_from, seen, local: line.local })
                }
                (Outcome::Untried, _) => Err(ProbeError::ConnectBack { from: sent_from, to }),
                _ => Ok(outcome),
            }
        }
        _ => Err(no_answer(prober.reflector.primary(), within)),
    }
}

/// Echoes the greeting of whoever connects, and notes who it was.
async fn echo(listener: &TcpListener, caller: &mut Option<SocketAddr>) -> std::convert::Infallible {
    loop {
        let Ok((mut stream, from)) = listener.accept().await else {
            // Out of files for a moment; the question's own deadline ends this.
            tokio::task::yield_now().await;
            continue;
        };
        *caller = Some(from);
        let echoed = async {
            let hello = read_message(&mut stream).await?;
            stream.write_all(&hello.encode()).await
        };
        // A greeting that fails is reported by the reflector, which misses the echo.
        let _ = timeout(GREETING_WITHIN, echoed).await;
    }
}

/// Connects and asks how the connection looks from there.
async fn dial(prober: &Prober, socket: TcpSocket, at: Source) -> Result<(TcpStream, Seen), ProbeError> {
    let to = prober.reflector.at(at);
    let within = prober.timing.answer;
    let connected = timeout(within, socket.connect(to)).await.map_err(|_| no_answer(to, within))?;
    let mut stream = connected.map_err(failed("connect by TCP to", to))?;
    stream.set_nodelay(true).map_err(failed("connect by TCP to", to))?;
    let token = fresh_token();
    let sent = Instant::now();
    let exchange = async {
        stream.write_all(&Message::Ask { token, answers: [None; 4] }.encode()).await?;
        read_message(&mut stream).await
    };
    match timeout(within, exchange).await {
        Ok(Ok(Message::Answer { token: of, mapped, .. })) if of == token => {
            Ok((stream, Seen { mapped, round_trip: sent.elapsed() }))
        }
        Ok(Err(error)) => Err(failed("talk over TCP to", to)(error)),
        _ => Err(no_answer(to, within)),
    }
}

fn no_answer(at: SocketAddr, within: Duration) -> ProbeError {
    ProbeError::NoAnswer { protocol: Protocol::Tcp, at, within }
}
