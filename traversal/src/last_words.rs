//! What was said last to peers that are being parted from. QUIC says that it closes in one packet, and once more only to a
//! peer that goes on sending (RFC 9000 §10.2.1): one that merely listens, and loses that packet, learns it by a minute of
//! silence. So it is kept here as it was sent, to be sent again.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use traversal_net::Transmit;
use traversal_proto::peer::PeerKey;

/// The last packet to each peer whose connection is being closed. After the close QUIC sends nothing else.
#[derive(Debug, Default)]
pub(crate) struct LastWords {
    /// How many peers there are: nearly always none, and then a packet costs one look at this.
    count: AtomicUsize,
    packets: Mutex<HashMap<PeerKey, Vec<u8>>>,
}

impl LastWords {
    /// From here on the last packet to this peer is kept. To be called before QUIC closes the connection.
    pub(crate) fn begin(&self, peer: PeerKey) {
        self.change(|packets| {
            packets.entry(peer).or_default();
        });
    }

    /// The peer knows, or never will.
    pub(crate) fn end(&self, peer: PeerKey) {
        self.change(|packets| {
            packets.remove(&peer);
        });
    }

    /// A packet, or several of one size, are sent to a peer.
    pub(crate) fn note(&self, peer: PeerKey, transmit: &Transmit<'_>) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        if let Some(last) = self.packets().get_mut(&peer) {
            let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
            last.clear();
            last.extend_from_slice(transmit.contents.chunks(size).last().unwrap_or_default());
        }
    }

    /// What was said last to this peer, if it is being parted from, and something was said since.
    pub(crate) fn of(&self, peer: PeerKey) -> Option<Vec<u8>> {
        self.packets().get(&peer).filter(|packet| !packet.is_empty()).cloned()
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<PeerKey, Vec<u8>>)) {
        let mut packets = self.packets();
        change(&mut packets);
        self.count.store(packets.len(), Ordering::Release);
    }

    fn packets(&self) -> MutexGuard<'_, HashMap<PeerKey, Vec<u8>>> {
        self.packets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_packet_is_kept_while_it_is_wanted() {
        let (words, peer, other) = (LastWords::default(), PeerKey(1), PeerKey(2));
        let destination = ([192, 0, 2, 1], 1).into();
        let say = |peer, contents: &[u8], segment_size| {
            words.note(peer, &Transmit { destination, ecn: None, contents, segment_size, src_ip: None });
        };
        say(peer, b"before", None);
        words.begin(peer);
        assert_eq!(words.of(peer), None);
        say(peer, b"aabbc", Some(2));
        say(other, b"nobody's", None);
        words.begin(peer);
        assert_eq!((words.of(peer), words.of(other)), (Some(b"c".to_vec()), None));
        say(peer, b"close", None);
        assert_eq!(words.of(peer), Some(b"close".to_vec()));
        words.end(peer);
        words.end(peer);
        say(peer, b"after", None);
        assert_eq!((words.of(peer), words.count.load(Ordering::Acquire)), (None, 0));
    }
}
