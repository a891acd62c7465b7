//! The stream on which two nodes tell each other their candidates: the first of their connection, and not the
//! application's.

use tokio::sync::mpsc;
use traversal_net::framing::{FrameReader, FrameWriter};
use traversal_proto::{peer::PeerKey, wire::peer::PeerMessage};

use crate::driver::Command;

/// Messages that wait to be written: each replaces the ones before or asks for a new round, so losing some costs time only.
pub(crate) const MAX_WAITING: usize = 64;

/// Moves messages until the connection is over.
pub(crate) async fn run(
    peer: PeerKey,
    generation: u64,
    (send, receive): (quinn::SendStream, quinn::RecvStream),
    mut messages: mpsc::Receiver<PeerMessage>,
    commands: mpsc::Sender<Command>,
) {
    let (mut writer, mut reader) = (FrameWriter::new(send), FrameReader::new(receive));
    loop {
        tokio::select! {
            message = messages.recv(), if writer.pending() == 0 => {
                let Some(message) = message else { return };
                if writer.push(&message.encode()).is_err() {
                    return;
                }
            }
            result = writer.flush(), if writer.pending() > 0 => {
                if result.is_err() {
                    return;
                }
            }
            frame = reader.next() => {
                let Ok(Some(body)) = frame else { return };
                let Ok(message) = PeerMessage::decode(body) else { return };
                if commands.send(Command::PeerMessage { peer, generation, message }).await.is_err() {
                    return;
                }
            }
        }
    }
}
