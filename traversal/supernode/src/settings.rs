//! The configuration file: TOML. What the command line can say has the same name here; the tables are for what it
//! cannot.
//!
//! ```toml
//! listen = ["198.51.100.7:3478", "198.51.100.8:3479"]
//! admin = "127.0.0.1:9090"
//!
//! [limits]
//! connections = 20000
//!
//! [quotas.per_peer]
//! bytes = { per_second = 2_500_000, burst = 1_000_000 }
//! packets = "unlimited"
//! ```

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Deserializer, de};
use traversal_proto::{
    supernode::{Admission, Limits, Quota, Quotas, Rate, Rates, RelayPolicy, Timing},
    wire::{List, PeerId, message},
};

use crate::Config;

/// Why a configuration is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct SettingsError {
    /// In which file and line, or in which option.
    pub place: String,
    /// What is wrong there.
    pub problem: String,
}

macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $field:ident: $type:ty),+ $(,)?) => {
        /// What a configuration file says; everything in it may be left out.
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Settings { $($(#[doc = $doc])+ pub $field: Option<$type>),+ }
    };
}

settings! {
    /// Where to listen, UDP and TCP.
    listen: Vec<SocketAddr>,
    /// Under which address peers reach the listen address in the same place: an address, or address and port.
    external: Vec<External>,
    /// Whether to listen on TCP as well.
    tcp: bool,
    /// Where to serve `/healthz` and `/metrics`.
    admin: SocketAddr,
    /// The file that the secret key is kept in.
    key: PathBuf,
    /// The folder for what is to be kept.
    state: PathBuf,
    /// Receiving tasks for each UDP address; 0: one for each core.
    shards: usize,
    /// How to log.
    log: LogFormat,
    /// Seconds that peers have to move elsewhere when the supernode is stopped.
    drain: u64,
    /// Whether to relay.
    relay: Relay,
    /// Serve only these peers.
    only: Vec<PeerId>,
    /// Other supernodes: `ID@ADDRESS:PORT`, several addresses with commas.
    alternatives: Vec<Alternative>,
    /// Bounds on memory.
    limits: LimitSettings,
    /// Bounds on effort.
    rates: RateSettings,
    /// How long things last, in seconds.
    timing: TimingSettings,
    /// How much is relayed.
    quotas: QuotasSettings,
}

/// How to log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Whether to relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Relay {
    /// Within the quotas.
    Full,
    /// Only what peers need to find a direct path.
    SignallingOnly,
}

/// An address, with a port or without: then it is the one that is listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct External(pub SocketAddr);

impl std::str::FromStr for External {
    type Err = String;

    fn from_str(text: &str) -> Result<External, String> {
        let plain = || text.parse().map(|ip: IpAddr| SocketAddr::new(ip, 0));
        let address = text.parse().or_else(|_| plain());
        address
            .map(External)
            .map_err(|_| format!("{text:?} is no address: write 203.0.113.10 or 203.0.113.10:3478"))
    }
}

/// Another supernode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alternative(pub message::Supernode);

impl std::str::FromStr for Alternative {
    type Err = String;

    fn from_str(text: &str) -> Result<Alternative, String> {
        let shape = || format!("{text:?} names no supernode: write ID@ADDRESS:PORT");
        let (id, addresses) = text.split_once('@').ok_or_else(shape)?;
        let id = id.parse().map_err(|error| format!("{text:?}: {error}"))?;
        let addresses = addresses.split(',').map(|address| address.trim().parse());
        let addresses: Vec<SocketAddr> = addresses.collect::<Result<_, _>>().map_err(|_| shape())?;
        let addresses = List::try_from(addresses).map_err(|error| format!("{text:?}: {error}"))?;
        Ok(Alternative(message::Supernode { id, addresses }))
    }
}

macro_rules! from_text {
    ($type:ty) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

from_text!(External);
from_text!(Alternative);

/// A table whose fields overwrite those of the same name.
macro_rules! table {
    ($(#[doc = $doc:literal])+ $name:ident for $target:ty { $($field:ident: $type:ty),+ $(,)? }) => {
        $(#[doc = $doc])+
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $(
            /// See the field of the same name.
            pub $field: Option<$type>
        ),+ }

        impl $name {
            fn apply(self, target: &mut $target) {
                $(if let Some(given) = self.$field { target.$field = given.worth(); })+
            }
        }
    };
}

table! {
    /// Overwrites [`Limits`].
    LimitSettings for Limits {
        connections: usize,
        registrations: usize,
        channels: usize,
        channels_per_registration: usize,
        watches: usize,
        watches_per_registration: usize,
        watchers_per_peer: usize,
        queries: usize,
        accounts: usize,
        connections_per_network: usize,
    }
}

table! {
    /// Overwrites [`Rates`].
    RateSettings for Rates {
        requests: PerSecond,
        registrations: PerSecond,
        incoming: PerSecond,
        unproven_per_network: PerSecond,
        unproven: PerSecond,
    }
}

table! {
    /// Overwrites [`Timing`].
    TimingSettings for Timing {
        register_within: Seconds,
        lifetime: Seconds,
        clock_skew: Seconds,
        binding: Seconds,
        query: Seconds,
        warn_every: Seconds,
    }
}

table! {
    /// Overwrites a [`Quota`].
    QuotaSettings for Quota {
        bytes: OrUnlimited<PerSecond>,
        packets: OrUnlimited<PerSecond>,
        volume: OrUnlimited<u64>,
    }
}

/// Overwrites [`Quotas`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuotasSettings {
    /// For each peer.
    pub per_peer: Option<QuotaSettings>,
    /// For all together.
    pub total: Option<QuotaSettings>,
    /// For these peers instead; what is left out is as for each peer.
    pub exceptions: Option<BTreeMap<PeerId, QuotaSettings>>,
    /// What each peer may send in any case.
    pub signalling: Option<PerSecond>,
    /// After how many seconds the volumes start afresh.
    pub period: Option<Seconds>,
}

impl QuotasSettings {
    fn apply(self, quotas: &mut Quotas) {
        let QuotasSettings { per_peer, total, exceptions, signalling, period } = self;
        per_peer.unwrap_or_default().apply(&mut quotas.per_peer);
        total.unwrap_or_default().apply(&mut quotas.total);
        for (peer, exception) in exceptions.unwrap_or_default() {
            let mut quota = quotas.per_peer;
            exception.apply(&mut quota);
            quotas.exceptions.insert(peer, quota);
        }
        quotas.signalling = signalling.map_or(quotas.signalling, Rate::from);
        quotas.period = period.map_or(quotas.period, Duration::from);
    }
}

/// A rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerSecond {
    /// In the long run.
    pub per_second: u64,
    /// At once.
    pub burst: u64,
}

impl From<PerSecond> for Rate {
    fn from(PerSecond { per_second, burst }: PerSecond) -> Rate {
        Rate { per_second, burst }
    }
}

/// A time in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Seconds(pub u64);

impl From<Seconds> for Duration {
    fn from(Seconds(seconds): Seconds) -> Duration {
        Duration::from_secs(seconds)
    }
}

/// A value, or the word `"unlimited"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrUnlimited<T>(pub Option<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OrUnlimited<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either<T> {
            Word(String),
            Value(T),
        }
        match Either::deserialize(deserializer) {
            Ok(Either::Value(value)) => Ok(OrUnlimited(Some(value))),
            Ok(Either::Word(word)) if word == "unlimited" => Ok(OrUnlimited(None)),
            _ => Err(de::Error::custom(
                "write \"unlimited\", or a number of bytes for a volume and { per_second = …, burst = … } for a rate",
            )),
        }
    }
}

/// What a setting is worth in the engine's configuration.
trait Worth<T> {
    fn worth(self) -> T;
}

impl Worth<usize> for usize {
    fn worth(self) -> usize {
        self
    }
}

impl Worth<Rate> for PerSecond {
    fn worth(self) -> Rate {
        self.into()
    }
}

impl Worth<Duration> for Seconds {
    fn worth(self) -> Duration {
        self.into()
    }
}

impl Worth<Option<Rate>> for OrUnlimited<PerSecond> {
    fn worth(self) -> Option<Rate> {
        self.0.map(Rate::from)
    }
}

impl Worth<Option<u64>> for OrUnlimited<u64> {
    fn worth(self) -> Option<u64> {
        self.0
    }
}

impl Settings {
    /// Reads a file's text; `place` is its name, for the error.
    pub fn parse(text: &str, place: &str) -> Result<Settings, SettingsError> {
        toml::from_str(text).map_err(|error| told(&error, text, place))
    }

    /// Reads a file's text, overwritten by assignments of the form `limits.connections=100`.
    pub fn parse_with(text: &str, place: &str, assignments: &[String]) -> Result<Settings, SettingsError> {
        let settings = Settings::parse(text, place)?;
        if assignments.is_empty() {
            return Ok(settings);
        }
        let mut merged: toml::Table = toml::from_str(text).map_err(|error| told(&error, text, place))?;
        for assignment in assignments {
            let place = format!("--set {assignment}");
            let fragment = fragment(assignment).ok_or_else(|| SettingsError {
                place: place.clone(),
                problem: "write NAME=VALUE, with a name of the configuration file".into(),
            })?;
            // Looked at alone first, so that the error names it.
            let problem = |error: toml::de::Error| SettingsError {
                place: place.clone(),
                problem: one_line(error.message()),
            };
            Settings::deserialize(fragment.clone()).map_err(problem)?;
            merge(&mut merged, fragment);
        }
        let problem = |error: toml::de::Error| SettingsError {
            place: place.to_owned(),
            problem: one_line(error.message()),
        };
        Settings::deserialize(merged).map_err(problem)
    }

    /// Overwrites in `config` what is said here, but for the key and the program's own affairs.
    pub fn apply(self, config: &mut Config) {
        if let Some(listen) = self.listen {
            config.listen = listen;
        }
        if let Some(external) = self.external {
            config.external = external.into_iter().map(|External(address)| address).collect();
        }
        config.tcp = self.tcp.unwrap_or(config.tcp);
        config.admin = self.admin.or(config.admin);
        config.shards = self.shards.unwrap_or(config.shards);
        match self.relay {
            Some(Relay::Full) => config.relay = RelayPolicy::Full,
            Some(Relay::SignallingOnly) => config.relay = RelayPolicy::SignallingOnly,
            None => {}
        }
        if let Some(only) = self.only {
            config.admission = Admission::Only(only.into_iter().collect());
        }
        if let Some(alternatives) = self.alternatives {
            config.alternatives = alternatives.into_iter().map(|Alternative(other)| other).collect();
        }
        self.limits.unwrap_or_default().apply(&mut config.limits);
        self.rates.unwrap_or_default().apply(&mut config.rates);
        self.timing.unwrap_or_default().apply(&mut config.timing);
        self.quotas.unwrap_or_default().apply(&mut config.quotas);
    }
}

/// An assignment as a piece of a file. A value that is no TOML is taken as text: quotes need not survive a shell.
fn fragment(assignment: &str) -> Option<toml::Table> {
    let (name, value) = assignment.split_once('=')?;
    let plain = format!("{name} = {value}");
    let quoted = || format!("{name} = {}", toml::Value::from(value.trim()));
    toml::from_str(&plain).or_else(|_| toml::from_str(&quoted())).ok()
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (name, value) in from {
        match (into.get_mut(&name), value) {
            (Some(toml::Value::Table(into)), toml::Value::Table(from)) => merge(into, from),
            (_, value) => {
                into.insert(name, value);
            }
        }
    }
}

fn told(error: &toml::de::Error, text: &str, place: &str) -> SettingsError {
    let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let place = line.map_or_else(|| place.to_owned(), |line| format!("{place} line {line}"));
    SettingsError { place, problem: one_line(error.message()) }
}

fn one_line(message: &str) -> String {
    message.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests;
