//! The command lines of `traverse forward` and `traverse expose`.

use std::time::Duration;

use clap::Args;
use traversal::PeerId;

use super::{
    address::{Listener, Target},
    allow::Entry,
};
use crate::args::{NodeArgs, PathArgs, TellArgs, seconds};

pub(crate) const FORWARD: &str = "\
Examples:
  traverse forward --local 8080 PEER 127.0.0.1:80      http://127.0.0.1:8080 is the peer's port 80
  traverse forward --local 2222 PEER nas.lan:22        what the peer can reach: ssh -p 2222 127.0.0.1
  traverse forward --remote 8080 PEER 127.0.0.1:3000   the peer's port 8080 is ours here, 3000
  traverse forward --udp --local 5353 PEER 127.0.0.1:53
  traverse forward --local 8080=80 --local udp:5353=53 --local 0.0.0.0:2222=nas.lan:22 PEER

The peer must allow it; there:
  traverse expose 80 nas.lan:22 udp:53 --listen 8080

ADDRESS is 127.0.0.1 if it is left out, and so is a target's host. When the connection is lost the ports stay, and it is \
made again; clients that come meanwhile wait for 5 seconds, and are refused then.";

pub(crate) const EXPOSE: &str = "\
Examples:
  traverse expose 127.0.0.1:80                      a web server on this machine, to whoever knows its id
  traverse expose 80 --allow PEER                   the same to this peer only
  traverse expose 192.168.1.0/24:80 nas.lan:22 udp:192.168.1.1:53      a LAN's
  traverse expose 127.0.0.1:8000-8100 [::1]:443 'db.lan:*'
  traverse expose --listen 8080                     a port of this machine that leads to the peer

PEER reaches it with:
  traverse forward --local 8080 ID 127.0.0.1:80     ID: what is printed here
  traverse forward --remote 8080 ID 127.0.0.1:3000

Nothing that is not listed can be reached. A name is reached by that name only, and an address by that address: what a name \
leads to is looked up here, for each connection, and must not be this machine's own unless that is listed, too. \
traverse ping is answered as well.";

#[derive(Debug, Args)]
pub(crate) struct ForwardArgs {
    /// Listen here; who connects is connected to the target by the peer. May be repeated
    #[arg(long, short = 'L', value_name = "[ADDRESS:]PORT[=TARGET]", required_unless_present = "remote")]
    pub(crate) local: Vec<Listener>,
    /// Let the peer listen; who connects there is connected to the target from here. May be repeated
    #[arg(long, short = 'R', value_name = "[ADDRESS:]PORT[=TARGET]")]
    pub(crate) remote: Vec<Listener>,
    /// UDP, where a port does not begin with udp: or tcp: [default: TCP]
    #[arg(long)]
    pub(crate) udp: bool,
    /// Who: what `traverse expose` prints there
    pub(crate) peer: PeerId,
    /// HOST:PORT that the ports lead to, or a port of the machine's own; not for those with a target of their own
    pub(crate) target: Option<Target>,
    /// A UDP flow ends when nothing has come for so long, up to 300
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = idle)]
    pub(crate) udp_idle: Duration,
    #[command(flatten)]
    pub(crate) path: PathArgs,
    #[command(flatten)]
    pub(crate) tell: TellArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ExposeArgs {
    #[arg(
        help = "What may be reached: [udp:]HOST:PORTS; a host is a name, an address, a range as 10.0.0.0/8, or *",
        value_name = "TARGET",
        required_unless_present = "listen"
    )]
    pub(crate) targets: Vec<Entry>,
    #[arg(
        help = "Where the peer may listen on this machine: [udp:][ADDRESS:]PORTS; may be repeated",
        long,
        value_name = "[ADDRESS:]PORTS"
    )]
    pub(crate) listen: Vec<Entry>,
    /// Only this peer may connect; may be repeated [default: whoever knows this machine's id]
    #[arg(long, value_name = "PEER")]
    pub(crate) allow: Vec<PeerId>,
    /// A UDP flow of a port here ends when nothing has come for so long, up to 300
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = idle)]
    pub(crate) udp_idle: Duration,
    #[command(flatten)]
    pub(crate) path: PathArgs,
    #[command(flatten)]
    pub(crate) tell: TellArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

/// RFC 4787 REQ-5 asks a NAT for two minutes; the other side forgets a flow after ten.
fn idle(text: &str) -> Result<Duration, String> {
    let limits = Duration::from_secs(1)..=Duration::from_secs(300);
    seconds(text)
        .ok()
        .filter(|idle| limits.contains(idle))
        .ok_or_else(|| "between 1 and 300 seconds".to_owned())
}
