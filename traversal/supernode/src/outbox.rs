//! What waits to be written to a connection.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;
use traversal_proto::wire::{
    message::{Code, FromSupernode},
    stream::push_frame,
};

/// Messages beyond this many bytes end the connection: its peer does not read. A peer may get a Presence for each of 64
/// watches and an Opened for each of a thousand channels in one go, 80 bytes each.
const MESSAGES: usize = 256 << 10;
/// Relayed packets beyond this are dropped: 80 ms at 10 Mbit/s, a router's queue.
const DATA: usize = 96 << 10;

/// Frames for one connection, in order. The engine's side puts in and never waits; the connection's writer takes out.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    end: Option<End>,
}

/// Why nothing more comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The engine has closed the connection; what is waiting is still to be written.
    Closed(Code),
    /// The peer did not read what it was sent.
    TooSlow,
}

/// What the writer is to do.
pub(crate) enum Next {
    /// The buffer has been filled: write it.
    Write,
    /// There is nothing yet.
    Wait,
    /// There is nothing, and nothing more will come.
    End(End),
}

impl Outbox {
    pub(crate) fn message(&self, message: &FromSupernode) {
        let body = message.encode();
        let mut state = self.lock();
        if state.end.is_some() {
            return;
        }
        // A message of ours is never longer than a frame; if it were, it would be lost and the stream stay good.
        if state.bytes.len() + body.len() > MESSAGES || push_frame(&mut state.bytes, &body).is_err() {
            state.bytes = Vec::new();
            state.end = Some(End::TooSlow);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// False: dropped.
    pub(crate) fn data(&self, frame: &[u8]) -> bool {
        let mut state = self.lock();
        if state.end.is_some() || state.bytes.len() + frame.len() > DATA {
            return false;
        }
        let taken = push_frame(&mut state.bytes, frame).is_ok();
        drop(state);
        self.changed.notify_one();
        taken
    }

    pub(crate) fn close(&self, code: Code) {
        self.lock().end.get_or_insert(End::Closed(code));
        self.changed.notify_one();
    }

    /// What waits goes into `buffer`, which is empty.
    pub(crate) fn take(&self, buffer: &mut Vec<u8>) -> Next {
        let mut state = self.lock();
        if !state.bytes.is_empty() {
            std::mem::swap(&mut state.bytes, buffer);
            return Next::Write;
        }
        state.end.map_or(Next::Wait, Next::End)
    }

    /// Whether nothing more comes, and why.
    pub(crate) fn end(&self) -> Option<End> {
        self.lock().end
    }

    /// Until something has changed since the last [`take`](Self::take). For one task.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_dropped_before_messages_end_it() {
        let outbox = Outbox::default();
        assert!(outbox.data(&[0x80; 1000]));
        while outbox.data(&[0x80; 1000]) {}
        let pong = FromSupernode::Pong { nonce: u64::MAX };
        outbox.message(&pong);
        let mut buffer = Vec::new();
        assert!(matches!(outbox.take(&mut buffer), Next::Write));
        assert!(buffer.len() <= DATA + 1100);
        for _ in 0..MESSAGES / 10 {
            outbox.message(&pong);
        }
        assert!(matches!(outbox.take(&mut Vec::new()), Next::End(End::TooSlow)));
        outbox.close(Code::Draining);
        assert!(matches!(outbox.take(&mut Vec::new()), Next::End(End::TooSlow)), "the first reason stays");
    }

    #[test]
    fn what_was_put_in_before_the_end_is_written() {
        let outbox = Outbox::default();
        outbox.message(&FromSupernode::Attached);
        outbox.close(Code::Replaced);
        outbox.message(&FromSupernode::Attached);
        let mut buffer = Vec::new();
        assert!(matches!(outbox.take(&mut buffer), Next::Write));
        assert_eq!(buffer, [0, 1, 12]);
        assert!(matches!(outbox.take(&mut Vec::new()), Next::End(End::Closed(Code::Replaced))));
    }
}
