//! `traverse ping`.

use std::{
    io::Write,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval, timeout};
use traversal::{Connection, PathKind};

use crate::{
    args::PingArgs,
    node::{Me, policy},
    service::{self, Service},
};

/// A round trip that takes longer is told as lost, and ends the ping: the connection repeats what is lost by itself.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn run(args: PingArgs) -> Result<ExitCode> {
    let me = Me::caller(&args.node)?;
    let node = me.node(&args.node)?.accepting(false).policy(policy(&args.path)).start().await?;
    let begun = Instant::now();
    let connection = node.connect(args.peer).await?;
    tell(
        &args,
        begun,
        format!("connected to {}: {}", args.peer, connection.path()),
        json!({
            "event": "connected", "ms": millis(begun.elapsed()), "path": connection.path(),
        }),
    );
    let mut times = Vec::new();
    let result = tokio::select! {
        result = rounds(&args, &connection, begun, &mut times) => result,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    summary(&args, begun, &connection, &times);
    node.close().await;
    result?;
    let is_direct = connection.path().kind == PathKind::Direct;
    let wanted = args.until_direct.is_none() || is_direct;
    Ok(if wanted && !times.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn rounds(
    args: &PingArgs,
    connection: &Connection,
    begun: Instant,
    times: &mut Vec<Duration>,
) -> Result<()> {
    let (mut send, mut receive) = service::open(connection, Service::Ping).await?;
    let mut ticks = interval(args.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for sequence in 1..=args.count.unwrap_or(u64::MAX) {
        ticks.tick().await;
        let sent = Instant::now();
        let mut echo = [0; 8];
        send.write_all(&sequence.to_be_bytes()).await.context("the peer has gone")?;
        let echoed = timeout(PATIENCE, receive.read_exact(&mut echo)).await;
        echoed
            .with_context(|| format!("no answer within {} s", PATIENCE.as_secs()))?
            .context("the peer has gone")?;
        let (time, path) = (sent.elapsed(), connection.path());
        times.push(time);
        tell(
            args,
            begun,
            format!("{sequence:>4}  {:>9.2} ms  {path}", millis(time)),
            json!({
                "event": "round-trip", "sequence": sequence, "ms": millis(time), "path": path,
            }),
        );
        if let Some(deadline) = args.until_direct {
            if path.kind == PathKind::Direct {
                break;
            }
            if begun.elapsed() >= deadline {
                let error = connection.wait_direct(Duration::ZERO).await.err();
                return error.map_or(Ok(()), |error| Err(error.into()));
            }
        }
    }
    Ok(())
}

fn summary(args: &PingArgs, begun: Instant, connection: &Connection, times: &[Duration]) {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let (Some(least), Some(most)) = (sorted.first(), sorted.last()) else { return };
    let median = sorted[sorted.len() / 2];
    tell(
        args,
        begun,
        format!(
            "{} round trips: least {:.2} ms, median {:.2} ms, most {:.2} ms; now by {}",
            times.len(),
            millis(*least),
            millis(median),
            millis(*most),
            connection.path()
        ),
        json!({
            "event": "summary", "round_trips": times.len(), "least_ms": millis(*least), "median_ms": millis(median),
            "most_ms": millis(*most), "path": connection.path(),
        }),
    );
}

fn tell(args: &PingArgs, begun: Instant, words: String, mut object: serde_json::Value) {
    let line = if args.json {
        object["at_ms"] = millis(begun.elapsed()).into();
        object.to_string()
    } else {
        words
    };
    // Whoever reads no more (`| head`) gets no more.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
