//! What a stream is for: its first byte says it, and the first byte of the answer whether it is served.

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use traversal::{Connection, RecvStream, SendStream};

/// What the one who opens a stream wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Service {
    /// Every 8 bytes come back.
    Ping = 1,
    /// Standard input and output of both.
    Pipe = 2,
}

impl Service {
    fn from_byte(byte: u8) -> Option<Service> {
        [Service::Ping, Service::Pipe].into_iter().find(|service| *service as u8 == byte)
    }
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Answer {
    /// Served from here on.
    Yes = 0,
    /// Not known here: an older program.
    Unknown = 1,
    /// Another peer is being served.
    Busy = 2,
}

/// Opens a stream for `service` and waits until the peer serves it.
pub(crate) async fn open(connection: &Connection, service: Service) -> Result<(SendStream, RecvStream)> {
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_u8(service as u8).await?;
    let answer = receive.read_u8().await.context("the peer ended the stream without an answer")?;
    match answer {
        answer if answer == Answer::Yes as u8 => Ok((send, receive)),
        answer if answer == Answer::Unknown as u8 => {
            bail!("the peer's program does not know this service: is it older?")
        }
        answer if answer == Answer::Busy as u8 => bail!("the peer is busy with another connection"),
        _ => bail!("the peer's answer makes no sense: does it run traverse?"),
    }
}

/// Reads what a stream of the peer's is for; `None`: nothing that is known here, and the peer has been told so.
pub(crate) async fn wanted(send: &mut SendStream, receive: &mut RecvStream) -> Result<Option<Service>> {
    let service = Service::from_byte(receive.read_u8().await?);
    if service.is_none() {
        answer(send, Answer::Unknown).await?;
        send.finish()?;
    }
    Ok(service)
}

/// Tells the peer whether its stream is served.
pub(crate) async fn answer(send: &mut SendStream, answer: Answer) -> Result<()> {
    Ok(send.write_u8(answer as u8).await?)
}
