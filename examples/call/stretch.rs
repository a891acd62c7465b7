//! Time-scale modification: one frame made a little shorter or longer, so that nobody notices.
//!
//! A voiced sound repeats itself with its pitch. A period less, or one more, faded over at the place where the sound is most
//! like itself one period later, keeps pitch and timbre (WSOLA, Verhelst and Roelands, 1993). A frame's ends stay as
//! they are, so that it joins its neighbours.

use crate::codec::{FRAME, RATE, Samples};

/// Periods that are tried: voices between 75 and 400 Hz.
const PERIODS: std::ops::RangeInclusive<usize> = RATE / 400..=RATE / 75;
/// The fade from one period to another: 6 ms.
const FADE: usize = RATE * 6 / 1000;
/// How alike the sound and the sound a period later must be, where 1 is equal.
const LIKENESS: f32 = 0.6;
/// The mean power below which nobody hears a cut: -50 dB.
const INAUDIBLE: f32 = 1e-5;

/// A period less. `None`: the frame has no period, and a cut would be heard.
pub(crate) fn shorter(frame: &Samples) -> Option<Vec<f32>> {
    let (period, at) = period(frame)?;
    let mut out = frame[..at].to_vec();
    out.extend(fade(&frame[at..at + FADE], &frame[at + period..at + period + FADE]));
    out.extend(&frame[at + period + FADE..]);
    Some(out)
}

/// A period more. `None`: as for [`shorter`].
pub(crate) fn longer(frame: &Samples) -> Option<Vec<f32>> {
    let (period, at) = period(frame)?;
    let mut out = frame[..at + period].to_vec();
    out.extend(fade(&frame[at + period..at + period + FADE], &frame[at..at + FADE]));
    out.extend(&frame[at + FADE..]);
    Some(out)
}

/// The period at which the frame is most like itself, and where in the frame the fade begins: in the middle.
fn period(frame: &Samples) -> Option<(usize, usize)> {
    let place = |period: usize| (FRAME - period - FADE) / 2;
    if power(frame) < INAUDIBLE {
        let longest = *PERIODS.end();
        return Some((longest, place(longest)));
    }
    let (likeness, period) = PERIODS
        .map(|period| {
            let at = place(period);
            (likeness(&frame[at..at + FADE], &frame[at + period..at + period + FADE]), period)
        })
        .max_by(|one, other| one.0.total_cmp(&other.0))?;
    (likeness >= LIKENESS).then_some((period, place(period)))
}

fn fade<'a>(from: &'a [f32], to: &'a [f32]) -> impl Iterator<Item = f32> + 'a {
    from.iter().zip(to).enumerate().map(|(at, (from, to))| {
        let part = (at as f32 + 0.5) / FADE as f32;
        from * (1.0 - part) + to * part
    })
}

/// The correlation coefficient, between -1 and 1.
pub(crate) fn likeness(one: &[f32], other: &[f32]) -> f32 {
    let (mut both, mut first, mut second) = (0.0, 0.0, 0.0);
    for (a, b) in one.iter().zip(other) {
        both += a * b;
        first += a * a;
        second += b * b;
    }
    both / (first * second).sqrt().max(1e-12)
}

/// The mean square.
pub(crate) fn power(samples: &[f32]) -> f32 {
    samples.iter().map(|sample| sample * sample).sum::<f32>() / samples.len().max(1) as f32
}

#[cfg(test)]
mod tests {
    use std::f32::consts::TAU;

    use super::*;
    use crate::voice::Voice;

    fn tone(hertz: f32) -> Samples {
        std::array::from_fn(|at| 0.5 * (TAU * hertz * at as f32 / RATE as f32).sin())
    }

    /// The largest step between neighbours: a click would be one.
    fn step(samples: &[f32]) -> f32 {
        samples.windows(2).map(|pair| (pair[1] - pair[0]).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn a_tone_changes_by_whole_periods_and_does_not_click() {
        for hertz in [100.0, 160.0, 250.0] {
            let frame = tone(hertz);
            let period = RATE as f32 / hertz;
            for changed in [shorter(&frame).unwrap(), longer(&frame).unwrap()] {
                let periods = (changed.len() as f32 - FRAME as f32) / period;
                assert!(
                    (periods - periods.round()).abs() < 0.05 && periods.round() != 0.0,
                    "{hertz} Hz: {periods}"
                );
                assert!(step(&changed) < 1.2 * step(&frame), "{hertz} Hz");
            }
        }
    }

    #[test]
    fn the_ends_stay_as_they_are() {
        let mut voice = Voice::new(2);
        let mut changed = 0;
        for _ in 0..200 {
            let frame = voice.frame();
            let (less, more) = (shorter(&frame), longer(&frame));
            assert_eq!(less.is_some(), more.is_some());
            for out in less.into_iter().chain(more) {
                changed += 1;
                assert_eq!((out[0], out.last()), (frame[0], frame.last()));
                assert!((FRAME - RATE / 75..=FRAME + RATE / 75).contains(&out.len()) && out.len() != FRAME);
            }
        }
        assert!(changed > 200, "only {changed} of 400 were possible");
    }

    #[test]
    fn silence_is_cut_most_and_noise_not_at_all() {
        assert_eq!(shorter(&[0.0; FRAME]).unwrap().len(), FRAME - RATE / 75);
        let mut seed = 1u32;
        let noise: Samples = std::array::from_fn(|_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        });
        assert_eq!(longer(&noise), None);
    }
}
