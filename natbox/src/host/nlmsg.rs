//! Netlink messages by hand, for the two subsystems that rtnetlink does not speak: sock_diag and nf_tables.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use nix::sys::socket::{MsgFlags, NetlinkAddr, connect, recv, send};

/// This message ends a dump.
pub(crate) const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;
/// This message carries an error code, 0 for an acknowledgement.
pub(crate) const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;

const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;
/// Larger than any part of a reply: the kernel fills at most 32 KiB at a time.
const RECEIVE_BUFFER: usize = 64 << 10;

/// A netlink socket connected to the kernel.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket of one netlink protocol (`NETLINK_…`).
    pub(crate) fn open(protocol: libc::c_int) -> io::Result<Socket> {
        // SAFETY: socket(2) takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        connect(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Socket { fd, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// Sends whole messages; the kernel has handled them when this returns.
    pub(crate) fn send(&self, messages: &[u8]) -> io::Result<()> {
        send(self.fd.as_raw_fd(), messages, MsgFlags::empty())?;
        Ok(())
    }

    /// Receives one part of a reply, waiting for it.
    pub(crate) fn receive(&mut self) -> io::Result<&[u8]> {
        let len = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
        Ok(&self.buffer[..len])
    }

    /// The next error code among the replies that have already come in.
    pub(crate) fn pending_error(&mut self) -> Option<io::Error> {
        loop {
            let len = match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(len) => len,
                Err(nix::errno::Errno::EAGAIN) => return None,
                Err(error) => return Some(error.into()),
            };
            let error = messages(&self.buffer[..len]).find_map(|message| message.error());
            if error.is_some() {
                return error;
            }
        }
    }
}

/// One message of a reply.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    /// `nlmsg_type`.
    pub(crate) kind: u16,
    /// `nlmsg_flags`.
    pub(crate) flags: u16,
    /// What follows the header.
    pub(crate) payload: &'a [u8],
}

impl Message<'_> {
    /// The error that this message reports; `None` for any other message and for an acknowledgement.
    pub(crate) fn error(&self) -> Option<io::Error> {
        let code = i32::from_ne_bytes(*self.payload.first_chunk()?);
        (self.kind == NLMSG_ERROR && code != 0).then(|| io::Error::from_raw_os_error(-code))
    }
}

/// The messages in what was received; stops at the first that is cut short.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let message = bytes.get(..len).filter(|message| message.len() >= HEADER)?;
        bytes = bytes.get(align(len)..).unwrap_or_default();
        let half = |at: usize| u16::from_ne_bytes([message[at], message[at + 1]]);
        Some(Message { kind: half(4), flags: half(6), payload: &message[HEADER..] })
    })
}

/// The attributes in (the rest of) a message: type and value; stops at the first that is cut short.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head: &[u8; ATTRIBUTE_HEADER] = bytes.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & NLA_TYPE_MASK;
        let value = bytes.get(ATTRIBUTE_HEADER..len)?;
        bytes = bytes.get(align(len)..).unwrap_or_default();
        Some((kind, value))
    })
}

const fn align(len: usize) -> usize {
    (len + 3) & !3
}

/// Builds messages one behind the other.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    bytes: Vec<u8>,
}

impl Builder {
    /// What was built.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends a message: `nlmsg_type`, `nlmsg_flags` (`NLM_F_REQUEST` is added), the family's own header, attributes.
    pub(crate) fn message(
        &mut self,
        kind: u16,
        flags: libc::c_int,
        header: &[u8],
        body: impl FnOnce(&mut Builder),
    ) {
        let start = self.bytes.len();
        self.bytes.extend([0; HEADER]);
        self.bytes.extend(header);
        body(self);
        let len = (self.bytes.len() - start) as u32;
        let flags = (flags | libc::NLM_F_REQUEST) as u16;
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[start + 4..start + 6].copy_from_slice(&kind.to_ne_bytes());
        self.bytes[start + 6..start + 8].copy_from_slice(&flags.to_ne_bytes());
        self.pad();
    }

    /// Appends an attribute.
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.open(kind, |builder| builder.bytes.extend(value));
    }

    /// Appends an attribute with a number in network order, as nf_tables has them.
    pub(crate) fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// Appends an attribute with a name, which ends in a zero.
    pub(crate) fn name(&mut self, kind: u16, value: &str) {
        self.open(kind, |builder| {
            builder.bytes.extend(value.as_bytes());
            builder.bytes.push(0);
        });
    }

    /// Appends an attribute that holds attributes.
    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Builder)) {
        self.open(kind | NLA_F_NESTED, body);
    }

    fn open(&mut self, kind: u16, body: impl FnOnce(&mut Builder)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        body(self);
        let len = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(align(self.bytes.len()), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_reads_back() {
        let mut builder = Builder::default();
        builder.message(20, libc::NLM_F_DUMP, &[1, 2, 3, 4], |message| {
            message.name(1, "ab");
            message.nest(2, |nest| nest.number(3, 7));
        });
        builder.message(21, 0, &[], |_| ());
        let read: Vec<_> = messages(builder.bytes()).collect();
        assert_eq!(read.iter().map(|message| message.kind).collect::<Vec<_>>(), [20, 21]);
        let read: Vec<_> = attributes(&read[0].payload[4..]).collect();
        assert_eq!(read[0], (1, b"ab\0".as_slice()));
        assert_eq!(attributes(read[1].1).next(), Some((3, [0, 0, 0, 7].as_slice())));
    }

    #[test]
    fn damaged_replies_end_the_reading() {
        for bytes in [&[][..], &[1], &[3, 0, 0, 0], &[255, 255, 255, 255, 0, 0], &[0; 64]] {
            assert_eq!(messages(bytes).count(), 0, "{bytes:?}");
        }
        for bytes in [&[][..], &[1], &[3, 0, 0, 0], &[255, 255, 0, 0, 1]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
    }
}
