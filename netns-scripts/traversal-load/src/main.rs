//! `traversal-load`: one measurement of traversal, its supernode or a rival, in the hosts of a lab.
//!
//! `netns-scripts/bench-traversal` runs it, and brings up what it needs. One process plays both ends, each on a thread in a
//! namespace of its own, so one clock says when something was asked for and when it was there. Every measurement prints its
//! figures as one line of JSON; `summary` makes a table of many.

#![forbid(unsafe_code)]

mod bulk;
mod connect;
mod figure;
mod memory;
mod place;
mod relay;
mod session;
mod slow;
mod summary;
mod turn;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use place::Place;

/// One measurement of traversal, its supernode or a rival, in the hosts of a lab.
#[derive(Debug, Parser)]
#[command(name = "traversal-load", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Time from connect() to the first byte, and to a direct path
    Connect {
        #[command(flatten)]
        between: Between,
        /// How many connections, each between two new nodes
        #[arg(long, default_value = "20", value_parser = clap::value_parser!(u16).range(1..))]
        times: u16,
        /// How long two nodes have been registered before
        #[arg(long, value_name = "SECONDS", default_value = "0.3", value_parser = seconds)]
        settle: Duration,
        /// How long both hold every datagram, coming and going
        #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds)]
        delay: Duration,
    },
    /// Throughput and round trips of one connection
    Bulk {
        #[command(flatten)]
        between: Between,
        /// Whose connection
        #[arg(long, value_enum)]
        library: bulk::Library,
        #[command(flatten)]
        time: Time,
    },
    /// Packets through a relay, and what they cost it
    Relay {
        #[command(flatten)]
        relay: Relay,
        /// Pairs that send to each other
        #[arg(long, default_value = "100", value_parser = clap::value_parser!(u16).range(1..))]
        sessions: u16,
        /// Payload of a packet, in bytes
        #[arg(long, default_value = "200", value_parser = clap::value_parser!(u16).range(1..=1400))]
        size: u16,
        /// Packets per second of all pairs together [default: as many as can be sent]
        #[arg(long)]
        rate: Option<u64>,
        #[command(flatten)]
        time: Time,
    },
    /// What each of many peers costs a relay in memory
    Memory {
        #[command(flatten)]
        relay: Relay,
        /// How many
        #[arg(long, default_value = "10000", value_parser = clap::value_parser!(u16).range(3..))]
        count: u16,
    },
    /// What each of many connections costs a node in memory
    NodeMemory {
        #[command(flatten)]
        between: Between,
        /// How many
        #[arg(long, default_value = "1000", value_parser = clap::value_parser!(u16).range(1..=1024))]
        count: u16,
    },
    /// A node that holds every connection; for node-memory
    #[command(hide = true)]
    Hold {
        #[arg(long)]
        supernode: String,
    },
    /// Print the memory that a process has in RAM
    Resident {
        /// What it is called
        #[arg(long)]
        name: String,
        /// The process
        #[arg(long)]
        pid: u32,
    },
    /// Print a table from a file with one result a line
    Summary {
        /// The results
        file: PathBuf,
        /// What to print
        #[arg(long, value_enum, default_value = "text")]
        format: summary::Format,
    },
}

/// Two hosts and a supernode.
#[derive(Debug, Args)]
struct Between {
    /// ADDRESS:PORT or ID@ADDRESS:PORT
    #[arg(long)]
    supernode: String,
    /// Network namespace of who connects, as `ip netns` shows it
    #[arg(long, value_name = "NETNS")]
    client: Place,
    /// Network namespace of who is connected to
    #[arg(long, value_name = "NETNS")]
    server: Place,
}

/// A relay and a host next to it.
#[derive(Debug, Args)]
struct Relay {
    /// What it is
    #[arg(long, value_enum)]
    kind: relay::Kind,
    /// Where it is
    #[arg(long)]
    relay: SocketAddr,
    /// Its process
    #[arg(long)]
    pid: u32,
    /// Network namespace of its clients, as `ip netns` shows it
    #[arg(long, value_name = "NETNS")]
    clients: Place,
}

#[derive(Debug, Args)]
struct Time {
    /// How long to measure
    #[arg(long, default_value = "3", value_parser = seconds)]
    seconds: Duration,
    /// How long to run before that
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    warm_up: Duration,
}

/// At most 20: a relay's bindings last a minute, and nobody renews them here.
fn seconds(text: &str) -> Result<Duration, String> {
    let bad = || format!("'{text}': seconds, from 0 to 20");
    let seconds: f64 = text.parse().map_err(|_| bad())?;
    Duration::try_from_secs_f64(seconds).ok().filter(|it| *it <= Duration::from_secs(20)).ok_or_else(bad)
}

fn main() -> ExitCode {
    match answer(Cli::parse().command) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("traversal-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn answer(command: Command) -> Result<String> {
    let figures = match command {
        Command::Connect { between: Between { supernode, client, server }, times, settle, delay } => {
            let plan = connect::Plan {
                supernode,
                caller: client,
                callee: server,
                times: times.into(),
                settle,
                delay,
            };
            connect::run(&plan)?
        }
        Command::Bulk { between: Between { supernode, client, server }, library, time } => {
            let Time { seconds: window, warm_up } = time;
            bulk::run(&bulk::Plan { library, supernode, client, server, window, warm_up })?
        }
        Command::Relay { relay: Relay { kind, relay, pid, clients: place }, sessions, size, rate, time } => {
            let Time { seconds: window, warm_up } = time;
            let sessions = sessions.into();
            relay::run(&relay::Plan { kind, relay, place, pid, sessions, size, rate, window, warm_up })?
        }
        Command::Memory { relay: Relay { kind, relay, pid, clients }, count } => {
            memory::of_relay(kind, relay, &clients, count.into(), pid)?
        }
        Command::NodeMemory { between: Between { supernode, client, server }, count } => {
            memory::of_node(&supernode, &server, &client, count.into())?
        }
        Command::Hold { supernode } => return memory::hold(&supernode).map(|()| String::new()),
        Command::Resident { name, pid } => {
            vec![figure::cost(name, "MiB", place::resident(pid)? / 1048576.0)]
        }
        Command::Summary { file, format } => return summary::print(&file, format),
    };
    Ok(serde_json::to_string(&figures)? + "\n")
}
