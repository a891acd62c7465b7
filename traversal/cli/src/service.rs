//! What a stream is for: its first byte says it, and the first byte of the answer whether it is served. And why a
//! connection ends: the code of its close.

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use traversal::{CloseReason, Connection, RecvStream, SendStream};

use crate::stop::Ended;

/// What the one who opens a stream wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Service {
    /// Every 8 bytes come back.
    Ping = 1,
    /// Standard input and output of both.
    Pipe = 2,
    /// Files and folders.
    Files = 3,
    /// Connections and packets for somebody whom one side can reach (`forward/wire.rs`).
    Forward = 4,
}

impl Service {
    fn from_byte(byte: u8) -> Option<Service> {
        let all = [Service::Ping, Service::Pipe, Service::Files, Service::Forward];
        all.into_iter().find(|service| *service as u8 == byte)
    }

    /// What must run there for this to be served.
    const fn server(self) -> &'static str {
        match self {
            Service::Ping | Service::Pipe => "traverse listen",
            Service::Files => "traverse receive",
            Service::Forward => "traverse expose",
        }
    }
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Answer {
    /// Served from here on.
    Yes = 0,
    /// Not known here: an older program, or a command that does something else.
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
            bail!(
                "the peer does not run `{}`: it does something else, or its program is older",
                service.server()
            )
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

/// Why this program closes a connection, as the code of the close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Ending {
    /// Both have everything.
    Done = 0x10,
    /// By a signal.
    Interrupted = 0x11,
    /// Nobody reads standard output any more.
    OutputClosed = 0x12,
    /// Standard input or output failed, or the peer broke the protocol.
    Failed = 0x13,
}

impl Ending {
    /// What this side's `error` is to the peer.
    pub(crate) fn of(error: &anyhow::Error) -> Ending {
        match error.downcast_ref::<Ended>() {
            Some(Ended::HungUp | Ended::Interrupted | Ended::Terminated) => Ending::Interrupted,
            Some(Ended::OutputClosed) => Ending::OutputClosed,
            None => Ending::Failed,
        }
    }

    /// Closes the connection for this reason.
    pub(crate) fn close(self, connection: &Connection) {
        connection.close(self as u32, self.words().as_bytes());
    }

    /// The same, as the peer tells it.
    const fn words(self) -> &'static str {
        match self {
            Ending::Done => "done",
            Ending::Interrupted => "interrupted",
            Ending::OutputClosed => "its standard output is closed",
            Ending::Failed => "it failed",
        }
    }

    fn from_code(code: u64) -> Option<Ending> {
        let all = [Ending::Done, Ending::Interrupted, Ending::OutputClosed, Ending::Failed];
        all.into_iter().find(|ending| u64::from(*ending as u32) == code)
    }

    /// The peer closed the connection because both have everything.
    pub(crate) fn is_done(reason: &CloseReason) -> bool {
        matches!(reason, CloseReason::Peer { code, .. } if Ending::from_code(*code) == Some(Ending::Done))
    }
}

/// In words for this side's user, why a connection is over.
pub(crate) fn why(reason: &CloseReason) -> String {
    match reason {
        CloseReason::Peer { code, .. } => match Ending::from_code(*code) {
            Some(ending) => format!("the peer ended it ({})", ending.words()),
            None => "the peer closed the connection".to_owned(),
        },
        CloseReason::Here => {
            "this side gave the connection up (with --direct-only, when the direct path is lost)".to_owned()
        }
        reason => reason.to_string(),
    }
}
