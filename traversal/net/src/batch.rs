//! Where a batch of datagrams is received into.

use std::{
    io::{self, IoSliceMut},
    mem,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;

use crate::{
    RecvMeta,
    socket::DatagramSocket,
    udp::{BATCH_SIZE, KernelSocket},
};

/// Buffers for a whole batch, used again and again.
#[derive(Debug)]
pub struct RecvBatch {
    buffers: Vec<Box<[u8]>>,
    metas: Vec<RecvMeta>,
    spare: Spare,
}

/// Buffers that were lent and have come back.
type Spare = Arc<Mutex<Vec<Box<[u8]>>>>;
/// More are not kept: as many as a turn of reading may lend.
const MOST_SPARE: usize = 64;

impl RecvBatch {
    /// `count` buffers (more than [`BATCH_SIZE`] are of no use) for `socket`: 64 KiB each where it joins datagrams,
    /// `datagram` bytes each where it does not.
    pub fn new(socket: &dyn DatagramSocket, count: usize, datagram: usize) -> RecvBatch {
        let bytes = if socket.max_receive_segments() > 1 { 1 << 16 } else { datagram };
        let count = count.clamp(1, BATCH_SIZE);
        RecvBatch {
            buffers: (0..count).map(|_| vec![0; bytes].into_boxed_slice()).collect(),
            metas: vec![RecvMeta::default(); count],
            spare: Spare::default(),
        }
    }

    /// Receives once; the count is of buffers.
    pub fn poll_recv(
        &mut self,
        socket: &dyn DatagramSocket,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        for (slice, buffer) in slices.iter_mut().zip(&mut self.buffers) {
            *slice = IoSliceMut::new(buffer);
        }
        socket.poll_recv(cx, &mut slices[..self.metas.len()], &mut self.metas)
    }

    /// Receives what is there, without waiting, on a thread that waits by [`Stop::wait_readable`](crate::Stop::wait_readable).
    ///
    /// # Errors
    /// `WouldBlock`: nothing. The system's.
    pub fn try_recv(&mut self, socket: &KernelSocket) -> io::Result<usize> {
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        for (slice, buffer) in slices.iter_mut().zip(&mut self.buffers) {
            *slice = IoSliceMut::new(buffer);
        }
        socket.try_recv(&mut slices[..self.metas.len()], &mut self.metas)
    }

    /// How many buffers there are.
    pub fn buffers(&self) -> usize {
        self.buffers.len()
    }

    /// What the buffer with this number holds: `stride` bytes each datagram, the last may be shorter. Empty if there is
    /// no such buffer.
    pub fn train(&mut self, at: usize) -> (RecvMeta, &mut [u8]) {
        let (Some(meta), Some(buffer)) = (self.metas.get(at), self.buffers.get_mut(at)) else {
            return (RecvMeta::default(), &mut []);
        };
        let length = meta.len.min(buffer.len());
        (*meta, &mut buffer[..length])
    }

    /// The same, to be read.
    pub fn bytes(&self, at: usize) -> &[u8] {
        match (self.metas.get(at), self.buffers.get(at)) {
            (Some(meta), Some(buffer)) => &buffer[..meta.len.min(buffer.len())],
            _ => &[],
        }
    }

    /// What the buffer with this number holds, to be kept. A buffer that is at least half full is given away, for as long
    /// as what is returned lives, and another takes its place; what is less is copied.
    pub fn take(&mut self, at: usize) -> Bytes {
        let (Some(meta), Some(buffer)) = (self.metas.get(at), self.buffers.get_mut(at)) else {
            return Bytes::new();
        };
        let length = meta.len.min(buffer.len());
        if length < buffer.len() / 2 {
            return Bytes::copy_from_slice(&buffer[..length]);
        }
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let next = spare.unwrap_or_else(|| vec![0; buffer.len()].into_boxed_slice());
        let lent = Lent { buffer: mem::replace(buffer, next), home: self.spare.clone() };
        Bytes::from_owner(lent).slice(..length)
    }

    /// The trains in the first `count` buffers: `stride` bytes each datagram, the last may be shorter.
    pub fn trains(&mut self, count: usize) -> impl Iterator<Item = (RecvMeta, &mut [u8])> {
        let filled = self.metas.iter().zip(&mut self.buffers).take(count);
        filled.map(|(meta, buffer)| {
            let length = meta.len.min(buffer.len());
            (*meta, &mut buffer[..length])
        })
    }
}

/// A buffer that goes home.
struct Lent {
    buffer: Box<[u8]>,
    home: Spare,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut spare = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < MOST_SPARE {
            spare.push(mem::take(&mut self.buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_buffers_are_lent_and_come_back() {
        let mut batch = RecvBatch {
            buffers: vec![Box::new([7; 100])],
            metas: vec![RecvMeta { len: 80, stride: 10, ..RecvMeta::default() }],
            spare: Spare::default(),
        };
        let address = batch.buffers[0].as_ptr();
        let lent = batch.take(0);
        assert_eq!((lent.as_ptr(), &lent[..]), (address, &[7; 80][..]));
        assert_eq!(batch.buffers[0].len(), 100);
        let kept = lent.slice(70..);
        drop(lent);
        assert!(batch.spare.lock().unwrap().is_empty());
        drop(kept);
        assert_eq!(batch.spare.lock().unwrap()[0].as_ptr(), address);
        batch.metas[0].len = 49;
        assert_eq!(&batch.take(0)[..], [0; 49]);
        assert_eq!(batch.spare.lock().unwrap().len(), 1, "little is copied");
        assert!(batch.take(1).is_empty());
    }
}
