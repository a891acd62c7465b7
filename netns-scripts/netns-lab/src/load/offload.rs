//! What an interface does by itself: a comparison is fair only between equals, and tells what they were.

use std::ffi::CStr;
use std::io;
use std::mem;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::ptr;

use super::{LoadError, failed};
use crate::Host;

/// The features that decide whether bulk traffic crosses in super-frames, by the kernel's names and in short.
const FEATURES: [(&str, &str); 8] = [
    ("tx-checksum-ip-generic", "tx-checksum"),
    ("rx-checksum", "rx-checksum"),
    ("tx-tcp-segmentation", "tso"),
    ("tx-udp-segmentation", "uso"),
    ("tx-generic-segmentation", "gso"),
    ("rx-gro", "gro"),
    ("rx-udp-gro-forwarding", "udp-gro-forwarding"),
    ("rx-gro-list", "gro-list"),
];

/// linux/ethtool.h
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;

/// More features than any kernel has: a limit on what is read.
const MAX_FEATURES: usize = 1024;

/// The offloads that are on, in short words, of an interface in a namespace that `ip netns` shows under this name.
///
/// # Errors
/// [`LoadError::Lab`] or [`LoadError::Io`] when there is no such namespace or interface.
pub fn offloads(netns: &str, interface: &str) -> Result<Vec<&'static str>, LoadError> {
    let host = Host { name: netns.to_owned(), netns: netns.to_owned(), addresses: Vec::new() };
    let on = host.run(|| features(interface))?;
    let on = on.map_err(failed(format!("can't read the features of {interface} in {netns}")))?;
    let is_on = |name: &str| on.iter().any(|it| it == name);
    Ok(FEATURES.iter().filter(|(name, _)| is_on(name)).map(|&(_, short)| short).collect())
}

/// The kernel's names of all features that are on.
fn features(interface: &str) -> io::Result<Vec<String>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let ask = |request: &mut [u32]| ethtool(&socket, interface, request);

    // struct ethtool_sset_info: cmd, reserved, sset_mask (two words), one word for each set asked for.
    let mut count = [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0];
    ask(&mut count)?;
    let count = count[4] as usize;
    if !(1..=MAX_FEATURES).contains(&count) {
        return Err(io::Error::other(format!("it claims {count} features")));
    }
    // struct ethtool_gstrings: cmd, string_set, len, then the names, each of 32 bytes.
    let mut names = vec![0; 3 + count * ETH_GSTRING_LEN / 4];
    names[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32]);
    ask(&mut names)?;
    // struct ethtool_gfeatures: cmd, size, then for every 32 features: available, requested, active, never_changed.
    let blocks = count.div_ceil(32);
    let mut states = vec![0; 2 + 4 * blocks];
    states[..2].copy_from_slice(&[ETHTOOL_GFEATURES, blocks as u32]);
    ask(&mut states)?;

    let names: Vec<u8> = names[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let active = |index: &usize| states[2 + 4 * (index / 32) + 2] >> (index % 32) & 1 == 1;
    let name = |index: usize| {
        let bytes = &names[index * ETH_GSTRING_LEN..][..ETH_GSTRING_LEN];
        CStr::from_bytes_until_nul(bytes).map(|name| name.to_string_lossy().into_owned()).ok()
    };
    Ok((0..count).filter(active).filter_map(name).collect())
}

/// One request; the kernel writes its answer over it. The request's length is what its header words say.
fn ethtool(socket: &UdpSocket, interface: &str, request: &mut [u32]) -> io::Result<()> {
    let name = interface.as_bytes();
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no name of an interface"));
    }
    // SAFETY: the structure is made of integers and a union of those and pointers, for which zero is a value.
    let mut ifreq: libc::ifreq = unsafe { mem::zeroed() };
    // SAFETY: `name` is shorter than the field (checked above) and the last byte of the field stays zero.
    unsafe { ptr::copy_nonoverlapping(name.as_ptr(), ifreq.ifr_name.as_mut_ptr().cast(), name.len()) };
    ifreq.ifr_ifru.ifru_data = request.as_mut_ptr().cast();
    // SAFETY: `ifru_data` points to `request`, which has the room that its header words promise for the answer (each
    // caller sizes it so); both live until the call returns.
    let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut ifreq) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_segments_in_software() {
        let on = features("lo").unwrap();
        assert!(on.iter().any(|name| name == "tx-tcp-segmentation"), "{on:?}");
        assert!(features("no-such-one").is_err());
    }
}
