//! What can go wrong with a load.

use std::io;

use super::Load;
use crate::LabError;

/// A load can't run, or nothing comes through.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The name of a load that isn't one.
    #[error(
        "no load '{0}': tcp-up-1 (or down, and any number of flows), udp-64-up (any size up to 1472 B), udp-gso-up, \
         latency, new-flows, connections or idle"
    )]
    NoLoad(String),
    /// A namespace can't be entered.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The kernel refused, or the path through the NAT doesn't work.
    #[error("{what}: {source}")]
    Io {
        /// What didn't work.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The load ran and the receiver got nothing.
    #[error("{load}: nothing came through while the window was open; is the NAT still at work?")]
    Nothing {
        /// The load.
        load: Load,
    },
    /// The process whose processor time was to be counted is gone.
    #[error("process {0} is gone: the NAT ended; its log tells why")]
    NatGone(u32),
    /// A line of results that can't be understood.
    #[error("line {line} of the results is none: {source}")]
    Results {
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// Wraps an I/O error with what was tried.
pub(super) fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> LoadError {
    let what = what.into();
    move |source| LoadError::Io { what, source }
}
