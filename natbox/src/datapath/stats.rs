//! What a port counts.

use nix::errno::Errno;

macro_rules! stats {
    ($($(#[$doc:meta])+ $field:ident),+ $(,)?) => {
        /// Counters of one port since it was opened.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct PortStats {
            /// The device.
            pub name: String,
            $($(#[$doc])+ pub $field: u64,)+
        }

        impl PortStats {
            /// How many counters there are.
            pub const COUNT: usize = [$(stringify!($field)),+].len();

            /// Every counter, in the order of their declaration.
            pub fn values(&self) -> [u64; PortStats::COUNT] {
                [$(self.$field),+]
            }

            /// Counters with these values, in the same order, and without a name.
            pub fn from_values(values: [u64; PortStats::COUNT]) -> PortStats {
                let [$($field),+] = values;
                PortStats { name: String::new(), $($field),+ }
            }

            /// Adds what another port on the same device has counted.
            pub fn add(&mut self, other: &PortStats) {
                $(self.$field += other.$field;)+
            }

            /// Every counter with its name, in the order of their declaration.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field)),+].into_iter()
            }
        }
    };
}

stats! {
    /// Frames received; a super-frame is one.
    received_packets,
    /// Their bytes from the IP header on.
    received_bytes,
    /// Those of them that were super-frames.
    received_super_frames,
    /// Frames sent; a super-frame is one.
    sent_packets,
    /// Their bytes from the IP header on.
    sent_bytes,
    /// Those of them that were super-frames.
    sent_super_frames,
    /// Datagrams that were joined to the one before them, to be sent as a super-frame.
    coalesced,
    /// Packets cut from super-frames here, for want of a kernel or a device that would.
    segmented,
    /// Frames that the kernel had no room for in our ring or socket buffer.
    dropped_overrun,
    /// Frames longer than a buffer, cut short by the kernel.
    dropped_truncated,
    /// Frames whose offload metadata makes no sense, or whose segment size is unknown.
    dropped_offload,
    /// Frames not sent because the device was down or had no carrier (EIO, ENETDOWN).
    dropped_down,
    /// Frames not sent because a queue was full (ENOBUFS, EAGAIN).
    dropped_queue_full,
    /// Frames not sent because they exceed the device's MTU (EMSGSIZE).
    dropped_too_big,
    /// Frames that the kernel refused for another reason.
    dropped_refused,
    /// Packets whose next hop has not answered ARP, or that have no route by this interface.
    dropped_unresolved,
    /// Packets that the engine left to the NAT's host, on a port where the host does not get them.
    ignored_local,
}

impl PortStats {
    /// The counters of a port that has just been opened.
    pub fn new(name: &str) -> PortStats {
        PortStats { name: name.to_owned(), ..PortStats::default() }
    }

    pub(super) fn received(&mut self, bytes: usize, super_frame: bool) {
        self.received_packets += 1;
        self.received_bytes += bytes as u64;
        self.received_super_frames += u64::from(super_frame);
    }

    pub(super) fn sent(&mut self, bytes: usize, super_frame: bool) {
        self.sent_packets += 1;
        self.sent_bytes += bytes as u64;
        self.sent_super_frames += u64::from(super_frame);
    }

    /// Counts a frame that the kernel did not take.
    pub(super) fn refused(&mut self, error: Errno) {
        *match error {
            // A TUN that is down says EIO, an Ethernet interface ENETDOWN; one that has just gone, ENXIO or EBADFD.
            Errno::EIO | Errno::ENETDOWN | Errno::ENXIO | Errno::ENODEV | Errno::EBADFD => {
                &mut self.dropped_down
            }
            Errno::ENOBUFS | Errno::EAGAIN | Errno::ENOMEM => &mut self.dropped_queue_full,
            Errno::EMSGSIZE => &mut self.dropped_too_big,
            _ => &mut self.dropped_refused,
        } += 1;
    }
}
