//! The table of outcomes, for people and for programs.

use std::fmt::Write;

use serde::Serialize;

use super::{
    ideal::Expected,
    mix::Mix,
    tally::{Cell, Histogram, Surprise, Tally},
    topology::Relation,
};

const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz";

fn letter(kind: usize) -> char {
    LETTERS.get(kind).map_or('?', |letter| char::from(*letter))
}

/// A share as people read it: `0` and `100` stand for exactly that.
fn percent(part: u64, of: u64) -> String {
    match part {
        _ if of == 0 => String::new(),
        0 => "0".into(),
        _ if part == of => "100".into(),
        _ => format!("{:.1}", (100.0 * part as f64 / of as f64).clamp(0.1, 99.9)),
    }
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Everything that a run has shown but its speed, as text.
pub fn text(mix: &Mix, tally: &Tally) -> String {
    let mut text = pairs(mix, tally);
    let all = &tally.all;
    text.push('\n');
    for (what, count) in [("direct", all.direct), ("relay", all.relay), ("not connected", all.not_connected)]
    {
        line(
            &mut text,
            format_args!("{what:28} {:>11} {:>6} %", grouped(count), percent(count, all.total())),
        );
    }
    let is_behind = |kind: &usize| !mix.kinds[*kind].nats.is_empty();
    let mut behind = Cell::default();
    let both = tally.cells.iter().filter(|((_, a, b), _)| is_behind(a) && is_behind(b));
    both.for_each(|(_, cell)| behind.merge(cell));
    let share = percent(behind.direct, behind.total());
    line(
        &mut text,
        format_args!("direct where both have a NAT  {:>10} {share:>6} %", grouped(behind.direct)),
    );
    line(&mut text, format_args!("\n{:28} {:>8} {:>8} {:>8} {:>8}", "", "median", "95 %", "99 %", "most"));
    quantiles(&mut text, "usable after, round trips", &tally.usable);
    quantiles(&mut text, "direct after, round trips", &tally.direct);
    quantiles(&mut text, "probes of both, direct", &tally.probes_direct);
    quantiles(&mut text, "probes of both, relay", &tally.probes_relay);
    let later = all.direct - tally.failed_rounds.get(&0).copied().unwrap_or(0);
    if all.direct > 0 {
        let first = percent(all.direct - later, all.direct);
        line(
            &mut text,
            format_args!(
                "\ndirect in the first round: {first} % of the direct ones; later: {}",
                grouped(later)
            ),
        );
    }
    if !tally.reasons.is_empty() {
        text += "\nwhy relayed, as the caller explains it\n";
        for (reason, count) in &tally.reasons {
            line(&mut text, format_args!("  {reason:44} {:>11}", grouped(*count)));
        }
    }
    text + &surprises(tally)
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}

/// Percent of the attempts of each pair of kinds that became direct.
fn pairs(mix: &Mix, tally: &Tally) -> String {
    let mut text = String::from("direct, percent of the attempts of each pair\n\n");
    let width = mix.kinds.iter().map(|kind| kind.name.chars().count()).max().unwrap_or(0).max(24);
    let mut head = format!("{:w$} {:>6} {:>6}", "", "share", "any", w = width + 2);
    (0..mix.kinds.len()).for_each(|kind| head += &format!(" {:>5}", letter(kind)));
    line(&mut text, format_args!("{head}"));
    for (row, kind) in mix.kinds.iter().enumerate() {
        let mut any = Cell::default();
        let apart = tally.cells.iter().filter(|((relation, ..), _)| *relation == Relation::Apart);
        apart.filter(|((_, a, b), _)| *a == row || *b == row).for_each(|(_, cell)| any.merge(cell));
        let _ = write!(
            text,
            "{} {:width$} {:>5.1}% {:>6}",
            letter(row),
            kind.name,
            100.0 * kind.share,
            percent(any.direct, any.total())
        );
        for column in 0..=row {
            let cell = tally.cells.get(&(Relation::Apart, column, row)).cloned().unwrap_or_default();
            let _ = write!(text, " {:>5}", percent(cell.direct, cell.total()));
        }
        text.push('\n');
    }
    for (relation, what) in
        [(Relation::SameNat, "both behind one NAT"), (Relation::SameCarrier, "both behind one carrier's NAT")]
    {
        let mut row = vec![Cell::default(); mix.kinds.len()];
        let mut any = Cell::default();
        for ((_, kind, _), cell) in tally.cells.iter().filter(|((other, ..), _)| *other == relation) {
            row[*kind].merge(cell);
            any.merge(cell);
        }
        if any.total() > 0 {
            let share = 100.0 * any.total() as f64 / tally.all.total() as f64;
            let any = percent(any.direct, any.total());
            let _ = write!(text, "  {what:width$} {share:>5.1}% {any:>6}");
            for cell in row {
                let _ = write!(text, " {:>5}", percent(cell.direct, cell.total()));
            }
            text.push('\n');
        }
    }
    text
}

fn quantiles(text: &mut String, what: &str, histogram: &Histogram) {
    let at = |part| histogram.quantile(part).map_or("-".into(), |value| format!("{value:.1}"));
    let (median, p95, p99, most) = (at(0.5), at(0.95), at(0.99), at(1.0));
    line(text, format_args!("{what:28} {median:>8} {p95:>8} {p99:>8} {most:>8}"));
}

fn surprises(tally: &Tally) -> String {
    if tally.surprises.is_empty() {
        return "\nevery attempt ended as its pair of NATs allows\n".into();
    }
    let mut text = String::from("\nNOT AS EXPECTED\n");
    for (what, count) in &tally.surprises {
        let what = match what {
            Surprise::NotConnected => "not connected at all",
            Surprise::StayedRelayed => "relayed, though a direct path is possible",
            Surprise::DirectAgainstOdds => "direct, though none should be possible",
            Surprise::Misjudged => "relayed, and the caller does not know why",
            Surprise::Storm => "a storm of packets",
            Surprise::Panicked => "panicked",
        };
        line(&mut text, format_args!("  {what:44} {:>11}", grouped(*count)));
    }
    text += "  to see one: --replay SEED with the same --mix; the first are\n";
    for (seed, what) in tally.named.values().take(20) {
        line(&mut text, format_args!("    {seed:>20}  {what:?}"));
    }
    text
}

// ---- For programs ----

#[derive(Serialize)]
struct Report<'a> {
    attempts: u64,
    #[serde(flatten)]
    all: &'a Cell,
    packets: u64,
    pairs: Vec<Pair<'a>>,
    usable_round_trips: Quantiles,
    direct_round_trips: Quantiles,
    probes_direct: Quantiles,
    probes_relay: Quantiles,
    failed_rounds: Vec<(u32, u64)>,
    reasons: Vec<(&'a str, u64)>,
    unexpected: Vec<(Surprise, u64)>,
    unexpected_seeds: Vec<(u64, Surprise)>,
}

#[derive(Serialize)]
struct Pair<'a> {
    kinds: [&'a str; 2],
    relation: String,
    direct_is_possible: bool,
    #[serde(flatten)]
    cell: &'a Cell,
}

#[derive(Serialize)]
struct Quantiles {
    count: u64,
    median: Option<f64>,
    p95: Option<f64>,
    p99: Option<f64>,
    most: Option<f64>,
}

impl From<&Histogram> for Quantiles {
    fn from(histogram: &Histogram) -> Quantiles {
        let [median, p95, p99, most] = [0.5, 0.95, 0.99, 1.0].map(|part| histogram.quantile(part));
        Quantiles { count: histogram.total(), median, p95, p99, most }
    }
}

/// The same as [`text`] and more, as a JSON object.
pub fn json(mix: &Mix, expected: &Expected, tally: &Tally) -> serde_json::Result<serde_json::Value> {
    let pair = |((relation, a, b), cell): (&(Relation, usize, usize), _)| Pair {
        kinds: [&mix.kinds[*a].name, &mix.kinds[*b].name],
        relation: format!("{relation:?}"),
        direct_is_possible: expected.is_direct([*a, *b], *relation),
        cell,
    };
    serde_json::to_value(Report {
        attempts: tally.all.total(),
        all: &tally.all,
        packets: tally.packets,
        pairs: tally.cells.iter().map(pair).collect(),
        usable_round_trips: (&tally.usable).into(),
        direct_round_trips: (&tally.direct).into(),
        probes_direct: (&tally.probes_direct).into(),
        probes_relay: (&tally.probes_relay).into(),
        failed_rounds: tally.failed_rounds.iter().map(|(rounds, count)| (*rounds, *count)).collect(),
        reasons: tally.reasons.iter().map(|(reason, count)| (*reason, *count)).collect(),
        unexpected: tally.surprises.iter().map(|(what, count)| (*what, *count)).collect(),
        unexpected_seeds: tally.named.values().copied().collect(),
    })
}
