//! Many datagrams to many destinations in one system call: sendmmsg(2), which only Linux has.
#![allow(unsafe_code, reason = "the system call takes raw pointers")]

use std::{
    io,
    mem::{self, MaybeUninit},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    ptr,
};

use crate::Transmit;

/// Messages in one call: the call's own cost is a small part then, and the headers fit on the stack.
pub(crate) const BATCH: usize = 32;

/// Room for the control messages of one datagram: segment size, traffic class, time to live, source address.
const CONTROL: usize = 112;
/// What stands before the value of a control message, and what everything in there is aligned to.
const CONTROL_HEADER: usize = aligned(mem::size_of::<libc::cmsghdr>());

const fn aligned(length: usize) -> usize {
    length.next_multiple_of(mem::size_of::<usize>())
}

/// Sends the first [`BATCH`] of them, without waiting. Returns how many the kernel took: all, or those before the first
/// that it did not take. Addresses are of the socket's family.
///
/// # Errors
/// About the first of them; then none was sent.
pub(crate) fn send_many<'a>(
    socket: &UdpSocket,
    transmits: impl Iterator<Item = Transmit<'a>>,
) -> io::Result<usize> {
    send(socket, transmits, None)
}

/// Sends an IPv4 datagram that at most `hops` routers see, without waiting.
///
/// # Errors
/// The system's; `Unsupported` for IPv6.
pub(crate) fn send_near(socket: &UdpSocket, transmit: Transmit<'_>, hops: u8) -> io::Result<()> {
    if !is_v4(transmit.destination.ip()) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    send(socket, std::iter::once(transmit), Some(hops)).map(drop)
}

fn send<'a>(
    socket: &UdpSocket,
    transmits: impl Iterator<Item = Transmit<'a>>,
    hops: Option<u8>,
) -> io::Result<usize> {
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; BATCH];
    let mut slots = [const { MaybeUninit::<Slot>::uninit() }; BATCH];
    let mut count = 0;
    for (transmit, (header, slot)) in transmits.zip(headers.iter_mut().zip(&mut slots)) {
        let (name, name_length) = Name::of(transmit.destination);
        let slot = slot.write(Slot {
            name,
            // The kernel only reads what the vectors of a send point to.
            vector: libc::iovec {
                iov_base: transmit.contents.as_ptr().cast_mut().cast(),
                iov_len: transmit.contents.len(),
            },
            control: Control::of(&transmit, hops),
        });
        let header = header.write(empty_header());
        header.msg_hdr.msg_name = (&raw mut slot.name).cast();
        header.msg_hdr.msg_namelen = name_length;
        header.msg_hdr.msg_iov = &raw mut slot.vector;
        header.msg_hdr.msg_iovlen = 1;
        if let Some(control) = &mut slot.control {
            header.msg_hdr.msg_control = control.bytes.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = control.length as _;
        }
        count += 1;
    }
    loop {
        // SAFETY: the first `count` headers have been written; each names an address, a vector and control messages in its
        // slot, with their lengths, and each vector the contents of a transmit; all of it lives until the call returns,
        // and the kernel writes to nothing but `msg_len` in the headers.
        let sent = unsafe {
            libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr().cast(), count, libc::MSG_DONTWAIT as _)
        };
        match usize::try_from(sent) {
            Ok(sent) => return Ok(sent),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// What the header of one datagram points to.
struct Slot {
    name: Name,
    vector: libc::iovec,
    control: Option<Control>,
}

/// An address as the kernel reads it.
#[repr(C)]
#[derive(Clone, Copy)]
union Name {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Name {
    /// The address with its length.
    fn of(address: SocketAddr) -> (Name, libc::socklen_t) {
        let (name, length) = match address {
            SocketAddr::V4(v4) => {
                let name = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
                (Name { v4: name }, mem::size_of::<libc::sockaddr_in>())
            }
            SocketAddr::V6(v6) => {
                let name = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                (Name { v6: name }, mem::size_of::<libc::sockaddr_in6>())
            }
        };
        (name, length as libc::socklen_t)
    }
}

/// Control messages of one datagram (cmsg(3)).
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control {
    bytes: [u8; CONTROL],
    length: usize,
}

impl Control {
    /// `None`: the datagram needs none.
    fn of(transmit: &Transmit<'_>, hops: Option<u8>) -> Option<Control> {
        let mut control = Control { bytes: [0; CONTROL], length: 0 };
        control.describe(transmit);
        if let Some(hops) = hops {
            control.push(libc::IPPROTO_IP, libc::IP_TTL, &libc::c_int::from(hops).to_ne_bytes());
        }
        (control.length > 0).then_some(control)
    }

    fn describe(&mut self, transmit: &Transmit<'_>) {
        if let Some(segment) = transmit.segment_size.filter(|size| *size < transmit.contents.len()) {
            self.push(libc::SOL_UDP, libc::UDP_SEGMENT, &(segment as u16).to_ne_bytes());
        }
        // Without it the class is the socket's own, which is 0.
        if let Some(ecn) = transmit.ecn {
            let class = libc::c_int::from(ecn as u8).to_ne_bytes();
            match is_v4(transmit.destination.ip()) {
                true => self.push(libc::IPPROTO_IP, libc::IP_TOS, &class),
                false => self.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &class),
            }
        }
        match transmit.src_ip {
            // struct in_pktinfo: interface, source, (on receiving:) destination.
            Some(IpAddr::V4(source)) => {
                let [a, b, c, d] = source.octets();
                self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &[0, 0, 0, 0, a, b, c, d, 0, 0, 0, 0]);
            }
            // struct in6_pktinfo: source, interface.
            Some(IpAddr::V6(source)) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&source.octets());
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            None => {}
        }
    }

    fn push(&mut self, level: libc::c_int, kind: libc::c_int, value: &[u8]) {
        // SAFETY: the structure is made of integers only, for which zero is a value.
        let mut header: libc::cmsghdr = unsafe { mem::zeroed() };
        header.cmsg_len = (CONTROL_HEADER + value.len()) as _;
        (header.cmsg_level, header.cmsg_type) = (level, kind);
        let room = &mut self.bytes[self.length..][..CONTROL_HEADER + aligned(value.len())];
        // SAFETY: `room` has the bytes of a header and more, none of which is read before it is written.
        unsafe { ptr::write_unaligned(room.as_mut_ptr().cast(), header) };
        room[CONTROL_HEADER..][..value.len()].copy_from_slice(value);
        self.length += room.len();
    }
}

fn is_v4(ip: IpAddr) -> bool {
    ip.to_canonical().is_ipv4()
}

const fn empty_header() -> libc::mmsghdr {
    // SAFETY: the structure is made of integers and raw pointers, for which zero is a value: no name, no vectors.
    unsafe { mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EcnCodepoint;

    /// The most that one datagram can have fits, and the kernel understands it.
    #[test]
    fn control_messages_are_understood() {
        for ip in ["127.0.0.1", "::1"] {
            let ip: IpAddr = ip.parse().unwrap();
            let (sender, receiver) = (UdpSocket::bind((ip, 0)).unwrap(), UdpSocket::bind((ip, 0)).unwrap());
            let destination = receiver.local_addr().unwrap();
            let train = Transmit {
                destination,
                ecn: Some(EcnCodepoint::Ect0),
                contents: b"onetwoxx",
                segment_size: Some(3),
                src_ip: Some(ip),
            };
            let single =
                Transmit { destination, ecn: None, contents: b"last", segment_size: None, src_ip: None };
            assert_eq!(send_many(&sender, [train, single].into_iter()).unwrap(), 2);
            let mut buffer = [0; 10];
            let mut next = || receiver.recv(&mut buffer).map(|length| buffer[..length].to_vec()).unwrap();
            assert_eq!(
                [next(), next(), next(), next()],
                [b"one".to_vec(), b"two".to_vec(), b"xx".to_vec(), b"last".to_vec()]
            );
        }
    }

    /// Of the next datagram.
    fn time_to_live(socket: &UdpSocket) -> libc::c_int {
        let mut control = [0_u64; 8];
        let mut header = empty_header().msg_hdr;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = mem::size_of_val(&control) as _;
        // SAFETY: the header names room for control messages and no room for data.
        unsafe {
            assert_eq!(libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0), 0);
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            assert_eq!(((*first).cmsg_level, (*first).cmsg_type), (libc::IPPROTO_IP, libc::IP_TTL));
            ptr::read_unaligned(libc::CMSG_DATA(first).cast())
        }
    }

    /// A dual-stack socket's, too; what does not say how far it goes goes as far as ever.
    #[test]
    fn few_routers_see_it() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let on: libc::c_int = 1;
        // SAFETY: the option's value is the integer that its length says.
        let set = unsafe {
            let (value, length) = ((&raw const on).cast(), mem::size_of_val(&on) as libc::socklen_t);
            libc::setsockopt(receiver.as_raw_fd(), libc::IPPROTO_IP, libc::IP_RECVTTL, value, length)
        };
        assert_eq!(set, 0);
        let port = receiver.local_addr().unwrap().port();
        for (own, ip) in [("127.0.0.1:0", "127.0.0.1"), ("[::]:0", "::ffff:127.0.0.1")] {
            let sender = UdpSocket::bind(own).unwrap();
            let destination = SocketAddr::new(ip.parse().unwrap(), port);
            let transmit =
                Transmit { destination, ecn: None, contents: b"x", segment_size: None, src_ip: None };
            send_near(&sender, transmit.clone(), 2).unwrap();
            assert_eq!(time_to_live(&receiver), 2);
            send_many(&sender, std::iter::once(transmit)).unwrap();
            assert!(time_to_live(&receiver) > 32);
        }
    }

    #[test]
    fn an_error_is_about_the_first() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (good, bad) = (socket.local_addr().unwrap(), "127.0.0.1:0".parse().unwrap());
        let to = |destination| Transmit {
            destination,
            ecn: None,
            contents: b"x",
            segment_size: None,
            src_ip: None,
        };
        assert_eq!(send_many(&socket, [good, bad, good].into_iter().map(to)).unwrap(), 1);
        assert_eq!(
            send_many(&socket, [bad, good].into_iter().map(to)).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }
}
