//! Many datagrams in one system call.

use std::io;
use std::mem;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::ptr;

/// Datagrams in one call.
pub(super) const BATCH: usize = 64;

/// Sends `count` datagrams (at most [`BATCH`]) with the same payload on a connected socket. Returns how many the kernel
/// took.
pub(super) fn send_many(socket: &UdpSocket, payload: &[u8], count: usize) -> io::Result<usize> {
    // The kernel only reads what the vectors of a send point to.
    let mut vector = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    let mut headers = [empty_header(); BATCH];
    let headers = &mut headers[..count.min(BATCH)];
    for header in headers.iter_mut() {
        header.msg_hdr.msg_iov = &raw mut vector;
        header.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: `headers` is an array of that many headers; each names one vector, which names `payload`; all three live
    // until the call returns, and the kernel writes to nothing but `msg_len` in the headers.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), headers.len() as u32, 0) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Room for [`BATCH`] datagrams, or for fewer and larger ones.
#[derive(Debug)]
pub(super) struct Inbox {
    room: Vec<u8>,
    each: usize,
}

impl Inbox {
    /// Room for `count` datagrams (at most [`BATCH`]) of `each` bytes; longer ones are cut.
    pub(super) fn new(count: usize, each: usize) -> Self {
        Self { room: vec![0; count.min(BATCH) * each], each }
    }

    /// Takes what has come, without waiting. Returns the sum of the lengths; [`io::ErrorKind::WouldBlock`] if nothing
    /// has.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let mut vectors = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; BATCH];
        let mut headers = [empty_header(); BATCH];
        let mut count = 0;
        for ((chunk, vector), header) in
            self.room.chunks_exact_mut(self.each).zip(&mut vectors).zip(&mut headers)
        {
            *vector = libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: chunk.len() };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            count += 1;
        }
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: the first `count` headers each name one vector, and each vector a part of `self.room` of its own; all
        // live until the call returns, and nothing else refers to that room meanwhile.
        let received = unsafe {
            libc::recvmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, flags, ptr::null_mut())
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        Ok(headers[..received].iter().map(|header| header.msg_len as usize).sum())
    }
}

fn empty_header() -> libc::mmsghdr {
    // SAFETY: the structure is made of integers and raw pointers, for which zero is a value: no name, no vectors.
    unsafe { mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_arrives_whole() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        assert_eq!(send_many(&sender, &[7; 64], 10).unwrap(), 10);
        let mut inbox = Inbox::new(BATCH, 100);
        let mut got = 0;
        while got < 640 {
            got += inbox.receive(&receiver).unwrap(); // over loopback it is there once it is sent
        }
        assert_eq!(got, 640);
        assert_eq!(&inbox.room[..65], [[7; 64].as_slice(), &[0]].concat());
    }
}
