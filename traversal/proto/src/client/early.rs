//! Packets that overtake the news of their channel: they come by UDP, the news by the control connection.

use std::{collections::VecDeque, time::Duration};

use crate::{
    Time,
    wire::{PeerId, frame::ChannelId},
};

/// Frames that wait: the first flights of a few peers that call at the same time.
const MAX_FRAMES: usize = 32;
/// Frames of one channel that wait: a handshake's first flight.
const MAX_OF_CHANNEL: usize = 4;
/// The news of a channel is that much later at the most; after this QUIC has sent the packet again.
const WAITS: Duration = Duration::from_secs(1);

struct Waiting {
    channel: ChannelId,
    since: Time,
    payload: Vec<u8>,
}

#[derive(Default)]
pub(super) struct Early {
    waiting: VecDeque<Waiting>,
    ready: VecDeque<(PeerId, Vec<u8>)>,
}

impl Early {
    /// A packet of a channel that nobody has named yet. When there is no room it is lost, as any packet may be.
    pub(super) fn keep(&mut self, channel: ChannelId, payload: &[u8], now: Time) {
        self.waiting.retain(|frame| now.since(frame.since) <= WAITS);
        let of_channel = self.waiting.iter().filter(|frame| frame.channel == channel).count();
        if self.waiting.len() < MAX_FRAMES && of_channel < MAX_OF_CHANNEL {
            self.waiting.push_back(Waiting { channel, since: now, payload: payload.to_vec() });
        }
    }

    /// The channel is named: what came early is the peer's.
    pub(super) fn opened(&mut self, channel: ChannelId, peer: PeerId, now: Time) {
        for frame in std::mem::take(&mut self.waiting) {
            if frame.channel != channel {
                self.waiting.push_back(frame);
            } else if now.since(frame.since) <= WAITS {
                self.ready.push_back((peer, frame.payload));
            }
        }
    }

    pub(super) fn poll(&mut self) -> Option<(PeerId, Vec<u8>)> {
        self.ready.pop_front()
    }

    /// The supernode has let go of all channels; their numbers may come again.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }
}
