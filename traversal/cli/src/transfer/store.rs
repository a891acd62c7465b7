//! Writes what arrives, in a thread of its own: into a partial beside the file's place, and under the file's name when all
//! of it is there and its hash is the sender's.

use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Error, Result};
use blake3::Hasher;
use bytes::Bytes;
use cap_std::fs::Dir;
use tokio::sync::mpsc;

use super::{
    folder::{self, Folder},
    ledger::{Ledger, Outcome},
    name,
    wire::{About, Decoder, FromSender, Malformed, Part, Why},
};

/// How files are stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// Files that have a name already are replaced.
    pub(crate) overwrite: bool,
    /// A file is on the disk before it gets its name.
    pub(crate) sync: bool,
}

/// The receiver cannot go on: nothing else will fare better.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}; make room and run it again: it goes on where it was")]
pub(crate) struct Full {
    pub(crate) path: String,
    pub(crate) why: Why,
}

pub(crate) struct Store {
    folder: Folder,
    ledger: Arc<Ledger>,
    manner: Manner,
    current: Current,
}

/// Whose the data are that arrive.
enum Current {
    Nobodys,
    File(Box<Writing>),
    /// Of a file that has failed here: the sender does not know yet, or does not care. So many bytes may still come.
    Failed {
        index: u32,
        left: u64,
    },
}

struct Writing {
    index: u32,
    about: About,
    dir: Arc<Dir>,
    name: String,
    partial: String,
    file: File,
    position: u64,
    /// Of what came in this run.
    hasher: Hasher,
}

impl Store {
    pub(crate) fn new(folder: Folder, ledger: Arc<Ledger>, manner: Manner) -> Store {
        Store { folder, ledger, manner, current: Current::Nobodys }
    }

    /// Takes blocks of the stream until it ends.
    ///
    /// # Errors
    /// [`Malformed`]; [`Full`], and the sender has been told; or the transfer is over.
    pub(crate) fn run(mut self, mut decoder: Decoder, mut blocks: mpsc::Receiver<Bytes>) -> Result<()> {
        while let Some(block) = blocks.blocking_recv() {
            let mut input = &block[..];
            while let Some(part) = decoder.next(&mut input)? {
                match part {
                    Part::Data(bytes) => self.data(bytes)?,
                    Part::Message(message) => self.message(message)?,
                }
            }
        }
        if decoder.is_between() && self.ledger.is_over() {
            return Ok(());
        }
        Err(Malformed("it ended before its last file").into())
    }

    fn message(&mut self, message: FromSender) -> Result<()> {
        match message {
            FromSender::Prefix { index, hash } => self.ledger.theirs(index, hash),
            FromSender::File { index, from } => self.begin(index, from),
            FromSender::End { hash } => self.end(&hash),
            FromSender::Gone { index, why } => self.gone(index, why),
            FromSender::Offer { .. } | FromSender::List(_) => Err(Malformed("a second list").into()),
        }
    }

    fn begin(&mut self, index: u32, from: u64) -> Result<()> {
        if !matches!(self.current, Current::Nobodys) {
            return Err(Malformed("a file begins in another").into());
        }
        let (entry, about, kept) = self.ledger.begin(index, from)?;
        let (name, partial) = (name::split(&entry.path).1.to_owned(), name::partial(&entry.path));
        let opened = self.folder.parent_of(&entry.path).and_then(|dir| {
            let mut file = match kept {
                Some(file) => file,
                None => folder::open_partial(&dir, &partial)?,
            };
            if file.metadata()?.len() > from {
                file.set_len(from)?;
            }
            file.seek(SeekFrom::Start(from))?;
            Ok((dir, file))
        });
        match opened {
            Ok((dir, file)) => {
                let hasher = Hasher::new();
                let writing = Writing { index, about, dir, name, partial, file, position: from, hasher };
                self.current = Current::File(Box::new(writing));
                Ok(())
            }
            Err(error) => self.fail(index, about.size - from, folder::why(&error)),
        }
    }

    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        let length = bytes.len() as u64;
        match &mut self.current {
            Current::Nobodys => Err(Malformed("data of no file").into()),
            Current::Failed { left, .. } => {
                *left = left.checked_sub(length).ok_or(Malformed("more bytes than a file has"))?;
                Ok(())
            }
            Current::File(writing) => {
                let left = writing.about.size - writing.position;
                let rest = left.checked_sub(length).ok_or(Malformed("more bytes than a file has"))?;
                writing.hasher.update(bytes);
                if let Err(error) = writing.file.write_all(bytes) {
                    let index = writing.index;
                    return self.fail(index, rest, folder::why(&error));
                }
                writing.position += length;
                self.ledger.progress.moved(length);
                Ok(())
            }
        }
    }

    fn end(&mut self, hash: &[u8; 32]) -> Result<()> {
        match std::mem::replace(&mut self.current, Current::Nobodys) {
            Current::Nobodys => Err(Malformed("the end of no file").into()),
            Current::Failed { .. } => Ok(()),
            Current::File(writing) if writing.position < writing.about.size => {
                Err(Malformed("fewer bytes than a file has").into())
            }
            Current::File(writing) => {
                let index = writing.index;
                if writing.hasher.finalize() != *hash {
                    writing.discard();
                    return self.ledger.over(index, Outcome::Failed(Why::Corrupt));
                }
                match writing.finish(self.manner) {
                    Ok(()) => self.ledger.over(index, Outcome::Stored),
                    Err(error) => {
                        let failed = self.fail(index, 0, folder::why(&error));
                        self.current = Current::Nobodys;
                        failed
                    }
                }
            }
        }
    }

    fn gone(&mut self, index: u32, why: Why) -> Result<()> {
        match &self.current {
            Current::File(writing) if writing.index == index => {
                // What came before it changed is no beginning of what it is now.
                if let Current::File(writing) = std::mem::replace(&mut self.current, Current::Nobodys) {
                    writing.discard();
                }
            }
            Current::Failed { index: failed, .. } if *failed == index => self.current = Current::Nobodys,
            _ => {}
        }
        self.ledger.gone(index, why)
    }

    /// A file cannot be written. A full disk is the end of all.
    fn fail(&mut self, index: u32, left: u64, why: Why) -> Result<()> {
        if why == Why::DiskFull {
            let path = self.ledger.manifest.entries[index as usize].path.clone();
            self.ledger.stopped(why.clone())?;
            return Err(Error::new(Full { path, why }));
        }
        self.current = Current::Failed { index, left };
        self.ledger.over(index, Outcome::Failed(why))
    }
}

impl Writing {
    fn finish(&self, manner: Manner) -> std::io::Result<()> {
        if let Some(time) = time(self.about.modified) {
            // A file system that keeps no such time has the file nonetheless.
            let _ = self.file.set_modified(time);
        }
        if self.about.executable {
            make_executable(&self.file)?;
        }
        if manner.sync {
            self.file.sync_all()?;
        }
        folder::place(&self.dir, &self.partial, &self.name, manner.overwrite)?;
        if manner.sync { sync_folder(&self.dir) } else { Ok(()) }
    }

    /// What is there of it is of no use.
    fn discard(&self) {
        let _ = self.dir.remove_file(&self.partial);
    }
}

/// `None`: no time that this system knows.
fn time((seconds, nanos): (i64, u32)) -> Option<SystemTime> {
    let nanos = Duration::from_nanos(u64::from(nanos).min(999_999_999));
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    base?.checked_add(nanos)
}

/// For everybody who may read it.
#[cfg(unix)]
fn make_executable(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut permissions = file.metadata()?.permissions();
    let mode = permissions.mode() & 0o777;
    permissions.set_mode(mode | ((mode & 0o444) >> 2));
    file.set_permissions(permissions)
}

#[cfg(not(unix))]
fn make_executable(_: &File) -> std::io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn sync_folder(dir: &Dir) -> std::io::Result<()> {
    dir.open(".")?.into_std().sync_all()
}

#[cfg(not(unix))]
fn sync_folder(_: &Dir) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_back() {
        let before = UNIX_EPOCH - Duration::new(5, 1);
        assert_eq!(time((-6, 999_999_999)), Some(before));
        assert_eq!(time((5, 7)), Some(UNIX_EPOCH + Duration::new(5, 7)));
        for odd in [(i64::MIN, u32::MAX), (i64::MAX, u32::MAX), (0, u32::MAX)] {
            // No panic; some systems know such times.
            let _ = time(odd);
        }
    }
}
