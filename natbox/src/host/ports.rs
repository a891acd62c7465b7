//! The ports of a shared address: which the host draws its own from, and which are left for natbox.

use std::{fs, io};

use natbox_core::PortRange;

/// Where the kernel keeps the range that it draws ports for outgoing connections from.
pub(crate) const LOCAL_PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Ports below this are for the services of the host.
const FIRST_UNPRIVILEGED: u16 = 1024;

/// The host's ephemeral range, of the calling thread's network namespace.
///
/// # Errors
/// The file cannot be read, or does not hold two ports.
pub(crate) fn ephemeral() -> io::Result<PortRange> {
    let text = fs::read_to_string(LOCAL_PORT_RANGE)?;
    read_range(&text).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{:?} is not two ports", text.trim()))
    })
}

fn read_range(text: &str) -> Option<PortRange> {
    let mut ports = text.split_whitespace().map(|port| port.parse().ok());
    PortRange::new(ports.next()??, ports.next()??)
}

/// What natbox may use of `configured` beside a host that draws from `ephemeral`: the larger of the parts below and
/// above that range, without the ports of the host's services unless nothing else was asked for. `None` when the
/// host's range covers everything.
pub(crate) fn beside(ephemeral: PortRange, configured: PortRange) -> Option<PortRange> {
    let unprivileged =
        PortRange::new(FIRST_UNPRIVILEGED, u16::MAX).and_then(|range| configured.intersect(range));
    let wanted = unprivileged.unwrap_or(configured);
    let below = PortRange::new(1, ephemeral.first() - 1).and_then(|range| wanted.intersect(range));
    let above = ephemeral.last().checked_add(1).and_then(|first| PortRange::new(first, u16::MAX));
    let above = above.and_then(|range| wanted.intersect(range));
    // On a tie the upper part: services of the host rarely live there.
    below.into_iter().chain(above).max_by_key(|range| range.last() - range.first())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange::new(first, last).unwrap()
    }

    #[test]
    fn the_larger_part_is_chosen() {
        let usual = range(32_768, 60_999);
        assert_eq!(beside(usual, PortRange::ALL), Some(range(1024, 32_767)));
        assert_eq!(beside(range(10_000, 20_000), PortRange::ALL), Some(range(20_001, 65_535)));
        assert_eq!(beside(range(1024, 65_535), PortRange::ALL), None);
        assert_eq!(beside(range(1, 65_535), PortRange::ALL), None);
        assert_eq!(beside(usual, range(40_000, 62_000)), Some(range(61_000, 62_000)));
        assert_eq!(beside(usual, range(40_000, 50_000)), None);
        assert_eq!(beside(usual, range(500, 600)), Some(range(500, 600)));
    }

    #[test]
    fn the_kernel_s_file_reads() {
        assert_eq!(read_range("32768\t60999\n"), Some(range(32_768, 60_999)));
        for bad in ["", "1", "a b", "9 5", "0 7"] {
            assert_eq!(read_range(bad), None, "{bad:?}");
        }
    }
}
