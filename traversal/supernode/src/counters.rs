//! What the shell counts, beside what the engine counts.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $field:ident),+ $(,)?) => {
        /// What has happened on the sockets and connections since the start.
        #[derive(Debug, Default)]
        pub struct ShellCounters { $($(#[doc = $doc])+ pub $field: AtomicU64),+ }

        impl ShellCounters {
            /// Every counter with its name and what it means.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($field), concat!($($doc),+), self.$field.load(Ordering::Relaxed))),+].into_iter()
            }
        }
    };
}

counters! {
    /// Datagrams received.
    udp_received_packets,
    /// Bytes of the datagrams received.
    udp_received_bytes,
    /// Relayed datagrams and answers handed to the kernel.
    udp_sent_packets,
    /// System calls that sent them.
    udp_send_calls,
    /// Datagrams dropped because the kernel's buffer was full.
    udp_send_blocked,
    /// Datagrams that the kernel refused: no route, not permitted.
    udp_send_errors,
    /// QUIC datagrams dropped because their queue was full.
    quic_dropped,
    /// Handshakes begun, QUIC and TLS.
    handshakes,
    /// Handshakes that failed or took too long.
    handshakes_failed,
    /// QUIC handshakes told to prove their address first, for too many were going on.
    handshakes_retried,
    /// Handshakes turned away because too many were going on.
    handshakes_refused,
    /// QUIC handshakes, and packets of none, not answered: too many came from networks that have proved nothing.
    handshakes_ignored,
    /// Relayed packets dropped because the receiver's connection was behind.
    stream_dropped,
    /// Connections closed because their peer did not read.
    slow_readers,
}

pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
