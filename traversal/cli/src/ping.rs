//! `traverse ping`.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, timeout};
use traversal::{Connection, PathKind};

use crate::{
    args::{PingArgs, TellArgs},
    node::{Me, policy, with_node},
    out,
    service::{self, Service, why},
    status::Status,
    stop::{Ended, Stop},
};

/// A round trip that takes longer is told as lost, and ends the ping: the connection repeats what is lost by itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// Round trips that the summary is made of, the latest: two megabytes.
const SUMMED_UP: usize = 100_000;

pub(crate) async fn run(args: PingArgs, stop: &Stop) -> Result<()> {
    let me = Me::caller(&args.node, Status::new(TellArgs { json: args.json, quiet: args.quiet }))?;
    let builder = me.node(&args.node)?.accepting(false).policy(policy(&args.path));
    with_node(builder, stop, async |node| {
        let mut log = Log {
            json: args.json,
            quiet: args.quiet,
            begun: Instant::now(),
            count: 0,
            times: VecDeque::new(),
        };
        let connection = stop.or(node.connect(args.peer)).await?;
        log.connected(&connection)?;
        let result = stop.or(rounds(&args, &connection, &mut log)).await;
        let ended = result.as_ref().err().and_then(|error| error.downcast_ref::<Ended>()).copied();
        if ended != Some(Ended::OutputClosed) && !log.times.is_empty() {
            log.summary(&connection)?;
            // Without a goal of its own, a ping ends by Ctrl-C.
            if ended == Some(Ended::Interrupted) && args.until_direct.is_none() {
                return Ok(());
            }
        }
        result
    })
    .await
}

async fn rounds(args: &PingArgs, connection: &Connection, log: &mut Log) -> Result<()> {
    let (mut send, mut receive) = service::open(connection, Service::Ping).await?;
    let mut ticks = interval(args.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for sequence in 1..=args.count.unwrap_or(u64::MAX) {
        ticks.tick().await;
        let sent = Instant::now();
        let mut echo = [0; 8];
        let trip = async {
            send.write_all(&sequence.to_be_bytes()).await.ok()?;
            receive.read_exact(&mut echo).await.ok()
        };
        let echoed = timeout(PATIENCE, trip).await;
        echoed
            .with_context(|| format!("no answer within {} s", PATIENCE.as_secs()))?
            .with_context(|| gone(connection))?;
        log.round_trip(sequence, sent.elapsed(), connection)?;
        let Some(deadline) = args.until_direct else { continue };
        if connection.path().kind == PathKind::Direct {
            return Ok(());
        }
        if log.begun.elapsed() >= deadline {
            break;
        }
    }
    if args.until_direct.is_some() {
        // It is not, or has just become so; the error tells why.
        connection.wait_direct(Duration::ZERO).await?;
    }
    Ok(())
}

fn gone(connection: &Connection) -> String {
    let reason =
        connection.close_reason().map_or_else(|| "it ended the stream".to_owned(), |reason| why(&reason));
    format!("the peer has gone: {reason}")
}

/// What is told on standard output.
struct Log {
    json: bool,
    quiet: bool,
    begun: Instant,
    count: u64,
    times: VecDeque<Duration>,
}

impl Log {
    fn connected(&self, connection: &Connection) -> Result<()> {
        let (peer, path) = (connection.peer_id(), connection.path());
        let fields = json!({ "event": "connected", "ms": millis(self.begun.elapsed()), "path": path });
        self.unless_quiet(format!("connected to {peer}: {path}"), fields)
    }

    fn round_trip(&mut self, sequence: u64, time: Duration, connection: &Connection) -> Result<()> {
        let path = connection.path();
        self.count += 1;
        self.times.truncate(SUMMED_UP - 1);
        self.times.push_front(time);
        self.unless_quiet(
            format!("{sequence:>4}  {:>9.2} ms  {path}", millis(time)),
            json!({ "event": "round-trip", "sequence": sequence, "ms": millis(time), "path": path }),
        )
    }

    fn summary(&self, connection: &Connection) -> Result<()> {
        let mut sorted: Vec<f64> = self.times.iter().copied().map(millis).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (Some(least), Some(most)) = (sorted.first(), sorted.last()) else { return Ok(()) };
        let (count, median, path) = (self.count, sorted[sorted.len() / 2], connection.path());
        self.tell(
            format!(
                "{count} round trips: least {least:.2} ms, median {median:.2} ms, most {most:.2} ms; now by {path}"
            ),
            json!({
                "event": "summary", "round_trips": count, "least_ms": least, "median_ms": median, "most_ms": most,
                "path": path,
            }),
        )
    }

    fn unless_quiet(&self, words: String, fields: Value) -> Result<()> {
        if self.quiet { Ok(()) } else { self.tell(words, fields) }
    }

    fn tell(&self, words: String, mut fields: Value) -> Result<()> {
        if !self.json {
            return out::line(words);
        }
        fields["at_ms"] = millis(self.begun.elapsed()).into();
        out::line(fields)
    }
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
