//! What an agent may do, and how often.

use std::time::Duration;

use crate::Rate;

/// An agent's settings. The defaults suit a desktop program with some hundreds of peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Checks to addresses that have proved nothing, over all peers: each may cost a NAT a mapping.
    pub probes: Rate,
    /// Between two new checks of one peer.
    pub pace: Duration,
    /// Between two checks of the path in use while data flows.
    pub busy_interval: Duration,
    /// Between two checks of the path in use while none does.
    pub idle_interval: Duration,
    /// Between two checks of a path that is kept ready; must keep NAT mappings alive (RFC 4787 REQ-5: some expire after
    /// 30 s, some sooner).
    pub backup_interval: Duration,
    /// No data goes to an address that has not answered for this long (RFC 7675 §5.1).
    pub consent: Duration,
    /// The first and the longest pause between two rounds of checks while a peer is only relayed.
    pub repunch: (Duration, Duration),
    /// Whether to look for the NAT's behaviour with sockets of the agent's own.
    pub discover: bool,
    /// Whether loopback addresses are candidates too: for programs that try themselves out on one machine.
    pub loopback: bool,
    /// Sockets to open for paths besides the caller's; 0: none.
    pub extra_sockets: u16,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            probes: Rate { per_second: 500, burst: 100 },
            pace: Duration::from_millis(5),
            busy_interval: Duration::from_millis(500),
            idle_interval: Duration::from_secs(5),
            backup_interval: Duration::from_secs(12),
            consent: Duration::from_secs(30),
            repunch: (Duration::from_secs(1), Duration::from_secs(60)),
            discover: true,
            loopback: false,
            extra_sockets: 0,
        }
    }
}
