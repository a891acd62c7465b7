//! The program: what it prints, how it ends, and what it does with peers, honest and hostile.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cli;
#[cfg(unix)]
mod common;
#[cfg(unix)]
mod errors;
#[cfg(unix)]
mod forward;
#[cfg(unix)]
mod forward_hostile;
#[cfg(unix)]
mod hostile;
#[cfg(unix)]
mod programs;
#[cfg(unix)]
mod services;
#[cfg(unix)]
mod transfers;
