//! The command line.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use traversal::PeerId;

const EXAMPLES: &str = "\
Between two machines, both behind a NAT:
  there$ traverse id                                 who am I? (made and kept at the first use)
  there$ traverse listen > copy.tar
  here$  traverse connect PEER < original.tar        PEER: what `traverse id` printed there

  traverse ping PEER           round-trip time and kind of path, live: relay, then direct
  traverse doctor              what NAT am I behind, and whom can I reach directly?

Both need a supernode, a public server that introduces them and relays what cannot go directly:
  traverse listen --supernode 203.0.113.10:3478
  export TRAVERSE_SUPERNODE=203.0.113.10:3478        or once for all of them
  ~/.config/traverse/config.toml                     or for good: supernode = [\"203.0.113.10:3478\"]";

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
    Id(KeyArgs),
    /// Wait for a peer, and join it to standard input and output; answer pings
    Listen(ListenArgs),
    /// Connect to a peer, and join it to standard input and output
    Connect(ConnectArgs),
    /// Measure round trips to a peer, and watch the path get direct
    Ping(PingArgs),
    /// Find out what NAT this machine is behind, and what that means towards others
    Doctor(DoctorArgs),
}

/// Where the key is.
#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    /// The file with this machine's key [default: key in ~/.config/traverse]
    #[arg(long, value_name = "FILE", env = "TRAVERSE_KEY")]
    pub(crate) key: Option<PathBuf>,
    /// The configuration file [default: config.toml in ~/.config/traverse, if there is one]
    #[arg(long, value_name = "FILE", env = "TRAVERSE_CONFIG")]
    pub(crate) config: Option<PathBuf>,
}

/// What every command that talks to somebody needs.
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    #[command(flatten)]
    pub(crate) key: KeyArgs,
    /// A supernode, as ADDRESS:PORT or ID@ADDRESS:PORT; may be repeated, the first that answers is used
    #[arg(long, value_name = "SUPERNODE", env = "TRAVERSE_SUPERNODE", value_delimiter = ',')]
    pub(crate) supernode: Vec<String>,
    /// The address of the UDP socket [default: any, with a free port]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) bind: Option<SocketAddr>,
}

/// How the connection may go, and what is told of it.
#[derive(Debug, Args)]
pub(crate) struct PathArgs {
    /// Never directly: the peer learns no address of this machine
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
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) tell: TellArgs,
    /// Only this peer may connect; may be repeated [default: whoever knows this machine's id]
    #[arg(long, value_name = "PEER")]
    pub(crate) allow: Vec<PeerId>,
    /// Go on after the first peer: one after the other is joined to standard input and output
    #[arg(long, short)]
    pub(crate) keep: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ConnectArgs {
    /// Who: what `traverse id` prints there
    pub(crate) peer: PeerId,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) path: PathArgs,
    #[command(flatten)]
    pub(crate) tell: TellArgs,
    /// Send nothing before the path is direct, or this many seconds are over
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) wait_direct: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct PingArgs {
    /// Who: what `traverse id` prints there, where `traverse listen` runs
    pub(crate) peer: PeerId,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) path: PathArgs,
    /// Stop after this many round trips [default: at Ctrl-C]
    #[arg(long, short, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// Seconds between two
    #[arg(long, short, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(crate) interval: Duration,
    /// Stop as soon as the path is direct; fail if it is not after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) until_direct: Option<Duration>,
    /// One JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Find out how long an idle mapping lives, too: takes up to this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) lifetime: Option<Duration>,
    /// The report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
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
