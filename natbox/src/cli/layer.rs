//! Flags and configuration file, each a layer of what may be given, merged into [`Settings`].
//!
//! The behaviour starts as the RFCs ask for. The file's preset replaces it, the file's axes change it, `--nat` replaces
//! it (a preset sets every axis), and the flags' axes change it. A list given by flags replaces the file's list.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    str::FromStr,
};

use natbox::settings::{
    FastPathChoice, Forward, GuardChoice, InsideSpec, LanSpec, Settings, Workers, WorkersError,
    external_address,
};
use natbox_core::{Behavior, Limits, behavior::Axis, preset::Preset};

use super::{
    args::{self, RunArgs},
    axis,
};

/// What one source says; `None` and empty lists are silence.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Layer {
    outside: Option<String>,
    inside: Vec<InsideSpec>,
    lan: Vec<LanSpec>,
    external: Vec<(Ipv4Addr, u8)>,
    forward: Vec<Forward>,
    mtu: Option<u16>,
    guard: Option<GuardChoice>,
    fast_path: Option<FastPathChoice>,
    workers: Option<Workers>,
    no_offload: Option<bool>,
    dry_run: Option<bool>,
    seed: Option<u64>,
    log_packets: Option<bool>,
    names: Vec<(String, IpAddr)>,
    quiet: Option<bool>,
    json: Option<bool>,
    control: Option<PathBuf>,
    max_mappings: Option<usize>,
    max_sessions: Option<usize>,
    preset: Option<String>,
    axes: BTreeMap<String, String>,
}

/// The keys of a configuration file besides the axes: the names of the flags.
pub(crate) const KEYS: [&str; 20] = [
    "outside",
    "inside",
    "lan",
    "external",
    "forward",
    "mtu",
    "guard",
    "fast-path",
    "workers",
    "no-offload",
    "dry-run",
    "seed",
    "log-packets",
    "name",
    "quiet",
    "json",
    "control",
    "max-mappings",
    "max-sessions",
    "nat",
];

impl Layer {
    /// What the flags say.
    pub(crate) fn of_flags(
        run: RunArgs,
        (preset, axes): (Option<String>, BTreeMap<String, String>),
    ) -> Layer {
        let flag = |given: bool| given.then_some(true);
        Layer {
            outside: run.outside,
            inside: run.inside,
            lan: run.lan,
            external: run.external,
            forward: run.forward,
            mtu: run.mtu,
            guard: run.guard,
            fast_path: run.fast_path,
            workers: run.workers,
            no_offload: flag(run.no_offload),
            dry_run: flag(run.dry_run),
            seed: run.seed,
            log_packets: flag(run.log_packets),
            names: run.name,
            quiet: flag(run.quiet),
            json: flag(run.json),
            control: run.control,
            max_mappings: run.max_mappings,
            max_sessions: run.max_sessions,
            preset,
            axes,
        }
    }

    /// Takes what a configuration file says under `key`, one of [`KEYS`] or an axis.
    pub(crate) fn put(&mut self, key: &str, values: &[String]) -> Result<(), String> {
        match key {
            "outside" => self.outside = Some(one(key, values)?.to_owned()),
            "inside" => self.inside = all(values)?,
            "lan" => self.lan = all(values)?,
            "external" => {
                self.external = each(values, |text| external_address(text).map_err(|e| e.to_string()))?
            }
            "forward" => self.forward = all(values)?,
            "mtu" => {
                self.mtu = Some(number(key, values, "a number of bytes from 68 to 65535", 68..=u16::MAX)?)
            }
            "guard" => self.guard = Some(args::guard(one(key, values)?)?),
            "fast-path" => self.fast_path = Some(args::fast_path(one(key, values)?)?),
            "workers" => {
                let workers = one(key, values)?.parse();
                self.workers = Some(workers.map_err(|error: WorkersError| error.to_string())?);
            }
            "no-offload" => self.no_offload = Some(switch(key, values)?),
            "dry-run" => self.dry_run = Some(switch(key, values)?),
            "seed" => self.seed = Some(number(key, values, "a number", 0..=u64::MAX)?),
            "log-packets" => self.log_packets = Some(switch(key, values)?),
            "name" => self.names = each(values, args::name)?,
            "quiet" => self.quiet = Some(switch(key, values)?),
            "json" => self.json = Some(switch(key, values)?),
            "control" => self.control = Some(one(key, values)?.into()),
            "max-mappings" => {
                self.max_mappings =
                    Some(number(key, values, "a number from 1 to 2147483647", 1..=args::MOST)?)
            }
            "max-sessions" => {
                self.max_sessions =
                    Some(number(key, values, "a number from 1 to 2147483647", 1..=args::MOST)?)
            }
            "nat" => self.preset = Some(axis::preset(one(key, values)?)?.name.to_owned()),
            _ => {
                let known = Axis::by_name(key).ok_or_else(|| format!("unknown key {key:?}"))?;
                let value = match values {
                    // TOML's own truth values and lists of ports.
                    [value] => value.clone(),
                    ports => ports.join(","),
                };
                axis::value_of(known, &value)?;
                self.axes.insert(key.to_owned(), value);
            }
        }
        Ok(())
    }

    /// This layer over the one from the file.
    fn over(self, file: Layer) -> Layer {
        fn list<T>(mine: Vec<T>, below: Vec<T>) -> Vec<T> {
            if mine.is_empty() { below } else { mine }
        }
        // A preset sets every axis, so it covers the axes of the layer below.
        let mut axes = if self.preset.is_some() { BTreeMap::new() } else { file.axes };
        axes.extend(self.axes);
        Layer {
            outside: self.outside.or(file.outside),
            inside: list(self.inside, file.inside),
            lan: list(self.lan, file.lan),
            external: list(self.external, file.external),
            forward: list(self.forward, file.forward),
            mtu: self.mtu.or(file.mtu),
            guard: self.guard.or(file.guard),
            fast_path: self.fast_path.or(file.fast_path),
            workers: self.workers.or(file.workers),
            no_offload: self.no_offload.or(file.no_offload),
            dry_run: self.dry_run.or(file.dry_run),
            seed: self.seed.or(file.seed),
            log_packets: self.log_packets.or(file.log_packets),
            names: list(self.names, file.names),
            quiet: self.quiet.or(file.quiet),
            json: self.json.or(file.json),
            control: self.control.or(file.control),
            max_mappings: self.max_mappings.or(file.max_mappings),
            max_sessions: self.max_sessions.or(file.max_sessions),
            preset: self.preset.or(file.preset),
            axes,
        }
    }
}

/// A run that was asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) settings: Settings,
    /// Only say what would be done.
    pub(crate) dry_run: bool,
    /// Say nothing at the start, and show no counters.
    pub(crate) quiet: bool,
}

/// Merges flags over file and checks what only the whole can tell.
pub(crate) fn settings(flags: Layer, file: Layer, command: Vec<OsString>) -> Result<Asked, String> {
    let layer = flags.over(file);
    let behavior = behavior(layer.preset.as_deref(), &layer.axes)?;
    let outside = layer
        .outside
        .ok_or("which interface leads to the public network? name it with --outside, such as eth0")?;
    let command = (!command.is_empty()).then_some(command);
    if layer.inside.is_empty() && layer.lan.is_empty() && command.is_none() {
        return Err(
            "nothing is behind the NAT: give --inside tun0, --lan eth1, or a command after --".to_owned()
        );
    }
    distinct(&outside, &layer.inside, &layer.lan)?;
    let log_packets = layer.log_packets.unwrap_or(false);
    if log_packets && layer.fast_path == Some(FastPathChoice::On) {
        return Err(
            "--log-packets prints every packet, and --fast-path on would hide most: leave one out".to_owned()
        );
    }
    let default = Limits::default();
    let mappings = layer.max_mappings.unwrap_or(default.mappings);
    // Who raises the one limit means the other to keep up.
    let sessions =
        layer.max_sessions.unwrap_or(default.sessions.max(mappings.saturating_mul(2)).min(args::MOST));
    let settings = Settings {
        behavior,
        preset: layer.preset,
        seed: layer.seed,
        outside,
        inside: layer.inside,
        lan: layer.lan,
        external: layer.external,
        forwards: layer.forward,
        limits: Limits { mappings, sessions },
        mtu: layer.mtu,
        offload: !layer.no_offload.unwrap_or(false),
        guard: layer.guard.unwrap_or_default(),
        fast_path: layer.fast_path.unwrap_or_default(),
        workers: layer.workers.unwrap_or_default(),
        command,
        log_packets,
        names: layer.names,
        json: layer.json.unwrap_or(false),
        control: layer.control,
    };
    Ok(Asked { settings, dry_run: layer.dry_run.unwrap_or(false), quiet: layer.quiet.unwrap_or(false) })
}

fn behavior(preset: Option<&str>, axes: &BTreeMap<String, String>) -> Result<Behavior, String> {
    let mut behavior = preset.and_then(Preset::by_name).map(Preset::behavior).unwrap_or_default();
    for (axis, value) in axes {
        behavior.set(axis, value).map_err(|error| error.to_string())?;
    }
    Ok(behavior)
}

/// One interface cannot have two parts to play.
fn distinct(outside: &str, inside: &[InsideSpec], lan: &[LanSpec]) -> Result<(), String> {
    if let Some(lan) = lan.iter().find(|lan| lan.interface == outside) {
        return Err(format!("{} cannot be both --lan and --outside", lan.interface));
    }
    if let Some(tun) = inside.iter().find(|tun| tun.netns.is_none() && tun.name == outside) {
        return Err(format!("{} cannot be both --inside and --outside", tun.name));
    }
    for (i, tun) in inside.iter().enumerate() {
        if inside[..i].iter().any(|other| other.name == tun.name && other.netns == tun.netns) {
            return Err(format!("--inside {} is given twice", tun.name));
        }
    }
    for (i, one) in lan.iter().enumerate() {
        if lan[..i].iter().any(|other| other.interface == one.interface) {
            return Err(format!("--lan {} is given twice", one.interface));
        }
    }
    Ok(())
}

fn one<'a>(key: &str, values: &'a [String]) -> Result<&'a str, String> {
    match values {
        [value] => Ok(value),
        _ => Err(format!("{key} takes one value, not a list")),
    }
}

fn switch(key: &str, values: &[String]) -> Result<bool, String> {
    match one(key, values)? {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(format!("{key} is true or false, not {other:?}")),
    }
}

fn number<T: FromStr + PartialOrd>(
    key: &str,
    values: &[String],
    what: &str,
    range: std::ops::RangeInclusive<T>,
) -> Result<T, String> {
    let text = one(key, values)?;
    let value = text.parse().ok().filter(|value| range.contains(value));
    value.ok_or_else(|| format!("{key} is {what}, not {text:?}"))
}

fn each<T>(values: &[String], read: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    values.iter().map(|value| read(value)).collect()
}

fn all<T: FromStr<Err: ToString>>(values: &[String]) -> Result<Vec<T>, String> {
    each(values, |text| text.parse().map_err(|error: T::Err| error.to_string()))
}
