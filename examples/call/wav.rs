//! WAV files: any rate and number of channels in, mono at the codec's rate out.

use std::{
    fs::File,
    io::BufWriter,
    path::{Path, PathBuf},
};

use hound::{SampleFormat, WavReader, WavSpec, WavWriter};

use crate::codec::RATE;

/// A file is read whole; at the codec's rate an hour takes 230 MB.
const MAX_SECONDS: u32 = 3600;
/// Zero crossings of the interpolation kernel on either side: more keep more of the highest tones.
const CROSSINGS: f64 = 16.0;

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WavError {
    #[error("cannot read {}: {why}", .path.display())]
    Read { path: PathBuf, why: hound::Error },
    #[error("{} has {rate} samples a second and {channels} channels: 1 to 768000, and 1 to 32, can be read", .path.display())]
    Odd { path: PathBuf, rate: u32, channels: u16 },
    #[error("{} is longer than {MAX_SECONDS} s", .path.display())]
    Long { path: PathBuf },
    #[error("cannot write {}: {why}", .path.display())]
    Write { path: PathBuf, why: hound::Error },
}

/// A file's samples, between -1 and 1, mixed to one channel, at the codec's rate.
pub(crate) fn read(path: &Path) -> Result<Vec<f32>, WavError> {
    let wrong = |why| WavError::Read { path: path.to_owned(), why };
    let mut reader = WavReader::open(path).map_err(wrong)?;
    let WavSpec { channels, sample_rate: rate, bits_per_sample: bits, sample_format } = reader.spec();
    if !(1..=768_000).contains(&rate) || !(1..=32).contains(&channels) {
        return Err(WavError::Odd { path: path.to_owned(), rate, channels });
    }
    if reader.duration() / rate >= MAX_SECONDS {
        return Err(WavError::Long { path: path.to_owned() });
    }
    let samples: Vec<f32> = match sample_format {
        SampleFormat::Float => reader.samples::<f32>().collect::<Result<_, _>>().map_err(wrong)?,
        SampleFormat::Int => {
            let scale = 1.0 / (1u64 << (bits.clamp(1, 32) - 1)) as f32;
            let scaled = reader.samples::<i32>().map(|sample| sample.map(|sample| sample as f32 * scale));
            scaled.collect::<Result<_, _>>().map_err(wrong)?
        }
    };
    let channels = usize::from(channels);
    let mono: Vec<f32> = samples
        .chunks_exact(channels)
        .map(|sample| sample.iter().sum::<f32>() / channels as f32)
        .map(|sample| if sample.is_finite() { sample.clamp(-1.0, 1.0) } else { 0.0 })
        .collect();
    Ok(resample(&mono, rate as usize))
}

/// From `rate` samples a second to the codec's, by a windowed sinc.
fn resample(samples: &[f32], rate: usize) -> Vec<f32> {
    if rate == RATE {
        return samples.to_vec();
    }
    let step = rate as f64 / RATE as f64;
    // What the lower of the two rates can carry.
    let cutoff = (1.0 / step).min(1.0);
    let reach = CROSSINGS / cutoff;
    let length = (samples.len() as f64 / step) as usize;
    (0..length)
        .map(|at| {
            let centre = at as f64 * step;
            let from = (centre - reach).ceil().max(0.0) as usize;
            let to = ((centre + reach).floor() as usize).min(samples.len().saturating_sub(1));
            let weigh = |(at, sample): (usize, &f32)| {
                let away = (from + at) as f64 - centre;
                f64::from(*sample) * cutoff * sinc(away * cutoff) * hann(away / reach)
            };
            samples[from..=to].iter().enumerate().map(weigh).sum::<f64>() as f32
        })
        .collect()
}

fn sinc(x: f64) -> f64 {
    let x = x * std::f64::consts::PI;
    if x == 0.0 { 1.0 } else { x.sin() / x }
}

fn hann(x: f64) -> f64 {
    0.5 + 0.5 * (x * std::f64::consts::PI).cos()
}

/// A file that is written while it is heard.
pub(crate) struct Recording {
    path: PathBuf,
    writer: WavWriter<BufWriter<File>>,
}

impl Recording {
    pub(crate) fn create(path: &Path) -> Result<Recording, WavError> {
        let spec = WavSpec {
            channels: 1,
            sample_rate: RATE as u32,
            bits_per_sample: 16,
            sample_format: SampleFormat::Int,
        };
        match WavWriter::create(path, spec) {
            Ok(writer) => Ok(Recording { path: path.to_owned(), writer }),
            Err(why) => Err(WavError::Write { path: path.to_owned(), why }),
        }
    }

    pub(crate) fn write(&mut self, samples: &[f32]) -> Result<(), WavError> {
        for sample in samples {
            let sample = (sample.clamp(-1.0, 1.0) * f32::from(i16::MAX)) as i16;
            self.writer
                .write_sample(sample)
                .map_err(|why| WavError::Write { path: self.path.clone(), why })?;
        }
        Ok(())
    }

    /// Writes what is still held back, and the lengths in the header.
    pub(crate) fn finish(self) -> Result<(), WavError> {
        self.writer.finalize().map_err(|why| WavError::Write { path: self.path, why })
    }
}

#[cfg(test)]
mod tests {
    use std::f32::consts::TAU;

    use super::*;
    use crate::stretch::likeness;

    /// A file that goes away with its owner.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            Scratch(std::env::temp_dir().join(format!("call-{}-{name}.wav", std::process::id())))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn tone(rate: usize, hertz: f32) -> Vec<f32> {
        (0..rate).map(|at| 0.5 * (TAU * hertz * at as f32 / rate as f32).sin()).collect()
    }

    #[test]
    fn what_was_recorded_is_read() {
        let file = Scratch::new("recorded");
        let tone = tone(RATE, 440.0);
        let mut recording = Recording::create(&file.0).unwrap();
        recording.write(&tone).unwrap();
        recording.finish().unwrap();
        let read = read(&file.0).unwrap();
        assert_eq!(read.len(), tone.len());
        assert!(read.iter().zip(&tone).all(|(read, spoken)| (read - spoken).abs() < 1e-4));
    }

    #[test]
    fn rates_and_channels_are_brought_to_the_codecs() {
        for (rate, channels) in [(8_000, 1), (44_100, 2), (48_000, 1)] {
            let file = Scratch::new(&format!("{rate}"));
            let spec = WavSpec {
                channels,
                sample_rate: rate,
                bits_per_sample: 32,
                sample_format: SampleFormat::Float,
            };
            let mut writer = WavWriter::create(&file.0, spec).unwrap();
            for sample in tone(rate as usize, 1000.0) {
                (0..channels).for_each(|_| writer.write_sample(sample).unwrap());
            }
            writer.finalize().unwrap();
            let (read, wanted) = (read(&file.0).unwrap(), tone(RATE, 1000.0));
            assert!(read.len().abs_diff(RATE) <= 1, "{rate}: {}", read.len());
            let alike = likeness(&read[100..15_000], &wanted[100..15_000]);
            assert!(alike > 0.9999, "{rate}: {alike}");
        }
    }

    #[test]
    fn a_tone_above_what_the_codec_carries_does_not_come_back_as_a_lower_one() {
        let read = resample(&tone(48_000, 11_000.0), 48_000);
        assert!(crate::stretch::power(&read[100..15_000]) < 1e-4, "{}", crate::stretch::power(&read));
    }

    #[test]
    fn errors_name_the_file() {
        let file = Scratch::new("text");
        std::fs::write(&file.0, "this is no sound").unwrap();
        for path in [&file.0, Path::new("/nowhere/voice.wav")] {
            let error = read(path).unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
    }
}
