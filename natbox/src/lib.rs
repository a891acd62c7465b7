//! natbox: a user-space NAT on a TUN device.
//!
//! Everything that decides is in [`natbox_core`]: a pure engine that is handed packets and the time. This crate is what
//! stands between that engine and a machine:
//!
//! ```text
//!   hosts behind the NAT                          natbox                           public network
//!
//!   tun0 ─┐                        ┌────────────── run ──────────────┐
//!   tun1@netns ─── datapath ───────┤  outbound ►  natbox_core::Nat   ├─────── datapath ─── eth0
//!   eth1 (a LAN) ┘  neighbor       │              ◄  inbound         │        neighbor      ▲
//!                                  └───▲──────────────┬──────────┬───┘                      │
//!                                      │ jobs         │ lines    │ ports in use             │
//!                     natbox show ── control        output     guard ───────────────────────┘
//! ```
//!
//! - [`settings`]: what was asked for, checked, before anything of the machine is looked at.
//! - [`host`]: what that means on this machine ([`host::Plan`]), and doing it ([`host::Wiring`]): devices, addresses,
//!   namespaces. All of it hangs on descriptors, so it is undone when the process ends, however it ends.
//! - [`datapath`]: ports that receive and send packets in batches: TUN devices, Ethernet interfaces, and a twin in
//!   memory. [`neighbor`] finds and answers the Ethernet addresses around them.
//! - [`guard`]: on an address that natbox shares with the host, keeps the host's own stack from answering packets that
//!   are natbox's.
//! - `fastpath`: programs in the kernel that move packets of quick flows by rules of the engine's; `bpf` is what guard and
//!   fast path are written with.
//! - [`run`]: the loop, one thread that owns the engine and every port, and takes turns between them; or several, each with
//!   ports of its own, that share the engine.
//! - [`control`]: questions and orders from outside, answered by the loop between two batches.
//! - [`output`]: what people and programs read.
//!
//! The loop never waits for anybody: printing, clients, routes and the host's own ports are other threads' work, and
//! every queue to and from them is bounded.

mod bpf;
pub mod control;
pub mod datapath;
mod fastpath;
pub mod guard;
pub mod host;
pub mod neighbor;
pub mod output;
pub mod run;
pub mod settings;
