//! Hairpinning: two local endpoints behind one NAT reach for each other's external endpoint.

use std::net::SocketAddr;

use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout, timeout_at};

use super::class::{Hairpin, Protocol};
use super::endpoints::{Endpoints, Source};
use super::tap::Tap;
use super::tcp::{Line, patience};
use super::tcp_open::{bound, fresh_greeting, greet};
use super::udp::{adopt, ask, fresh, local_of};
use super::wire::{Message, SIZE, fresh_token};
use super::{ProbeError, Prober, Timing, failed};

/// Between two sockets of this host.
pub(super) async fn udp(prober: &Prober) -> Result<Hairpin, ProbeError> {
    let mut seen = Hairpin::Off;
    for _ in 0..prober.timing.rounds.max(1) {
        let tap = Tap::open();
        let (a, b) = (fresh(prober).await?, fresh(prober).await?);
        seen = udp_round(prober.reflector, &prober.timing, &a, &b).await?;
        if seen == Hairpin::Off {
            seen = what_the_tap_saw(tap.as_ref(), Protocol::Udp, local_of(&a)?, local_of(&b)?);
        }
        if matches!(seen, Hairpin::InternalSource | Hairpin::ExternalSource) {
            break;
        }
    }
    Ok(seen)
}

/// Between two sockets of the caller's, of any two hosts.
pub(super) async fn udp_between(
    reflector: Endpoints,
    a: std::net::UdpSocket,
    b: std::net::UdpSocket,
) -> Result<Hairpin, ProbeError> {
    let timing = Timing::default();
    let (a, b) = (adopt(a)?, adopt(b)?);
    let mut seen = Hairpin::Off;
    for _ in 0..timing.rounds {
        seen = udp_round(reflector, &timing, &a, &b).await?;
        if seen != Hairpin::Off {
            break;
        }
    }
    Ok(seen)
}

async fn udp_round(
    reflector: Endpoints,
    timing: &Timing,
    a: &UdpSocket,
    b: &UdpSocket,
) -> Result<Hairpin, ProbeError> {
    let (a_local, b_local) = (local_of(a)?, local_of(b)?);
    let a_external = ask(reflector, timing, a, Source::Same, None).await?.mapped;
    let b_external = ask(reflector, timing, b, Source::Same, None).await?.mapped;
    if (a_local, b_local) == (a_external, b_external) {
        return Ok(Hairpin::Unobservable);
    }
    let token = fresh_token();
    let hello = Message::Hello { token }.encode();
    // First b's own filter is opened towards a; its token is another one, so that it is never taken for a's.
    b.send_to(&fresh_greeting().encode(), a_external).await.map_err(failed("send UDP to", a_external))?;
    a.send_to(&hello, b_external).await.map_err(failed("send UDP to", b_external))?;
    // The control travels behind the packet in question, from the same socket through the same NAT.
    let control = ask(reflector, timing, a, Source::Same, None).await?;
    let until = Instant::now() + timing.grace + 2 * control.round_trip;
    let mut buf = [0; SIZE + 1];
    while let Ok(received) = timeout_at(until, b.recv_from(&mut buf)).await {
        let (len, from) = received.map_err(failed("receive UDP at", b_local))?;
        if Message::decode(&buf[..len]) == Some(Message::Hello { token }) {
            return source(Protocol::Udp, from, a_local, a_external);
        }
    }
    Ok(Hairpin::Off)
}

/// Between two ports of this host. Both listen and connect at the same time: a filter that knows only whom its own side
/// has called lets the later SYN in, and one without any lets the first one in.
pub(super) async fn tcp(prober: &Prober) -> Result<Hairpin, ProbeError> {
    let mut seen = Hairpin::Off;
    for _ in 0..prober.timing.rounds.max(1) {
        let tap = Tap::open();
        let (a, b) = (Line::open(prober).await?, Line::open(prober).await?);
        let patience = patience(prober, a.seen.round_trip.max(b.seen.round_trip));
        let met = timeout(patience, async { tokio::try_join!(meet(&a, &b), meet(&b, &a)) });
        match met.await {
            Ok(Ok((by_a, by_b))) => {
                // Who accepted saw the other's source; two that connected saw each other as they called each other.
                let (from, other) = match (by_a, by_b) {
                    (Some(from), _) => (from, &b),
                    (None, Some(from)) => (from, &a),
                    (None, None) => (a.seen.mapped, &a),
                };
                return source(Protocol::Tcp, from, other.local, other.seen.mapped);
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => {}
        }
        seen = what_the_tap_saw(tap.as_ref(), Protocol::Tcp, a.local, b.local);
        if seen == Hairpin::InternalSource {
            break;
        }
    }
    Ok(seen)
}

/// Waits for a connection between `own` and `other` on which both have greeted; who called, if it was accepted.
/// Never ends when there is none.
async fn meet(own: &Line, other: &Line) -> Result<Option<SocketAddr>, ProbeError> {
    let listener = own.listen()?;
    let connecting = bound(own.local)?;
    // The two sides greet with the same words whichever way they met.
    let hello = Message::Hello { token: 0 };
    let accepted = async {
        loop {
            let Ok((mut stream, from)) = listener.accept().await else {
                tokio::task::yield_now().await;
                continue;
            };
            if greet(&mut stream, hello).await.is_ok() {
                return (stream, Some(from));
            }
        }
    };
    let connected = async {
        // Refused, or the other side's SYN was accepted first: what is accepted decides.
        if let Ok(mut stream) = connecting.connect(other.seen.mapped).await
            && greet(&mut stream, hello).await.is_ok()
        {
            return (stream, None);
        }
        std::future::pending().await
    };
    let (_stream, from) = tokio::select! {
        met = accepted => met,
        met = connected => met,
    };
    Ok(from)
}

fn source(
    protocol: Protocol,
    from: SocketAddr,
    internal: SocketAddr,
    external: SocketAddr,
) -> Result<Hairpin, ProbeError> {
    if from == internal {
        Ok(Hairpin::InternalSource)
    } else if from.ip() == external.ip() {
        Ok(Hairpin::ExternalSource)
    } else {
        let seen = format!("what {internal} (outside {external}) sent arrived from {from}");
        Err(ProbeError::Inconsistent { protocol, what: "hairpin", seen })
    }
}

/// Nothing reached a socket: either the NAT dropped it, or this host's kernel dropped its own address as a source.
fn what_the_tap_saw(tap: Option<&Tap>, protocol: Protocol, a: SocketAddr, b: SocketAddr) -> Hairpin {
    match tap {
        Some(tap) if tap.saw(protocol, &[(a, b), (b, a)]) => Hairpin::InternalSource,
        Some(_) => Hairpin::Off,
        None => Hairpin::Unobservable,
    }
}
