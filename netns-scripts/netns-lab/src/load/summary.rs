//! Two NATs compared: medians, ratios and their spread, as a table.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::figure::{Figure, aim, figures};
use super::{LoadError, Report};

/// One report and where it comes from; a file of results has one on each line, as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The round, from 1.
    pub round: u32,
    /// How the client is wired to the NAT.
    pub wiring: String,
    /// Which of the two NATs.
    pub side: Side,
    /// What came through.
    pub report: Report,
}

/// Which NAT of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The one that is 1.00.
    Base,
    /// The one that is compared with it.
    Tested,
}

/// Several measurements of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

/// One figure of both NATs in one wiring.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// How the client is wired to the NAT.
    pub wiring: String,
    /// The figure.
    pub name: String,
    /// Its unit.
    pub unit: &'static str,
    /// Whether a larger ratio is better.
    pub more_is_better: bool,
    /// What [`Side::Base`] reached; `None` where it has no such figure (the kernel's NAT is no process).
    pub base: Option<Spread>,
    /// What [`Side::Tested`] reached.
    pub tested: Option<Spread>,
    /// Tested to base: the ratio of the medians, and the least and the greatest ratio within a round.
    pub ratio: Option<Spread>,
    /// The ratio that natbox means to reach, where there is such an aim.
    pub aim: Option<f64>,
}

/// Reads results, one [`Entry`] a line.
///
/// # Errors
/// [`LoadError::Results`] names the line that can't be read.
pub fn read(lines: &str) -> Result<Vec<Entry>, LoadError> {
    let parse = |(index, line)| {
        serde_json::from_str(line).map_err(|source| LoadError::Results { line: index + 1, source })
    };
    lines.lines().enumerate().map(parse).collect()
}

/// All figures, in the order in which they were first measured.
pub fn rows(entries: &[Entry]) -> Vec<Row> {
    let measured: Vec<(&Entry, Figure)> = entries
        .iter()
        .flat_map(|entry| figures(&entry.report).into_iter().map(move |figure| (entry, figure)))
        .collect();
    let mut keys: Vec<(&str, &Figure)> = Vec::new();
    for (entry, figure) in &measured {
        if !keys.iter().any(|(wiring, known)| *wiring == entry.wiring && known.name == figure.name) {
            keys.push((&entry.wiring, figure));
        }
    }
    // What was measured first in one wiring is shown with all else of that wiring.
    let first = |wiring: &str| entries.iter().position(|entry| entry.wiring == wiring);
    keys.sort_by_key(|(wiring, _)| first(wiring));
    keys.iter().map(|(wiring, figure)| row(&measured, wiring, figure)).collect()
}

fn row(measured: &[(&Entry, Figure)], wiring: &str, wanted: &Figure) -> Row {
    let of = |side| -> Vec<(u32, f64)> {
        measured
            .iter()
            .filter(|(entry, figure)| {
                entry.wiring == wiring && entry.side == side && figure.name == wanted.name
            })
            .map(|(entry, figure)| (entry.round, figure.value))
            .collect()
    };
    let (base, tested) = (of(Side::Base), of(Side::Tested));
    let within_rounds = tested.iter().filter_map(|(round, value)| {
        let (_, base) = base.iter().find(|(other, _)| other == round)?;
        Some(value / base)
    });
    let within_rounds = Spread::of(within_rounds);
    let spread = |values: &[(u32, f64)]| Spread::of(values.iter().map(|(_, value)| *value));
    let (base, tested) = (spread(&base), spread(&tested));
    let ratio = base
        .zip(tested)
        .zip(within_rounds)
        .map(|((base, tested), within)| Spread { median: tested.median / base.median, ..within });
    Row {
        wiring: wiring.to_owned(),
        name: wanted.name.clone(),
        unit: wanted.unit,
        more_is_better: wanted.more_is_better,
        base,
        tested,
        ratio,
        aim: aim(&wanted.name),
    }
}

impl Spread {
    /// `None` of no value, or of one that is none (a ratio to nothing).
    fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut ascending: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        ascending.sort_by(f64::total_cmp);
        let (&min, &max) = (ascending.first()?, ascending.last()?);
        let (low, high) = (ascending[(ascending.len() - 1) / 2], ascending[ascending.len() / 2]);
        Some(Self { median: f64::midpoint(low, high), min, max })
    }
}

/// A table for a terminal. `base` and `tested` are what the two NATs are called; `aims` says whether natbox's aims are
/// to be judged by it.
pub fn text(rows: &[Row], base: &str, tested: &str, aims: bool) -> String {
    let mut lines = String::new();
    let mut wiring = "";
    for row in rows {
        if row.wiring != wiring {
            wiring = &row.wiring;
            // Writing to a string can't fail.
            let _ = writeln!(lines, "\n{wiring:<44}{base:>10}{tested:>12}     ratio  min–max");
        }
        let name = format!("{} {}", row.name, unit(row));
        let [base, tested] =
            [row.base, row.tested].map(|side| side.map_or("–".to_owned(), |it| number(it.median)));
        let (ratio, range) = ratio_words(row);
        let verdict = if aims { verdict(row) } else { String::new() };
        let line = format!("{name:<44}{base:>10}{tested:>12}{ratio:>10}  {range:<11}{verdict}");
        let _ = writeln!(lines, "{}", line.trim_end());
    }
    lines
}

/// A table in Markdown, with a column group for each wiring.
pub fn markdown(rows: &[Row], base: &str, tested: &str) -> String {
    let mut wirings: Vec<&str> = Vec::new();
    let mut names: Vec<&Row> = Vec::new();
    for row in rows {
        if !wirings.contains(&row.wiring.as_str()) {
            wirings.push(&row.wiring);
        }
        if !names.iter().any(|known| known.name == row.name) {
            names.push(row);
        }
    }
    let mut lines = "| ".to_owned();
    for wiring in &wirings {
        // Writing to a string can't fail.
        let _ = write!(lines, "| {wiring}: {base} | {tested} | ratio (min–max) ");
    }
    let _ = writeln!(lines, "|\n|---{}|", "|--:|--:|:--".repeat(wirings.len()));
    for known in names {
        let _ = write!(lines, "| {} {} ", known.name, unit(known));
        for wiring in &wirings {
            match rows.iter().find(|row| row.wiring == *wiring && row.name == known.name) {
                None => lines.push_str("| | | "),
                Some(row) => {
                    let [base, tested] = [row.base, row.tested]
                        .map(|side| side.map_or("–".to_owned(), |it| number(it.median)));
                    let (ratio, range) = ratio_words(row);
                    let range = if range.is_empty() { range } else { format!(" ({range})") };
                    let _ = write!(lines, "| {base} | {tested} | **{ratio}**{range} ");
                }
            }
        }
        lines.push_str("|\n");
    }
    lines
}

/// The unit, and a mark where a smaller figure is the better one.
fn unit(row: &Row) -> String {
    let unit = if row.unit.is_empty() { String::new() } else { row.unit.to_owned() };
    if row.more_is_better { unit } else { format!("{unit} ↓") }
}

/// The ratio, and its spread if there was more than one round.
fn ratio_words(row: &Row) -> (String, String) {
    match row.ratio {
        None => ("–".to_owned(), String::new()),
        Some(Spread { median, min, max }) if min == max => (format!("{median:.2}"), String::new()),
        Some(Spread { median, min, max }) => (format!("{median:.2}"), format!("{min:.2}–{max:.2}")),
    }
}

/// Whether the median reached the aim, where there is one.
fn verdict(row: &Row) -> String {
    let Some((aim, ratio)) = row.aim.zip(row.ratio) else { return String::new() };
    let reached = if row.more_is_better { ratio.median >= aim } else { ratio.median <= aim };
    format!("aim {aim:.2}: {}", if reached { "reached" } else { "MISSED" })
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        ..1.0 => 3,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(round: u32, side: Side, load: &str, count: u64) -> String {
        let side = if side == Side::Base { "base" } else { "tested" };
        format!(
            r#"{{"round":{round},"wiring":"TUN","side":"{side}","report":{{"load":"{load}","seconds":1.0,"bytes":0,
            "count":{count},"lost":0,"p50_us":null,"p99_us":null,"machine_cpu":1.0,"nat_cpu":null}}}}"#
        )
        .replace('\n', "")
    }

    #[test]
    fn ratios_are_of_medians_and_their_spread_is_within_rounds() {
        let lines = [
            entry(1, Side::Base, "udp-64-up", 400_000),
            entry(1, Side::Tested, "udp-64-up", 200_000),
            entry(2, Side::Base, "udp-64-up", 500_000),
            entry(2, Side::Tested, "udp-64-up", 300_000),
            entry(3, Side::Base, "udp-64-up", 100_000),
            entry(3, Side::Tested, "udp-64-up", 100_000),
        ];
        let rows = rows(&read(&lines.join("\n")).unwrap());
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].base, Some(Spread { median: 400.0, min: 100.0, max: 500.0 }));
        assert_eq!(rows[0].ratio, Some(Spread { median: 0.5, min: 0.5, max: 1.0 }));
        let shown = text(&rows, "kernel", "natbox", true);
        assert!(
            shown.contains("UDP 64 B up k/s") && shown.contains("0.50–1.00  aim 0.70: MISSED"),
            "{shown}"
        );
        let table = markdown(&rows, "kernel", "natbox");
        assert_eq!(
            table,
            "| | TUN: kernel | natbox | ratio (min–max) |\n|---|--:|--:|:--|\n\
             | UDP 64 B up k/s | 400 | 200 | **0.50** (0.50–1.00) |\n"
        );
    }

    #[test]
    fn a_figure_of_one_side_has_no_ratio() {
        let rows = rows(&read(&entry(1, Side::Base, "new-flows", 7)).unwrap());
        assert_eq!((rows[0].tested, rows[0].ratio), (None, None));
        assert!(text(&rows, "a", "b", false).contains('–'));
    }

    #[test]
    fn a_bad_line_is_named() {
        let lines = format!("{}\nnonsense", entry(1, Side::Base, "latency", 1));
        assert!(matches!(read(&lines), Err(LoadError::Results { line: 2, .. })));
    }

    #[test]
    fn the_median_of_an_even_number_is_in_the_middle() {
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 9.0]).map(|it| it.median), Some(3.0));
        assert_eq!(Spread::of([]), None);
    }
}
