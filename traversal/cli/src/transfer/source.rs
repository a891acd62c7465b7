//! Reads what the receiver asks for, in a thread of its own: blocks of frames, ready to be sent.

use std::{
    collections::HashSet,
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc},
};

use anyhow::{Result, anyhow};
use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    list::{List, describe},
    plan,
    progress::Progress,
    wire::{About, Entry, FromSender, HEADER, Kind, Why, brief, data_header, put},
};
use crate::status::Status;

/// Bytes of a block: enough that threads seldom wait for each other, and hashing goes many bytes at a time.
const BLOCK: usize = 256 * 1024;

/// Bytes that are left in a block for it to be worth reading into.
const WORTH: usize = 16 * 1024;

/// Blocks that wait to be sent.
pub(crate) const BLOCKS: usize = 4;

/// What the receiver asks for; every index is one of the list's.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Request {
    Prefix { index: u32, bytes: u64 },
    Files { first: u32, count: u32 },
    Rest { index: u32, from: u64 },
}

/// Frames, and how many bytes and ends of files are in them.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) bytes: Bytes,
    pub(crate) payload: u64,
    pub(crate) files: u32,
}

/// Files that the receiver wants no more of.
#[derive(Debug, Default)]
pub(crate) struct Unwanted(Mutex<HashSet<u32>>);

impl Unwanted {
    pub(crate) fn add(&self, index: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(index);
    }

    fn has(&self, index: u32) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&index)
    }
}

pub(crate) struct Source {
    pub(crate) list: Arc<List>,
    pub(crate) blocks: mpsc::Sender<Block>,
    pub(crate) unwanted: Arc<Unwanted>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) status: Status,
    pub(crate) buffer: Buffer,
}

/// The block in the making.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    payload: u64,
    files: u32,
}

/// Why a file is not sent, or not to its end.
enum Fault {
    /// Told to the receiver, and to the person here.
    File(Why),
    /// Nobody takes blocks any more.
    Over,
}

impl From<Why> for Fault {
    fn from(why: Why) -> Fault {
        Fault::File(why)
    }
}

impl Source {
    /// Serves requests until there are no more to come.
    ///
    /// # Errors
    /// The transfer is over.
    pub(crate) fn run(mut self, requests: &std_mpsc::Receiver<Request>) -> Result<()> {
        loop {
            let request = match requests.try_recv() {
                Ok(request) => request,
                Err(_) => {
                    // Nothing waits for the block to be full.
                    self.flush().map_err(|_| anyhow!("the transfer is over"))?;
                    let Ok(request) = requests.recv() else { return Ok(()) };
                    request
                }
            };
            self.serve(request).map_err(|_| anyhow!("the transfer is over"))?;
        }
    }

    fn serve(&mut self, request: Request) -> Result<(), Fault> {
        match request {
            Request::Prefix { index, bytes } => self.one(index, |source, path, about| {
                let mut file = open(path, about)?;
                let hash = plan::hash(&mut file, bytes, || source.blocks.is_closed());
                let hash = hash.map_err(|error| unreadable(&error))?;
                unchanged(&file, about)?;
                source.put(&FromSender::Prefix { index, hash })
            }),
            Request::Rest { index, from } => {
                self.one(index, |source, path, about| source.file(index, path, about, from))
            }
            Request::Files { first, count } => {
                for index in first..first.saturating_add(count) {
                    self.one(index, |source, path, about| source.file(index, path, about, 0))?;
                }
                Ok(())
            }
        }
    }

    /// Does `work` for a file; tells both sides if it fails.
    fn one(
        &mut self,
        index: u32,
        work: impl FnOnce(&mut Source, &Path, &About) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let list = self.list.clone();
        let Some(entry @ Entry { path, kind: Kind::File(about) }) = list.entries.get(index as usize) else {
            return Ok(());
        };
        let why = match work(self, &list.source(entry), about) {
            Err(Fault::File(why)) => why,
            other => return other,
        };
        if why != Why::Unwanted {
            let line = format!("{path}: {why}");
            self.status.tell(&line, "failed", json!({ "path": path, "why": why.to_string() }));
            self.progress.failed(line, true);
        }
        self.put(&FromSender::Gone { index, why })
    }

    fn file(&mut self, index: u32, path: &Path, about: &About, from: u64) -> Result<(), Fault> {
        if self.unwanted.has(index) {
            return Err(Why::Unwanted.into());
        }
        let mut file = open(path, about)?;
        if from > 0 {
            file.seek(SeekFrom::Start(from)).map_err(|error| unreadable(&error))?;
        }
        self.put(&FromSender::File { index, from })?;
        let (mut hasher, mut left) = (blake3::Hasher::new(), about.size.saturating_sub(from));
        while left > 0 {
            if self.buffer.bytes.len() + HEADER + WORTH.min(usize::try_from(left).unwrap_or(WORTH)) > BLOCK {
                self.flush()?;
                if self.unwanted.has(index) {
                    return Err(Why::Unwanted.into());
                }
            }
            let start = self.buffer.bytes.len() + HEADER;
            let wanted = (BLOCK - start).min(usize::try_from(left).unwrap_or(BLOCK));
            self.buffer.bytes.resize(start + wanted, 0);
            let read = read_full(&mut file, &mut self.buffer.bytes[start..]);
            let length = *read.as_ref().unwrap_or(&0);
            self.buffer.bytes.truncate(if length == 0 { start - HEADER } else { start + length });
            if read.map_err(|error| unreadable(&error))? < wanted {
                self.buffer.bytes.truncate(start - HEADER);
                return Err(Why::Changed.into());
            }
            self.buffer.bytes[start - HEADER..start].copy_from_slice(&data_header(length));
            hasher.update(&self.buffer.bytes[start..]);
            self.buffer.payload += length as u64;
            left -= length as u64;
        }
        unchanged(&file, about)?;
        self.buffer.files += 1;
        self.put(&FromSender::End { hash: hasher.finalize().into() })
    }

    fn put(&mut self, message: &FromSender) -> Result<(), Fault> {
        if self.buffer.bytes.len() + WORTH > BLOCK {
            self.flush()?;
        }
        put(message, &mut self.buffer.bytes).map_err(|_| Fault::Over)
    }

    fn flush(&mut self) -> Result<(), Fault> {
        let Buffer { bytes, payload, files } = std::mem::take(&mut self.buffer);
        if bytes.is_empty() {
            return Ok(());
        }
        self.buffer.bytes.reserve(BLOCK);
        let block = Block { bytes: bytes.into(), payload, files };
        self.blocks.blocking_send(block).map_err(|_| Fault::Over)
    }
}

fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Opens a file that is still what it was when it was listed.
fn open(path: &Path, about: &About) -> Result<File, Fault> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // In place of a file there may be a link by now, or a named pipe that nobody writes to.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        options.custom_flags(flags.bits().cast_signed());
    }
    let file = options.open(path).map_err(|error| unreadable(&error))?;
    unchanged(&file, about)?;
    Ok(file)
}

fn unchanged(file: &File, about: &About) -> Result<(), Fault> {
    let now = file.metadata().map_err(|error| unreadable(&error))?;
    if now.is_file() && describe(&now) == *about { Ok(()) } else { Err(Why::Changed.into()) }
}

fn unreadable(error: &io::Error) -> Fault {
    Why::Unreadable(brief(error)).into()
}
