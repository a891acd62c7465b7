//! Open files: every connection and every flow is one, and many systems begin with 1024 of them.

/// Asks the system for as many as it gives without being asked by its administrator. With fewer, a connection more is refused.
#[cfg(unix)]
pub(crate) fn as_many_as_may_be() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // It fails nowhere that is known; then there are as many as before.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}

#[cfg(not(unix))]
pub(crate) fn as_many_as_may_be() {}
