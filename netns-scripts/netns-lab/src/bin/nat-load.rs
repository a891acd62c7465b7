//! `nat-load`: one load through a NAT, measured at the receiver. `netns-scripts/bench-nat` runs it; by hand:
//!
//! ```text
//! netns-scripts/lab up one-nat --id try
//! sudo nat-load run tcp-up-4 --client try-A --server try-S --address 198.51.100.30
//! ```

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use netns_lab::load::{self, Ends, Load, LoadError, Plan, offload, summary};

/// One load through a NAT, between two network namespaces, measured at the receiver.
#[derive(Debug, Parser)]
#[command(name = "nat-load", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one load and print a report, as one line of JSON
    Run {
        /// tcp-up-1, tcp-down-4, udp-64-up, udp-1400-down, udp-gso-up, latency, new-flows, connections, idle
        load: Load,
        /// Network namespace of the client, as `ip netns` shows it
        #[arg(long, value_name = "NETNS")]
        client: String,
        /// Network namespace of the server
        #[arg(long, value_name = "NETNS")]
        server: String,
        /// The server's address
        #[arg(long)]
        address: Ipv4Addr,
        /// How long to measure
        #[arg(long, default_value = "3", value_parser = seconds)]
        seconds: Duration,
        /// How long to run before that
        #[arg(long, value_name = "SECONDS", default_value = "0.3", value_parser = seconds)]
        warm_up: Duration,
        /// Count the processor time of this process too: the NAT
        #[arg(long)]
        pid: Option<u32>,
    },
    /// Print the names of the loads of a comparison, one a line; or these, if they are loads
    Loads {
        /// What to print instead
        names: Vec<Load>,
    },
    /// Print what an interface offloads
    Offloads {
        /// Network namespace, as `ip netns` shows it
        #[arg(long, value_name = "NETNS")]
        netns: String,
        /// The interface in it
        #[arg(long)]
        interface: String,
    },
    /// Print a comparison from a file with one result a line
    Summary {
        /// The results
        file: PathBuf,
        /// What to print
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
        /// What the NAT that is 1.00 is called
        #[arg(long, default_value = "kernel")]
        base: String,
        /// What the other one is called
        #[arg(long, default_value = "natbox")]
        tested: String,
        /// Say whether the ratios that natbox means to reach against the kernel were reached
        #[arg(long)]
        aims: bool,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Markdown,
    Json,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let bad = || format!("'{text}': seconds, more than 0 and at most 3600");
    let seconds: f64 = text.parse().map_err(|_| bad())?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|it| !it.is_zero() && *it <= Duration::from_secs(3600))
        .ok_or_else(bad)
}

fn main() -> ExitCode {
    match answer(Cli::parse().command) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("nat-load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn answer(command: Command) -> Result<String, LoadError> {
    match command {
        Command::Run { load, client, server, address, seconds, warm_up, pid } => {
            let plan = Plan { window: seconds, warm_up, nat: pid };
            json(&load::run(load, &Ends::new(&client, &server, address), &plan)?)
        }
        Command::Loads { names } => {
            let loads = if names.is_empty() { Load::STANDARD.to_vec() } else { names };
            Ok(loads.iter().map(|load| format!("{load}\n")).collect())
        }
        Command::Offloads { netns, interface } => Ok(offload::offloads(&netns, &interface)?.join(" ") + "\n"),
        Command::Summary { file, format, base, tested, aims } => {
            let what = || format!("can't read {}", file.display());
            let lines = fs::read_to_string(&file).map_err(|source| LoadError::Io { what: what(), source })?;
            let rows = summary::rows(&summary::read(&lines)?);
            match format {
                Format::Text => Ok(summary::text(&rows, &base, &tested, aims)),
                Format::Markdown => Ok(summary::markdown(&rows, &base, &tested)),
                Format::Json => json(&rows),
            }
        }
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, LoadError> {
    let text = serde_json::to_string(value)
        .map_err(|error| LoadError::Io { what: "can't write JSON".to_owned(), source: error.into() })?;
    Ok(text + "\n")
}
