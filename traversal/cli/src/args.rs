//! The command line.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use traversal::PeerId;

use crate::forward::args::{EXPOSE, ExposeArgs, FORWARD, ForwardArgs};
use crate::transfer::args::{RECEIVE, ReceiveArgs, SEND, SendArgs};

const EXAMPLES: &str = "\
Between two machines, both behind a NAT:
  there$ traverse id                                 who am I? (made and kept at the first use)
  there$ traverse listen > copy.tar
  here$  traverse connect PEER < original.tar        PEER: what `traverse id` printed there

  there$ traverse receive downloads                  files and folders; goes on where it broke off
  here$  traverse send PEER letter.txt photos/

  there$ traverse expose 127.0.0.1:80                a web server there, at http://127.0.0.1:8080 here
  here$  traverse forward --local 8080 PEER 127.0.0.1:80

  traverse ping PEER           round-trip time and kind of path, live: relay, then direct
  traverse doctor              what NAT am I behind, and whom can I reach directly?

Both need a supernode, a public server that introduces them and relays what cannot go directly:
  traverse listen --supernode 203.0.113.10:3478
  export TRAVERSE_SUPERNODE=203.0.113.10:3478        or once for all of them
  ~/.config/traverse/config.toml                     or for good: supernode = [\"203.0.113.10:3478\"]

At Ctrl-C, or when the terminal is closed, the peer is told, which takes two seconds at the most; a second Ctrl-C does not wait.

Exit codes:
  0              all went well
  1              it did not: the last line on standard error says why
  2              the command line is wrong
  129, 130, 143  ended by a closed terminal, by Ctrl-C, by SIGTERM (0: Ctrl-C is how a ping ends)
  141            standard output was closed, as by | head

What --json tells, and more: docs/traverse.md";

const ID: &str = "\
Examples:
  there$ traverse id                 to be told to whoever is to connect there
  there$ traverse listen
  here$  traverse connect PEER       PEER: what was printed there

The id is the public half of the key: it may be known to everybody, the key's file to its owner
only. Whoever has a copy of the file is the same peer.";

const LISTEN: &str = "\
Examples:
  traverse listen > copy.tar        take a file (there: traverse connect PEER < original.tar)
  traverse listen < original.tar    give one (there: traverse connect PEER > copy.tar)
  traverse listen --allow PEER      talk with that peer only
  traverse listen --keep >> log     take what everybody has to say, one after the other
  traverse listen --keep < /dev/null    be there for traverse ping

The pipe ends well when both directions have ended and have been written out; else the exit code is 1. A direction ends \
with its standard input. A terminal whose output goes elsewhere (> copy.tar) has nothing to add, and ends with the peer's.";

const CONNECT: &str = "\
Examples:
  traverse connect PEER < original.tar    give a file (there: traverse listen > copy.tar)
  traverse connect PEER > copy.tar        take one (there: traverse listen < original.tar)
  tar c folder | traverse connect PEER    anything (there: traverse listen | tar x)
  traverse connect PEER                   talk; Ctrl-D ends this side

The pipe ends well when both directions have ended and have been written out; else the exit code is 1. A direction ends \
with its standard input. A terminal whose output goes elsewhere (> copy.tar) has nothing to add, and ends with the peer's.";

const PING: &str = "\
Examples:
  traverse ping PEER                       until Ctrl-C
  traverse ping PEER --until-direct 10     is there a direct path? If not: exit code 1, and why
  traverse ping PEER -c 100 -i 0.05 -q     a hundred round trips, one line

PEER must be listening: traverse listen";

const DOCTOR: &str = "\
Examples:
  traverse doctor                              in words, with a table
  traverse doctor --lifetime 180               and how often must a mapping be refreshed?
  traverse doctor --json | jq .nat.mapping     for programs

A supernode with two addresses or two ports can tell more; the report says when it has not.";

/// Connects two machines behind any pair of NATs: a pipe, a ping, a diagnosis. Directly where possible, over a supernode
/// at once and where not, encrypted from end to end always.
#[derive(Debug, Parser)]
#[command(name = "traverse", version, after_help = EXAMPLES, arg_required_else_help = true, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print this machine's peer id; make its key at the first use
    #[command(after_help = ID)]
    Id(KeyArgs),
    /// Wait for a peer, and join it to standard input and output; answer pings
    #[command(after_help = LISTEN)]
    Listen(ListenArgs),
    /// Connect to a peer, and join it to standard input and output
    #[command(after_help = CONNECT)]
    Connect(ConnectArgs),
    /// Measure round trips to a peer, and watch the path get direct
    #[command(after_help = PING)]
    Ping(PingArgs),
    /// Send files and folders to a peer that receives; go on where a transfer broke off
    #[command(after_help = SEND)]
    Send(SendArgs),
    /// Receive files and folders into a folder
    #[command(after_help = RECEIVE)]
    Receive(ReceiveArgs),
    /// Find out what NAT this machine is behind, and what that means towards others
    #[command(after_help = DOCTOR)]
    Doctor(DoctorArgs),
    /// Lead ports of this machine to a peer's, or the peer's to this machine's
    #[command(after_help = FORWARD)]
    Forward(ForwardArgs),
    /// Let peers reach services from here, those that are listed
    #[command(after_help = EXPOSE)]
    Expose(ExposeArgs),
}

/// Where the key is.
#[derive(Debug, Args)]
#[command(next_help_heading = "This node")]
pub(crate) struct KeyArgs {
    /// The file with this machine's key [default: key in ~/.config/traverse]
    #[arg(long, value_name = "FILE", env = "TRAVERSE_KEY", hide_env_values = true)]
    pub(crate) key: Option<PathBuf>,
    /// The configuration file [default: config.toml in ~/.config/traverse, if there is one]
    #[arg(long, value_name = "FILE", env = "TRAVERSE_CONFIG", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,
}

/// What every command that talks to somebody needs.
#[derive(Debug, Args)]
#[command(next_help_heading = "This node")]
pub(crate) struct NodeArgs {
    /// A supernode, as ADDRESS:PORT or ID@ADDRESS:PORT; up to four, the preferred one first
    #[arg(
        long,
        value_name = "SUPERNODE",
        env = "TRAVERSE_SUPERNODE",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub(crate) supernode: Vec<String>,
    /// The address of the UDP socket [default: any, with a free port]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) bind: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) key: KeyArgs,
}

/// How the connection may go, and what is told of it.
#[derive(Debug, Args)]
pub(crate) struct PathArgs {
    /// Never directly: the peer learns no address of this machine, only the supernode does
    #[arg(long, conflicts_with = "direct_only")]
    pub(crate) relay_only: bool,
    /// Never over the relay: fail if there is no direct path after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) direct_only: Option<Duration>,
}

/// What is told on standard error.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct TellArgs {
    /// Tell what happens as one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Tell nothing but errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ListenArgs {
    /// Only this peer may connect; may be repeated [default: whoever knows this machine's id]
    #[arg(long, value_name = "PEER")]
    pub(crate) allow: Vec<PeerId>,
    /// Go on after the first peer: one after the other is joined, each gets what is left of standard input
    #[arg(long, short)]
    pub(crate) keep: bool,
    #[command(flatten)]
    pub(crate) path: PathArgs,
    #[command(flatten)]
    pub(crate) tell: TellArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ConnectArgs {
    /// Who: what `traverse id` prints there
    pub(crate) peer: PeerId,
    /// Send nothing before the path is direct, or this many seconds are over
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) wait_direct: Option<Duration>,
    #[command(flatten)]
    pub(crate) path: PathArgs,
    #[command(flatten)]
    pub(crate) tell: TellArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PingArgs {
    /// Who: what `traverse id` prints there
    pub(crate) peer: PeerId,
    /// Stop after this many round trips [default: at Ctrl-C]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// From one round trip to the next
    #[arg(long, short, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(crate) interval: Duration,
    /// Stop as soon as the path is direct; fail if it is not after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) until_direct: Option<Duration>,
    /// One JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Nothing but the summary at the end
    #[arg(long, short)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) path: PathArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Find out how long an idle mapping lives, too: takes up to this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) lifetime: Option<Duration>,
    /// The report as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 =
        text.parse().map_err(|_| "a number of seconds, such as 5 or 0.2, is wanted".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if (Duration::from_millis(1)..=Duration::from_secs(86_400)).contains(&duration) => {
            Ok(duration)
        }
        _ => Err("between 0.001 and 86400 seconds".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations() {
        assert_eq!(seconds("0.2"), Ok(Duration::from_millis(200)));
        for bad in ["", "x", "-1", "0", "1e9", "NaN", "inf"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
