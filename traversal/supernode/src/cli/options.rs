//! What can be said on the command line.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use clap::{Parser, Subcommand};
use supernode::{
    Config,
    settings::{Alternative, External, LogFormat, Relay, Settings},
};
use traversal_net::key;
use traversal_proto::wire::{Identity, PeerId};

/// The public node that peers register with: it introduces them to each other, tells them their addresses (STUN), and
/// relays their encrypted packets until they have found a direct path.
///
/// One UDP port serves everything, and the TCP port of the same number serves peers whose network blocks UDP: open both
/// in the firewall.
#[derive(Debug, Parser)]
#[command(version, after_long_help = EXAMPLES, args_conflicts_with_subcommands = false)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// Listen here, UDP and TCP [default: 0.0.0.0:3478]. Repeat it for more: two addresses with two ports let peers
    /// find out all about their NAT (RFC 5780)
    #[arg(long, value_name = "ADDR:PORT", global = true)]
    listen: Vec<SocketAddr>,

    /// The address that peers reach the --listen in the same place at, where something translates addresses in between
    /// (as in most clouds)
    #[arg(long, value_name = "ADDR[:PORT]", global = true)]
    external: Vec<External>,

    /// Read a TOML file; its names are those of these options. What is said here counts more
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,

    /// Set anything that the file can, such as limits.connections=1000
    #[arg(long, value_name = "NAME=VALUE", global = true)]
    set: Vec<String>,

    /// Keep the secret key in this file [default: `key` in --state]. It is made if there is none
    #[arg(long, value_name = "FILE", global = true)]
    key: Option<PathBuf>,

    /// Keep things in this folder [default: $STATE_DIRECTORY, /var/lib/supernode for root, or ~/.local/state/supernode]
    #[arg(long, value_name = "DIR", global = true)]
    state: Option<PathBuf>,

    /// Serve /healthz and /metrics (Prometheus) here, over plain HTTP: keep it private
    #[arg(long, value_name = "ADDR:PORT", global = true)]
    admin: Option<SocketAddr>,

    /// Whether to relay, or to carry only what peers need to find a direct path [default: full]
    #[arg(long, value_name = "POLICY", global = true)]
    relay: Option<Relay>,

    /// Serve only this peer; repeat it for more [default: everybody, within the limits]
    #[arg(long, value_name = "PEER_ID", global = true)]
    only: Vec<PeerId>,

    /// Where peers are to go when this supernode is full or stops; repeat it for more
    #[arg(long, value_name = "ID@ADDR:PORT", global = true)]
    alternative: Vec<Alternative>,

    /// When told to stop (SIGTERM, ^C), give peers so many seconds to move elsewhere; a second signal stops at once
    /// [default: 10]
    #[arg(long, value_name = "SECONDS", global = true)]
    drain: Option<u64>,

    /// Log lines for people, or JSON [default: text]. What is logged is chosen by RUST_LOG, such as supernode=debug
    #[arg(long, value_name = "FORMAT", global = true)]
    log: Option<LogFormat>,
}

const EXAMPLES: &str = "\
Examples:
  supernode                                    on all addresses, port 3478, with a key made at the first start
  supernode --external 203.0.113.10            behind a cloud's address translation
  supernode --listen 198.51.100.7:3478 --listen 198.51.100.8:3479 --admin 127.0.0.1:9090
  supernode id                                 what to tell peers: the id, and where to connect
  supernode check --config supernode.toml      is this configuration good?";

#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum Command {
    /// Print the id, and what a peer has to be told to connect here; makes the key if there is none
    Id,
    /// Look whether the configuration is good, and do nothing else
    Check,
}

/// What becomes of a key that there is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// It is made.
    Made,
    /// It is not needed.
    Unmade,
}

/// All that was said, in one place.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    pub(crate) log: LogFormat,
    pub(crate) drain: Duration,
    /// The file of a key that was made just now.
    pub(crate) new_key: Option<PathBuf>,
}

impl Options {
    /// The configuration: the defaults, overwritten by the file, overwritten by the options.
    pub(crate) fn load(&self, key: Key) -> anyhow::Result<Loaded> {
        let (text, place) = match &self.config {
            Some(path) => {
                let text = fs::read_to_string(path)
                    .with_context(|| format!("cannot read the configuration {}", path.display()))?;
                (text, path.display().to_string())
            }
            None => (String::new(), "configuration".to_owned()),
        };
        let settings = self.overwrite(Settings::parse_with(&text, &place, &self.set)?);
        let key_file = settings.key.clone().map_or_else(
            || settings.state.clone().map_or_else(default_state, Ok).map(|state| state.join("key")),
            Ok,
        )?;
        let (identity, new) = match key {
            Key::Unmade if !key_file.exists() => (Identity::from_secret(&[0; 32]), false),
            Key::Unmade | Key::Made => key::load_or_create(&key_file)?,
        };
        let mut config = Config::new(identity);
        let log = settings.log.unwrap_or_default();
        let drain = Duration::from_secs(settings.drain.unwrap_or(10));
        settings.apply(&mut config);
        Ok(Loaded { config, log, drain, new_key: new.then_some(key_file) })
    }

    fn overwrite(&self, mut settings: Settings) -> Settings {
        fn over<T: Clone>(said: &[T], setting: &mut Option<Vec<T>>) {
            if !said.is_empty() {
                *setting = Some(said.to_vec());
            }
        }
        over(&self.listen, &mut settings.listen);
        over(&self.external, &mut settings.external);
        over(&self.only, &mut settings.only);
        over(&self.alternative, &mut settings.alternatives);
        settings.key = self.key.clone().or(settings.key);
        settings.state = self.state.clone().or(settings.state);
        settings.admin = self.admin.or(settings.admin);
        settings.relay = self.relay.or(settings.relay);
        settings.drain = self.drain.or(settings.drain);
        settings.log = self.log.or(settings.log);
        settings
    }
}

/// Where things are kept if nobody says.
fn default_state() -> anyhow::Result<PathBuf> {
    if let Some(given) = env::var_os("STATE_DIRECTORY") {
        // systemd separates several by colons; the first is ours.
        return env::split_paths(&given).next().context("$STATE_DIRECTORY is empty");
    }
    if is_root() {
        return Ok(PathBuf::from("/var/lib/supernode"));
    }
    let home = env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".local/state")));
    home.map(|state| state.join("supernode"))
        .context("there is no home folder to keep the key in: name a file with --key")
}

/// A process's folder in /proc belongs to whom it runs as.
fn is_root() -> bool {
    #[cfg(target_os = "linux")]
    return fs::metadata("/proc/self")
        .is_ok_and(|process| std::os::unix::fs::MetadataExt::uid(&process) == 0);
    #[cfg(not(target_os = "linux"))]
    false
}
