//! Populations: which NATs there are, in which shares, and what their links are like. A mix is a TOML file.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail, ensure};
use natbox_sim::{
    Behavior, Conditions,
    natbox_core::preset::{PRESETS, Preset},
};
use rand_chacha::ChaCha8Rng;
use rand_core::Rng;
use serde::Deserialize;

/// The mixes that the program knows by name.
pub const BUILT_IN: [(&str, &str); 3] = [
    ("measured", include_str!("../mixes/measured.toml")),
    ("home", include_str!("../mixes/home.toml")),
    ("carrier", include_str!("../mixes/carrier.toml")),
];
/// As many as the table has letters for.
const MOST_KINDS: usize = 26;
/// NATs in a row.
const MOST_NATS: usize = 4;

/// A quantity that varies: its least value, its median, what nine in ten stay below, and its greatest; straight lines
/// between them.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Spread(pub [f64; 4]);

impl Spread {
    pub fn draw(&self, rng: &mut ChaCha8Rng) -> f64 {
        let [least, median, ninth, most] = self.0;
        let at = unit(rng);
        let line = |from: f64, to: f64, part: f64| from + (to - from) * part;
        match at {
            _ if at < 0.5 => line(least, median, at / 0.5),
            _ if at < 0.9 => line(median, ninth, (at - 0.5) / 0.4),
            _ => line(ninth, most, (at - 0.9) / 0.1),
        }
    }

    fn check(&self, what: &str, most: f64) -> anyhow::Result<()> {
        let is_fine = self.0.is_sorted() && self.0.iter().all(|value| (0.0..=most).contains(value));
        ensure!(is_fine, "{what} = {:?}: give [least, median, 90 %, most], rising, 0 to {most}", self.0);
        Ok(())
    }
}

/// An equally distributed number from 0 to just below 1.
pub fn unit(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// What a peer's link to the core of the internet is like, each way.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// Milliseconds.
    pub delay: Spread,
    /// Milliseconds, on top.
    pub jitter: Spread,
    /// Percent of the packets.
    pub loss: Spread,
}

impl Access {
    pub fn draw(&self, rng: &mut ChaCha8Rng) -> Conditions {
        Conditions {
            delay: millis(self.delay.draw(rng)),
            jitter: millis(self.jitter.draw(rng)),
            loss: self.loss.draw(rng) / 100.0,
            ..Conditions::PERFECT
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        self.delay.check("delay", 5000.0)?;
        self.jitter.check("jitter", 5000.0)?;
        self.loss.check("loss", 50.0)
    }
}

pub fn millis(value: f64) -> Duration {
    Duration::from_micros((value * 1000.0) as u64)
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct File {
    about: String,
    access: Access,
    supernode_delay: Spread,
    same_nat: f64,
    same_carrier: f64,
    fresh: f64,
    kind: Vec<FileKind>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileKind {
    name: String,
    share: f64,
    nats: Vec<String>,
    access: Option<Access>,
}

/// What a peer is behind.
pub struct Kind {
    pub name: String,
    /// Of the whole population, 0 to 1.
    pub share: f64,
    /// From the peer outwards; none: a public address.
    pub nats: Vec<Arc<Behavior>>,
    pub access: Access,
}

impl Kind {
    /// The supernode's UDP ports cannot be reached: the relay is reached by TLS over TCP.
    pub fn blocks_udp(&self) -> bool {
        self.nats.iter().any(|nat| !nat.allow_udp.permits(super::peer_world::HUB_PORTS[0]))
    }
}

/// A population.
pub struct Mix {
    pub about: String,
    pub kinds: Vec<Kind>,
    /// From the core of the internet to the supernode, milliseconds.
    pub supernode_delay: Spread,
    /// Share of the pairs that share the innermost NAT of the first.
    pub same_nat: f64,
    /// Share of the pairs that share the outermost NAT of the first, where it has several.
    pub same_carrier: f64,
    /// Share of the callers whose program has just started, and does not know its NAT yet.
    pub fresh: f64,
}

impl Mix {
    /// The mix of this name, or in this file.
    pub fn load(name: &str) -> anyhow::Result<Mix> {
        if let Some((_, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) {
            return Mix::parse(text).with_context(|| format!("the mix {name}"));
        }
        let text = std::fs::read_to_string(name).with_context(|| {
            let names: Vec<_> = BUILT_IN.iter().map(|(known, _)| *known).collect();
            format!("{name} is neither a mix ({}) nor a file that can be read", names.join(", "))
        })?;
        Mix::parse(&text).with_context(|| format!("the mix in {name}"))
    }

    pub fn parse(text: &str) -> anyhow::Result<Mix> {
        let file: File = toml::from_str(text)?;
        file.access.check()?;
        file.supernode_delay.check("supernode-delay", 5000.0)?;
        for (what, value) in
            [("same-nat", file.same_nat), ("same-carrier", file.same_carrier), ("fresh", file.fresh)]
        {
            ensure!((0.0..=1.0).contains(&value), "{what} = {value}: give a share from 0 to 1");
        }
        ensure!(file.same_nat + file.same_carrier <= 1.0, "same-nat and same-carrier together exceed 1");
        ensure!((1..=MOST_KINDS).contains(&file.kind.len()), "give 1 to {MOST_KINDS} [[kind]]s");
        let total: f64 = file.kind.iter().map(|kind| kind.share).sum();
        ensure!(file.kind.iter().all(|kind| kind.share >= 0.0) && total > 0.0, "shares must not be negative");
        let read = |kind: &FileKind| {
            let access = kind.access.unwrap_or(file.access);
            access.check()?;
            ensure!(kind.nats.len() <= MOST_NATS, "at most {MOST_NATS} nats in a row");
            let nats = kind.nats.iter().map(|text| behavior(text)).collect::<Result<_, _>>()?;
            Ok(Kind { name: kind.name.clone(), share: kind.share / total, nats, access })
        };
        let kinds = file.kind.iter().map(|kind| read(kind).with_context(|| format!("kind {}", kind.name)));
        Ok(Mix {
            about: file.about,
            kinds: kinds.collect::<anyhow::Result<_>>()?,
            supernode_delay: file.supernode_delay,
            same_nat: file.same_nat,
            same_carrier: file.same_carrier,
            fresh: file.fresh,
        })
    }

    /// A peer's kind.
    pub fn draw(&self, rng: &mut ChaCha8Rng) -> usize {
        let mut at = unit(rng);
        let is_it = |kind: &Kind| {
            at -= kind.share;
            at < 0.0
        };
        // Rounding may leave a crumb beyond the last.
        self.kinds.iter().position(is_it).unwrap_or(self.kinds.len() - 1)
    }
}

/// `symmetric`, `mapping=eim ports=random`, `cgnat filtering=adf`: a preset or what the RFCs ask for, and changes to it.
fn behavior(text: &str) -> anyhow::Result<Arc<Behavior>> {
    let mut behavior = Behavior::RFC;
    for (at, word) in text.split_whitespace().enumerate() {
        match (word.split_once('='), Preset::by_name(word)) {
            (Some((axis, value)), _) => behavior.set(axis, value)?,
            (None, Some(preset)) if at == 0 => behavior = preset.behavior(),
            _ => {
                let presets: Vec<_> = PRESETS.iter().map(|preset| preset.name).collect();
                bail!("{word:?} in {text:?}: a preset ({}) comes first, then axis=value", presets.join(", "))
            }
        }
    }
    Ok(Arc::new(behavior))
}
