//! How many threads move packets.

use std::{fmt, num::NonZeroUsize, str::FromStr, thread};

/// What `--workers` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// One for each processor that natbox may use, up to [`Workers::AUTO_MOST`].
    Auto,
    /// So many, at most [`Workers::MOST`].
    Count(NonZeroUsize),
}

/// A number of workers that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a number of workers: write 1 to {most}, or auto", most = Workers::MOST)]
pub struct WorkersError {
    /// What was given.
    pub text: String,
}

impl Workers {
    /// Workers at the most. They take turns in translating, which is less than a tenth of their work: with more, they
    /// would mostly wait for each other.
    pub const MOST: usize = 16;

    /// Workers that `auto` stands for at the most: each has receive rings of 8 MiB, one for every Ethernet interface.
    pub const AUTO_MOST: usize = 8;

    /// How many they are on this machine.
    pub fn count(self) -> usize {
        match self {
            Workers::Auto => {
                thread::available_parallelism().map_or(1, NonZeroUsize::get).min(Workers::AUTO_MOST)
            }
            Workers::Count(count) => count.get().min(Workers::MOST),
        }
    }
}

/// One.
impl Default for Workers {
    fn default() -> Workers {
        Workers::Count(NonZeroUsize::MIN)
    }
}

impl FromStr for Workers {
    type Err = WorkersError;

    fn from_str(text: &str) -> Result<Workers, WorkersError> {
        if text == "auto" {
            return Ok(Workers::Auto);
        }
        let count = text.parse().ok().filter(|count: &NonZeroUsize| count.get() <= Workers::MOST);
        count.map(Workers::Count).ok_or_else(|| WorkersError { text: text.to_owned() })
    }
}

impl fmt::Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Workers::Auto => f.write_str("auto"),
            Workers::Count(count) => count.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_auto_are_read_and_written_alike() {
        for text in ["auto", "1", "2", "16"] {
            assert_eq!(text.parse::<Workers>().unwrap().to_string(), text);
        }
        assert_eq!("3".parse::<Workers>().unwrap().count(), 3);
        assert_eq!(Workers::default().count(), 1);
        assert!((1..=Workers::AUTO_MOST).contains(&Workers::Auto.count()));
        for text in ["0", "17", "-1", "", "all", "1.5"] {
            assert_eq!(text.parse::<Workers>(), Err(WorkersError { text: text.to_owned() }));
        }
    }
}
