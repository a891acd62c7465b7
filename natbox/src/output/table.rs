//! Columns, and numbers as people read them.

use std::io::{self, Write};

/// Writes rows under their headings, each column as wide as its widest cell. The last column is not padded.
pub(crate) fn write_table<const N: usize>(
    to: &mut impl Write,
    headings: [&str; N],
    rows: &[[String; N]],
) -> io::Result<()> {
    let mut widths = headings.map(|heading| heading.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    write_row(to, &widths, headings.iter())?;
    rows.iter().try_for_each(|row| write_row(to, &widths, row.iter()))
}

fn write_row<S: AsRef<str>>(
    to: &mut impl Write,
    widths: &[usize],
    cells: impl Iterator<Item = S>,
) -> io::Result<()> {
    let mut line = String::new();
    for (width, cell) in widths.iter().zip(cells) {
        line.push_str(&format!("{:<width$}  ", cell.as_ref()));
    }
    writeln!(to, "{}", line.trim_end())
}

/// A duration in its two largest units: `850ms`, `12s`, `3m20s`, `2h4m`, `5d`.
pub(crate) fn duration(millis: u64) -> String {
    let seconds = millis / 1000;
    let pair = |big: u64, unit: &str, small: u64, rest: &str| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{rest}"),
    };
    match seconds {
        0 => format!("{millis}ms"),
        1..60 => format!("{seconds}s"),
        60..3600 => pair(seconds / 60, "m", seconds % 60, "s"),
        3600..86_400 => pair(seconds / 3600, "h", seconds % 3600 / 60, "m"),
        _ => pair(seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
    }
}

/// A count in thousands, with one decimal: `999`, `1.2 k`, `3.4 M`.
pub(crate) fn count(value: u64) -> String {
    const UNITS: [&str; 5] = ["k", "M", "G", "T", "P"];
    if value < 1000 {
        return value.to_string();
    }
    let (mut scaled, mut unit) = (value as f64 / 1000.0, 0);
    // 999.95 would be rounded to 1000.0.
    while scaled >= 999.95 && unit + 1 < UNITS.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    format!("{scaled:.1} {}", UNITS[unit])
}

/// Bytes, likewise: `12 B`, `1.2 kB`.
pub(crate) fn bytes(value: u64) -> String {
    match value {
        0..1000 => format!("{value} B"),
        _ => format!("{}B", count(value)),
    }
}

/// An exact count and what is counted: `1 mapping`, `50000 mappings`.
pub(crate) fn plural(value: u64, what: &str) -> String {
    format!("{value} {what}{}", if value == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        for (millis, text) in [
            (0, "0ms"),
            (850, "850ms"),
            (12_900, "12s"),
            (200_000, "3m20s"),
            (7_440_000, "2h4m"),
            (432_000_000, "5d"),
        ] {
            assert_eq!(duration(millis), text);
        }
        for (value, text) in
            [(0, "0"), (999, "999"), (1000, "1.0 k"), (999_999, "1.0 M"), (3_400_000, "3.4 M")]
        {
            assert_eq!(count(value), text);
        }
        assert_eq!((bytes(12), bytes(1234)), ("12 B".to_owned(), "1.2 kB".to_owned()));
    }

    #[test]
    fn columns_are_as_wide_as_they_need_to_be() {
        let mut page = Vec::new();
        let rows = [["é".to_owned(), "x".to_owned()], ["long one".to_owned(), String::new()]];
        write_table(&mut page, ["A", "B"], &rows).unwrap();
        assert_eq!(String::from_utf8(page).unwrap(), "A         B\né         x\nlong one\n");
    }
}
