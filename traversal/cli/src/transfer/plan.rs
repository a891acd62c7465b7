//! Looks at what is in the receiver's folder already, and asks the sender for the rest: in a thread of its own, for
//! hashing takes time.

use std::{
    fs::File,
    io::{self, Read, Seek},
    sync::Arc,
};

use anyhow::Result;

use super::{
    folder::{self, Folder, Present},
    ledger::{Check, Ledger, Outcome},
    name,
    wire::{Entry, Hash, Kind, Why},
};

/// Bytes that are hashed between two looks at whether that is still wanted.
const STEP: usize = 1 << 20;

/// What to do about one file.
enum Plan {
    /// Ask for all of it.
    All,
    /// Compare the first bytes of this file, by their hash.
    Check(Check, File),
    Present,
    Fail(Why),
}

/// Makes the folders and asks for the files, in the order of the list.
///
/// # Errors
/// The transfer is over.
pub(crate) fn run(mut folder: Folder, ledger: &Arc<Ledger>, overwrite: bool) -> Result<()> {
    for (index, entry) in (0..).zip(&ledger.manifest.entries) {
        let Kind::File(about) = entry.kind else {
            if let Err(error) = folder.make(&entry.path) {
                ledger.no_folder(index, folder::why(&error))?;
            }
            continue;
        };
        let plan = look(&mut folder, entry, about.size, overwrite);
        match plan.unwrap_or_else(|error| Plan::Fail(folder::why(&error))) {
            Plan::All => ledger.ask(index)?,
            Plan::Present => ledger.over(index, Outcome::Present)?,
            Plan::Fail(why) => ledger.over(index, Outcome::Failed(why))?,
            Plan::Check(check, mut file) => {
                let bytes = check.bytes;
                // The sender hashes at the same time.
                ledger.check(index, check)?;
                match hash(&mut file, bytes, || ledger.is_closed()) {
                    Ok(hash) => ledger.ours(index, hash)?,
                    Err(error) => ledger.unread(index, folder::why(&error))?,
                }
            }
        }
    }
    ledger.planned()
}

fn look(folder: &mut Folder, entry: &Entry, size: u64, overwrite: bool) -> io::Result<Plan> {
    let (dir, (_, name)) = (folder.parent_of(&entry.path)?, name::split(&entry.path));
    let present = folder::look(&dir, name)?;
    if !overwrite {
        match present {
            Present::Nothing => {}
            Present::File(0) if size == 0 => return Ok(Plan::Present),
            Present::File(length) if length == size => {
                let check = Check { bytes: size, partial: None, or_all: false };
                return Ok(Plan::Check(check, folder::open(&dir, name)?));
            }
            Present::File(_) | Present::Other => return Ok(Plan::Fail(Why::Exists)),
        }
    }
    let partial = name::partial(&entry.path);
    if let Present::File(bytes @ 1..) = folder::look(&dir, &partial)?
        && bytes <= size
    {
        let file = folder::open_partial(&dir, &partial)?;
        let check = Check { bytes, partial: Some(file.try_clone()?), or_all: true };
        return Ok(Plan::Check(check, file));
    }
    match present {
        Present::File(0) if size == 0 => Ok(Plan::Present),
        Present::File(length) if length == size => {
            let check = Check { bytes: size, partial: None, or_all: true };
            Ok(Plan::Check(check, folder::open(&dir, name)?))
        }
        _ => Ok(Plan::All),
    }
}

/// The hash of a file's first bytes.
///
/// # Errors
/// It has fewer, cannot be read, or `is_over`.
pub(crate) fn hash(file: &mut File, bytes: u64, is_over: impl Fn() -> bool) -> io::Result<Hash> {
    file.rewind()?;
    let (mut hasher, mut left) = (blake3::Hasher::new(), bytes);
    let mut buffer = vec![0; STEP.min(usize::try_from(bytes).unwrap_or(STEP))];
    while left > 0 {
        if is_over() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let most = buffer.len().min(usize::try_from(left).unwrap_or(STEP));
        file.read_exact(&mut buffer[..most])?;
        hasher.update(&buffer[..most]);
        left -= most as u64;
    }
    Ok(hasher.finalize().into())
}
