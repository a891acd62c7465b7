//! A supernode until somebody stops it.

use std::io::IsTerminal;

use anyhow::Context;
use supernode::{Supernode, settings::LogFormat};
use tracing_subscriber::EnvFilter;

use super::options::{Key, Loaded, Options};

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let loaded = options.load(Key::Made)?;
    log(loaded.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the threads that do the work")?;
    runtime.block_on(serve(loaded))
}

async fn serve(loaded: Loaded) -> anyhow::Result<()> {
    let Loaded { config, drain, new_key, .. } = loaded;
    if let Some(path) = new_key {
        tracing::info!(key = %path.display(), "made a new key: keep this file, peers know this supernode by it");
    }
    let mut stop = Stop::new()?;
    let supernode = Supernode::bind(config).await?;
    for (listen, reached) in supernode.local_addresses().iter().zip(supernode.addresses()) {
        tracing::info!(%listen, %reached, "listening");
    }
    if let Some(admin) = supernode.admin_address() {
        tracing::info!("metrics at http://{admin}/metrics, health at http://{admin}/healthz");
    }
    tracing::info!("peers connect to {}", supernode.connect_string());
    let signal = stop.next().await;
    let peers = supernode.status().gauges().connections;
    tracing::info!(signal, peers, within = drain.as_secs(), "asking peers to move elsewhere");
    let ending = async {
        supernode.drain(drain).await;
        supernode.shutdown().await;
    };
    tokio::select! {
        () = ending => tracing::info!("stopped"),
        signal = stop.next() => tracing::info!(signal, "stopped at once"),
    }
    Ok(())
}

/// The signals that mean stop.
#[cfg(unix)]
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Stop {
    fn new() -> anyhow::Result<Stop> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Stop { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(not(unix))]
struct Stop;

#[cfg(not(unix))]
impl Stop {
    fn new() -> anyhow::Result<Stop> {
        Ok(Stop)
    }

    async fn next(&mut self) -> &'static str {
        let _ = tokio::signal::ctrl_c().await;
        "^C"
    }
}

/// To standard error; what, by RUST_LOG.
fn log(format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::builder()
        .with_default_directive("supernode=info".parse()?)
        .from_env()
        .context("RUST_LOG is not understood: write something like supernode=debug")?;
    let colours = std::io::stderr().is_terminal();
    let logs =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logs.with_target(false).init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
    Ok(())
}
