//! Messages from and to a stream.

use anyhow::{Context, Result};
use bytes::{Buf, Bytes};
use serde::{Serialize, de::DeserializeOwned};
use traversal::{RecvStream, SendStream};

use super::wire::{Decoder, Malformed, Part, put};

/// Bytes that are taken from the stream at once.
const CHUNK: usize = 64 * 1024;

/// Where bytes come from: the peer's stream, or, in a fuzzer, memory.
pub(crate) trait Chunks {
    /// The next bytes; `None`: there are no more.
    async fn chunk(&mut self) -> Result<Option<Bytes>>;
}

impl Chunks for RecvStream {
    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        Ok(self.read_chunk(CHUNK, true).await?.map(|chunk| chunk.bytes))
    }
}

/// What the other side says.
pub(crate) struct Incoming<C = RecvStream> {
    pub(crate) receive: C,
    pub(crate) decoder: Decoder,
    /// What has come and is not decoded yet.
    pub(crate) rest: Bytes,
}

impl<C: Chunks> Incoming<C> {
    pub(crate) fn new(receive: C) -> Incoming<C> {
        Incoming { receive, decoder: Decoder::default(), rest: Bytes::new() }
    }

    /// The next message, where no data may come.
    pub(crate) async fn next<M: DeserializeOwned>(&mut self) -> Result<M> {
        loop {
            let mut input = &self.rest[..];
            let message = match self.decoder.next(&mut input)? {
                Some(Part::Message(message)) => Some(message),
                Some(Part::Data(_)) => return Err(Malformed("data of no file").into()),
                None => None,
            };
            let left = input.len();
            self.rest.advance(self.rest.len() - left);
            if let Some(message) = message {
                return Ok(message);
            }
            let chunk = self.receive.chunk().await?;
            self.rest = chunk.context("the peer ended the transfer without a word")?;
        }
    }
}

/// Sends one message.
pub(crate) async fn say(send: &mut SendStream, message: &impl Serialize) -> Result<()> {
    let mut bytes = Vec::new();
    put(message, &mut bytes)?;
    Ok(send.write_all(&bytes).await?)
}
