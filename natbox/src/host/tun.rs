//! TUN devices with the offloads that the kernel grants: made by the `tun` crate, which knows one queue, or here, with a
//! queue for each worker.

use std::{
    fs::OpenOptions,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
};

use nix::errno::Errno;

use super::{
    error::{HostError, failed},
    privilege,
};

/// Packets that wait for natbox before the kernel drops more.
///
/// A TUN takes packets out of TCP's accounting when it queues them, so a sender's whole window can be here at once,
/// and a queue shorter than that collapses its throughput. The default of 500 (1,000 for other devices) is less than
/// one usual window (4 MiB, 2,897 packets of 1,448 bytes) without segmentation offload. This holds two such windows
/// and costs 64 KiB.
pub(crate) const QUEUE: u32 = 8192;

const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUN_F_CSUM: libc::c_uint = 0x01;
const TUN_F_TSO4: libc::c_uint = 0x02;
const TUN_F_TSO6: libc::c_uint = 0x04;
/// Since Linux 6.2.
const TUN_F_USO4: libc::c_uint = 0x20;
/// Since Linux 6.2.
const TUN_F_USO6: libc::c_uint = 0x40;
const TCP: libc::c_uint = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;

/// What a TUN device may hand over unfinished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offload {
    /// Nothing: every packet is whole and has its checksum.
    #[default]
    None,
    /// Partial checksums and TCP super-frames.
    Tcp,
    /// UDP super-frames as well.
    TcpUdp,
}

impl Offload {
    /// For people.
    pub const fn word(self) -> &'static str {
        match self {
            Offload::None => "no offload",
            Offload::Tcp => "checksum and TCP segmentation offload",
            Offload::TcpUdp => "checksum, TCP and UDP segmentation offload",
        }
    }
}

/// Makes a TUN device in the calling thread's namespace: with a virtio-net header, non-blocking, and gone with the last
/// of its descriptors, of which there is one for each of `queues`. With `offload` it gets the best that this kernel has.
pub(crate) fn create(name: &str, offload: bool, queues: usize) -> Result<(Vec<OwnedFd>, Offload), HostError> {
    let queues = if queues > 1 { several(name, queues)? } else { vec![single(name)?] };
    // What one queue is told goes for the device.
    let Some(fd) = queues.first().map(AsRawFd::as_raw_fd) else { return Ok((queues, Offload::None)) };
    let wanted: &[_] = if offload { &[Offload::TcpUdp, Offload::Tcp] } else { &[] };
    let got = wanted.iter().find(|wanted| set_offload(fd, **wanted).is_ok());
    let got = got.copied().unwrap_or_default();
    if got == Offload::None {
        // A kernel that grants no offload has none on: nothing to switch off.
        let _ = set_offload(fd, Offload::None);
    }
    Ok((queues, got))
}

fn single(name: &str) -> Result<OwnedFd, HostError> {
    let mut configuration = tun::Configuration::default();
    configuration.tun_name(name).platform_config(|platform| {
        // Addresses are set by netlink, whose errors say what was refused.
        platform.vnet_hdr(true).ensure_root_privileges(false);
    });
    let device = tun::create(&configuration).map_err(|error| refused(name, error.into()))?;
    device.set_nonblock().map_err(failed(format!("make {name} non-blocking")))?;
    // SAFETY: the device gives its descriptor up, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) })
}

/// The kernel keeps a flow on the queue that was last used to write packets of it, in the other direction.
fn several(name: &str, queues: usize) -> Result<Vec<OwnedFd>, HostError> {
    let first = attach(name, libc::IFF_TUN_EXCL).map_err(|error| refused(name, error))?;
    let others = (1..queues).map(|_| attach(name, 0).map_err(|error| too_many(name, queues, error)));
    std::iter::once(Ok(first)).chain(others).collect()
}

/// Another queue of the device of this name, which is made if there is none.
fn attach(name: &str, flags: libc::c_int) -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays zero, as the kernel wants it.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let kind = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    request.ifr_ifru.ifru_flags = (kind | flags) as libc::c_short;
    // SAFETY: the kernel reads and fills in an ifreq that outlives the call.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })?;
    Ok(file.into())
}

fn too_many(name: &str, queues: usize, error: io::Error) -> HostError {
    HostError::NoQueues { name: name.to_owned(), queues, source: error }
}

fn refused(name: &str, error: io::Error) -> HostError {
    match error.raw_os_error() {
        // Somebody else made one of this name since the plan.
        Some(libc::EBUSY) => {
            HostError::NameInUse { name: name.to_owned(), place: "the namespace that it was for".to_owned() }
        }
        Some(libc::EPERM) => HostError::NoPrivilege { capabilities: "CAP_NET_ADMIN".to_owned() },
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::EACCES) => privilege::tun_error(error),
        _ => HostError::kernel(format!("make the TUN device {name}"), error),
    }
}

fn set_offload(fd: RawFd, offload: Offload) -> io::Result<()> {
    let flags = match offload {
        Offload::None => 0,
        Offload::Tcp => TCP,
        Offload::TcpUdp => TCP | TUN_F_USO4 | TUN_F_USO6,
    };
    // SAFETY: the argument of this ioctl is a number, not a pointer.
    match unsafe { libc::ioctl(fd, TUNSETOFFLOAD, libc::c_ulong::from(flags)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
