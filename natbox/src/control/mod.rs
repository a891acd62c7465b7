//! Live control of a running natbox: a unix socket that speaks line-delimited JSON.
//!
//! The loop owns the NAT and nobody else touches it. Whoever wants to know or change something puts a job into the
//! loop's [`Inbox`]; the loop answers it between two batches of packets, on its own thread, with a plain copy. What
//! takes time (sorting, writing JSON, waiting for a slow reader) happens on the thread that serves the client:
//!
//! ```text
//!   client ── unix socket ── thread of the Server ── Handle ══ bounded queue + eventfd ══ Inbox ── loop, Nat
//! ```
//!
//! So a slow client never holds up a packet. Clients, the queue, requests and events waiting for a subscriber are
//! bounded, and a client that takes nothing for ten seconds is cut off.
//!
//! # The protocol
//!
//! A client writes one JSON object on one line and reads lines, each a JSON object with a `"type"`, up to the one whose
//! type is `"done"` or `"error"`. It may then ask again. [`Request`] and [`Line`] list every word.
//!
//! ```text
//! → {"natbox":1,"request":"show","mappings":true}
//! ← {"type":"status","natbox":1,"pid":4242,"external":["198.51.100.7"],"behavior":{"mapping":"endpoint-independent",…},…}
//! ← {"type":"counters","counters":{"outbound-packets":12,…},"drops":{"no-mapping":1,…}}
//! ← {"type":"mapping","protocol":"udp","inside":"10.64.0.2:4242","external":"198.51.100.7:61001","remote":null,…}
//! ← {"type":"done"}
//! → {"natbox":1,"request":"show","subscribers":true}
//! ← … {"type":"subscriber","subscriber":"10.64.0.2/32","inside_port":0,"mappings":1,"sessions":1,
//!      "external":["198.51.100.7"],"blocks":["198.51.100.7:61440-61951"],"refused":0}
//! ← {"type":"done"}
//! → {"natbox":1,"request":"set","axes":{"filtering":"endpoint-independent"}}
//! ← {"type":"done","behavior":{…}}
//! → {"natbox":1,"request":"flush","only":{"protocol":"udp"}}
//! ← {"type":"done","removed":1}
//! ```

mod answer;
mod client;
mod inbox;
mod job;
mod line;
mod place;
mod request;
mod server;
mod subscriber;

pub use client::{Client, ClientError};
pub use inbox::{Gone, Handle, Inbox, Stamped, Subscription, channel};
pub use job::{Ask, Datapath, FastPath, Job, PortStats, Reply, Show, Snapshot, WorkerStats};
pub use line::{Counted, Done, Happened, Line, Mapping, Port, Session, Status, explanation, written};
pub use place::PlaceError;
pub use request::{Only, Request, VERSION};
pub use server::{About, Server};
pub use subscriber::{Holdings, Subscriber};
