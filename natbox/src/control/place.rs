//! Where control sockets are, and which of them are alive.

use std::{
    env, fs,
    io::{self, ErrorKind},
    os::{
        fd::AsRawFd,
        unix::{
            fs::{DirBuilderExt, MetadataExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    sys::{
        socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
        stat::{Mode, fchmod},
    },
    unistd::Uid,
};

/// A control socket that cannot be made or found.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Another natbox answers there.
    #[error("the control socket {} belongs to a natbox that is running: give another with --control PATH", .0.display())]
    InUse(PathBuf),
    /// Something else is there.
    #[error("{} is in the way of the control socket, and is no socket: remove it or give --control PATH", .0.display())]
    InTheWay(PathBuf),
    /// The path is too long for a unix socket.
    #[error("{} is too long for a control socket (107 bytes at most)", .0.display())]
    TooLong(PathBuf),
    /// The system said no.
    #[error("cannot make the control socket {}: {error}; give another place with --control PATH", .path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// No natbox is running here.
    #[error("no running natbox found in {0}: start one, or give its socket with --control PATH")]
    NoneRunning(String),
    /// Several natboxes run.
    #[error("several natboxes run here: choose one with --control {}", .0.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" or --control "))]
    Several(Vec<PathBuf>),
    /// There is a natbox, but it is somebody else's.
    #[error("{}: not allowed to talk to this natbox; try sudo", .0.display())]
    Forbidden(PathBuf),
    /// Nobody answers at the socket that was given.
    #[error("no natbox answers at {}: {error}", .path.display())]
    NotThere {
        /// The socket.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// The mode of a directory that natbox makes.
const PRIVATE: u32 = 0o700;
/// How often a directory is made that goes away again: others start and end, but not all the time.
const TRIES: u32 = 20;

/// The directories that control sockets may be in, the preferred one first.
fn directories() -> Vec<PathBuf> {
    let mut places = Vec::new();
    if Uid::effective().is_root() {
        places.push(PathBuf::from("/run/natbox"));
    }
    if let Some(runtime) = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute())
    {
        places.push(runtime.join("natbox"));
    }
    // Where neither can be written to: a directory that is ours alone.
    places.push(env::temp_dir().join(format!("natbox-{}", Uid::effective())));
    places
}

/// Makes the control socket: at `wanted`, or in the first directory that can be written to. Only its owner may connect.
pub(super) fn listen_at(wanted: Option<&Path>) -> Result<(UnixListener, PathBuf), PlaceError> {
    if let Some(path) = wanted {
        return listen_on(path).map(|listener| (listener, path.to_owned()));
    }
    let mut refusal = None;
    for directory in directories() {
        let path = directory.join(format!("{}.sock", process::id()));
        match listen_in(&directory, &path) {
            Ok(listener) => return Ok((listener, path)),
            Err(error) => refusal = refusal.or(Some(error)),
        }
    }
    Err(refusal.unwrap_or_else(|| PlaceError::NoneRunning(String::new())))
}

/// Makes a socket in a directory of ours, and the directory if need be. Another natbox that ends may remove it in between.
fn listen_in(directory: &Path, path: &Path) -> Result<UnixListener, PlaceError> {
    let mut left = TRIES;
    loop {
        left -= 1;
        let made = make_private(directory)
            .map_err(|error| PlaceError::System { path: path.to_owned(), error })
            .and_then(|()| listen_on(path));
        match made {
            Err(PlaceError::System { error, .. }) if error.kind() == ErrorKind::NotFound && left > 0 => {}
            made => return made,
        }
    }
}

/// Removes a socket of ours, and its directory with the last one in it: if it is one of the usual places, and such as natbox
/// makes it. One that somebody else has made for it (systemd's RuntimeDirectory, say) stays.
pub(super) fn leave(path: &Path) {
    let _ = fs::remove_file(path);
    if let Some(directory) = path.parent().filter(|parent| directories().iter().any(|usual| usual == parent))
    {
        leave_directory(directory);
    }
}

fn leave_directory(directory: &Path) {
    let ours = fs::symlink_metadata(directory).is_ok_and(|found| {
        found.is_dir() && found.uid() == Uid::effective().as_raw() && found.mode() & 0o7777 == PRIVATE
    });
    if ours {
        // One that is not empty stays.
        let _ = fs::remove_dir(directory);
    }
}

/// Makes a directory that only we can use, or checks that it is one.
fn make_private(directory: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(PRIVATE).create(directory) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        made => return made,
    }
    let found = fs::symlink_metadata(directory)?;
    if !found.is_dir() || found.uid() != Uid::effective().as_raw() || found.mode() & 0o022 != 0 {
        return Err(io::Error::new(
            ErrorKind::PermissionDenied,
            format!("{} is not a directory of ours alone", directory.display()),
        ));
    }
    Ok(())
}

fn listen_on(path: &Path) -> Result<UnixListener, PlaceError> {
    match bind_private(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {}
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            return Err(PlaceError::TooLong(path.to_owned()));
        }
        made => return made.map_err(|error| PlaceError::System { path: path.to_owned(), error }),
    }
    // Left behind by a natbox that was killed, or one that runs?
    match UnixStream::connect(path) {
        Ok(_) => Err(PlaceError::InUse(path.to_owned())),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused && is_socket(path) => {
            fs::remove_file(path)
                .and_then(|()| bind_private(path))
                .map_err(|error| PlaceError::System { path: path.to_owned(), error })
        }
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            Err(PlaceError::InTheWay(path.to_owned()))
        }
        Err(error) => Err(PlaceError::System { path: path.to_owned(), error }),
    }
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

/// The socket gets its mode before it has a name, and its name only when it answers: at no moment may anybody else
/// connect, and at no moment does it look dead to those who clean up.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let unnamed = path.with_file_name(format!(".natbox-{}-{number}", process::id()));
    // Only a dead process with our id can have left it.
    let _ = fs::remove_file(&unnamed);
    let address = UnixAddr::new(&unnamed).map_err(|_| io::Error::from(ErrorKind::InvalidInput))?;
    UnixAddr::new(path).map_err(|_| io::Error::from(ErrorKind::InvalidInput))?;
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(fd.as_raw_fd(), &address)?;
    listen(&fd, Backlog::new(16)?)?;
    let named = fs::hard_link(&unnamed, path).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => io::Error::from(ErrorKind::AddrInUse),
        _ => error,
    });
    let _ = fs::remove_file(&unnamed);
    named.map(|()| UnixListener::from(fd))
}

/// Connects to the natbox at `wanted` (a path, or a process id), or to the only one that runs here. Sockets that dead
/// natboxes left behind are removed.
pub(super) fn connect(wanted: Option<&Path>) -> Result<UnixStream, PlaceError> {
    let Some(wanted) = wanted else { return connect_to_only() };
    let path = match wanted.to_str().and_then(|text| text.parse::<u32>().ok()) {
        Some(pid) => running()?.into_iter().find(|path| path.ends_with(format!("{pid}.sock"))),
        None => None,
    }
    .unwrap_or_else(|| wanted.to_owned());
    UnixStream::connect(&path).map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => PlaceError::Forbidden(path),
        _ => PlaceError::NotThere { path, error },
    })
}

fn connect_to_only() -> Result<UnixStream, PlaceError> {
    let mut found = running()?;
    match (found.pop(), found.is_empty()) {
        (Some(path), true) => {
            UnixStream::connect(&path).map_err(|error| PlaceError::NotThere { path, error })
        }
        (Some(path), false) => {
            found.push(path);
            Err(PlaceError::Several(found))
        }
        (None, _) if !Uid::effective().is_root() && Path::new("/run/natbox").is_dir() => {
            Err(PlaceError::Forbidden(PathBuf::from("/run/natbox")))
        }
        (None, _) => {
            let places: Vec<_> = directories().iter().map(|path| path.display().to_string()).collect();
            Err(PlaceError::NoneRunning(places.join(" or ")))
        }
    }
}

/// The sockets that a natbox answers at, in the usual places.
fn running() -> Result<Vec<PathBuf>, PlaceError> {
    let mut alive = Vec::new();
    for directory in directories() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_none_or(|extension| extension != "sock") {
                continue;
            }
            match UnixStream::connect(&path) {
                Ok(_) => alive.push(path),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused && is_socket(&path) => {
                    // Whether it can be removed matters to nobody.
                    let _ = fs::remove_file(&path);
                }
                Err(_) => {}
            }
        }
    }
    alive.sort();
    Ok(alive)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, thread};

    use super::*;

    fn directory(name: &str) -> PathBuf {
        env::temp_dir().join(format!("nb-{name}-{}", process::id()))
    }

    #[test]
    fn the_last_one_takes_the_directory_along() {
        let directory = directory("last");
        let paths = ["1.sock", "2.sock"].map(|name| directory.join(name));
        let listeners = paths.each_ref().map(|path| listen_in(&directory, path).unwrap());
        for path in &paths {
            assert!(directory.is_dir(), "{} is in it", path.display());
            fs::remove_file(path).unwrap();
            leave_directory(&directory);
        }
        assert!(!directory.exists());
        drop(listeners);
        // Somebody else's stays.
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        leave_directory(&directory);
        assert!(directory.is_dir());
        fs::remove_dir(&directory).unwrap();
    }

    /// Who starts while the last one ends has a socket all the same.
    #[test]
    fn others_may_end_meanwhile() {
        let directory = directory("race");
        thread::scope(|scope| {
            for name in ["1.sock", "2.sock", "3.sock"] {
                let path = directory.join(name);
                let directory = &directory;
                scope.spawn(move || {
                    for _ in 0..300 {
                        drop(listen_in(directory, &path).unwrap());
                        fs::remove_file(&path).unwrap();
                        leave_directory(directory);
                    }
                });
            }
        });
        leave_directory(&directory);
        assert!(!directory.exists());
    }
}
