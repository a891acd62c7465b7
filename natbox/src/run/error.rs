//! Why natbox cannot start or go on.

use std::io;

use natbox_core::{ConfigError, MappingError};

use crate::{datapath::PortError, host::HostError, settings::Forward};

/// Why natbox cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// An interface cannot be used, or is gone.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The engine refuses its configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A static forward cannot be made.
    #[error("cannot forward {forward}: {source}")]
    Forward {
        /// The forward.
        forward: Forward,
        /// Why not.
        source: MappingError,
    },
    /// A static forward to a network that no inside port has.
    #[error("cannot forward {0}: there is no such inside port")]
    NoInside(Forward),
    /// The machine's routes cannot be read.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The host's own ports cannot be read, so no port of a shared address is safe to use.
    #[error("cannot list the ports that this host's sockets hold: {0}")]
    HostPorts(io::Error),
    /// The guard no longer does its work.
    #[error("the guard no longer takes ports: {0}; the host would answer for natbox")]
    Guard(io::Error),
    /// The kernel takes no programs that move packets.
    #[error(
        "the fast path cannot be had: {0}; it needs Linux 6.6, CAP_BPF and CAP_NET_ADMIN (without --fast-path on natbox \
         does without)"
    )]
    FastPath(io::Error),
    /// The system is out of something.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl RunError {
    pub(super) fn system(action: &'static str) -> impl FnOnce(io::Error) -> RunError {
        move |source| RunError::System { action, source }
    }
}
