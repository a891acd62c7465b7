//! Where a batch of datagrams is received into.

use std::{
    io::{self, IoSliceMut},
    task::{Context, Poll},
};

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
}

impl RecvBatch {
    /// `count` buffers (more than [`BATCH_SIZE`] are of no use) for `socket`: 64 KiB each where it joins datagrams,
    /// `datagram` bytes each where it does not.
    pub fn new(socket: &dyn DatagramSocket, count: usize, datagram: usize) -> RecvBatch {
        let bytes = if socket.max_receive_segments() > 1 { 1 << 16 } else { datagram };
        let count = count.clamp(1, BATCH_SIZE);
        RecvBatch {
            buffers: (0..count).map(|_| vec![0; bytes].into_boxed_slice()).collect(),
            metas: vec![RecvMeta::default(); count],
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

    /// The trains in the first `count` buffers: `stride` bytes each datagram, the last may be shorter.
    pub fn trains(&mut self, count: usize) -> impl Iterator<Item = (RecvMeta, &mut [u8])> {
        let filled = self.metas.iter().zip(&mut self.buffers).take(count);
        filled.map(|(meta, buffer)| {
            let length = meta.len.min(buffer.len());
            (*meta, &mut buffer[..length])
        })
    }
}
