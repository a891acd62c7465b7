//! The command line.

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use clap::{
    ArgMatches, Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand, ValueHint,
    builder::RangedU64ValueParser,
};
use clap_complete::Shell;
use natbox::settings::{
    FastPathChoice, Forward, GuardChoice, InsideSpec, LanSpec, Workers, external_address,
};

use super::axis;

const WIRING: &str = "Wiring";
const OUTPUT: &str = "Output and control";
const LIMITS: &str = "Limits";

const EXAMPLES: &str = "\
Examples:
  A gateway. Programs that use tun0 reach eth0's network behind eth0's address:
    sudo natbox --inside tun0 --outside eth0

  Your own program behind a NAT of your choice, in one line:
    sudo natbox --outside eth0 --nat symmetric -- curl http://192.0.2.1/

  The router of a LAN, with an address of its own on the outside network:
    sudo natbox --lan eth1=192.168.7.1/24 --outside eth0 --external 192.0.2.7

  A lab: an uplink for two network namespaces, one NAT, each packet printed:
    sudo natbox --inside tun0@alice --inside tun0@bob --outside eth0 --log-packets

  What it would do, without doing it:
    natbox --inside tun0 --outside eth0 --dry-run

  While it runs:
    sudo natbox show                     mappings, counters, drops with their reasons
    sudo natbox set --filtering eif      another behaviour from the next packet on
    sudo natbox flush                    forget every mapping, as a reboot would";

const TEMPLATE: &str = "\
{about-with-newline}
{usage-heading}
{tab}{usage}{after-help}

{all-args}";

/// A user-space NAT: a gateway for real traffic, and every NAT behaviour known in the field.
#[derive(Debug, Parser)]
#[command(
    name = "natbox",
    version,
    after_help = EXAMPLES,
    help_template = TEMPLATE,
    override_usage = "natbox --outside INTERFACE [--inside TUN | --lan INTERFACE]... [OPTIONS] [-- COMMAND...]\n\
                      \u{20}      natbox show | set | flush | rebind | forward | events [OPTIONS]",
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    subcommand_help_heading = "Commands",
    max_term_width = 110
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(subcommand)]
    pub(crate) ask: Option<Ask>,
}

/// Flags of a run; those of the behaviour are added by [`axis::augment`].
#[derive(Debug, Default, Args)]
pub(crate) struct RunArgs {
    /// The interface towards the public network
    #[arg(long, value_name = "INTERFACE", help_heading = WIRING, value_hint = ValueHint::Other)]
    pub(crate) outside: Option<String>,

    /// Make a TUN device with hosts behind the NAT (in a network namespace: a name of `ip netns`, a path or pid:N); may
    /// be repeated
    #[arg(long, value_name = "NAME[@NETNS][=ADDR/LEN]", help_heading = WIRING, value_hint = ValueHint::Other)]
    pub(crate) inside: Vec<InsideSpec>,

    /// Be the gateway of the LAN on this interface, at its own address or at one given here; may be repeated
    #[arg(long, value_name = "INTERFACE[=ADDR/LEN]", help_heading = WIRING, value_hint = ValueHint::Other)]
    pub(crate) lan: Vec<LanSpec>,

    /// Own this external address (or all of these) instead of sharing the outside interface's; may be repeated
    #[arg(long, value_name = "ADDR[/LEN]", help_heading = WIRING, value_parser = external_address)]
    pub(crate) external: Vec<(Ipv4Addr, u8)>,

    /// Lead an external port to an inside host; #N says behind which inside device; may be repeated
    #[arg(long, value_name = "PROTOCOL:PORT=ADDR:PORT[#N]", help_heading = WIRING)]
    pub(crate) forward: Vec<Forward>,

    /// MTU of the TUN devices, in bytes [default: that of the outside interface]
    #[arg(long, value_name = "BYTES", help_heading = WIRING, value_parser = clap::value_parser!(u16).range(68..))]
    pub(crate) mtu: Option<u16>,

    /// How the host's own stack is kept quiet about natbox's ports: auto, tcx, nftables or off [default: auto]
    #[arg(long, value_name = "KIND", help_heading = WIRING, value_parser = guard)]
    pub(crate) guard: Option<GuardChoice>,

    /// Have packets of quick flows moved by programs in the kernel, where natbox does not see them: auto (where the kernel
    /// allows it, and not with --log-packets or --no-offload), on (also of TUNs in other namespaces, to which virtual
    /// cables are laid) or off [default: auto]
    #[arg(long, value_name = "auto|on|off", help_heading = WIRING, value_parser = fast_path)]
    pub(crate) fast_path: Option<FastPathChoice>,

    /// Threads that move packets, flow by flow, for a machine whose processors have nothing better to do: 1 to 16, or auto
    /// for one on each processor, up to 8 [default: 1]
    #[arg(long, value_name = "NUMBER|auto", help_heading = WIRING)]
    pub(crate) workers: Option<Workers>,

    /// Move every packet by itself, with its checksum complete
    #[arg(long, help_heading = WIRING)]
    pub(crate) no_offload: bool,

    /// Read settings from this TOML file: keys are the names of these flags, axes may stand in a [nat] table. Flags
    /// override the file, and its axes override its preset
    #[arg(long, value_name = "FILE", help_heading = OUTPUT, value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,

    /// Say what would be done, and do nothing
    #[arg(long, help_heading = OUTPUT)]
    pub(crate) dry_run: bool,

    /// Decide random ports from this number, so that a run can be repeated
    #[arg(long, value_name = "NUMBER", help_heading = OUTPUT)]
    pub(crate) seed: Option<u64>,

    /// Print a line for every packet, before → after
    #[arg(long, help_heading = OUTPUT)]
    pub(crate) log_packets: bool,

    /// Print this name instead of an address in the packet log, such as A=10.64.0.2; may be repeated
    #[arg(long, value_name = "NAME=ADDR", help_heading = OUTPUT, value_parser = name)]
    pub(crate) name: Vec<(String, IpAddr)>,

    /// Say nothing at the start, and show no counters
    #[arg(long, short, help_heading = OUTPUT, conflicts_with = "json")]
    pub(crate) quiet: bool,

    /// Print one JSON object a line
    #[arg(long, help_heading = OUTPUT)]
    pub(crate) json: bool,

    /// Make the control socket here [default: /run/natbox/PID.sock, or under $XDG_RUNTIME_DIR]
    #[arg(long, value_name = "PATH", help_heading = OUTPUT, value_hint = ValueHint::FilePath)]
    pub(crate) control: Option<PathBuf>,

    /// Mappings that may exist at once [default: 1048576]
    #[arg(long, value_name = "NUMBER", help_heading = LIMITS, value_parser = limit())]
    pub(crate) max_mappings: Option<usize>,

    /// Sessions that may exist at once [default: 2097152]
    #[arg(long, value_name = "NUMBER", help_heading = LIMITS, value_parser = limit())]
    pub(crate) max_sessions: Option<usize>,

    /// Run this command behind the NAT, in a network namespace of its own, and end with it
    #[arg(last = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
}

/// What can be asked of a running natbox, or of the program itself.
#[derive(Debug, Subcommand)]
pub(crate) enum Ask {
    /// Show the mappings, counters and behaviour of a running natbox
    Show(ShowArgs),
    /// Remove mappings of a running natbox
    Flush(FlushArgs),
    /// Change the behaviour of a running natbox: --nat PRESET, or any axis
    Set(SetArgs),
    /// Forget every mapping, as a NAT with a new lease does, and go on with other external addresses if any are given
    Rebind(RebindArgs),
    /// Add or remove static forwards of a running natbox
    #[command(subcommand)]
    Forward(ForwardAsk),
    /// Print what happens to mappings and port blocks, as it happens
    Events(EventsArgs),
    /// List the NATs that natbox can be, or show every axis of one
    Presets(PresetsArgs),
    /// Print the completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, of natbox or of one of these commands
    Man {
        /// The command
        command: Option<String>,
    },
}

/// Which natbox.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// The control socket or the process id of the natbox meant; not needed when only one runs
    #[arg(long, value_name = "PATH|PID", value_hint = ValueHint::FilePath)]
    pub(crate) control: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which mappings.
#[derive(Debug, Args)]
pub(crate) struct OnlyArgs {
    /// Only mappings of this protocol
    #[arg(long, value_name = "PROTOCOL", value_parser = ["udp", "tcp", "icmp"])]
    pub(crate) protocol: Option<String>,

    /// Only mappings of this inside host
    #[arg(long, value_name = "ADDR", value_parser = ipv4)]
    pub(crate) host: Option<Ipv4Addr>,

    /// Only mappings with this external port
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<u16>,
}

/// `natbox show`.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The sessions of the mappings as well
    #[arg(long)]
    pub(crate) sessions: bool,

    /// What each subscriber holds and was refused, who has most mappings first, instead of the mappings; with --host, the
    /// subscriber that has this host
    #[arg(long, conflicts_with_all = ["protocol", "port"])]
    pub(crate) subscribers: bool,

    /// What the datapath's ports have counted as well
    #[arg(long)]
    pub(crate) ports: bool,

    /// Every axis of the behaviour as well
    #[arg(long)]
    pub(crate) behavior: bool,

    /// No mappings
    #[arg(long)]
    pub(crate) counters: bool,

    /// Show again every second
    #[arg(long, conflicts_with = "json")]
    pub(crate) watch: bool,

    #[command(flatten)]
    pub(crate) only: OnlyArgs,
    #[command(flatten)]
    pub(crate) which: Which,
}

/// `natbox flush`.
#[derive(Debug, Args)]
pub(crate) struct FlushArgs {
    /// Static forwards too
    #[arg(long)]
    pub(crate) forwards: bool,

    #[command(flatten)]
    pub(crate) only: OnlyArgs,
    #[command(flatten)]
    pub(crate) which: Which,
}

/// `natbox set`; the axes are added by [`axis::augment`].
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct SetArgs {
    #[command(flatten)]
    pub(crate) which: Which,
}

/// `natbox rebind`.
#[derive(Debug, Args)]
pub(crate) struct RebindArgs {
    /// External addresses from now on
    #[arg(value_name = "ADDR", value_parser = ipv4)]
    pub(crate) external: Vec<Ipv4Addr>,

    #[command(flatten)]
    pub(crate) which: Which,
}

/// `natbox forward`.
#[derive(Debug, Subcommand)]
pub(crate) enum ForwardAsk {
    /// Lead an external port to an inside host
    Add {
        /// Such as tcp:8080=10.64.0.2:80
        #[arg(value_name = "PROTOCOL:PORT=ADDR:PORT[#N]")]
        forward: Forward,
        #[command(flatten)]
        which: Which,
    },
    /// Remove a forward
    Remove {
        /// Such as tcp:8080
        #[arg(value_name = "PROTOCOL:PORT", value_parser = forwarded)]
        forward: (String, u16),
        #[command(flatten)]
        which: Which,
    },
}

/// `natbox events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Only port blocks: the short log that says whose an external port was
    #[arg(long)]
    pub(crate) blocks: bool,

    #[command(flatten)]
    pub(crate) which: Which,
}

/// `natbox presets`.
#[derive(Debug, Args)]
pub(crate) struct PresetsArgs {
    /// Show every axis of this one
    #[arg(value_name = "PRESET")]
    pub(crate) name: Option<String>,

    /// Print JSON, with every axis of each
    #[arg(long)]
    pub(crate) json: bool,
}

/// The whole command line, with a flag for each axis.
pub(crate) fn command() -> Command {
    axis::augment(Cli::command()).mut_subcommand("set", axis::augment)
}

/// Reads the command line; the matches hold the axes.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<(Cli, ArgMatches), clap::Error> {
    let matches = command().try_get_matches_from(args)?;
    Ok((Cli::from_arg_matches(&matches)?, matches))
}

/// What the engine's tables can number.
pub(crate) const MOST: usize = (1 << 31) - 1;

fn limit() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=MOST as u64)
}

fn ipv4(text: &str) -> Result<Ipv4Addr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an IPv4 address"))
}

pub(crate) fn fast_path(text: &str) -> Result<FastPathChoice, String> {
    let choice = FastPathChoice::ALL.into_iter().find(|choice| choice.word() == text);
    choice.ok_or_else(|| format!("{text:?} is neither auto nor on nor off"))
}

pub(crate) fn guard(text: &str) -> Result<GuardChoice, String> {
    let choice = GuardChoice::ALL.into_iter().find(|choice| choice.word() == text);
    choice.ok_or_else(|| format!("{text:?} is not a guard: it is auto, tcx, nftables or off"))
}

pub(crate) fn name(text: &str) -> Result<(String, IpAddr), String> {
    let problem = || format!("{text:?} is not a name for an address: write NAME=ADDR, such as A=10.64.0.2");
    let (name, addr) = text.split_once('=').ok_or_else(problem)?;
    let printable = !name.is_empty() && name.chars().all(|c| !c.is_control() && !c.is_whitespace());
    let addr = addr.parse().ok().filter(|_| printable).ok_or_else(problem)?;
    Ok((name.to_owned(), addr))
}

fn forwarded(text: &str) -> Result<(String, u16), String> {
    let problem = || format!("{text:?} is not PROTOCOL:PORT, such as tcp:8080");
    let (protocol, port) = text.split_once(':').ok_or_else(problem)?;
    if !["udp", "tcp"].contains(&protocol) {
        return Err(problem());
    }
    Ok((protocol.to_owned(), port.parse().map_err(|_| problem())?))
}
