//! Network namespaces: found by name, path or process, entered by a thread that ends there.

use std::{
    fs::{File, Metadata},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    panic,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
};

use super::error::{HostError, failed, list};

/// Where iproute2 keeps namespaces by name.
const NAMED: &str = "/run/netns";
/// The namespace of the calling thread.
pub(super) const OWN: &str = "/proc/thread-self/ns/net";
/// `_IO(0xb7, 3)` of `linux/nsfs.h`: which kind of namespace a file is.
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;

/// A network namespace, held open: it exists as long as this does.
#[derive(Debug)]
pub struct Netns {
    file: File,
    name: String,
}

impl Netns {
    /// Finds a namespace: a name in `/run/netns`, a path, or `pid:N` for that of a process.
    pub(crate) fn open(name: &str) -> Result<Netns, HostError> {
        let path = path_of(name);
        let file = File::open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => HostError::NoNetns { name: name.to_owned(), existing: existing() },
            io::ErrorKind::PermissionDenied => HostError::NetnsPermission { name: name.to_owned() },
            _ => HostError::kernel(format!("open the network namespace {}", path.display()), source),
        })?;
        // SAFETY: this ioctl takes no argument; on a file that is no namespace it fails.
        let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            return Err(HostError::NotNetns { name: name.to_owned() });
        }
        Ok(Netns { file, name: name.to_owned() })
    }

    /// A new namespace without a name, empty but for a loopback interface that is down.
    pub(crate) fn anonymous() -> Result<Netns, HostError> {
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(failed("make a network namespace"))?;
            let file = File::open(OWN).map_err(failed(format!("open {OWN}")))?;
            Ok(Netns { file, name: "the command's own namespace".to_owned() })
        })
    }

    /// As it was given, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether this is the namespace of the calling thread.
    pub(crate) fn is_own(&self) -> io::Result<bool> {
        Ok(identity(&self.file.metadata()?) == identity(&Path::new(OWN).metadata()?))
    }

    /// Whether both are one namespace, however it was named.
    pub(crate) fn is_same(&self, other: &Netns) -> io::Result<bool> {
        Ok(identity(&self.file.metadata()?) == identity(&other.file.metadata()?))
    }

    /// Another descriptor of it.
    pub(crate) fn try_clone(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// The same once more.
    pub(crate) fn duplicate(&self) -> io::Result<Netns> {
        Ok(Netns { file: self.file.try_clone()?, name: self.name.clone() })
    }

    /// Runs `work` on a thread of its own in this namespace.
    pub(crate) fn run<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, HostError> + Send,
    ) -> Result<T, HostError> {
        on_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|error| match error {
                Errno::EPERM => HostError::NetnsPermission { name: self.name.clone() },
                error => HostError::kernel(format!("enter the network namespace {}", self.name), error),
            })?;
            work()
        })
    }
}

/// Runs `work` on a thread of its own, in the caller's namespace: what it does to its namespace or with a runtime of
/// its own never touches the caller.
pub(crate) fn on_thread<T: Send>(work: impl FnOnce() -> Result<T, HostError> + Send) -> Result<T, HostError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("natbox-setup".to_owned())
            .spawn_scoped(scope, work)
            .map_err(failed("start a thread"))?;
        thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
    })
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

fn path_of(name: &str) -> PathBuf {
    match name.strip_prefix("pid:") {
        Some(pid) => Path::new("/proc").join(pid).join("ns/net"),
        None if name.contains('/') => PathBuf::from(name),
        None => Path::new(NAMED).join(name),
    }
}

fn existing() -> String {
    let names = std::fs::read_dir(NAMED).into_iter().flatten().flatten();
    list(names.map(|entry| entry.file_name().to_string_lossy().into_owned()))
}
