//! What is told while a connection lives: one line for each thing that happens, on standard error.

use std::{future::Future, io::Write, time::Duration};

use serde_json::{Value, json};
use traversal::{Connection, NatProfile, NotDirect, PathEvent, PeerId};

use crate::{args::TellArgs, live, out::harmless};

/// Tells people in words, programs in JSON, or nobody.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Status(TellArgs);

impl Status {
    pub(crate) fn new(args: TellArgs) -> Status {
        Status(args)
    }

    /// Tells one thing: `words` for people; for programs an object with `event` and `fields`.
    pub(crate) fn tell(self, words: impl AsRef<str>, event: &str, mut fields: Value) {
        if self.0.quiet {
            return;
        }
        let line = if self.0.json {
            fields["event"] = event.into();
            fields.to_string()
        } else {
            harmless(words.as_ref())
        };
        // Whoever closed standard error wants to hear nothing.
        live::above(|| drop(writeln!(std::io::stderr(), "{line}")));
    }

    /// Tells programs only.
    pub(crate) fn tell_programs(self, event: &str, fields: Value) {
        if self.0.json {
            self.tell("", event, fields);
        }
    }

    /// Somebody reads along.
    pub(crate) fn is_for_people(self) -> bool {
        !self.0.quiet && !self.0.json
    }

    /// Tells of the connection's paths for as long as `work` goes on.
    pub(crate) async fn while_doing<T>(self, connection: &Connection, work: impl Future<Output = T>) -> T {
        let mut events = connection.path_events();
        let path = connection.path();
        self.tell(
            format!("connected to {}: {path}", connection.peer_id()),
            "connected",
            json!({
                "peer": connection.peer_id().to_string(), "path": path,
            }),
        );
        let telling = async {
            let mut why = None;
            while let Some(event) = events.next().await {
                self.path(connection.peer_id(), &event, &mut why);
            }
            // Nothing more is told of a connection that is over; the work ends by itself.
            std::future::pending::<()>().await
        };
        tokio::select! {
            biased;
            result = work => result,
            () = telling => unreachable!("telling never ends"),
        }
    }

    /// `why`: the pair of NATs that a missing direct path was last blamed on. It is explained once.
    fn path(self, peer: PeerId, event: &PathEvent, why: &mut Option<(NatProfile, NatProfile)>) {
        let words = match event {
            PathEvent::Switched { from, to, .. } => format!("{} → {to}", from.kind),
            PathEvent::NoDirectPath { ours, theirs, same_nat, retry_in } => {
                let explained = why.replace((*ours, *theirs)) == Some((*ours, *theirs));
                let next = format!("next attempt in {:.0} s", retry_in.as_secs_f64().ceil());
                if explained {
                    format!("still no direct path, {next}")
                } else {
                    let (ours, theirs) = (*ours, Some(*theirs));
                    format!(
                        "{}; {next}",
                        NotDirect { peer, ours, theirs, same_nat: *same_nat, after: Duration::ZERO }
                    )
                }
            }
            _ if !self.0.json => return,
            _ => String::new(),
        };
        self.tell(words, "path", json!({ "path": event }));
    }
}
