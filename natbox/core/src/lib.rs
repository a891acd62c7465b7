//! A complete NAT as a pure engine: packets, a clock reading and a seed in; verdicts out.

#![forbid(unsafe_code)]

pub mod behavior;
mod config;
mod endpoint;
mod nat;
pub mod packet;
pub mod preset;
mod time;
mod value;
mod verdict;

pub use behavior::Behavior;
pub use config::*;
pub use endpoint::{Endpoint, External, Inside, InsideId, Protocol, Remote};
pub use nat::{Nat, ends};
pub use packet::Packet;
pub use time::Time;
pub use value::{Allowed, PortRange, ValueError};
pub use verdict::{Claim, Counters, DropReason, Ended, Event, Side, Transmit, Verdict};
