//! The folder that files are received into. Nothing outside it is ever reached: every step down is made from an open folder,
//! by one checked component, and never through a link, whoever puts one there, and when.

use std::{
    fs::File,
    io::{self, ErrorKind},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result};
use cap_fs_ext::{DirExt, FollowSymlinks, OpenOptionsFollowExt};
use cap_std::{
    ambient_authority,
    fs::{Dir, OpenOptions},
};

use super::{
    name,
    wire::{Why, brief},
};

/// An open folder, and the one below it that was used last.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    root: Arc<Dir>,
    last: (String, Arc<Dir>),
}

/// What has the name of a file that is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Present {
    Nothing,
    /// A file of so many bytes.
    File(u64),
    /// Something else: a folder, a link, a device.
    Other,
}

impl Folder {
    /// Opens it; makes it, if it is not there.
    pub(crate) fn open(path: &Path) -> Result<Folder> {
        std::fs::create_dir_all(path)
            .with_context(|| format!("cannot make the folder {}", path.display()))?;
        let root = Dir::open_ambient_dir(path, ambient_authority());
        let root = Arc::new(root.with_context(|| format!("cannot open the folder {}", path.display()))?);
        may_write(&root).with_context(|| {
            format!("cannot write in the folder {}: name another, or have its owner allow it", path.display())
        })?;
        Ok(Folder { last: (String::new(), root.clone()), root })
    }

    /// The folder that a path is in.
    pub(crate) fn parent_of(&mut self, path: &str) -> io::Result<Arc<Dir>> {
        let (folder, _) = name::split(path);
        if folder.is_empty() {
            return Ok(self.root.clone());
        }
        if self.last.0 != folder {
            let mut dir = self.root.clone();
            for component in folder.split('/') {
                dir = Arc::new(dir.open_dir_nofollow(component)?);
            }
            self.last = (folder.to_owned(), dir);
        }
        Ok(self.last.1.clone())
    }

    /// Makes a folder in one that is there. One that is there already will do.
    pub(crate) fn make(&mut self, path: &str) -> io::Result<()> {
        let (parent, (_, name)) = (self.parent_of(path)?, name::split(path));
        match parent.create_dir(name) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        self.last = (path.to_owned(), Arc::new(parent.open_dir_nofollow(name)?));
        Ok(())
    }
}

/// Whether files can be made here: better said before anybody sends some.
#[cfg(unix)]
fn may_write(dir: &Dir) -> io::Result<()> {
    use rustix::fs::{Access, AtFlags, accessat};
    Ok(accessat(dir, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)?)
}

#[cfg(not(unix))]
fn may_write(_: &Dir) -> io::Result<()> {
    Ok(())
}

/// What is at `name`, links not followed.
pub(crate) fn look(dir: &Dir, name: &str) -> io::Result<Present> {
    match dir.symlink_metadata(name) {
        Ok(about) if about.is_file() => Ok(Present::File(about.len())),
        Ok(_) => Ok(Present::Other),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Present::Nothing),
        Err(error) => Err(error),
    }
}

/// Opens a file for reading.
pub(crate) fn open(dir: &Dir, name: &str) -> io::Result<File> {
    opened(dir, name, OpenOptions::new().read(true))
}

/// Opens the partial of a file, or makes it, and takes it for this process.
pub(crate) fn open_partial(dir: &Dir, name: &str) -> io::Result<File> {
    let file = match opened(dir, name, OpenOptions::new().read(true).write(true).create_new(true)) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            opened(dir, name, OpenOptions::new().read(true).write(true))?
        }
        other => other?,
    };
    file.try_lock().map_err(|error| match error {
        std::fs::TryLockError::WouldBlock => io::Error::from(ErrorKind::ResourceBusy),
        std::fs::TryLockError::Error(error) => error,
    })?;
    Ok(file)
}

fn opened(dir: &Dir, name: &str, options: &mut OpenOptions) -> io::Result<File> {
    options.follow(FollowSymlinks::No);
    #[cfg(unix)]
    {
        use cap_std::fs::OpenOptionsExt;
        // Opening a named pipe would wait for its other end.
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    }
    let file = dir.open_with(name, options)?.into_std();
    if is_alone(&file.metadata()?) { Ok(file) } else { Err(ErrorKind::AlreadyExists.into()) }
}

/// It is a file, and has no second name that may be outside.
#[cfg(unix)]
fn is_alone(about: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    about.is_file() && about.nlink() == 1
}

#[cfg(not(unix))]
fn is_alone(about: &std::fs::Metadata) -> bool {
    about.is_file()
}

/// Gives a partial its name. What has the name is kept, unless it is to be overwritten.
pub(crate) fn place(dir: &Dir, partial: &str, name: &str, overwrite: bool) -> io::Result<()> {
    if overwrite { dir.rename(partial, dir, name) } else { rename_to_nothing(dir, partial, name) }
}

#[cfg(any(target_os = "linux", target_vendor = "apple"))]
fn rename_to_nothing(dir: &Dir, partial: &str, name: &str) -> io::Result<()> {
    use rustix::{
        fs::{RenameFlags, renameat_with},
        io::Errno,
    };
    match renameat_with(dir, partial, dir, name, RenameFlags::NOREPLACE) {
        // Not every file system can.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => link_to_nothing(dir, partial, name),
        done => Ok(done?),
    }
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn rename_to_nothing(dir: &Dir, partial: &str, name: &str) -> io::Result<()> {
    link_to_nothing(dir, partial, name)
}

fn link_to_nothing(dir: &Dir, partial: &str, name: &str) -> io::Result<()> {
    dir.hard_link(partial, dir, name)?;
    dir.remove_file(partial)
}

/// What an error of this file system's means to the two sides.
pub(crate) fn why(error: &io::Error) -> Why {
    match error.kind() {
        ErrorKind::AlreadyExists | ErrorKind::IsADirectory | ErrorKind::DirectoryNotEmpty => Why::Exists,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Why::Denied,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Why::DiskFull,
        ErrorKind::NotADirectory => Why::Blocked,
        ErrorKind::ResourceBusy => Why::InUse,
        _ if is_loop(error) => Why::Blocked,
        _ => Why::Other(brief(error)),
    }
}

/// A link was met where none is followed.
fn is_loop(error: &io::Error) -> bool {
    #[cfg(unix)]
    return error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    #[cfg(not(unix))]
    return error.kind() == ErrorKind::InvalidFilename;
}

#[cfg(all(test, unix))]
#[path = "folder_tests.rs"]
mod tests;
