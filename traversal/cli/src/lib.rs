//! The traverse program: a library of one function, and, for fuzzers, of what a peer's bytes meet.
//!
//! A command is a module with a `run`: `listen`, `connect`, `ping`, `doctor`, `id`, and in `transfer` and
//! `forward` two each. What they share: who this machine is (`home`, `node`), what a stream is for and how a connection
//! ends (`service`), what is told (`status`, `live`, `out`), and how a signal ends it all (`stop`).

mod args;
mod connect;
mod doctor;
mod forward;
mod home;
mod id;
mod listen;
mod live;
mod node;
mod out;
mod ping;
mod pipe;
mod service;
mod status;
mod stop;
mod transfer;

use std::{io::Write, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;

use args::{Cli, Command};
use stop::{Ended, Stop};

/// What a fuzzer lets loose on the protocols: any bytes as what a peer says. Each panics where a promise is not kept.
#[cfg(all(unix, any(test, fuzzing)))]
pub mod hostile {
    pub use crate::{
        forward::hostile::by_a_forwarder,
        transfer::hostile::{receiver::by_a_receiver, sender::by_a_sender},
    };
}

/// Does what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    let Err(error) = run(Cli::parse()) else { return ExitCode::SUCCESS };
    if let Some(ended) = error.downcast_ref::<Ended>() {
        return ExitCode::from(ended.code());
    }
    // The whole chain in one line: each link tells something of its own. Nobody may be left to read it.
    let _ = writeln!(std::io::stderr(), "traverse: {}", out::harmless(&format!("{error:#}")));
    ExitCode::FAILURE
}

fn run(cli: Cli) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start: no event loop from the operating system")?;
    let result = runtime.block_on(async {
        let stop = &Stop::at_signals()?;
        match cli.command {
            Command::Id(args) => id::run(&args),
            Command::Listen(args) => listen::run(args, stop).await,
            Command::Connect(args) => connect::run(args, stop).await,
            Command::Ping(args) => ping::run(args, stop).await,
            Command::Send(args) => transfer::send::run(args, stop).await,
            Command::Receive(args) => transfer::receive::run(args, stop).await,
            Command::Doctor(args) => doctor::run(args, stop).await,
            Command::Forward(args) => forward::caller::run(args, stop).await,
            Command::Expose(args) => forward::expose::run(args, stop).await,
        }
    });
    // Reading from a terminal goes on in a thread until the next line: nobody waits for it.
    runtime.shutdown_background();
    result
}
