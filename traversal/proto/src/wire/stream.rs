//! Frames on a control stream (a QUIC stream, or TLS over TCP): a length, then that many bytes.
//!
//! ```text
//!  length 2, big-endian, 1 to 4096 | body
//! ```
//!
//! The body's first byte tells what it is, by the rule of [`demultiplex`](super::demultiplex): 128–191 is a relay frame
//! (for peers whose network blocks UDP), anything below 128 is a [`message`](super::message).

use std::ops::Range;

/// The largest body. The largest message takes about half of it, a relayed QUIC packet less.
pub const MAX_FRAME: usize = 4096;

/// Bytes before the body.
pub const FRAME_HEADER: usize = 2;

/// A length that no frame may have: the stream is of no use from here on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {0} bytes: 1 to {MAX_FRAME} are allowed")]
pub struct BadLength(pub usize);

/// Appends one frame to `out`.
pub fn push_frame(out: &mut Vec<u8>, body: &[u8]) -> Result<(), BadLength> {
    let length = u16::try_from(body.len()).map_err(|_| BadLength(body.len()))?;
    if !(1..=MAX_FRAME).contains(&body.len()) {
        return Err(BadLength(body.len()));
    }
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(body);
    Ok(())
}

/// Where the body of the first frame in `received` lies; `None` when more has to be read first. The frame ends where
/// the body ends, so a reader never holds more than [`MAX_FRAME`] + [`FRAME_HEADER`] bytes of an unfinished frame.
pub fn next_frame(received: &[u8]) -> Result<Option<Range<usize>>, BadLength> {
    let Some(header) = received.first_chunk() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes(*header));
    if !(1..=MAX_FRAME).contains(&length) {
        return Err(BadLength(length));
    }
    let body = FRAME_HEADER..FRAME_HEADER + length;
    Ok((received.len() >= body.end).then_some(body))
}
