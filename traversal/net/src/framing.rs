//! The frames of a control connection ([`traversal_proto::wire::stream`]) over any byte stream.

use std::{io, ops::Range};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use traversal_proto::wire::stream::{BadLength, FRAME_HEADER, MAX_FRAME, next_frame, push_frame};

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The stream broke.
    #[error("the control connection broke: {0}")]
    Io(#[from] io::Error),
    /// A length that no frame may have.
    #[error("the other end does not speak this protocol: {0}")]
    BadLength(#[from] BadLength),
    /// The stream ended within a frame.
    #[error("the control connection ended within a frame")]
    CutShort,
}

/// Room for most messages: a server has many connections that are mostly silent.
const FIRST_BUFFER: usize = 512;
/// Room for a few of the largest frames: one read takes in what has gathered.
const MAX_BUFFER: usize = 4 * (MAX_FRAME + FRAME_HEADER);

/// Reads frames. It holds half a kilobyte, and never more than 16, whatever the other end sends.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    buffer: Vec<u8>,
    /// What of the buffer is filled and not yet given out.
    unread: Range<usize>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads from `stream`.
    pub fn new(stream: R) -> FrameReader<R> {
        FrameReader { stream, buffer: vec![0; FIRST_BUFFER], unread: 0..0 }
    }

    /// The body of the next frame; `None` at the end of the stream. Cancel safe: nothing is lost when the future is
    /// dropped.
    ///
    /// # Errors
    /// After any error the stream is of no more use.
    pub async fn next(&mut self) -> Result<Option<&mut [u8]>, ReadError> {
        loop {
            if let Some(body) = next_frame(&self.buffer[self.unread.clone()])? {
                let start = self.unread.start;
                self.unread.start += body.end;
                return Ok(Some(&mut self.buffer[start + body.start..start + body.end]));
            }
            // What is left is less than a frame: moved to the front, there is room for the rest of it.
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
            if self.unread.end == self.buffer.len() {
                self.grow();
            }
            let read = self.stream.read(&mut self.buffer[self.unread.end..]).await?;
            if read == 0 {
                return if self.unread.is_empty() { Ok(None) } else { Err(ReadError::CutShort) };
            }
            self.unread.end += read;
            if self.unread.end == self.buffer.len() && self.buffer.len() < MAX_BUFFER {
                self.grow();
            }
        }
    }

    /// More has come than there was room for: the next read takes more in.
    fn grow(&mut self) {
        self.buffer.resize((self.buffer.len() * 4).min(MAX_BUFFER), 0);
    }

    /// The stream.
    pub fn get_ref(&self) -> &R {
        &self.stream
    }
}

/// Writes frames. What is pushed gathers until it is flushed; how much may gather is the caller's to bound, by
/// [`pending`](Self::pending).
#[derive(Debug)]
pub struct FrameWriter<W> {
    stream: W,
    buffer: Vec<u8>,
    written: usize,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes to `stream`.
    pub fn new(stream: W) -> FrameWriter<W> {
        FrameWriter { stream, buffer: Vec::new(), written: 0 }
    }

    /// Appends one frame to what is to be written.
    ///
    /// # Errors
    /// A body that no frame can have: nothing is appended.
    pub fn push(&mut self, body: &[u8]) -> Result<(), BadLength> {
        push_frame(&mut self.buffer, body)
    }

    /// Bytes that have been pushed and not written.
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.written
    }

    /// Writes everything. Cancel safe: what was written is not written again.
    pub async fn flush(&mut self) -> io::Result<()> {
        while self.written < self.buffer.len() {
            let written = self.stream.write(&self.buffer[self.written..]).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.written += written;
        }
        self.buffer.clear();
        self.written = 0;
        self.stream.flush().await
    }

    /// Writes everything and says that nothing more comes.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.flush().await?;
        self.stream.shutdown().await
    }

    /// The stream.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.stream
    }
}
