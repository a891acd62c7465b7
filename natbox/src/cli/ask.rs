//! `natbox show` and the others that talk to a running natbox.

use std::{
    io::{self, IsTerminal, Write, stdout},
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::ArgMatches;
use natbox::{
    control::{Client, Done, Happened, Only, Request},
    output::{State, describe},
};
use natbox_core::Behavior;
use serde_json::json;

use super::{
    args::{EventsArgs, FlushArgs, ForwardAsk, OnlyArgs, RebindArgs, ShowArgs, Which},
    axis,
};

impl From<OnlyArgs> for Only {
    fn from(args: OnlyArgs) -> Only {
        Only { protocol: args.protocol, host: args.host.map(IpAddr::V4), port: args.port }
    }
}

fn connect(which: &Which) -> Result<Client> {
    Ok(Client::connect(which.control.as_deref())?)
}

pub(crate) fn show(args: ShowArgs) -> Result<()> {
    let mut client = connect(&args.which)?;
    let (sessions, ports, subscribers) = (args.sessions, args.ports, args.subscribers);
    let mappings = !args.counters && !subscribers;
    let request = Request::Show { mappings, sessions, ports, subscribers, only: args.only.into() };
    loop {
        // What was asked for is there even when it is empty.
        let mut state = State {
            mappings: mappings.then(Vec::new),
            sessions: sessions.then(Vec::new),
            ports: ports.then(Vec::new),
            subscribers: subscribers.then(Vec::new),
            ..State::default()
        };
        client.request(&request, |line| state.take(line))?;
        let mut page = Vec::new();
        if args.which.json {
            serde_json::to_writer(&mut page, &state)?;
            page.push(b'\n');
        } else {
            state.write(&mut page, args.behavior)?;
        }
        if !args.watch {
            return print(&page);
        }
        if stdout().is_terminal() {
            // Home, the page, and nothing of the longer one before it.
            print(b"\x1b[H\x1b[2J")?;
        }
        print(&page)?;
        thread::sleep(Duration::from_secs(1));
    }
}

pub(crate) fn flush(args: FlushArgs) -> Result<()> {
    let request = Request::Flush { only: args.only.into(), forwards: args.forwards };
    let done = connect(&args.which)?.request(&request, |_| ())?;
    report(&args.which, &done, &removed(&done))
}

pub(crate) fn set(which: &Which, matches: &ArgMatches) -> Result<()> {
    let (nat, axes) = axis::given(matches);
    anyhow::ensure!(
        nat.is_some() || !axes.is_empty(),
        "nothing to set: give --nat PRESET or an axis, see natbox set --help"
    );
    let done = connect(which)?.request(&Request::Set { nat, axes }, |_| ())?;
    let mut behavior = Behavior::default();
    for (axis, value) in done.behavior.iter().flatten() {
        behavior
            .set(axis, value)
            .context("natbox answered with a behaviour that this version does not know")?;
    }
    report(which, &done, &format!("from now on: {}", describe(&behavior, done.preset.as_deref())))
}

pub(crate) fn rebind(args: RebindArgs) -> Result<()> {
    let done = connect(&args.which)?.request(&Request::Rebind { external: args.external }, |_| ())?;
    report(&args.which, &done, &removed(&done))
}

pub(crate) fn forward(ask: ForwardAsk) -> Result<()> {
    match ask {
        ForwardAsk::Add { forward, which } => {
            let request = Request::ForwardAdd { forward: forward.to_string() };
            let done = connect(&which)?.request(&request, |_| ())?;
            let (addr, port) = forward.inside;
            let external = done.external.map_or_else(String::new, |external| external.to_string());
            report(&which, &done, &format!("{} {external} → {addr}:{port}", forward.protocol))
        }
        ForwardAsk::Remove { forward: (protocol, port), which } => {
            let done = connect(&which)?.request(&Request::ForwardRemove { protocol, port }, |_| ())?;
            report(&which, &done, "forward removed")
        }
    }
}

pub(crate) fn events(args: EventsArgs) -> Result<()> {
    let mut client = connect(&args.which)?;
    let mut outcome = Ok(());
    client.events(args.blocks, |event| {
        let line = match args.which.json {
            true => serde_json::to_string(&event).unwrap_or_default(),
            false => sentence(&event),
        };
        outcome = print(format!("{line}\n").as_bytes());
        outcome.is_ok()
    })?;
    outcome
}

/// `created  udp  10.64.0.2:4242 → 198.51.100.7:61001`, or `assigned 198.51.100.7:61440-61951 of 10.64.0.2/32`.
fn sentence(event: &Happened) -> String {
    let endpoint = |endpoint: Option<SocketAddr>| endpoint.map_or("?".to_owned(), |addr| addr.to_string());
    let (inside, protocol) = (endpoint(event.inside), event.protocol.as_deref().unwrap_or("?"));
    let why = event.why.as_deref().unwrap_or("?");
    if let (Some(subscriber), Some(address), Some(ports)) = (&event.subscriber, event.address, &event.ports) {
        return format!("{:<8} {address}:{ports} of {subscriber}", event.event);
    }
    match event.event.as_str() {
        "lost" => format!("… {} events lost: they came faster than they were read", event.count.unwrap_or(0)),
        "refused" => format!("refused  {protocol:<4} {inside} to {}: {why}", endpoint(event.remote)),
        "ended" => format!("ended    {protocol:<4} {inside} → {} ({why})", endpoint(event.external)),
        other => format!("{other:<8} {protocol:<4} {inside} → {}", endpoint(event.external)),
    }
}

fn removed(done: &Done) -> String {
    match done.removed.unwrap_or(0) {
        1 => "1 mapping removed".to_owned(),
        count => format!("{count} mappings removed"),
    }
}

fn report(which: &Which, done: &Done, sentence: &str) -> Result<()> {
    match which.json {
        true => print(format!("{}\n", json!(done)).as_bytes()),
        false => print(format!("{sentence}\n").as_bytes()),
    }
}

/// Writes to standard output. A reader that has seen enough (`| head`) comes back as an error that [`quiet`] knows.
pub(crate) fn print(bytes: &[u8]) -> Result<()> {
    let mut out = stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).context("cannot write to standard output")
}

/// Whether `error` only says that the reader of our output went away.
pub(crate) fn quiet(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}
