//! What can go wrong with a lab.

use std::io;

/// A lab, one of its hosts or one of its NATs can't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// `netns-scripts/lab` failed; the message is its own one line.
    #[error("{message} (lab {arguments})")]
    Script {
        /// The command line, without the program.
        arguments: String,
        /// What it said.
        message: String,
    },
    /// A program said something that can't be understood.
    #[error("{program} answered with something else than expected: {source}")]
    Answer {
        /// The program.
        program: String,
        /// What is wrong with the answer.
        source: serde_json::Error,
    },
    /// No topology of that name in `netns-scripts/topologies`.
    #[error("no topology '{0}' in netns-scripts/topologies")]
    NoTopology(String),
    /// The topology has no such host.
    #[error("no host '{name}' in this lab (it has {known})")]
    NoHost {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The topology has no such NAT.
    #[error("no NAT '{name}' in this lab (it has {known})")]
    NoNat {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// Another NAT was asked something that only a natbox knows.
    #[error("{nat} is no natbox, and only a natbox knows '{wanted}'")]
    NotNatbox {
        /// The NAT.
        nat: String,
        /// What was asked.
        wanted: String,
    },
    /// natbox refused a request on its control socket.
    #[error("natbox {arguments}: {message}")]
    Natbox {
        /// The command line, without the program.
        arguments: String,
        /// What it said.
        message: String,
    },
    /// The program under test doesn't build.
    #[error("can't build natbox: {0}")]
    Build(String),
    /// Waited for something that did not happen.
    #[error("{what} did not happen within {limit:?}; so far: {seen}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        limit: std::time::Duration,
        /// What was seen instead.
        seen: String,
    },
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, with which input.
        what: String,
        /// The operating system's answer.
        source: io::Error,
    },
}

impl LabError {
    /// For `map_err`: names what was tried.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
