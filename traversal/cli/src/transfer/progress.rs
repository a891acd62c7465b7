//! How far a transfer is: counted by whoever does the work, shown by one task.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::time::interval;
use traversal::Connection;

use crate::{live, status::Status};

/// From one look to the next, for people.
const LOOK: Duration = Duration::from_millis(100);

/// Looks between two events, for programs.
const LOOKS: u32 = 10;

/// Counters of one transfer.
#[derive(Debug)]
pub(crate) struct Progress {
    bytes: u64,
    files: u32,
    /// Bytes that are where they belong: transferred now, or there already.
    bytes_done: AtomicU64,
    /// Bytes of files that were transferred now.
    moved: AtomicU64,
    stored: AtomicU32,
    present: AtomicU32,
    failed: AtomicU32,
    /// Of these.
    failed_folders: AtomicU32,
    /// The first failure, as it is told.
    first: Mutex<Option<String>>,
}

impl Progress {
    /// Of so many files with so many bytes.
    pub(crate) fn new(files: u32, bytes: u64) -> Progress {
        Progress {
            bytes,
            files,
            bytes_done: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            stored: AtomicU32::new(0),
            present: AtomicU32::new(0),
            failed: AtomicU32::new(0),
            failed_folders: AtomicU32::new(0),
            first: Mutex::new(None),
        }
    }

    /// Bytes have been transferred.
    pub(crate) fn moved(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Relaxed);
        self.bytes_done.fetch_add(bytes, Relaxed);
    }

    /// Bytes need not be transferred: they are there.
    pub(crate) fn spared(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn stored(&self, files: u32) {
        self.stored.fetch_add(files, Relaxed);
    }

    pub(crate) fn present(&self, bytes: u64) {
        self.spared(bytes);
        self.present.fetch_add(1, Relaxed);
    }

    /// `line`: what is told of it.
    pub(crate) fn failed(&self, line: String, is_file: bool) {
        self.failed.fetch_add(1, Relaxed);
        self.failed_folders.fetch_add(u32::from(!is_file), Relaxed);
        if let Ok(mut first) = self.first.lock() {
            first.get_or_insert(line);
        }
    }

    /// Every file is over: what has neither failed nor been there is stored.
    pub(crate) fn settle(&self) {
        let [present, failed, folders] =
            [&self.present, &self.failed, &self.failed_folders].map(|count| count.load(Relaxed));
        let others = present + failed.saturating_sub(folders);
        self.stored.store(self.files.saturating_sub(others), Relaxed);
    }

    /// How many files and folders have failed, and what was told of the first one.
    pub(crate) fn failures(&self) -> Option<(u32, String)> {
        let failed = self.failed.load(Relaxed);
        let first = self.first.lock().ok().and_then(|first| first.clone());
        (failed > 0).then(|| (failed, first.unwrap_or_default()))
    }

    /// Bytes of files that were transferred now.
    pub(crate) fn bytes_moved(&self) -> u64 {
        self.moved.load(Relaxed)
    }

    /// In words and in fields: what has come of it.
    pub(crate) fn summary(&self, verb: &str) -> (String, Value) {
        let [stored, present, failed] =
            [&self.stored, &self.present, &self.failed].map(|count| count.load(Relaxed));
        let moved = self.bytes_moved();
        let mut words = format!("{} {verb}, {}", files(stored), HumanBytes(moved));
        if present > 0 {
            words += &format!("; {} there already", files(present));
        }
        if failed > 0 {
            words += &format!("; {failed} failed");
        }
        let fields = json!({
            "files": stored, "present": present, "failed": failed, "transferred": moved, "bytes": self.bytes,
        });
        (words, fields)
    }

    /// Shows it until dropped: as a line at a terminal, as events to programs.
    pub(crate) async fn show(&self, connection: &Connection, status: Status) {
        let bar = status.is_for_people().then(|| live::Bar::show(self.bar()));
        let mut ticks = interval(LOOK);
        let (mut looks, mut before) = (0u32, (Instant::now(), 0));
        loop {
            ticks.tick().await;
            let (bytes, path) = (self.bytes_done.load(Relaxed), connection.path());
            if let Some(bar) = &bar {
                bar.0.set_position(bytes);
                bar.0.set_message(format!("{}/{} files, {}", self.files_done(), self.files, path.kind));
            }
            looks += 1;
            if looks.is_multiple_of(LOOKS) {
                let moved = self.bytes_moved();
                let rate = (moved - before.1) as f64 / before.0.elapsed().as_secs_f64();
                before = (Instant::now(), moved);
                let fields = json!({
                    "bytes": bytes, "of": self.bytes, "files": self.files_done(), "of_files": self.files,
                    "transferred": moved, "bytes_per_second": rate.round(), "path": path,
                });
                status.tell_programs("progress", fields);
            }
        }
    }

    fn files_done(&self) -> u32 {
        [&self.stored, &self.present, &self.failed].iter().map(|count| count.load(Relaxed)).sum()
    }

    fn bar(&self) -> ProgressBar {
        let template = "{wide_bar} {percent:>3} % {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(self.bytes).with_style(style)
    }
}

/// `count` files, in words.
pub(crate) fn files(count: u32) -> String {
    format!("{count} {}", if count == 1 { "file" } else { "files" })
}
