//! Supernodes and who comes to them, over real sockets on loopback.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod abuse;
mod common;
#[cfg(unix)]
mod program;
mod quotas;
// All of 127.0.0.0/8 is loopback only on Linux: another /24 is another network.
#[cfg(target_os = "linux")]
mod reflection;
#[cfg(target_os = "linux")]
mod retry;
mod serving;
