//! The live line of counters on a terminal, kept by a thread of its own.

use std::{
    io::{self, IsTerminal, Write, stderr},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use natbox_core::{DropReason, Selection};

use super::table::{bytes, count, plural};
use crate::control::{Ask, Handle, Reply, Show, Snapshot};

const PERIOD: Duration = Duration::from_secs(1);
/// Back to the margin; no wrapping, so that one line stays one line on a narrow terminal.
const BEGIN: &str = "\r\x1b[?7l";
/// What was there before goes; wrapping is on again.
const END: &str = "\x1b[K\x1b[?7h";

/// The line; dropping it clears it away.
#[derive(Debug)]
pub struct StatusLine {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl StatusLine {
    /// Starts the line on standard error; `None` when that is no terminal.
    pub fn start(handle: Handle) -> io::Result<Option<StatusLine>> {
        if !stderr().is_terminal() {
            return Ok(None);
        }
        let (stop, stopped) = sync_channel(0);
        let thread =
            thread::Builder::new().name("status".to_owned()).spawn(move || show(&handle, &stopped))?;
        Ok(Some(StatusLine { stop: Some(stop), thread: Some(thread) }))
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn show(handle: &Handle, stopped: &Receiver<()>) {
    let mut before = (0, 0);
    while let Ok(Reply::Shown(snapshot)) =
        handle.ask(Ask::Show(Show { selection: Selection::default(), ..Show::default() }))
    {
        let bytes = (snapshot.counters.outbound_bytes, snapshot.counters.inbound_bytes);
        let mut terminal = stderr().lock();
        if write!(terminal, "{BEGIN}{}{END}", line(&snapshot, before))
            .and_then(|()| terminal.flush())
            .is_err()
        {
            return;
        }
        drop(terminal);
        before = bytes;
        if stopped.recv_timeout(PERIOD) != Err(RecvTimeoutError::Timeout) {
            break;
        }
    }
    let _ = write!(stderr(), "{BEGIN}{END}");
}

/// `out 1.2 k packets 3.4 MB (2.1 Mbit/s)  in …  12 mappings  3 dropped (2 filtered, 1 no-mapping)`.
fn line(snapshot: &Snapshot, (out_before, in_before): (u64, u64)) -> String {
    let counters = &snapshot.counters;
    let way = |name, packets, total: u64, before| {
        let rate = count(total.saturating_sub(before) * 8);
        let gap = if rate.contains(' ') { "" } else { " " };
        format!("{name} {} packets {} ({rate}{gap}bit/s)", count(packets), bytes(total))
    };
    let mut drops: Vec<(DropReason, u64)> = counters.drops().filter(|(_, count)| *count > 0).collect();
    drops.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let total: u64 = drops.iter().map(|(_, count)| count).sum();
    let named: Vec<_> =
        drops.iter().take(2).map(|(reason, dropped)| format!("{} {reason}", count(*dropped))).collect();
    let named = if named.is_empty() { String::new() } else { format!(" ({})", named.join(", ")) };
    format!(
        "{}  {}  {}  {} dropped{named}",
        way("out", counters.outbound_packets, counters.outbound_bytes, out_before),
        way("in", counters.inbound_packets, counters.inbound_bytes, in_before),
        plural(snapshot.mapping_count as u64, "mapping"),
        count(total),
    )
}
