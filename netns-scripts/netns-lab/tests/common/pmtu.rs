//! Datagrams that must not be fragmented, and the ICMP errors that they meet.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use netns_lab::{Host, LabError, wait_until};
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrIn, getsockopt, recvmsg, setsockopt, sockopt::IpMtu,
    sockopt::Ipv4RecvErr,
};

use super::PATIENCE;
use super::tools::set_option;

/// IPv4 and UDP header.
const HEADERS: usize = 28;

/// A UDP socket that sets DF and asks for errors.
pub(crate) struct Unfragmented {
    socket: UdpSocket,
}

/// An ICMP error, as the kernel tells the socket that it concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IcmpError {
    pub(crate) from: Ipv4Addr,
    pub(crate) kind: u8,
    pub(crate) code: u8,
    /// The MTU that it tells, in bytes.
    pub(crate) mtu: u32,
}

impl Unfragmented {
    /// A socket of a host, connected to `to`.
    pub(crate) fn towards(host: &Host, to: SocketAddr) -> Result<Unfragmented, LabError> {
        let socket = host.run(|| UdpSocket::bind((host.addr(), 0)))?.expect("a free port");
        socket.connect(to).expect("a route");
        Ok(Unfragmented::new(socket))
    }

    /// A socket that is connected.
    pub(crate) fn new(socket: UdpSocket) -> Unfragmented {
        set_option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
            .expect("DF can be set");
        setsockopt(&socket, Ipv4RecvErr, &true).expect("errors can be asked for");
        Unfragmented { socket }
    }

    pub(crate) fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Sends an IP packet of `length` bytes.
    pub(crate) fn send(&self, length: usize) -> io::Result<usize> {
        self.socket.send(&vec![7; length - HEADERS])
    }

    /// What the kernel takes for the path's MTU, in bytes.
    pub(crate) fn path_mtu(&self) -> u32 {
        getsockopt(&self.socket, IpMtu).expect("the socket is connected") as u32
    }

    /// Sends packets of `length` bytes until an ICMP error comes back, and returns that.
    pub(crate) fn refused(&self, length: usize) -> Option<IcmpError> {
        let mut error = None;
        wait_until(PATIENCE, || {
            // Refused at once when the kernel knows better by now; then the error is in the queue.
            let _ = self.send(length);
            error = self.error();
            error.is_some()
        });
        error
    }

    /// The next ICMP error in the socket's queue.
    pub(crate) fn error(&self) -> Option<IcmpError> {
        let mut space = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in);
        loop {
            let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
            let message =
                recvmsg::<SockaddrIn>(self.socket.as_raw_fd(), &mut [], Some(&mut space), flags).ok()?;
            for control in message.cmsgs().ok()? {
                if let ControlMessageOwned::Ipv4RecvErr(error, Some(offender)) = control
                    && error.ee_origin == libc::SO_EE_ORIGIN_ICMP
                {
                    return Some(IcmpError {
                        from: Ipv4Addr::from(u32::from_be(offender.sin_addr.s_addr)),
                        kind: error.ee_type,
                        code: error.ee_code,
                        mtu: error.ee_info,
                    });
                }
            }
        }
    }
}
