//! Reaching a service behind a NAT: `traverse forward` and `traverse expose`.
//!
//! ```text
//!   client ──▶ entrance ══ a stream for each connection, one for each UDP flow ══▶ exit ──▶ target
//!              a port        (one connection between the peers, whatever its path)     the list of what is allowed
//! ```
//!
//! Clients come in at an [`entrance`], their connections and packets come out at an [`exit`]; which of the two peers has which
//! is only a matter of who listens. With `--local` the entrance is with the one who forwards, with `--remote` with the one who
//! exposes. What is said between them is in [`wire`], what is allowed in [`allow`]; both are pure. A TCP connection is
//! [copied](copy) both ways, a UDP [`flow`] keeps its packets whole. The [`session`] knows what one connection to a peer
//! carries, and has the limits. [`caller`] and [`expose`] are the two commands.

mod address;
mod allow;
pub(crate) mod args;
pub(crate) mod caller;
mod copy;
mod entrance;
mod exit;
pub(crate) mod expose;
mod files;
mod flow;
#[cfg(all(unix, any(test, fuzzing)))]
pub(crate) mod hostile;
mod meter;
mod report;
mod resolve;
mod session;
mod wire;
