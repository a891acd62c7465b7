//! What this process may do, asked before anything is changed.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use super::error::HostError;

/// `_IO(0xb7, 1)` of `linux/nsfs.h`: the user namespace that a namespace belongs to.
const NS_GET_USERNS: libc::c_ulong = 0xb701;

const CAP_NET_ADMIN: (u32, &str) = (12, "CAP_NET_ADMIN");
const CAP_NET_RAW: (u32, &str) = (13, "CAP_NET_RAW");
const CAP_SYS_ADMIN: (u32, &str) = (21, "CAP_SYS_ADMIN");

/// Fails unless this thread may configure interfaces and open packet sockets in its network namespace and, if
/// `namespaces` are entered or made, do that too.
pub(crate) fn check(namespaces: bool) -> Result<(), HostError> {
    let held = if owns_netns() { effective() } else { 0 };
    let needed = [CAP_NET_ADMIN, CAP_NET_RAW].into_iter().chain(namespaces.then_some(CAP_SYS_ADMIN));
    let missing: Vec<_> = needed.filter(|(bit, _)| held & (1 << bit) == 0).map(|(_, name)| name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(HostError::NoPrivilege { capabilities: missing.join(", ") })
}

/// Fails unless `/dev/net/tun` can be opened, which by itself changes nothing.
pub(crate) fn check_tun() -> Result<(), HostError> {
    match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Ok(()),
        Err(error) => Err(tun_error(error)),
    }
}

/// What an error of opening `/dev/net/tun` means.
pub(crate) fn tun_error(error: io::Error) -> HostError {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => HostError::NoTun,
        Some(libc::EACCES | libc::EPERM) => HostError::TunPermission,
        _ => HostError::kernel("open /dev/net/tun", error),
    }
}

/// The effective capabilities of this thread as a bit set.
fn effective() -> u64 {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0)
}

/// Whether this thread's capabilities count in its network namespace: one that belongs to a user namespace further
/// up is out of reach whatever they are.
fn owns_netns() -> bool {
    let Ok(netns) = File::open("/proc/thread-self/ns/net") else { return false };
    // SAFETY: this ioctl takes no argument and returns a new descriptor, or fails with EPERM.
    let owner = unsafe { libc::ioctl(netns.as_raw_fd(), NS_GET_USERNS) };
    if owner < 0 {
        // A kernel older than 4.9 cannot say; then the kernel's own refusal is as clear as it gets.
        return io::Error::last_os_error().raw_os_error() == Some(libc::ENOTTY);
    }
    // SAFETY: the descriptor is new and nobody else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(owner) });
    true
}
