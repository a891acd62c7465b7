//! How near what was heard is to what a perfect network would have delivered.
//!
//! Opus does not preserve waveforms, so the reference is not the original but the same frames encoded and decoded without
//! a network. The two are aligned as a whole by correlation, then piece by piece, for the jitter buffer shortens and
//! lengthens; the measure is the segmental signal-to-noise ratio (Mermelstein, 1979): the mean over the pieces with sound,
//! each limited to between -10 and 35 dB, so that neither silence nor one disaster decides.

use serde::Serialize;

use crate::{
    codec::{FRAME, RATE},
    stretch::{likeness, power},
};

/// A piece: 40 ms.
const SEGMENT: usize = 2 * FRAME;
/// Pieces with less power are pauses: -45 dB.
const PAUSE: f32 = 3e-5;
const SNR: std::ops::RangeInclusive<f32> = -10.0..=35.0;
/// How far the alignment may be off as a whole: who is called begins some seconds before or after the caller.
const EARLIEST: isize = -(5 * RATE as isize);
const LATEST: isize = 10 * RATE as isize;
/// How far it may move from one piece to the next: a cut or stretch, or two.
const NEAR: isize = RATE as isize / 60;
/// How far it may move when the piece is not found near: a stall.
const FAR: isize = RATE as isize / 2;
/// What is looked for so far away: 200 ms, for a shorter piece of speech is like many others.
const STRETCH: usize = 5 * SEGMENT;
/// A piece this like the reference is the reference.
const FOUND: f32 = 0.5;
/// And 200 ms of it this like.
const FOUND_FAR: f32 = 0.7;
/// A frame less like the reference than this is missing.
const MISSING: f32 = 0.3;
/// Whole alignment: this much of the reference, at an eighth of the rate, where pitch and first formant are left.
const PROBE: usize = 2 * RATE;
const COARSE: usize = 8;
/// Fewer pieces with sound say nothing: one second.
const LEAST_SEGMENTS: usize = RATE / SEGMENT;

/// The result.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Comparison {
    /// How much later than the reference it was heard; the middle one of all pieces.
    pub(crate) offset_ms: f64,
    /// The segmental signal-to-noise ratio.
    pub(crate) segmental_snr_db: f64,
    /// The share of pieces that are found, of those with sound.
    pub(crate) found_percent: f64,
    /// The longest time in one piece, pauses left out, for which the reference is not to be heard.
    pub(crate) longest_gap_ms: usize,
    /// How much sound was compared, pauses left out.
    pub(crate) compared_seconds: f64,
}

/// Why two recordings cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub(crate) enum CompareError {
    #[error("the reference has less than a second of sound in common with what was heard")]
    Short,
    #[error("nothing of the reference is to be heard (the best place has a likeness of {0:.2})")]
    Different(f32),
}

/// Compares what was heard with the reference, both at the codec's rate.
pub(crate) fn compare(reference: &[f32], heard: &[f32]) -> Result<Comparison, CompareError> {
    let mut offset = align(reference, heard)?;
    let (mut offsets, mut snr, mut found) = (Vec::new(), 0.0, 0);
    let (mut gap, mut longest_gap) = (0, 0);
    for (at, segment) in reference.chunks_exact(SEGMENT).enumerate() {
        let at = at * SEGMENT;
        if power(segment) < PAUSE {
            continue;
        }
        let (mut best, mut alike) = search(segment, heard, at, offset, NEAR);
        if alike < FOUND && at + STRETCH <= reference.len() {
            let (far, is_there) = search(&reference[at..at + STRETCH], heard, at, offset, FAR);
            if is_there >= FOUND_FAR {
                (best, alike) = search(segment, heard, at, far, NEAR);
            }
        }
        offset = if alike >= FOUND { best } else { offset };
        let Some(same) = piece(heard, at, offset, SEGMENT) else { continue };
        offsets.push(offset);
        found += usize::from(alike >= FOUND);
        let noise: f32 = segment.iter().zip(same).map(|(a, b)| (a - b) * (a - b)).sum();
        let ratio = power(segment) * SEGMENT as f32 / noise.max(1e-12);
        snr += (10.0 * ratio.log10()).clamp(*SNR.start(), *SNR.end());
        for (frame, same) in segment.chunks_exact(FRAME).zip(same.chunks_exact(FRAME)) {
            let missing = power(frame) >= PAUSE && likeness(frame, same) < MISSING;
            gap = if missing { gap + 20 } else { 0 };
            longest_gap = longest_gap.max(gap);
        }
    }
    let segments = offsets.len();
    if segments < LEAST_SEGMENTS {
        return Err(CompareError::Short);
    }
    offsets.sort_unstable();
    Ok(Comparison {
        offset_ms: tenths(offsets[segments / 2] as f64 * 1000.0 / RATE as f64),
        segmental_snr_db: tenths(f64::from(snr) / segments as f64),
        found_percent: tenths(100.0 * found as f64 / segments as f64),
        longest_gap_ms: longest_gap,
        compared_seconds: tenths((segments * SEGMENT) as f64 / RATE as f64),
    })
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Where the two as a whole are most alike: samples by which `heard` is later.
fn align(reference: &[f32], heard: &[f32]) -> Result<isize, CompareError> {
    // The loudest two seconds of the first ten: what comes later may not have been heard any more.
    let first = reference.len().min(10 * RATE);
    let from = (0..first.saturating_sub(PROBE))
        .step_by(RATE / 4)
        .max_by(|one, other| {
            power(&reference[*one..one + PROBE]).total_cmp(&power(&reference[*other..other + PROBE]))
        })
        .ok_or(CompareError::Short)?;
    let (probe, coarse) = (thin(&reference[from..from + PROBE]), thin(heard));
    let limit = |offset: isize| ((from as isize + offset) / COARSE as isize).max(0) as usize;
    let last = limit(LATEST).min(coarse.len().saturating_sub(probe.len()));
    let (alike, best) = (limit(EARLIEST)..=last)
        .filter_map(|at| Some((likeness(&probe, coarse.get(at..at + probe.len())?), at)))
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .ok_or(CompareError::Short)?;
    if alike < MISSING {
        return Err(CompareError::Different(alike));
    }
    Ok((best * COARSE) as isize - from as isize)
}

/// At an eighth of the rate; each sample is the mean of eight.
fn thin(samples: &[f32]) -> Vec<f32> {
    samples.chunks_exact(COARSE).map(|samples| samples.iter().sum::<f32>() / COARSE as f32).collect()
}

/// The offset at most `reach` from `offset` at which the segment is most alike, the nearest of equals, and how alike.
fn search(segment: &[f32], heard: &[f32], at: usize, offset: isize, reach: isize) -> (isize, f32) {
    let alike = |offset: isize| {
        let same = piece(heard, at, offset, segment.len());
        (offset, same.map_or(-1.0, |same| likeness(segment, same)))
    };
    let better = |best: (isize, f32), next: (isize, f32)| if next.1 > best.1 { next } else { best };
    // Where nothing moved, nothing is searched.
    let here = alike(offset);
    if here.1 > 0.99 {
        return here;
    }
    // In steps of four first: a tenth of the shortest pitch period.
    let coarse = (1..=reach / 4).flat_map(|step| [offset - 4 * step, offset + 4 * step]);
    let best = coarse.map(alike).fold(here, better);
    (best.0 - 3..=best.0 + 3).map(alike).fold(best, better)
}

fn piece(heard: &[f32], at: usize, offset: isize, length: usize) -> Option<&[f32]> {
    let from = at.checked_add_signed(offset)?;
    heard.get(from..from + length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::voice::Voice;

    fn voice(number: u64, seconds: usize) -> Vec<f32> {
        let mut voice = Voice::new(number);
        (0..50 * seconds).flat_map(|_| voice.frame()).collect()
    }

    #[test]
    fn the_same_later_is_the_same() {
        let reference = voice(1, 5);
        let mut heard = vec![0.0; 1234];
        heard.extend(&reference);
        let comparison = compare(&reference, &heard).unwrap();
        assert!((comparison.offset_ms - 77.1).abs() < 0.1, "{comparison:?}");
        assert_eq!((comparison.segmental_snr_db, comparison.longest_gap_ms), (35.0, 0), "{comparison:?}");
        assert_eq!(comparison.found_percent, 100.0);
    }

    #[test]
    fn who_came_late_missed_the_beginning() {
        let reference = voice(2, 8);
        let comparison = compare(&reference, &reference[3 * RATE..]).unwrap();
        assert!((comparison.offset_ms + 3000.0).abs() < 0.1, "{comparison:?}");
        assert_eq!(comparison.longest_gap_ms, 0, "{comparison:?}");
    }

    #[test]
    fn noise_gives_its_ratio() {
        let reference = voice(1, 5);
        let mut noise = Voice::new(9);
        let heard: Vec<f32> = reference
            .chunks_exact(FRAME)
            .flat_map(|frame| {
                let (noise, level) = (noise.frame(), power(frame).sqrt());
                let scale = 0.1 * level / power(&noise).sqrt().max(1e-6);
                frame.iter().zip(noise).map(move |(sample, noise)| sample + scale * noise).collect::<Vec<_>>()
            })
            .collect();
        let snr = compare(&reference, &heard).unwrap().segmental_snr_db;
        assert!((17.0..25.0).contains(&snr), "{snr}");
    }

    #[test]
    fn a_hole_is_a_gap_and_a_jump_is_followed() {
        let reference = voice(1, 6);
        let mut holed = reference.clone();
        holed[2 * RATE..2 * RATE + 10 * FRAME].fill(0.0);
        let gap = compare(&reference, &holed).unwrap().longest_gap_ms;
        assert!((100..=220).contains(&gap), "{gap}");

        // From here on 150 ms later, as after a stall.
        let mut jumped = reference[..3 * RATE].to_vec();
        jumped.extend([0.0; 3 * RATE / 20]);
        jumped.extend(&reference[3 * RATE..]);
        let comparison = compare(&reference, &jumped).unwrap();
        assert!(comparison.segmental_snr_db > 30.0, "{comparison:?}");
    }

    #[test]
    fn another_voice_is_not_the_same() {
        match compare(&voice(1, 6), &voice(2, 6)) {
            Err(CompareError::Different(_)) => {}
            Ok(comparison) => assert!(comparison.segmental_snr_db < 3.0, "{comparison:?}"),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(compare(&voice(1, 6), &[0.0; RATE]), Err(CompareError::Short));
        assert!(matches!(compare(&voice(1, 6), &[0.0; 6 * RATE]), Err(CompareError::Different(_))));
    }
}
