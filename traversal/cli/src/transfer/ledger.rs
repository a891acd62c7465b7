//! What the receiver knows of each file: asked for, checked, being written, over. Shared by the thread that plans
//! and the one that writes.
//!
//! ```text
//!              ┌──────────▶ Asked ──▶ Writing ──▶ Over
//!   Unplanned ─┤              ▲                    ▲
//!              └─▶ Checking ──┴────────────────────┘
//! ```

use std::{
    collections::HashMap,
    fs::File,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Result, anyhow};
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    manifest::Manifest,
    progress::Progress,
    wire::{About, Entry, FromReceiver, Hash, Kind, Malformed, Why},
};
use crate::status::Status;

/// Files that are being checked, or were and wait to be continued: each is an open file.
const MAX_CHECKS: usize = 128;

/// Files in one [`FromReceiver::Send`]: the sender can begin while the rest is planned.
const RUN: u32 = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unplanned,
    Checking,
    /// From this byte on.
    Asked(u64),
    Writing,
    Over,
}

/// First bytes of a file that are here: are they the sender's?
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) bytes: u64,
    /// The partial, if that is what is checked; else what has the file's name.
    pub(crate) partial: Option<File>,
    /// If they are not the sender's, the file is wanted from its beginning.
    pub(crate) or_all: bool,
}

#[derive(Debug)]
struct Checking {
    check: Check,
    ours: Option<Hash>,
    theirs: Option<Hash>,
}

/// What has become of a file.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Stored,
    /// It was there already.
    Present,
    Failed(Why),
    /// The sender cannot send it.
    Gone(Why),
}

#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) manifest: Manifest,
    pub(crate) progress: Arc<Progress>,
    status: Status,
    out: mpsc::Sender<FromReceiver>,
    inner: Mutex<Inner>,
    room: Condvar,
}

#[derive(Debug)]
struct Inner {
    states: Vec<State>,
    checks: HashMap<u32, Checking>,
    /// Partials that the sender was asked to continue.
    kept: HashMap<u32, File>,
    /// Files asked for since the last message about it.
    run: (u32, u32),
    /// Files that are not over.
    left: u32,
    is_planned: bool,
    is_closed: bool,
}

impl Ledger {
    pub(crate) fn new(
        manifest: Manifest,
        progress: Arc<Progress>,
        status: Status,
        out: mpsc::Sender<FromReceiver>,
    ) -> Ledger {
        let inner = Inner {
            states: vec![State::Unplanned; manifest.entries.len()],
            checks: HashMap::new(),
            kept: HashMap::new(),
            run: (0, 0),
            left: manifest.files,
            is_planned: false,
            is_closed: false,
        };
        Ledger { manifest, progress, status, out, inner: Mutex::new(inner), room: Condvar::new() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends under the lock, so that messages leave in the order of what they tell. Whoever takes them needs no lock.
    fn send(&self, message: FromReceiver) -> Result<()> {
        self.out.blocking_send(message).map_err(|_| anyhow!("the transfer is over"))
    }

    /// The transfer is over for whatever reason: whoever waits here, waits no longer.
    pub(crate) fn close(&self) {
        self.inner().is_closed = true;
        self.room.notify_all();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.inner().is_closed
    }

    /// Every file is here, or has failed.
    pub(crate) fn is_over(&self) -> bool {
        let inner = self.inner();
        inner.is_planned && inner.left == 0
    }

    // ---- Planning ----

    /// Asks for a file from its beginning.
    pub(crate) fn ask(&self, index: u32) -> Result<()> {
        let mut inner = self.inner();
        inner.states[index as usize] = State::Asked(0);
        if inner.run.1 == 0 {
            inner.run.0 = index;
        }
        inner.run.1 = index - inner.run.0 + 1;
        if inner.run.1 >= RUN { self.end_run(&mut inner) } else { Ok(()) }
    }

    fn end_run(&self, inner: &mut Inner) -> Result<()> {
        let (first, count) = std::mem::take(&mut inner.run);
        if count == 0 { Ok(()) } else { self.send(FromReceiver::Send { first, count }) }
    }

    /// Asks for the hash of what may be here. Waits for room.
    pub(crate) fn check(&self, index: u32, check: Check) -> Result<()> {
        let mut inner = self.inner();
        self.end_run(&mut inner)?;
        while inner.checks.len() + inner.kept.len() >= MAX_CHECKS && !inner.is_closed {
            inner = self.room.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.states[index as usize] = State::Checking;
        let message = FromReceiver::Check { index, bytes: check.bytes };
        inner.checks.insert(index, Checking { check, ours: None, theirs: None });
        self.send(message)
    }

    /// The hash of what is here.
    pub(crate) fn ours(&self, index: u32, hash: Hash) -> Result<()> {
        let mut inner = self.inner();
        // The sender may have taken the file back meanwhile.
        let Some(checking) = inner.checks.get_mut(&index) else { return Ok(()) };
        checking.ours = Some(hash);
        self.compare(inner, index)
    }

    /// What is here cannot be read.
    pub(crate) fn unread(&self, index: u32, why: Why) -> Result<()> {
        let mut inner = self.inner();
        if inner.checks.remove(&index).is_none() {
            return Ok(());
        }
        self.settle(inner, index, Outcome::Failed(why))
    }

    /// All files have been looked at.
    pub(crate) fn planned(&self) -> Result<()> {
        let mut inner = self.inner();
        self.end_run(&mut inner)?;
        inner.is_planned = true;
        if inner.left == 0 { self.send(FromReceiver::Report) } else { Ok(()) }
    }

    // ---- Writing ----

    /// The hash of what is there.
    pub(crate) fn theirs(&self, index: u32, hash: Hash) -> Result<()> {
        let mut inner = self.inner();
        let is_over = inner.states.get(index as usize) == Some(&State::Over);
        let Some(checking) = inner.checks.get_mut(&index) else {
            // It has failed here, and the sender did not know yet.
            return if is_over { Ok(()) } else { Err(Malformed("a hash that nobody has asked for").into()) };
        };
        if checking.theirs.replace(hash).is_some() {
            return Err(Malformed("a hash comes twice").into());
        }
        self.compare(inner, index)
    }

    fn compare(&self, mut inner: MutexGuard<'_, Inner>, index: u32) -> Result<()> {
        let Some(Checking { ours: Some(ours), theirs: Some(theirs), .. }) = inner.checks.get(&index) else {
            return Ok(());
        };
        let is_same = ours == theirs;
        let Some(Checking { check, .. }) = inner.checks.remove(&index) else { return Ok(()) };
        self.room.notify_all();
        let path = &self.manifest.entries[index as usize].path;
        match check.partial {
            None if is_same => self.settle(inner, index, Outcome::Present),
            None if !check.or_all => self.settle(inner, index, Outcome::Failed(Why::Exists)),
            partial => {
                let from = if is_same { check.bytes } else { 0 };
                if let Some(partial) = partial {
                    inner.kept.insert(index, partial);
                    let words = if is_same {
                        format!("{path}: goes on at byte {from}")
                    } else {
                        format!("{path}: what is here of it is not what is there now; it starts afresh")
                    };
                    self.status.tell(words, "resumed", json!({ "path": path, "from": from }));
                }
                inner.states[index as usize] = State::Asked(from);
                self.progress.spared(from);
                self.send(FromReceiver::Resume { index, from })
            }
        }
    }

    /// The sender begins with a file, at this byte: what it is, and its partial, if that is open already.
    pub(crate) fn begin(&self, index: u32, from: u64) -> Result<(&Entry, About, Option<File>), Malformed> {
        let mut inner = self.inner();
        match inner.states.get_mut(index as usize) {
            Some(state) if *state == State::Asked(from) => *state = State::Writing,
            _ => return Err(Malformed("a file that nobody has asked for")),
        }
        let kept = inner.kept.remove(&index);
        self.room.notify_all();
        match &self.manifest.entries[index as usize] {
            entry @ Entry { kind: Kind::File(about), .. } => Ok((entry, *about, kept)),
            _ => Err(Malformed("a folder with content")),
        }
    }

    /// The sender takes back a file that was asked for, checked or begun.
    pub(crate) fn gone(&self, index: u32, why: Why) -> Result<()> {
        let mut inner = self.inner();
        match inner.states.get(index as usize) {
            Some(State::Checking | State::Asked(_) | State::Writing) => {}
            // It has failed here, and the sender did not know yet.
            Some(State::Over) => return Ok(()),
            _ => return Err(Malformed("a file is taken back that nobody has asked for").into()),
        }
        inner.checks.remove(&index);
        inner.kept.remove(&index);
        self.room.notify_all();
        self.settle(inner, index, Outcome::Gone(why))
    }

    /// A file is over.
    pub(crate) fn over(&self, index: u32, outcome: Outcome) -> Result<()> {
        let mut inner = self.inner();
        self.end_run(&mut inner)?;
        self.settle(inner, index, outcome)
    }

    /// A folder cannot be made.
    pub(crate) fn no_folder(&self, index: u32, why: Why) -> Result<()> {
        let mut inner = self.inner();
        self.end_run(&mut inner)?;
        self.tell_failed(index, &why);
        self.send(FromReceiver::Failed { index, why })
    }

    /// The receiver cannot go on.
    pub(crate) fn stopped(&self, why: Why) -> Result<()> {
        let _inner = self.inner();
        self.send(FromReceiver::Stopped(why))
    }

    fn settle(&self, mut inner: MutexGuard<'_, Inner>, index: u32, outcome: Outcome) -> Result<()> {
        inner.states[index as usize] = State::Over;
        inner.left -= 1;
        match outcome {
            Outcome::Stored => self.progress.stored(1),
            Outcome::Present => {
                if let Kind::File(about) = self.manifest.entries[index as usize].kind {
                    self.progress.present(about.size);
                }
                self.send(FromReceiver::Present { index })?;
            }
            Outcome::Gone(why) => self.tell_failed(index, &why),
            Outcome::Failed(why) => {
                self.tell_failed(index, &why);
                self.send(FromReceiver::Failed { index, why })?;
            }
        }
        if inner.is_planned && inner.left == 0 { self.send(FromReceiver::Report) } else { Ok(()) }
    }

    fn tell_failed(&self, index: u32, why: &Why) {
        let Entry { path, kind } = &self.manifest.entries[index as usize];
        let line = format!("{path}: {why}");
        self.status.tell(&line, "failed", json!({ "path": path, "why": why.to_string() }));
        self.progress.failed(line, *kind != Kind::Folder);
    }
}
