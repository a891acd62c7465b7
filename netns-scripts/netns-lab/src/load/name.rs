//! The names of loads.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::LoadError;

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The client behind the NAT.
    Up,
    /// The server.
    Down,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Up { "up" } else { "down" })
    }
}

/// One kind of load; the table in the [module's documentation](super) says what each is. Written as its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Load {
    /// TCP streams.
    Tcp {
        /// Who sends.
        direction: Direction,
        /// How many connections.
        flows: u16,
    },
    /// Single datagrams at full speed.
    Udp {
        /// Who sends.
        direction: Direction,
        /// Their payload, in bytes.
        size: u16,
    },
    /// Datagrams of 1400 B in bursts that the kernel segments.
    Gso {
        /// Who sends.
        direction: Direction,
    },
    /// Round trips.
    Latency,
    /// UDP flows from fresh ports.
    NewFlows,
    /// TCP connections from fresh ports.
    Connections,
    /// No load at all.
    Idle,
}

impl Load {
    /// What a comparison of two NATs measures, in its order.
    pub const STANDARD: [Self; 13] = {
        use Direction::{Down, Up};
        [
            Self::Tcp { direction: Up, flows: 1 },
            Self::Tcp { direction: Down, flows: 1 },
            Self::Tcp { direction: Up, flows: 4 },
            Self::Tcp { direction: Down, flows: 4 },
            Self::Udp { direction: Up, size: 64 },
            Self::Udp { direction: Down, size: 64 },
            Self::Udp { direction: Up, size: 1400 },
            Self::Udp { direction: Down, size: 1400 },
            Self::Gso { direction: Up },
            Self::Gso { direction: Down },
            Self::Latency,
            Self::NewFlows,
            Self::Connections,
        ]
    };
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { direction, flows } => write!(f, "tcp-{direction}-{flows}"),
            Self::Udp { direction, size } => write!(f, "udp-{size}-{direction}"),
            Self::Gso { direction } => write!(f, "udp-gso-{direction}"),
            Self::Latency => f.write_str("latency"),
            Self::NewFlows => f.write_str("new-flows"),
            Self::Connections => f.write_str("connections"),
            Self::Idle => f.write_str("idle"),
        }
    }
}

impl From<Load> for String {
    fn from(load: Load) -> Self {
        load.to_string()
    }
}

impl TryFrom<String> for Load {
    type Error = LoadError;

    fn try_from(name: String) -> Result<Self, LoadError> {
        name.parse()
    }
}

impl FromStr for Load {
    type Err = LoadError;

    fn from_str(name: &str) -> Result<Self, LoadError> {
        let direction = |word| match word {
            "up" => Some(Direction::Up),
            "down" => Some(Direction::Down),
            _ => None,
        };
        let parsed = match name.split('-').collect::<Vec<_>>()[..] {
            ["tcp", way, flows] => direction(way)
                .zip(flows.parse().ok().filter(|flows| (1..=256).contains(flows)))
                .map(|(direction, flows)| Self::Tcp { direction, flows }),
            ["udp", "gso", way] => direction(way).map(|direction| Self::Gso { direction }),
            // What fits into one packet on an Ethernet.
            ["udp", size, way] => direction(way)
                .zip(size.parse().ok().filter(|size| (1..=1472).contains(size)))
                .map(|(direction, size)| Self::Udp { direction, size }),
            ["latency"] => Some(Self::Latency),
            ["new", "flows"] => Some(Self::NewFlows),
            ["connections"] => Some(Self::Connections),
            ["idle"] => Some(Self::Idle),
            _ => None,
        };
        parsed.ok_or_else(|| LoadError::NoLoad(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back_as_its_load() {
        for load in Load::STANDARD.into_iter().chain([Load::Idle]) {
            assert_eq!(load.to_string().parse::<Load>().unwrap(), load);
        }
    }

    #[test]
    fn other_names_are_refused() {
        for name in
            ["", "tcp", "tcp-up", "tcp-up-0", "tcp-up-300", "udp-1473-up", "udp-0-up", "udp-64-left", "gso"]
        {
            assert!(matches!(name.parse::<Load>(), Err(LoadError::NoLoad(_))), "{name}");
        }
    }
}
