//! docs/matrix.md: what was observed in the simulator and in the lab, side by side.

use std::fs;
use std::path::Path;

use super::Tested;

/// Compares `table` with the one that docs/matrix.md has under this name; with `MATRIX_UPDATE=1` it takes its place.
pub(crate) fn compare(name: &str, table: &str) -> Tested {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/matrix.md");
    let page = fs::read_to_string(&path)?;
    let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->\n"));
    let (before, rest) = page.split_once(&begin).ok_or("docs/matrix.md has no such table")?;
    let (old, after) = rest.split_once(&end).ok_or("docs/matrix.md has no end of the table")?;
    let new = format!("```\n{table}```\n");
    if std::env::var_os("MATRIX_UPDATE").is_some() {
        fs::write(&path, format!("{before}{begin}{new}{end}{after}"))?;
        return Ok(());
    }
    if old == new {
        Ok(())
    } else {
        Err(format!("docs/matrix.md ({name}) says\n{old}observed was\n{new}").into())
    }
}
