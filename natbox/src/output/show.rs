//! `natbox show`: the state of a running natbox, for people and for programs.

use std::io::{self, Write};

use natbox_core::{Behavior, behavior::AXES};
use serde::Serialize;

use super::{
    presets::{describe, write_behavior},
    subscribers::write_subscribers,
    table::{bytes, count, duration, plural, write_table},
};
use crate::control::{
    Counted, FastPath, Line, Mapping, Port, Session, Status, Subscriber, WorkerStats, explanation,
};

/// The state of a running natbox. As JSON, what `natbox show --json` prints:
///
/// ```text
/// { "status":   {"natbox":1,"version","pid","uptime_ms","outside","inside":[…],"external":[…],"shared","guard",
///                "preset","behavior":{AXIS:VALUE,…},"mappings":N,"sessions":N,"subscribers":N,"port_blocks":N,
///                "resting_ports":N,"fast_path":{"flows":N,"given":N,"refused":N,"packets":N,"bytes":N}|null},
///   "counters": {NAME:N,…},
///   "drops":    {REASON:N,…},
///   "mappings": [{"protocol","inside":"ADDR:PORT","inside_port":N,"external":"ADDR:PORT","remote":"ADDR:PORT"|null,
///                 "forward":BOOL,"sessions":N,"age_ms":N,"expires_in_ms":N|null},…],
///   "sessions": [{"protocol","inside","inside_port","external","remote","state","expires_in_ms"},…],
///   "subscribers": [{"subscriber":"ADDR/LEN","inside_port":N,"mappings":N,"sessions":N,"external":[ADDR,…],
///                    "blocks":["ADDR:FIRST-LAST",…],"refused":N|null},…],
///   "ports":    [{"name","counters":{NAME:N,…},"workers":[{"received-packets":N,"sent-packets":N},…]},…] }
/// ```
///
/// Mappings are left out with `--counters` and `--subscribers`; sessions, subscribers (who has most mappings first) and ports are
/// there with `--sessions`, `--subscribers` and `--ports`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct State {
    /// What runs.
    pub status: Option<Status>,
    /// The NAT's counters and drops.
    #[serde(flatten)]
    pub counted: Option<Counted>,
    /// The mappings, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mappings: Option<Vec<Mapping>>,
    /// The sessions, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<Vec<Session>>,
    /// The subscribers, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscribers: Option<Vec<Subscriber>>,
    /// The datapath's ports, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<Port>>,
}

impl State {
    /// Takes a line of the answer.
    pub fn take(&mut self, line: Line) {
        match line {
            Line::Status(status) => self.status = Some(status),
            Line::Counters(counted) => self.counted = Some(counted),
            Line::Mapping(mapping) => self.mappings.get_or_insert_default().push(mapping),
            Line::Session(session) => self.sessions.get_or_insert_default().push(session),
            Line::Subscriber(subscriber) => self.subscribers.get_or_insert_default().push(subscriber),
            Line::Port(port) => self.ports.get_or_insert_default().push(port),
            Line::Event(_) | Line::Done(_) | Line::Error { .. } => {}
        }
    }

    /// Writes it for people; the behaviour axis by axis if `axes` says so.
    pub fn write(&self, to: &mut impl Write, axes: bool) -> io::Result<()> {
        let Some(status) = &self.status else { return Ok(()) };
        let behavior = behavior(status);
        write_header(to, status, &behavior)?;
        if axes {
            writeln!(to)?;
            write_behavior(to, &behavior)?;
        }
        if let Some(mappings) = &self.mappings {
            writeln!(to)?;
            write_mappings(to, status, mappings)?;
        }
        if let Some(sessions) = &self.sessions {
            writeln!(to)?;
            write_sessions(to, sessions)?;
        }
        if let Some(subscribers) = &self.subscribers {
            writeln!(to)?;
            write_subscribers(to, status, subscribers)?;
        }
        if let Some(counted) = &self.counted {
            writeln!(to)?;
            write_counters(to, counted)?;
        }
        for port in self.ports.iter().flatten() {
            let counters = port.counters.iter().filter(|(_, value)| **value > 0);
            let counters: Vec<_> = counters.map(|(name, value)| format!("{name} {value}")).collect();
            writeln!(to, "{:<16}  {}", format!("port {}", port.name), or_none(&counters.join(", ")))?;
            for (number, worker) in port.workers.iter().enumerate() {
                let WorkerStats { received_packets, sent_packets } = worker;
                writeln!(
                    to,
                    "{:<16}  worker {number}: received {received_packets}, sent {sent_packets}",
                    ""
                )?;
            }
        }
        Ok(())
    }
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "nothing yet" } else { text }
}

/// The behaviour that the status has in writing. An axis of a newer natbox is left out.
fn behavior(status: &Status) -> Behavior {
    let mut behavior = Behavior::default();
    for axis in AXES {
        if let Some(value) = status.behavior.get(axis.name) {
            let _ = axis.set(&mut behavior, value);
        }
    }
    behavior
}

fn write_header(to: &mut impl Write, status: &Status, behavior: &Behavior) -> io::Result<()> {
    let external: Vec<_> = status.external.iter().map(ToString::to_string).collect();
    let shared = match status.shared {
        true => format!(", shared with the host (guard: {})", status.guard),
        false => String::new(),
    };
    writeln!(to, "natbox {}, process {}, up {}", status.version, status.pid, duration(status.uptime_ms))?;
    writeln!(to, "  behaves as  {}", describe(behavior, status.preset.as_deref()))?;
    writeln!(to, "  inside      {}", status.inside.join(", "))?;
    writeln!(to, "  outside     {}: {}{shared}", status.outside, external.join(", "))?;
    let mut holds = vec![plural(status.mappings, "mapping"), plural(status.sessions, "session")];
    let carriers = [
        (status.subscribers, "subscriber"),
        (status.port_blocks, "port block"),
        (status.resting_ports, "resting port"),
    ];
    for (count, what) in carriers.into_iter().filter(|(count, _)| *count > 0) {
        holds.push(plural(count, what));
    }
    writeln!(to, "  state       {}", holds.join(", "))?;
    let Some(FastPath { flows, given, packets, bytes: moved, .. }) = status.fast_path else { return Ok(()) };
    let now = plural(flows, "flow");
    let so_far = format!("{} so far: {} packets, {}", count(given), count(packets), bytes(moved));
    writeln!(to, "  fast path   {now} now, {so_far}")
}

fn write_mappings(to: &mut impl Write, status: &Status, mappings: &[Mapping]) -> io::Result<()> {
    if mappings.is_empty() {
        return writeln!(to, "no mappings");
    }
    // Which inside device matters only where there are several.
    let several = status.inside.len() > 1;
    let rows: Vec<_> = mappings
        .iter()
        .map(|mapping| {
            let device = status.inside.get(usize::from(mapping.inside_port)).filter(|_| several);
            [
                mapping.protocol.clone(),
                device.map_or_else(
                    || mapping.inside.to_string(),
                    |device| format!("{}%{device}", mapping.inside),
                ),
                format!("→ {}", mapping.external),
                match mapping.remote {
                    None => "any".to_owned(),
                    Some(remote) if remote.port() == 0 => remote.ip().to_string(),
                    Some(remote) => remote.to_string(),
                },
                mapping.sessions.to_string(),
                duration(mapping.age_ms),
                match (mapping.forward, mapping.expires_in_ms) {
                    (true, _) => "never (forward)".to_owned(),
                    (false, None) => "never".to_owned(),
                    (false, Some(millis)) => duration(millis),
                },
            ]
        })
        .collect();
    write_table(to, ["PROTO", "INSIDE", "→ EXTERNAL", "FOR REMOTE", "SESSIONS", "AGE", "EXPIRES IN"], &rows)
}

fn write_sessions(to: &mut impl Write, sessions: &[Session]) -> io::Result<()> {
    if sessions.is_empty() {
        return writeln!(to, "no sessions");
    }
    let rows: Vec<_> = sessions
        .iter()
        .map(|session| {
            [
                session.protocol.clone(),
                session.inside.to_string(),
                format!("→ {}", session.external),
                session.remote.to_string(),
                session.state.clone(),
                session.expires_in_ms.map_or_else(|| "never".to_owned(), duration),
            ]
        })
        .collect();
    write_table(to, ["PROTO", "INSIDE", "→ EXTERNAL", "REMOTE", "STATE", "EXPIRES IN"], &rows)
}

fn write_counters(to: &mut impl Write, counted: &Counted) -> io::Result<()> {
    let way = |way: &str| {
        let get = |what: &str| counted.get(&format!("{way}-{what}"));
        format!("{}, {}", plural(get("packets"), "packet"), bytes(get("bytes")))
    };
    writeln!(to, "outbound          {}", way("outbound"))?;
    writeln!(to, "inbound           {}", way("inbound"))?;
    let shown = ["outbound-packets", "outbound-bytes", "inbound-packets", "inbound-bytes"];
    for (name, value) in
        counted.counters.iter().filter(|(name, value)| **value > 0 && !shown.contains(&name.as_str()))
    {
        writeln!(to, "{:<16}  {}", name.replace('-', " "), value)?;
    }
    let rows: Vec<_> = counted
        .drops
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, dropped)| [dropped.to_string(), reason.clone(), explanation(reason).to_owned()])
        .collect();
    match rows.is_empty() {
        true => writeln!(to, "dropped           nothing"),
        false => {
            writeln!(to)?;
            write_table(to, ["DROPPED", "REASON", "WHAT IT MEANS"], &rows)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::written;

    fn state() -> State {
        let mut counters = natbox_core::Counters::default();
        (counters.outbound_packets, counters.outbound_bytes) = (1200, 64_000);
        let mut counted = Counted::new(&counters);
        counted.drops.insert("no-mapping".to_owned(), 3);
        let mapping = Mapping {
            protocol: "udp".to_owned(),
            inside: "10.64.0.2:4242".parse().unwrap(),
            inside_port: 0,
            external: "198.51.100.7:61001".parse().unwrap(),
            remote: None,
            forward: false,
            sessions: 2,
            age_ms: 61_000,
            expires_in_ms: Some(299_000),
        };
        let status = Status {
            natbox: 1,
            version: "0.1.0".to_owned(),
            pid: 42,
            uptime_ms: 125_000,
            outside: "eth0".to_owned(),
            inside: vec!["tun0".to_owned()],
            external: vec!["198.51.100.7".parse().unwrap()],
            shared: true,
            guard: "tcx".to_owned(),
            preset: None,
            behavior: written(&Behavior::default()),
            mappings: 1,
            sessions: 2,
            subscribers: 0,
            port_blocks: 0,
            resting_ports: 0,
            fast_path: None,
        };
        State {
            status: Some(status),
            counted: Some(counted),
            mappings: Some(vec![mapping]),
            ..State::default()
        }
    }

    #[test]
    fn people_read_a_page() {
        let mut page = Vec::new();
        state().write(&mut page, false).unwrap();
        let expected = "\
natbox 0.1.0, process 42, up 2m5s
  behaves as  rfc (EIM × ADF, ports random, hairpin external)
  inside      tun0
  outside     eth0: 198.51.100.7, shared with the host (guard: tcx)
  state       1 mapping, 2 sessions

PROTO  INSIDE          → EXTERNAL            FOR REMOTE  SESSIONS  AGE   EXPIRES IN
udp    10.64.0.2:4242  → 198.51.100.7:61001  any         2         1m1s  4m59s

outbound          1200 packets, 64.0 kB
inbound           0 packets, 0 B

DROPPED  REASON      WHAT IT MEANS
3        no-mapping  No mapping has this external endpoint.
";
        assert_eq!(String::from_utf8(page).unwrap(), expected);
    }

    #[test]
    fn programs_read_one_document() {
        let json = serde_json::to_value(state()).unwrap();
        assert_eq!(json["mappings"][0]["external"], "198.51.100.7:61001");
        assert_eq!(json["status"]["behavior"]["mapping"], "endpoint-independent");
        assert_eq!(
            (&json["counters"]["outbound-packets"], &json["drops"]["no-mapping"]),
            (&1200.into(), &3.into())
        );
        assert!(json.get("sessions").is_none());
    }
}
