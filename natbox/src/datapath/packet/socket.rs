//! A packet socket and its options.

use std::{
    io,
    mem::{size_of, zeroed},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::errno::Errno;

use super::super::{ETHERTYPE_ARP, ETHERTYPE_IPV4, PortError};

/// What a socket may hold for a loop that is busy: some 10 ms at 3 Gbit/s, and as much as a router's queue.
const BUFFER_LEN: i32 = 4 << 20;

/// Offsets at which a filter finds what the kernel knows about a frame, `SKF_AD_*` in `linux/filter.h`.
const ANCILLARY: u32 = -0x1000_i32 as u32;
const ANCILLARY_PACKET_TYPE: u32 = ANCILLARY + 4;
const ANCILLARY_VLAN_TAG: u32 = ANCILLARY + 48;

/// A non-blocking `AF_PACKET` socket for whole Ethernet frames.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    /// A socket that receives nothing until it is bound to a protocol. `name` is for error messages.
    pub(super) fn new(name: &str) -> Result<Socket, PortError> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: plain system call without pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        match Errno::result(fd) {
            // SAFETY: a descriptor that was just made and belongs to nobody else.
            Ok(fd) => Ok(Socket(unsafe { OwnedFd::from_raw_fd(fd) })),
            Err(Errno::EPERM | Errno::EACCES) => Err(PortError::NotPermitted { name: name.to_owned() }),
            Err(error) => Err(PortError::io(name, "open a packet socket", error)),
        }
    }

    /// Fails unless the interface `name` carries Ethernet frames.
    pub(super) fn require_ethernet(&self, name: &str) -> Result<(), PortError> {
        // SAFETY: all zeros is a valid ifreq.
        let mut request: libc::ifreq = unsafe { zeroed() };
        // One byte stays zero, as the kernel wants it.
        for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: the kernel reads and fills in an ifreq that outlives the call.
        let result = unsafe { libc::ioctl(self.raw(), libc::SIOCGIFHWADDR as _, &raw mut request) };
        match Errno::result(result) {
            // SAFETY: after SIOCGIFHWADDR this member is the one that is set.
            Ok(_) if unsafe { request.ifr_ifru.ifru_hwaddr.sa_family } == libc::ARPHRD_ETHER => Ok(()),
            Ok(_) => Err(PortError::NotEthernet { name: name.to_owned() }),
            Err(Errno::ENODEV) => Err(PortError::Gone { name: name.to_owned() }),
            Err(error) => Err(PortError::io(name, "ask for its kind", error)),
        }
    }

    /// Whether this namespace has an interface with this index.
    pub(super) fn interface_exists(&self, index: u32) -> bool {
        // SAFETY: all zeros is a valid ifreq.
        let mut request: libc::ifreq = unsafe { zeroed() };
        request.ifr_ifru.ifru_ifindex = index as libc::c_int;
        // SAFETY: the kernel reads and fills in an ifreq that outlives the call.
        let result = unsafe { libc::ioctl(self.raw(), libc::SIOCGIFNAME as _, &raw mut request) };
        !matches!(Errno::result(result), Err(Errno::ENODEV | Errno::ENXIO))
    }

    /// Puts a virtio-net header in front of every frame.
    pub(super) fn enable_vnet_header(&self) -> nix::Result<()> {
        self.set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1_i32)
    }

    /// Keeps what leaves by the interface from coming back.
    pub(super) fn ignore_outgoing(&self) -> nix::Result<()> {
        self.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32)
    }

    /// Adds what the kernel knows about a frame to each one received without a virtio-net header.
    pub(super) fn enable_auxiliary_data(&self) -> nix::Result<()> {
        self.set(libc::SOL_PACKET, libc::PACKET_AUXDATA, &1_i32)
    }

    /// Lets pass what a router listens to and nothing else: IPv4 sent to our Ethernet address, ARP sent to it or to
    /// everybody, and neither inside a VLAN, which is an interface of its own.
    pub(super) fn accept_only_ours(&self) -> nix::Result<()> {
        const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
        const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
        const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        const GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
        const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
        let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let mut program = [
            op(LOAD_WORD, 0, 0, ANCILLARY_VLAN_TAG),
            op(EQUAL, 0, 8, 0), // not tagged, or drop
            op(LOAD_HALF, 0, 0, 12),
            op(EQUAL, 0, 2, ETHERTYPE_IPV4.into()),
            op(LOAD_WORD, 0, 0, ANCILLARY_PACKET_TYPE),
            op(EQUAL, 3, 4, libc::PACKET_HOST.into()), // accept, or drop
            op(EQUAL, 0, 3, ETHERTYPE_ARP.into()),
            op(LOAD_WORD, 0, 0, ANCILLARY_PACKET_TYPE),
            op(GREATER, 1, 0, libc::PACKET_BROADCAST.into()), // drop, or accept
            op(RETURN, 0, 0, u32::MAX),
            op(RETURN, 0, 0, 0),
        ];
        self.filter(&mut program)
    }

    /// Lets nothing pass.
    pub(super) fn accept_nothing(&self) -> nix::Result<()> {
        self.filter(&mut [libc::sock_filter {
            code: (libc::BPF_RET | libc::BPF_K) as u16,
            jt: 0,
            jf: 0,
            k: 0,
        }])
    }

    fn filter(&self, program: &mut [libc::sock_filter]) -> nix::Result<()> {
        let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        self.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)
    }

    /// Lets received frames wait; less when the system allows no more.
    pub(super) fn enlarge_receive_buffer(&self) {
        // Beyond the system's maximum where we may, and as far as it goes otherwise: both only ever help.
        if self.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &BUFFER_LEN).is_err() {
            let _ = self.set(libc::SOL_SOCKET, libc::SO_RCVBUF, &BUFFER_LEN);
        }
    }

    /// Lets frames to send wait; less when the system allows no more.
    pub(super) fn enlarge_send_buffer(&self) {
        if self.set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &BUFFER_LEN).is_err() {
            let _ = self.set(libc::SOL_SOCKET, libc::SO_SNDBUF, &BUFFER_LEN);
        }
    }

    /// Ties the socket to an interface, and to an EtherType whose frames it receives from now on (0: none).
    pub(super) fn bind(&self, index: u32, protocol: u16) -> nix::Result<()> {
        // SAFETY: all zeros is a valid address.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = index as i32;
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address is valid for its length during the call.
        Errno::result(unsafe { libc::bind(self.raw(), (&raw const address).cast(), len) }).map(drop)
    }

    /// Sets one option; `T` is the type that the kernel expects for it.
    pub(super) fn set<T>(&self, level: i32, option: i32, value: &T) -> nix::Result<()> {
        let len = size_of::<T>() as libc::socklen_t;
        // SAFETY: the kernel reads `len` bytes of a value that outlives the call.
        let result = unsafe { libc::setsockopt(self.raw(), level, option, (&raw const *value).cast(), len) };
        Errno::result(result).map(drop)
    }

    /// The error that waits on the socket, which is no longer there afterwards.
    pub(super) fn take_error(&self) -> Option<io::Error> {
        let mut code = 0_i32;
        self.get(libc::SOL_SOCKET, libc::SO_ERROR, &mut code).ok()?;
        (code != 0).then(|| io::Error::from_raw_os_error(code))
    }

    /// How many frames have been lost for want of room since the last time that this was asked.
    pub(super) fn take_overruns(&self) -> u64 {
        let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        match self.get(libc::SOL_PACKET, libc::PACKET_STATISTICS, &mut stats) {
            Ok(()) => stats.tp_drops.into(),
            Err(_) => 0,
        }
    }

    /// Reads one option; `T` is the type that the kernel has for it.
    pub(super) fn get<T: Copy>(&self, level: i32, option: i32, value: &mut T) -> nix::Result<()> {
        let mut len = size_of::<T>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes of a value of plain integers.
        let result =
            unsafe { libc::getsockopt(self.raw(), level, option, (&raw mut *value).cast(), &raw mut len) };
        Errno::result(result).map(drop)
    }

    pub(super) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
