//! cargo run --release --example call -- SUPERNODE          waits to be called, and prints its id
//! cargo run --release --example call -- SUPERNODE ID       calls it
//!
//! A voice call between two machines behind any pair of NATs: the case that a lecture on NAT traversal begins with. Opus in
//! datagrams of 20 ms, both ways at once, from and to WAV files; `--help` tells the rest.
//!
//! ```text
//!   speaker   voice | wav ─▶ codec ─▶ packet ─▶ ┐
//!                                               link   traversal::Connection, datagrams
//!   playout   wav ◀─ stretch ◀─ codec ◀─ jitter ◀ ┘
//! ```
//!
//! `session` is the loop around both; it knows datagrams, and nothing of the traversal crate. `link` joins the two.

mod args;
mod codec;
mod compare;
mod jitter;
mod link;
mod meter;
mod packet;
mod playout;
mod report;
mod session;
mod speaker;
#[path = "../stop.rs"]
mod stop;
mod stretch;
mod voice;
mod wav;

use std::{io::Write, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::Parser;
use serde_json::json;
use tokio::time::Instant;
use traversal::{Connection, Node, PathEvent, Policy};

use crate::{
    args::{Args, SourceName},
    codec::FRAME,
    compare::Comparison,
    link::Link,
    report::Report,
    session::{Call, End, Summary, millis},
    speaker::Source,
    stop::stop,
    wav::Recording,
};

/// What is kept for a comparison: ten minutes. The rest of a longer call is not compared.
const MAX_COMPARED: usize = 600 * codec::RATE;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(code) => code,
        Err(error) => {
            // The whole chain in one line. Nobody may be left to read it.
            let _ = writeln!(std::io::stderr(), "call: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<ExitCode> {
    let report = Report::new(args.json);
    // Files first: nobody is called in vain.
    let default = SourceName::Voice(if args.peer.is_some() { 1 } else { 2 });
    let source = args.speak.as_ref().unwrap_or(&default).open()?;
    let reference = args.compare.as_ref().map(SourceName::open).transpose()?;
    let mut ear = Ear::new(&args, reference)?;

    let policy = if args.relay_only { Policy::RelayOnly } else { Policy::PreferDirect };
    let node = Node::builder()
        .supernode(&args.supernode)
        .accepting(args.peer.is_none())
        .policy(policy)
        .start()
        .await?;
    let connection = connect(&args, &node, report).await?;
    let is_caller = args.peer.is_some();
    let call = Call::new(source, args.seconds, is_caller)?;
    let summary = converse(call, connection, &mut ear, report).await;
    node.close().await;
    let (summary, comparison) = (summary?, ear.finish()?);

    report.summary(&summary, comparison.as_ref());
    if let End::Broken(why) = &summary.end {
        let _ = writeln!(std::io::stderr(), "call: the call broke: {why}");
        return Ok(ExitCode::from(3));
    }
    match comparison {
        Some(comparison) if comparison.segmental_snr_db < args.least_snr => {
            let _ = writeln!(
                std::io::stderr(),
                "call: what was heard has a segmental SNR of {:.1} dB against the reference, {:.1} dB are wanted",
                comparison.segmental_snr_db,
                args.least_snr
            );
            Ok(ExitCode::from(4))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Calls, or waits to be called.
async fn connect(args: &Args, node: &Node, report: Report) -> Result<Connection> {
    let connection = match args.peer {
        Some(peer) => node.connect(peer).await?,
        None => {
            let id = node.id();
            let words = format!("waiting to be called: call {} {id}", args.supernode);
            report.event(&words, "waiting", json!({ "id": id.to_string() }));
            tokio::select! {
                caller = node.accept() => caller.context("the node was closed")?,
                _ = stop() => bail!("nobody called"),
            }
        }
    };
    let (peer, path) = (connection.peer_id(), connection.path());
    let words = format!("talking to {peer}: {path}");
    report.event(&words, "connected", json!({ "peer": peer.to_string(), "path": path }));
    Ok(connection)
}

/// The call itself, and what happens to its paths meanwhile.
async fn converse(call: Call, connection: Connection, ear: &mut Ear, report: Report) -> Result<Summary> {
    let begun = Instant::now();
    let link = Link::new(connection.clone());
    let watching = tokio::spawn({
        let (link, mut events) = (link.clone(), connection.path_events());
        async move {
            while let Some(event) = events.next().await {
                if let PathEvent::Switched { from, to, .. } = &event {
                    link.count_switch();
                    let words = format!("{} → {to}", from.kind);
                    report.event(&words, "path", json!({ "at_ms": millis(begun.elapsed()), "path": event }));
                }
            }
        }
    });
    let hang_up = async {
        // Without signals there is nothing to wait for.
        if stop().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let summary = call.run(&link, hang_up, |sound| ear.hear(sound), |status| report.status(status)).await;
    watching.abort();
    Ok(summary?)
}

/// Where sound goes: to a file, and to be compared.
struct Ear {
    recording: Option<Recording>,
    reference: Option<Source>,
    heard: Vec<f32>,
}

impl Ear {
    fn new(args: &Args, reference: Option<Source>) -> Result<Ear> {
        let recording = args.record.as_deref().map(Recording::create).transpose()?;
        Ok(Ear { recording, reference, heard: Vec::new() })
    }

    fn hear(&mut self, sound: &[f32]) -> Result<(), session::CallError> {
        if let Some(recording) = &mut self.recording {
            recording.write(sound)?;
        }
        if self.reference.is_some() && self.heard.len() < MAX_COMPARED {
            self.heard.extend(sound);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Option<Comparison>> {
        if let Some(recording) = self.recording.take() {
            recording.finish()?;
        }
        let Some(reference) = self.reference.take() else { return Ok(None) };
        let reference = codec::round_trip(&reference.beginning(self.heard.len() / FRAME))?;
        let comparison = compare::compare(&reference, &self.heard).context("the call cannot be compared")?;
        Ok(Some(comparison))
    }
}
