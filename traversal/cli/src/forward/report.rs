//! What the user is told.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use indicatif::HumanBytes;
use serde_json::{Value, json};
use traversal::{Path, PeerId};

use super::{
    meter::{Figures, Meter},
    wire::{Refusal, To, Transport},
};
use crate::{live, out::harmless, status::Status};

/// Between two looks at the figures.
const LOOK: Duration = Duration::from_secs(1);
/// Refusals told in [`WINDOW`]: others can cause them as often as they like.
const TOLD: u32 = 10;
const WINDOW: Duration = Duration::from_secs(10);

/// Tells, and counts.
pub(crate) struct Report {
    pub(crate) status: Status,
    pub(crate) meter: Rc<Meter>,
    recent: RefCell<Recent>,
}

/// Refusals told lately.
struct Recent {
    since: Instant,
    told: Vec<String>,
    untold: u64,
}

impl Report {
    pub(crate) fn new(status: Status) -> Rc<Report> {
        let recent = Recent { since: Instant::now(), told: Vec::new(), untold: 0 };
        Rc::new(Report { status, meter: Rc::default(), recent: RefCell::new(recent) })
    }

    /// Something came to nothing: `words` say what and why. The same is told once in a while, and so are too many.
    pub(crate) fn refusal(&self, words: String, mut fields: Value) {
        self.meter.count(|figures| figures.refused += 1);
        let mut recent = self.recent.borrow_mut();
        if recent.since.elapsed() > WINDOW {
            (recent.since, recent.told) = (Instant::now(), Vec::new());
        }
        if recent.told.len() as u32 >= TOLD || recent.told.contains(&words) {
            recent.untold += 1;
            return;
        }
        let untold = std::mem::take(&mut recent.untold);
        let more = if untold > 0 { format!(" ({untold} more were not told)") } else { String::new() };
        fields["untold"] = untold.into();
        self.status.tell(format!("{words}{more}"), "refused", fields);
        recent.told.push(words);
    }

    /// The peer, or this side's target, would not have a connection or a flow.
    pub(crate) fn refused(
        &self,
        peer: PeerId,
        transport: Transport,
        what: &str,
        why: Refusal,
        words: String,
    ) {
        let fields = json!({
            "peer": peer.to_string(), "transport": transport.to_string(), "what": what, "why": why.code(),
        });
        self.refusal(words, fields);
    }

    /// Tells what it came to.
    pub(crate) fn done(&self) {
        let figures = self.meter.figures();
        self.status.tell(carried(&figures), "done", json!(figures));
    }

    /// Tells the figures whenever they have changed: programs as an event, a terminal as its last line.
    pub(crate) async fn follow(&self, state: impl Fn() -> (Option<Path>, usize)) {
        let mut ticks = tokio::time::interval(LOOK);
        let mut told = None;
        let bar = self.status.is_for_people().then(live::Bar::line);
        loop {
            ticks.tick().await;
            let (path, peers) = state();
            let now = (self.meter.figures(), path.map(|path| (path.kind, path.remote)), peers);
            if told.replace(now) == Some(now) {
                continue;
            }
            let mut fields = json!(now.0);
            (fields["path"], fields["peers"]) = (json!(path), peers.into());
            self.status.tell_programs("status", fields);
            if let Some(bar) = &bar {
                bar.0.set_message(harmless(&line(&now.0, path)));
            }
        }
    }
}

/// How things stand, in a line.
fn line(figures: &Figures, path: Option<Path>) -> String {
    let path = path.map_or_else(|| "not connected".to_owned(), |path| path.to_string());
    let flows = if figures.flows > 0 { format!(", {} UDP flows", figures.flows) } else { String::new() };
    format!("{path}, {} connections{flows}, {}", figures.connections, carried(figures))
}

/// What has gone through, in a line.
fn carried(figures: &Figures) -> String {
    let Figures { sent, received, refused, dropped, .. } = figures;
    let mut line = format!("{} sent, {} received", HumanBytes(*sent), HumanBytes(*received));
    for (count, what) in [(*refused, "refused"), (dropped.all(), "packets dropped")] {
        if count > 0 {
            line += &format!(", {count} {what}");
        }
    }
    line
}

/// In words for the one who wanted to go there, why a peer refuses it.
pub(crate) fn by_the_peer(transport: Transport, to: &To, why: Refusal) -> String {
    let prefix = if transport == Transport::Udp { "udp:" } else { "" };
    let what = match to {
        To::Target(target) => format!("{prefix}{target}"),
        To::Listener(_) => {
            return format!("the peer cannot reach what it has behind this port: {}", reason(why));
        }
    };
    match why {
        Refusal::NotAllowed => format!("the peer does not allow {what}: there, traverse expose {what}"),
        Refusal::NotUnderstood => {
            "the peer does not understand what it is asked: is its traverse older?".to_owned()
        }
        Refusal::TooMany => format!("the peer serves as many connections as it may: none to {what}"),
        _ => format!("the peer cannot reach {what}: {}", reason(why)),
    }
}

/// Why a target cannot be reached, or an address not be listened at.
pub(crate) const fn reason(why: Refusal) -> &'static str {
    match why {
        Refusal::NotAllowed => "it is not allowed",
        Refusal::NotUnderstood => "the request makes no sense",
        Refusal::TooMany => "too many are open",
        Refusal::NoSuchName => "its name is unknown there, or leads to an address that is not allowed",
        Refusal::Refused => "connection refused, nobody listens there",
        Refusal::Unreachable => "there is no route to it",
        Refusal::TimedOut => "it does not answer",
        Refusal::InUse => "another program listens there",
        Refusal::NoPermission => "the system does not permit it (ports below 1024 are root's)",
        Refusal::NotOurs => "the address is not that machine's",
        Refusal::Failed => "the system refuses it",
    }
}
