//! How loud it is.

use std::fmt;

use serde::{Serialize, Serializer};

/// Decibels below full scale that the bar's left end stands for.
const FLOOR: f32 = -60.0;
const BARS: usize = 10;
/// How much of the level is left after 10 ms: falls by some 20 dB in a second.
const FALL: f32 = 0.955;

/// A level that rises at once and falls slowly, as the eye likes it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Meter {
    power: f32,
}

impl Meter {
    /// Takes in 10 ms of samples.
    pub(crate) fn feed(&mut self, samples: &[f32]) {
        let power = samples.iter().map(|sample| sample * sample).sum::<f32>() / samples.len().max(1) as f32;
        self.power = power.max(self.power * FALL);
    }

    /// Decibels relative to full scale, between -60 and 0.
    pub(crate) fn decibels(&self) -> f32 {
        (10.0 * self.power.max(1e-9).log10()).clamp(FLOOR, 0.0)
    }
}

impl fmt::Display for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let full = ((1.0 - self.decibels() / FLOOR) * BARS as f32).round() as usize;
        write!(f, "{}{}", "█".repeat(full), "·".repeat(BARS - full))
    }
}

impl Serialize for Meter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f32(self.decibels().round())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_full_scale_and_between() {
        let mut meter = Meter::default();
        assert_eq!(meter.to_string(), "··········");
        meter.feed(&[1.0, -1.0]);
        assert_eq!(meter.decibels(), 0.0);
        assert_eq!(meter.to_string(), "██████████");
        for _ in 0..150 {
            meter.feed(&[0.0; 4]);
        }
        assert!((-35.0..-25.0).contains(&meter.decibels()), "{}", meter.decibels());
        assert_eq!(meter.to_string(), "█████·····");
    }
}
