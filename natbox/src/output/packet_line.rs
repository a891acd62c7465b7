//! One line of the packet log.

use std::{
    collections::HashMap,
    fmt::{self, Write as _},
    net::IpAddr,
    time::SystemTime,
};

use natbox_core::{DropReason, Endpoint, Ends, Protocol, packet::fragment::Piece};
use serde_json::{Value, json};

/// The transport of a packet and its two endpoints.
pub type Flow = (Protocol, Ends);

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From inside to outside.
    Outbound,
    /// From outside to inside.
    Inbound,
    /// From inside to inside by way of an external endpoint.
    Hairpin,
}

impl Direction {
    const fn word(self) -> &'static str {
        match self {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
            Direction::Hairpin => "hairpin",
        }
    }

    /// The first column of a line.
    const fn column(self) -> &'static str {
        match self {
            Direction::Outbound => "out",
            Direction::Inbound => "in",
            Direction::Hairpin => "hairpin",
        }
    }
}

/// How lines look.
#[derive(Clone, Debug)]
pub enum Format {
    /// The lecture's notation.
    Text {
        /// What to print instead of an address.
        names: HashMap<IpAddr, String>,
        /// Set off by colour what the NAT has changed.
        paint: bool,
    },
    /// One JSON object a line: `{"type":"packet","at":UNIX_MS,"direction":…,"protocol":…,"before":{"to","from"}}` with
    /// `"after"`, `"dropped"`, `"answered"`, `"delivered"`, `"held"`, `"followed"` or `"sent"`; a fragment has
    /// `"fragment":{"id","offset","length","more"}`, its lengths in bytes, and no ports unless it is the first.
    Json,
}

/// What happened to one packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) at: SystemTime,
    pub(super) direction: Direction,
    pub(super) packet: Option<Flow>,
    pub(super) fate: Fate,
}

/// What became of it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    Translated(Flow),
    Dropped(DropReason),
    Answered,
    Delivered,
    Held,
    Followed,
    Sent,
}

impl Format {
    /// Writes the line for one packet.
    pub(super) fn packet(&self, line: &mut String, entry: &Entry) {
        // Writing to a string cannot fail.
        let _ = match self {
            Format::Text { names, paint } => text_line(line, names, *paint, entry),
            Format::Json => writeln!(line, "{}", json_line(entry)),
        };
    }

    /// The line for packets that have none.
    pub(super) fn lost(&self, lost: u64) -> String {
        match self {
            Format::Text { .. } => {
                format!("… {lost} packets not shown: they came faster than they could be printed\n")
            }
            Format::Json => format!("{}\n", json!({ "type": "packets-lost", "count": lost })),
        }
    }
}

fn text_line(line: &mut String, names: &HashMap<IpAddr, String>, paint: bool, entry: &Entry) -> fmt::Result {
    let protocol = entry.packet.map_or("?".to_owned(), |(protocol, _)| protocol.to_string());
    write!(line, "{:<7} {protocol:<4} ", entry.direction.column())?;
    let bracket =
        |ends: &Ends, old: &Ends| Bracket { names, icmp: protocol == "icmp", ends: *ends, old: *old, paint };
    match &entry.packet {
        Some((_, ends)) => write!(line, "{}", bracket(ends, ends))?,
        None => write!(line, "[an unreadable packet]")?,
    }
    let (red, plain) = if paint { ("\x1b[31m", "\x1b[0m") } else { ("", "") };
    match (&entry.fate, &entry.packet) {
        (Fate::Translated((_, after)), Some((_, before))) => writeln!(line, " → {}", bracket(after, before)),
        (Fate::Translated((_, after)), None) => writeln!(line, " → {}", bracket(after, after)),
        (Fate::Dropped(reason), _) => {
            writeln!(line, " {red}✗ {reason}{plain}: {}", reason.explanation().trim())
        }
        (Fate::Answered, _) => writeln!(line, " ↩ answered by natbox"),
        (Fate::Delivered, _) => writeln!(line, " · for this machine itself"),
        (Fate::Held, _) => writeln!(line, " … waits for the first part"),
        (Fate::Followed, _) => writeln!(line, " ← sent behind the first part"),
        (Fate::Sent, _) => writeln!(line, " ← sent by natbox"),
    }
}

/// `[to:S:53 from:A:4242]`, with what differs from `old` set off.
struct Bracket<'a> {
    names: &'a HashMap<IpAddr, String>,
    icmp: bool,
    ends: Ends,
    old: Ends,
    paint: bool,
}

impl Bracket<'_> {
    fn endpoint(&self, f: &mut fmt::Formatter<'_>, new: Endpoint, old: Endpoint) -> fmt::Result {
        let changed = self.paint && new != old;
        f.write_str(if changed { "\x1b[1;36m" } else { "" })?;
        match (self.names.get(&new.addr), new.addr) {
            (Some(name), _) => f.write_str(name)?,
            (None, IpAddr::V4(addr)) => write!(f, "{addr}")?,
            (None, IpAddr::V6(addr)) => write!(f, "[{addr}]")?,
        }
        // The answering side of an ICMP query has no port, and neither has a later fragment.
        if new.port != 0 || !(self.icmp || self.ends.piece.is_some()) {
            write!(f, ":{}", new.port)?;
        }
        f.write_str(if changed { "\x1b[0m" } else { "" })
    }
}

impl fmt::Display for Bracket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[to:")?;
        self.endpoint(f, self.ends.to, self.old.to)?;
        f.write_str(" from:")?;
        self.endpoint(f, self.ends.from, self.old.from)?;
        f.write_str("]")?;
        let Some(Piece { identification, offset, len, more }) = self.ends.piece else { return Ok(()) };
        let last = if more { "" } else { ", the last" };
        write!(f, " part {offset}+{len} of {identification}{last}")
    }
}

fn json_line(entry: &Entry) -> Value {
    let ends = |ends: Ends| json!({ "to": ends.to.to_string(), "from": ends.from.to_string() });
    let at = entry.at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let mut line = json!({
        "type": "packet",
        "at": at,
        "direction": entry.direction.word(),
        "protocol": entry.packet.map(|(protocol, _)| protocol.to_string()),
        "before": entry.packet.map(|(_, before)| ends(before)),
    });
    if let Some(Piece { identification, offset, len, more }) = entry.packet.and_then(|(_, ends)| ends.piece) {
        line["fragment"] = json!({ "id": identification, "offset": offset, "length": len, "more": more });
    }
    match entry.fate {
        Fate::Translated((_, after)) => line["after"] = ends(after),
        Fate::Dropped(reason) => line["dropped"] = reason.word().into(),
        Fate::Answered => line["answered"] = true.into(),
        Fate::Delivered => line["delivered"] = true.into(),
        Fate::Held => line["held"] = true.into(),
        Fate::Followed => line["followed"] = true.into(),
        Fate::Sent => line["sent"] = true.into(),
    }
    line
}
