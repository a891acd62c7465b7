//! Medians and ratios of all that was measured, as a table.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::figure::Figure;

/// A line of a file of results.
#[derive(Debug, Deserialize)]
struct Entry {
    /// From 1.
    round: u32,
    /// The heading that its figures belong under.
    group: String,
    /// Whose they are; `OURS`, or a rival's name.
    side: String,
    figures: Vec<Figure>,
}

/// The side of an [`Entry`] that is not a rival's.
const OURS: &str = "ours";

/// Several measurements of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

/// One figure, ours and the rival's.
#[derive(Debug, Serialize)]
struct Row {
    group: String,
    name: String,
    unit: String,
    more_is_better: bool,
    ours: Option<Spread>,
    rival: Option<Spread>,
    rival_is: Option<String>,
    /// Ours to the rival's: the ratio of the medians, and the least and the greatest within a round.
    ratio: Option<Spread>,
    /// What is meant to be reached, where anything is.
    aim: Option<&'static str>,
}

/// What is meant to be reached. Printed beside what was, and never judged.
const AIMS: [(&str, &str, &str); 9] = [
    ("Connecting,", "first byte answered p50 [ms]", "≤ 4"),
    ("Connecting,", "direct p50 [ms]", "≤ 5"),
    ("Connecting from afar,", "first byte answered p50 [relay round trips]", "≤ 3"),
    ("Connecting from afar,", "direct p50 [relay round trips]", "≤ 5"),
    ("Direct path", "one stream [Gbit/s]", "ratio ≥ 0.95"),
    ("Relaying", "delivered per CPU second [k]", "ratio ≥ 1.5"),
    ("Memory", "each registration, beside its connection [B]", "≤ 2048"),
    ("Memory", "traverse listen [MiB]", "≤ 10"),
    ("Memory", "traverse listen, connected [MiB]", "≤ 10"),
];

/// What to print.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Format {
    Text,
    Markdown,
    Json,
}

pub(crate) fn print(file: &Path, format: Format) -> Result<String> {
    let lines = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let rows = rows(&parse(&lines)?);
    Ok(match format {
        Format::Text => text(&rows),
        Format::Markdown => markdown(&rows),
        Format::Json => serde_json::to_string(&rows)? + "\n",
    })
}

fn parse(lines: &str) -> Result<Vec<Entry>> {
    let parse =
        |(at, line)| serde_json::from_str(line).with_context(|| format!("line {} of the results", at + 1));
    lines.lines().enumerate().map(parse).collect()
}

/// All figures, in the order in which their groups and they were first measured.
fn rows(entries: &[Entry]) -> Vec<Row> {
    let mut groups: Vec<&str> = Vec::new();
    for entry in entries {
        if !groups.contains(&entry.group.as_str()) {
            groups.push(&entry.group);
        }
    }
    let mut rows = Vec::new();
    for group in groups {
        let here: Vec<&Entry> = entries.iter().filter(|entry| entry.group == group).collect();
        let mut known: Vec<&Figure> = Vec::new();
        for figure in here.iter().flat_map(|entry| &entry.figures) {
            if !known.iter().any(|other| is_same(other, figure)) {
                known.push(figure);
            }
        }
        rows.extend(known.into_iter().map(|figure| row(group, &here, figure)));
    }
    rows
}

fn is_same(a: &Figure, b: &Figure) -> bool {
    a.name == b.name && a.unit == b.unit
}

fn row(group: &str, entries: &[&Entry], wanted: &Figure) -> Row {
    let of = |is_ours: bool| -> Vec<(u32, f64)> {
        let entries = entries.iter().filter(|entry| (entry.side == OURS) == is_ours);
        let values = entries.flat_map(|entry| entry.figures.iter().map(|figure| (entry.round, figure)));
        values
            .filter(|(_, figure)| is_same(figure, wanted))
            .map(|(round, figure)| (round, figure.value))
            .collect()
    };
    let (ours, rival) = (of(true), of(false));
    let within_rounds = ours.iter().filter_map(|(round, value)| {
        let (_, rival) = rival.iter().find(|(other, _)| other == round)?;
        Some(value / rival)
    });
    let within_rounds = Spread::of(within_rounds);
    let spread = |values: &[(u32, f64)]| Spread::of(values.iter().map(|(_, value)| *value));
    let (ours, rival) = (spread(&ours), spread(&rival));
    let ratio = ours
        .zip(rival)
        .zip(within_rounds)
        .map(|((ours, rival), within)| Spread { median: ours.median / rival.median, ..within });
    let key = format!("{} [{}]", wanted.name, wanted.unit);
    let aim = AIMS.iter().find(|(start, name, _)| group.starts_with(start) && key == *name);
    Row {
        group: group.to_owned(),
        name: wanted.name.clone(),
        unit: wanted.unit.clone(),
        more_is_better: wanted.more_is_better,
        ours,
        rival,
        rival_is: entries.iter().find(|entry| entry.side != OURS).map(|entry| entry.side.clone()),
        ratio,
        aim: aim.map(|(_, _, aim)| *aim),
    }
}

impl Spread {
    /// `None` of no value, or of one that is none (a ratio to nothing).
    fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut ascending: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        ascending.sort_by(f64::total_cmp);
        let (&min, &max) = (ascending.first()?, ascending.last()?);
        let (low, high) = (ascending[(ascending.len() - 1) / 2], ascending[ascending.len() / 2]);
        Some(Spread { median: f64::midpoint(low, high), min, max })
    }
}

fn text(rows: &[Row]) -> String {
    let (mut lines, mut group) = (String::new(), "");
    for row in rows {
        if row.group != group {
            group = &row.group;
            let rival = row.rival_is.as_deref().unwrap_or_default();
            // Writing to a string can't fail.
            let _ = writeln!(lines, "\n{group}\n{:<58}{:>9}{rival:>9}     ratio", "", "ours");
        }
        let Words { name, ours, rival, ratio, aim } = words(row);
        let aim = if aim.is_empty() { aim } else { format!("aim {aim}") };
        let _ =
            writeln!(lines, "{}", format!("  {name:<56}{ours:>9}{rival:>9}  {ratio:<20}{aim}").trim_end());
    }
    lines
}

fn markdown(rows: &[Row]) -> String {
    let (mut lines, mut group) = (String::new(), "");
    for row in rows {
        if row.group != group {
            let gap = if group.is_empty() { "" } else { "\n" };
            group = &row.group;
            let rival = row.rival_is.as_deref().unwrap_or_default();
            let _ = writeln!(
                lines,
                "{gap}| {group} | ours | {rival} | ratio (min–max) | aim |\n|---|--:|--:|:--|:--|"
            );
        }
        let Words { name, ours, rival, ratio, aim } = words(row);
        let _ = writeln!(lines, "| {name} | {ours} | {rival} | {ratio} | {aim} |");
    }
    lines
}

struct Words {
    name: String,
    ours: String,
    rival: String,
    ratio: String,
    aim: String,
}

fn words(row: &Row) -> Words {
    let mark = if row.more_is_better { "" } else { " ↓" };
    let value = |side: Option<Spread>| side.map_or(String::new(), |it| number(it.median));
    let ratio = row.ratio.map_or(String::new(), |Spread { median, min, max }| match min == max {
        true => format!("{median:.2}"),
        false => format!("{median:.2} ({min:.2}–{max:.2})"),
    });
    Words {
        name: format!("{} {}{mark}", row.name, row.unit),
        ours: value(row.ours),
        rival: value(row.rival),
        ratio,
        aim: row.aim.unwrap_or_default().to_owned(),
    }
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

    fn entry(round: u32, side: &str, value: f64) -> String {
        format!(
            r#"{{"round":{round},"group":"Direct path","side":"{side}","figures":[{{"name":"one stream","unit":"Gbit/s","more_is_better":true,"value":{value}}}]}}"#
        )
    }

    #[test]
    fn ratios_are_of_medians_and_their_spread_is_within_rounds() {
        let lines = [
            entry(1, "quinn", 4.0),
            entry(1, OURS, 2.0),
            entry(2, OURS, 3.0),
            entry(2, "quinn", 5.0),
            entry(3, "quinn", 1.0),
            entry(3, OURS, 1.0),
        ];
        let rows = rows(&parse(&lines.join("\n")).unwrap());
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].ratio, Some(Spread { median: 0.5, min: 0.5, max: 1.0 }));
        assert_eq!(
            markdown(&rows),
            "| Direct path | ours | quinn | ratio (min–max) | aim |\n|---|--:|--:|:--|:--|\n\
             | one stream Gbit/s | 2.00 | 4.00 | 0.50 (0.50–1.00) | ratio ≥ 0.95 |\n"
        );
        assert!(text(&rows).contains("aim ratio ≥ 0.95"));
    }

    #[test]
    fn without_a_rival_there_is_no_ratio() {
        let rows = rows(&parse(&entry(1, OURS, 2.0)).unwrap());
        assert!(rows[0].ratio.is_none() && rows[0].rival_is.is_none());
    }

    #[test]
    fn a_bad_line_is_named() {
        let lines = format!("{}\nnonsense", entry(1, OURS, 1.0));
        assert!(format!("{:#}", parse(&lines).unwrap_err()).contains("line 2"));
    }
}
