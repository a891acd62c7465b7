//! What travels on the stream of a transfer: frames with messages in them, and the contents of files
//! (docs/transfer.md). Decoding is total: any bytes are messages or an error, and no more than [`MAX_BODY`] of them are held.

use std::fmt;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The first byte of a transfer, before any frame.
pub(crate) const VERSION: u8 = 1;

/// Bytes of a message's body: a batch of a list, the longest there is, is made half as long.
pub(crate) const MAX_BODY: usize = 64 * 1024;

/// Bytes of a frame before its body: its kind, and the body's length in three bytes, big-endian.
pub(crate) const HEADER: usize = 4;

/// Bytes of words about a failure; more are cut off.
const MAX_WORDS: usize = 200;

const MESSAGE: u8 = 0;
const DATA: u8 = 1;

/// BLAKE3, 256 bits.
pub(crate) type Hash = [u8; 32];

/// A folder or a file: where, relative to the receiver's folder, and what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Components joined by `/`; its folder has an entry before it.
    pub(crate) path: String,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    Folder,
    File(About),
}

/// What is kept of a file besides its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    /// In bytes.
    pub(crate) size: u64,
    /// When its content last changed: seconds since 1970, and nanoseconds, below a billion.
    pub(crate) modified: (i64, u32),
    /// Its owner may execute it.
    pub(crate) executable: bool,
}

/// From the one who sends files. `index` counts the entries of the list from 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromSender {
    /// First: how many entries follow, and how many bytes their files have.
    Offer { entries: u32, bytes: u64 },
    /// The next entries.
    List(Vec<Entry>),
    /// The hash of the first bytes of a file, as asked for by [`FromReceiver::Check`].
    Prefix { index: u32, hash: Hash },
    /// The data that follow are this file's, from this byte on.
    File { index: u32, from: u64 },
    /// This file is over; the hash of what was sent of it since [`FromSender::File`].
    End { hash: Hash },
    /// This file cannot be sent, or not to its end.
    Gone { index: u32, why: Why },
}

/// From the one who receives files, and who decides what comes when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromReceiver {
    /// Answers the list.
    Accept,
    /// Answers the list; nothing follows.
    Refuse(Refusal),
    /// Hash so many first bytes of this file: they may be here.
    Check { index: u32, bytes: u64 },
    /// Send the files among so many entries, each from its beginning.
    Send { first: u32, count: u32 },
    /// Send this file from here: what was checked is right up to here, or, at 0, is not.
    Resume { index: u32, from: u64 },
    /// What was checked is the whole file.
    Present { index: u32 },
    /// This file will not come to be.
    Failed { index: u32, why: Why },
    /// Every file is here, or has failed. The last message.
    Report,
    /// The receiver cannot go on. The last message.
    Stopped(Why),
}

/// Why an offer is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Refusal {
    /// This version of the transfer is not known; that one is.
    Version(u8),
    /// Somebody was asked, and said no.
    Declined,
    /// More bytes than the receiver takes.
    TooLarge { limit: u64 },
    /// The list breaks a rule.
    List(String),
}

/// Why a file is not transferred.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Why {
    /// The receiver wants no more of it.
    Unwanted,
    /// Something else has its name, and is not to be overwritten.
    Exists,
    /// A link or a file is where a folder is needed.
    Blocked,
    /// No permission to write there.
    Denied,
    /// No space is left.
    DiskFull,
    /// Another process receives the same file.
    InUse,
    /// It changed while it was read.
    Changed,
    /// What arrived is not what was sent.
    Corrupt,
    /// It cannot be read where it comes from.
    Unreadable(String),
    /// In the words of the operating system.
    Other(String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::Unwanted => "it is not wanted any more",
            Why::Exists => "something else has its name already (--overwrite replaces files)",
            Why::Blocked => "a link or a file is where a folder is needed",
            Why::Denied => "no permission to write it",
            Why::DiskFull => "the disk is full",
            Why::InUse => "another traverse is receiving it",
            Why::Changed => "it changed while it was sent",
            Why::Corrupt => "what arrived is not what was sent",
            Why::Unreadable(words) => return write!(f, "cannot read it: {}", brief(words)),
            Why::Other(words) => return write!(f, "cannot write it: {}", brief(words)),
        })
    }
}

/// The other side does not keep to the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer breaks the protocol: {0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

/// `words` as they may be sent.
pub(crate) fn brief(words: impl ToString) -> String {
    let mut words = words.to_string();
    cut(&mut words, MAX_WORDS);
    words
}

/// Cuts `text` to at most so many bytes.
pub(crate) fn cut(text: &mut String, bytes: usize) {
    let end = (0..=bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or(0));
}

/// Appends a frame with `message`.
///
/// # Errors
/// It is longer than [`MAX_BODY`].
pub(crate) fn put(message: &impl Serialize, out: &mut Vec<u8>) -> Result<(), Malformed> {
    let body = postcard::to_allocvec(message).map_err(|_| Malformed("a message that cannot be written"))?;
    if body.len() > MAX_BODY {
        return Err(Malformed("a message is too long"));
    }
    out.extend_from_slice(&header(MESSAGE, body.len()));
    out.extend_from_slice(&body);
    Ok(())
}

/// What stands before `length` bytes of a file; `length` is below 2²⁴.
pub(crate) fn data_header(length: usize) -> [u8; HEADER] {
    header(DATA, length)
}

fn header(kind: u8, length: usize) -> [u8; HEADER] {
    let [_, high, middle, low] = (length as u32).to_be_bytes();
    [kind, high, middle, low]
}

/// Takes a stream of frames apart, wherever it is cut.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    header: Vec<u8>,
    body: Vec<u8>,
    /// Bytes of data that the frame still has.
    data: usize,
}

/// What comes out of a [`Decoder`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part<'a, M> {
    Message(M),
    /// Some of a file's content.
    Data(&'a [u8]),
}

impl Decoder {
    /// The next part, and `input` without its bytes; `None`: more input is needed.
    pub(crate) fn next<'a, M: DeserializeOwned>(
        &mut self,
        input: &mut &'a [u8],
    ) -> Result<Option<Part<'a, M>>, Malformed> {
        loop {
            if self.data > 0 {
                let bytes = take(input, self.data);
                self.data -= bytes.len();
                return Ok((!bytes.is_empty()).then_some(Part::Data(bytes)));
            }
            self.header.extend_from_slice(take(input, HEADER - self.header.len()));
            let &[kind, high, middle, low] = self.header.as_slice() else { return Ok(None) };
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            match kind {
                DATA => self.data = length,
                MESSAGE if length > MAX_BODY => return Err(Malformed("a message is too long")),
                MESSAGE => {
                    self.body.extend_from_slice(take(input, length - self.body.len()));
                    if self.body.len() < length {
                        return Ok(None);
                    }
                    let message = match postcard::take_from_bytes(&self.body) {
                        Ok((message, [])) => message,
                        Ok(_) => return Err(Malformed("there is more in a frame than a message")),
                        Err(_) => return Err(Malformed("a message makes no sense")),
                    };
                    self.header.clear();
                    self.body.clear();
                    return Ok(Some(Part::Message(message)));
                }
                _ => return Err(Malformed("a frame of an unknown kind")),
            }
            self.header.clear();
        }
    }

    /// Nothing has begun that is not over.
    pub(crate) fn is_between(&self) -> bool {
        self.header.is_empty() && self.data == 0
    }
}

fn take<'a>(input: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(most.min(input.len()));
    *input = rest;
    taken
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
