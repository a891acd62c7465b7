//! Supernodes and who comes to them, over real sockets on loopback.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod abuse;
mod common;
#[cfg(unix)]
mod program;
mod quotas;
#[cfg(target_os = "linux")] // All of 127.0.0.0/8 is loopback only there: another /24 is another network.
mod reflection;
mod serving;
