//! Reading requests, asking the loop, writing lines: one client's thread.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    net::{IpAddr, Ipv4Addr},
    os::{fd::AsFd, unix::net::UnixStream},
    process,
    time::Duration,
};

use natbox_core::{Endpoint, Inside, MappingRequest, Selection, Time, behavior::Behavior, preset::Preset};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

use super::{
    inbox::{Gone, Subscription},
    job::{Ask, Reply, Show, Snapshot},
    line::{Counted, Done, Happened, Line, Mapping, Session, Status, written},
    request::{Request, VERSION, protocol},
    server::{Shared, locked},
    subscriber::Holdings,
};
use crate::{
    guard::host_addresses,
    settings::{Forward, SpecError},
};

/// The longest request that is read: some hundred times the longest that makes sense.
const REQUEST: u64 = 1 << 16;
/// How often a stream of events looks whether its client is still there.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// Reads requests and answers them until the client hangs up.
pub(super) fn serve(stream: &UnixStream, shared: &Shared) -> io::Result<()> {
    let mut requests = BufReader::new(stream);
    let mut lines = BufWriter::with_capacity(1 << 16, stream);
    let mut request = Vec::new();
    loop {
        request.clear();
        if (&mut requests).take(REQUEST).read_until(b'\n', &mut request)? == 0 {
            return Ok(());
        }
        let last = if request.ends_with(b"\n") || (request.len() as u64) < REQUEST {
            match read(&request) {
                Ok(request) => shared.answer(request, stream, &mut lines)?,
                Err(message) => Line::Error { message },
            }
        } else {
            let message = format!("a request is one line of at most {REQUEST} bytes");
            write_line(&mut lines, &Line::Error { message })?;
            return lines.flush();
        };
        write_line(&mut lines, &last)?;
        lines.flush()?;
    }
}

pub(super) fn write_line(to: &mut impl Write, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *to, line)?;
    to.write_all(b"\n")
}

/// Reads a request and its version.
fn read(line: &[u8]) -> Result<Request, String> {
    let text = str::from_utf8(line).map_err(|error| {
        format!(
            "not UTF-8: a request is one line of JSON, and byte {} is of no character",
            error.valid_up_to() + 1
        )
    })?;
    let mut value: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let version = value.as_object_mut().and_then(|object| object.remove("natbox"));
    match version.as_ref().and_then(Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => {}
        Some(other) => {
            return Err(format!("this natbox speaks version {VERSION} of the protocol, not {other}"));
        }
        None => return Err(format!("a request is an object with \"natbox\":{VERSION} and a \"request\"")),
    }
    serde_json::from_value(value).map_err(|error| format!("not a request: {error}"))
}

/// What ends an answer: done, or why not.
type Answer = Result<Done, String>;

impl Shared {
    /// Answers with any number of lines, written here, and a last one, returned.
    fn answer(&self, request: Request, stream: &UnixStream, lines: &mut impl Write) -> io::Result<Line> {
        let answer = match request {
            Request::Show { mappings, sessions, ports, subscribers, only } => {
                let show = |selection| Show { mappings, sessions, ports, subscribers, selection };
                match only.selection().and_then(|selection| self.ask(Ask::Show(show(selection)))) {
                    Ok(Reply::Shown(snapshot)) => {
                        self.write_snapshot(*snapshot, lines)?;
                        Ok(Done::default())
                    }
                    other => other.and_then(unexpected),
                }
            }
            Request::Events { blocks } => match self.ask(Ask::Subscribe { blocks }) {
                Ok(Reply::Subscribed(subscription)) => return stream_events(&subscription, stream, lines),
                other => other.and_then(unexpected),
            },
            request => self.change(request),
        };
        Ok(match answer {
            Ok(done) => Line::Done(done),
            Err(message) => Line::Error { message },
        })
    }

    fn ask(&self, ask: Ask) -> Result<Reply, String> {
        match self.handle.ask(ask) {
            Ok(Reply::Refused(why)) => Err(why),
            Ok(reply) => Ok(reply),
            Err(gone @ Gone) => Err(gone.to_string()),
        }
    }

    fn change(&self, request: Request) -> Answer {
        let ask = match request {
            Request::Flush { only, forwards } => {
                Ask::Flush(Selection { statics: forwards, ..only.selection()? })
            }
            Request::Set { nat, axes } => return self.set(nat, axes),
            Request::Rebind { external } => return self.rebind(external),
            Request::ForwardAdd { forward } => Ask::AddForward(self.forward(&forward)?),
            Request::ForwardRemove { protocol: name, port } => Ask::RemoveForward(protocol(&name)?, port),
            Request::Show { .. } | Request::Events { .. } => return Err("nothing to change".to_owned()),
        };
        match self.ask(ask)? {
            Reply::Flushed(removed) => Ok(Done { removed: Some(removed as u64), ..Done::default() }),
            Reply::Forwarded(external) => Ok(Done { external: Some(external.0.into()), ..Done::default() }),
            Reply::Removed => Ok(Done { removed: Some(1), ..Done::default() }),
            other => unexpected(other),
        }
    }

    fn set(&self, nat: Option<String>, axes: BTreeMap<String, String>) -> Answer {
        let base = match &nat {
            None => None,
            Some(name) => {
                let preset = Preset::by_name(name).ok_or_else(|| format!("there is no preset {name:?}"))?;
                Some(Box::new(preset.behavior()))
            }
        };
        // Checked before the loop is troubled with it.
        let mut trial = Behavior::default();
        for (axis, value) in &axes {
            trial.set(axis, value).map_err(|error| error.to_string())?;
        }
        match self.ask(Ask::Set { base, axes })? {
            Reply::Set(behavior) => {
                let mut preset = locked(&self.preset);
                if nat.is_some() {
                    *preset = nat;
                }
                Ok(Done { preset: preset.clone(), behavior: Some(written(&behavior)), ..Done::default() })
            }
            other => unexpected(other),
        }
    }

    fn rebind(&self, external: Vec<Ipv4Addr>) -> Answer {
        if self.about.shared && external.iter().any(|addr| !self.about.external.contains(addr)) {
            let ours: Vec<_> = self.about.external.iter().map(Ipv4Addr::to_string).collect();
            return Err(format!(
                "natbox shares {} with the host ({}): start it with --external to give it addresses of its own",
                ours.join(", "),
                self.about.outside
            ));
        }
        if !self.about.shared {
            let host =
                host_addresses().map_err(|error| format!("cannot list this host's addresses: {error}"))?;
            if let Some(address) = external.iter().find(|address| host.contains(address)) {
                return Err(format!(
                    "{address} is the host's own: natbox was started with addresses of its own"
                ));
            }
        }
        match self.ask(Ask::Rebind(external))? {
            Reply::Rebound(removed) => Ok(Done { removed: Some(removed as u64), ..Done::default() }),
            other => unexpected(other),
        }
    }

    fn forward(&self, text: &str) -> Result<MappingRequest, String> {
        let forward: Forward = text.parse().map_err(|error: SpecError| error.to_string())?;
        let port = self.about.inside_port(&forward)?;
        let (addr, inside_port) = forward.inside;
        Ok(MappingRequest {
            protocol: forward.protocol,
            inside: Inside { port, endpoint: Endpoint::new(IpAddr::V4(addr), inside_port) },
            address: None,
            port: forward.external_port,
            until: Time::NEVER,
        })
    }

    fn status(&self, snapshot: &Snapshot) -> Status {
        Status {
            natbox: VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: process::id(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            outside: self.about.outside.clone(),
            inside: self.about.inside.iter().map(|(name, _)| name.clone()).collect(),
            external: snapshot.external.clone(),
            shared: self.about.shared,
            guard: self.about.guard.clone(),
            preset: locked(&self.preset).clone(),
            behavior: written(&snapshot.behavior),
            mappings: snapshot.mapping_count as u64,
            sessions: snapshot.session_count as u64,
            subscribers: snapshot.subscriber_count as u64,
            port_blocks: snapshot.block_count as u64,
            resting_ports: snapshot.resting_count as u64,
            fast_path: snapshot.fast_path,
        }
    }

    /// Tables are written in an order that does not depend on hashes.
    fn write_snapshot(&self, mut snapshot: Snapshot, lines: &mut impl Write) -> io::Result<()> {
        write_line(lines, &Line::Status(self.status(&snapshot)))?;
        write_line(lines, &Line::Counters(Counted::new(&snapshot.counters)))?;
        snapshot.mappings.sort_unstable_by_key(|m| (m.inside, m.protocol, m.external, m.remote));
        for mapping in &snapshot.mappings {
            write_line(lines, &Line::Mapping(Mapping::new(mapping, snapshot.now)))?;
        }
        snapshot.sessions.sort_unstable_by_key(|s| (s.inside, s.protocol, s.external, s.remote));
        for session in &snapshot.sessions {
            write_line(lines, &Line::Session(Session::new(session, snapshot.now)))?;
        }
        for subscriber in snapshot.holdings.map(Holdings::by_use).unwrap_or_default() {
            write_line(lines, &Line::Subscriber(subscriber))?;
        }
        for port in snapshot.ports {
            write_line(lines, &Line::Port(port.into()))?;
        }
        Ok(())
    }
}

fn unexpected<T>(_: Reply) -> Result<T, String> {
    Err("the loop answered another question".to_owned())
}

/// Says that the subscription stands, then writes events until the client hangs up or natbox stops.
fn stream_events(events: &Subscription, stream: &UnixStream, lines: &mut impl Write) -> io::Result<Line> {
    write_line(lines, &Line::Done(Done::default()))?;
    loop {
        // What has been written goes out as soon as there is nothing to add to it.
        let event = match events.next(Duration::ZERO) {
            Ok(None) => {
                lines.flush()?;
                events.next(HEARTBEAT)
            }
            other => other,
        };
        match event {
            Ok(Some(event)) => write_line(lines, &Line::Event(Happened::new(event)))?,
            Ok(None) if hung_up(stream)? => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(None) => {}
            Err(gone @ Gone) => return Ok(Line::Error { message: gone.to_string() }),
        }
        let lost = events.take_lost();
        if lost > 0 {
            write_line(lines, &Line::Event(Happened::lost(lost)))?;
        }
    }
}

/// Whether the client has closed its end. A client that writes while it is being told events has hung up as well: it
/// would wait for an answer that never comes.
fn hung_up(stream: &UnixStream) -> io::Result<bool> {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
}
