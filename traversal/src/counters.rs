//! What a node counts: every limit that is met shows here.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Serialize, Serializer};
use traversal_proto::peer::Counters as PathCounters;

macro_rules! counters {
    ($($(#[$doc:meta])+ $field:ident),+ $(,)?) => {
        /// What has happened since the node was started.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[$doc])+ pub $field: u64,)+
            /// Datagrams, or trains of them, for QUIC that were dropped because it had not taken those before: 4 MiB wait
            /// at the most.
            pub received_dropped: u64,
            /// Connections of others that were closed because 64 were waiting for [`Node::accept`](crate::Node::accept).
            pub connections_not_accepted: u64,
            /// What the search for paths counts; what could not be sent for it is among `send_errors`.
            #[serde(serialize_with = "by_name")]
            pub paths: PathCounters,
        }

        /// The same, while it counts: for the driver, and for QUIC's tasks beneath it.
        #[derive(Debug, Default)]
        pub(crate) struct Counts { $(pub(crate) $field: AtomicU64,)+ }

        impl Counts {
            pub(crate) fn read(&self) -> Counters {
                Counters { $($field: self.$field.load(Ordering::Relaxed),)+ ..Counters::default() }
            }
        }
    };
}

counters! {
    /// Datagrams, or trains of them, that the system did not take: its buffer was full, or there was no route. QUIC's that
    /// wait for room in the buffer are not among them.
    send_errors,
    /// Relayed packets that were dropped because the control connection, which carries them where UDP is blocked, had not
    /// written those before.
    relay_frames_dropped,
    /// Messages to supernodes that waited because 256 frames were waiting already. Counted again each time they are looked
    /// at.
    supernode_messages_held,
    /// Messages about candidates that were lost because the peer had not read those before. They are told again.
    peer_messages_dropped,
    /// Handshakes of peers that were refused because they are not [admitted](crate::Builder::admit).
    connections_not_admitted,
    /// First packets of handshakes that were left alone because the peer had too many under way. It repeats them.
    handshakes_put_off,
    /// Punches, of others and by this node, that were refused because too many were under way.
    punches_refused,
    /// Supernodes that others have named and that found no room.
    supernodes_not_added,
}

impl Counts {
    pub(crate) fn add(&self, which: impl FnOnce(&Counts) -> &AtomicU64) {
        which(self).fetch_add(1, Ordering::Relaxed);
    }
}

fn by_name<S: Serializer>(counters: &PathCounters, to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(counters.named())
}
