//! Something to say for whoever has nothing: a generated signal that is to a codec and to a jitter buffer what speech is.
//!
//! Syllables of a gliding voice through the formants of changing vowels, some with a hissed onset, in phrases with pauses.
//! Never the same twice, so that two recordings of it can be aligned, and always the same for the same number.

use std::f32::consts::TAU;

use crate::codec::{FRAME, RATE, Samples};

/// The first three formants of five vowels, in Hz (after Peterson and Barney, 1952).
const VOWELS: [[f32; 3]; 5] = [
    [270.0, 2290.0, 3010.0], // as in "beet"
    [530.0, 1840.0, 2480.0], // as in "bet"
    [730.0, 1090.0, 2440.0], // as in "father"
    [570.0, 840.0, 2410.0],  // as in "bought"
    [300.0, 870.0, 2240.0],  // as in "boot"
];
/// How far a resonance rings: the pole's distance from the centre, for each formant.
const RINGING: [f32; 3] = [0.97, 0.96, 0.94];
/// Brings the loudest syllables to about -6 dB of full scale.
const LOUDNESS: f32 = 0.35;

/// An endless voice.
#[derive(Clone, Debug)]
pub(crate) struct Voice {
    seed: u64,
    /// The pitch that this speaker's glides stay around, in Hz.
    pitch: f32,
    phase: f32,
    resonances: [[f32; 2]; 3],
    syllable: Syllable,
    /// Samples of the syllable that are done.
    done: usize,
    left_in_phrase: u64,
}

#[derive(Clone, Debug, Default)]
struct Syllable {
    samples: usize,
    /// Of these, hissed.
    hiss: usize,
    vowel: usize,
    /// At the beginning and at the end.
    pitch: [f32; 2],
    loudness: f32,
}

impl Voice {
    /// Voice `number`; odd ones are low, even ones high.
    pub(crate) fn new(number: u64) -> Voice {
        let pitch = if number % 2 == 1 { 115.0 } else { 190.0 };
        Voice {
            seed: number.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            pitch,
            phase: 0.0,
            resonances: [[0.0; 2]; 3],
            syllable: Syllable::default(),
            done: 0,
            left_in_phrase: 6,
        }
    }

    /// The next 20 ms.
    pub(crate) fn frame(&mut self) -> Samples {
        let mut frame = [0.0; FRAME];
        frame.fill_with(|| self.sample());
        frame
    }

    fn sample(&mut self) -> f32 {
        if self.done >= self.syllable.samples {
            self.syllable = self.next_syllable();
            self.done = 0;
        }
        let Syllable { samples, hiss, vowel, pitch, loudness } = self.syllable;
        let part = self.done as f32 / samples as f32;
        self.phase = (self.phase + (pitch[0] + (pitch[1] - pitch[0]) * part) / RATE as f32).fract();
        let source =
            if self.done < hiss { 0.4 * self.noise() } else { 0.5 - self.phase + 0.03 * self.noise() };
        self.done += 1;
        let mut sound = 0.0;
        for ((formant, ringing), state) in VOWELS[vowel].iter().zip(RINGING).zip(&mut self.resonances) {
            let rung = 2.0 * ringing * (TAU * formant / RATE as f32).cos() * state[0]
                - ringing * ringing * state[1]
                + (1.0 - ringing) * source;
            *state = [rung, state[0]];
            sound += rung;
        }
        // A syllable swells and fades.
        let envelope = (part * std::f32::consts::PI).sin().sqrt();
        (sound * envelope * loudness * LOUDNESS).clamp(-0.9, 0.9)
    }

    fn next_syllable(&mut self) -> Syllable {
        if self.left_in_phrase == 0 {
            self.left_in_phrase = 4 + self.below(6);
            return Syllable { samples: self.millis(120, 300), ..Syllable::default() };
        }
        self.left_in_phrase -= 1;
        let samples = self.millis(110, 260);
        let hiss = if self.below(4) == 0 { samples / 4 } else { 0 };
        let pitch = [self.glide(), self.glide()];
        let loudness = 0.5 + self.below(50) as f32 / 100.0;
        Syllable { samples, hiss, vowel: self.below(VOWELS.len() as u64) as usize, pitch, loudness }
    }

    fn millis(&mut self, least: u64, most: u64) -> usize {
        (least + self.below(most - least)) as usize * RATE / 1000
    }

    fn glide(&mut self) -> f32 {
        self.pitch * (0.85 + self.below(400) as f32 / 1000.0)
    }

    fn below(&mut self, limit: u64) -> u64 {
        ((self.random() >> 32) * limit) >> 32
    }

    fn noise(&mut self) -> f32 {
        (self.random() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(number: u64, seconds: usize) -> Vec<f32> {
        let mut voice = Voice::new(number);
        (0..50 * seconds).flat_map(|_| voice.frame()).collect()
    }

    #[test]
    fn the_same_number_says_the_same_and_another_says_something_else() {
        assert_eq!(seconds(1, 2), seconds(1, 2));
        assert_ne!(seconds(1, 2), seconds(3, 2));
    }

    #[test]
    fn it_is_loud_as_speech_and_pauses_as_speech() {
        for number in 1..=4 {
            let voice = seconds(number, 20);
            let peak = voice.iter().fold(0f32, |peak, sample| peak.max(sample.abs()));
            assert!((0.1..0.9).contains(&peak), "voice {number} peaks at {peak}");
            let frames = voice.as_chunks::<FRAME>().0;
            let level =
                |frame: &Samples| frame.iter().map(|sample| sample * sample).sum::<f32>() / FRAME as f32;
            let quiet = frames.iter().filter(|frame| level(frame) < 1e-5).count();
            assert!((20..300).contains(&quiet), "voice {number}: {quiet} of 1000 frames are quiet");
        }
    }
}
