//! The table of subscribers.

use std::io::{self, Write};

use super::table::write_table;
use crate::control::{Status, Subscriber};

pub(super) fn write_subscribers(
    to: &mut impl Write,
    status: &Status,
    subscribers: &[Subscriber],
) -> io::Result<()> {
    if subscribers.is_empty() {
        return writeln!(to, "no subscribers");
    }
    // Which inside device matters only where there are several.
    let several = status.inside.len() > 1;
    let row = |subscriber: &Subscriber| {
        let device = status.inside.get(usize::from(subscriber.inside_port)).filter(|_| several);
        let external: Vec<_> = subscriber.external.iter().map(ToString::to_string).collect();
        [
            device.map_or_else(
                || subscriber.subscriber.clone(),
                |device| format!("{}%{device}", subscriber.subscriber),
            ),
            subscriber.mappings.to_string(),
            subscriber.sessions.to_string(),
            or_dash(&external.join(", ")),
            or_dash(&subscriber.blocks.join(", ")),
            subscriber.refused.map_or_else(|| "-".to_owned(), |refused| refused.to_string()),
        ]
    };
    let rows: Vec<_> = subscribers.iter().map(row).collect();
    write_table(to, ["SUBSCRIBER", "MAPPINGS", "SESSIONS", "→ EXTERNAL", "PORT BLOCKS", "REFUSED"], &rows)
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}
