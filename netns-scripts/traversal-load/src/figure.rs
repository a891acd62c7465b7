//! What a measurement found.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One number, with what it needs to be read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) more_is_better: bool,
    pub(crate) value: f64,
}

/// A figure of which less is better.
pub(crate) fn cost(name: impl Into<String>, unit: &str, value: f64) -> Figure {
    Figure { name: name.into(), unit: unit.to_owned(), more_is_better: false, value }
}

/// A figure of which more is better.
pub(crate) fn gain(name: impl Into<String>, unit: &str, value: f64) -> Figure {
    Figure { more_is_better: true, ..cost(name, unit, value) }
}

/// The `p`-th percentile, in milliseconds (nearest rank); `None` of nothing.
pub(crate) fn percentile(times: &[Duration], p: usize) -> Option<f64> {
    let mut ascending = times.to_vec();
    ascending.sort_unstable();
    let rank = (ascending.len() * p).div_ceil(100).max(1);
    Some(ascending.get(rank - 1)?.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let times: Vec<_> = (1..=20).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 50), Some(10.0));
        assert_eq!(percentile(&times, 95), Some(19.0));
        assert_eq!(percentile(&times[..1], 95), Some(20.0));
        assert_eq!(percentile(&[], 50), None);
    }
}
