//! The traverse program.

mod args;
mod connect;
mod doctor;
mod home;
mod id;
mod listen;
mod node;
mod ping;
mod pipe;
mod service;
mod status;

use std::{io::Write, process::ExitCode};

use anyhow::Context;
use clap::Parser;

use args::{Cli, Command};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            // The whole chain in one line: each link tells something of its own. Nobody may be left to read it.
            let _ = writeln!(std::io::stderr(), "traverse: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start: no event loop from the operating system")?;
    let result = runtime.block_on(async {
        let work = async {
            match cli.command {
                Command::Id(args) => id::run(&args),
                Command::Listen(args) => listen::run(args).await,
                Command::Connect(args) => connect::run(args).await,
                Command::Ping(args) => ping::run(args).await,
                Command::Doctor(args) => doctor::run(args).await,
            }
        };
        tokio::select! {
            result = work => result,
            _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(130)),
        }
    });
    // Reading from a terminal goes on in a thread until the next line: nobody waits for it.
    runtime.shutdown_background();
    result
}
