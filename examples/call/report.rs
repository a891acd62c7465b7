//! What is told of a call: a line that changes, for people; JSON, for programs.

use std::io::{IsTerminal, Write};

use serde_json::{Value, json};

use crate::{
    compare::Comparison,
    session::{End, Status, Summary},
};

/// Seconds between two status lines where lines do not change: in a file, through a pipe.
const SELDOM: u64 = 5;

/// Where reports go: JSON and the last words to standard output, all else to standard error.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    json: bool,
    /// Standard error is a terminal, where a line can change.
    live: bool,
}

impl Report {
    pub(crate) fn new(json: bool) -> Report {
        Report { json, live: !json && std::io::stderr().is_terminal() }
    }

    /// One thing that happened: `words` for people; for programs an object with `event` and `fields`.
    pub(crate) fn event(self, words: &str, event: &str, fields: Value) {
        if self.json {
            return print(event, fields);
        }
        // Nobody may be left to read it, here and below.
        let _ = writeln!(std::io::stderr(), "{}{words}", self.start_of_line());
    }

    /// How the call goes.
    pub(crate) fn status(self, status: &Status) {
        if self.json {
            return print("status", json!(status));
        }
        let rtt = status.rtt_ms.map_or("–".to_owned(), |rtt| format!("{rtt:.0} ms"));
        let line = format!(
            "{:>2}:{:02}  {:<6} rtt {rtt}  lost {:.1} %  buffer {:.0} ms  me {}  you {}",
            status.seconds / 60,
            status.seconds % 60,
            status.route.path,
            status.lost_percent,
            status.depth_ms,
            status.speaking,
            status.hearing,
        );
        let mut out = std::io::stderr();
        let _ = match self.live {
            true => write!(out, "{}{line}", self.start_of_line()).and_then(|()| out.flush()),
            false if status.seconds.is_multiple_of(SELDOM) => writeln!(out, "{line}"),
            false => Ok(()),
        };
    }

    /// How the call was.
    pub(crate) fn summary(self, summary: &Summary, comparison: Option<&Comparison>) {
        if self.json {
            let mut fields = json!(summary);
            fields["comparison"] = json!(comparison);
            return print("summary", fields);
        }
        if self.live {
            let _ = writeln!(std::io::stderr());
        }
        let _ = write!(std::io::stdout(), "{}", words(summary, comparison));
    }

    fn start_of_line(self) -> &'static str {
        if self.live { "\r\x1b[K" } else { "" }
    }
}

fn print(event: &str, mut fields: Value) {
    fields["event"] = event.into();
    let _ = writeln!(std::io::stdout(), "{fields}");
}

fn words(summary: &Summary, comparison: Option<&Comparison>) -> String {
    let counts = &summary.counts;
    let end = match &summary.end {
        End::HungUp => "hung up",
        End::PeerHungUp => "the other side hung up",
        End::Broken(_) => "the call broke",
    };
    let mut words = format!(
        "{end} after {:.1} s, at the end by {} path, {} switches\n\
         sent {}, received {}, lost {} ({:.1} %), late {}, twice {}\n\
         played {}, rebuilt {}, concealed {}, left out {}; longest gap {:.0} ms\n\
         buffer {:.0} ms ({:.0} ms at most), mouth to ear about {:.0} ms\n",
        summary.seconds,
        summary.route.path,
        summary.route.switches,
        summary.sent,
        counts.received,
        counts.lost,
        summary.lost_percent,
        counts.late,
        counts.duplicates,
        counts.played,
        counts.recovered,
        counts.concealed,
        counts.skipped,
        summary.longest_gap_ms,
        summary.buffer_ms,
        summary.buffer_most_ms,
        summary.mouth_to_ear_ms,
    );
    if let Some(comparison) = comparison {
        words += &format!(
            "against the reference: segmental SNR {:.1} dB, {:.1} % found, longest gap {} ms, {:.1} s compared\n",
            comparison.segmental_snr_db,
            comparison.found_percent,
            comparison.longest_gap_ms,
            comparison.compared_seconds,
        );
    }
    words
}
