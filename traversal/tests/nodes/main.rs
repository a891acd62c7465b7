//! Nodes and supernodes, on loopback and on simulated internets.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[cfg(target_os = "linux")] // All of 127.0.0.0/8 is loopback only there.
mod abuse;
mod clocks;
mod common;
mod homes;
mod ipv6;
mod limits;
mod loopback;
mod pairs;
mod partings;
mod punches;
mod scenarios;
mod seeds;
mod sharing;
mod simulated;
mod waiting;
