//! Opus (RFC 6716), as the call uses it: mono, 16 kHz, frames of 20 ms, about 32 kbit/s, with in-band redundancy.
//!
//! At 16 kHz Opus codes speech by SILK alone. That is on purpose: SILK frames carry a coarse copy of the frame before
//! (in-band FEC, RFC 6716 §2.1.7), which CELT frames cannot, and opus-rs 0.1.40 divides by zero in hybrid frames (24 and
//! 48 kHz) when that copy leaves CELT no bits.

use std::{fmt, time::Duration};

use opus_rs::{Application, OpusDecoder, OpusEncoder};

/// Samples in a second.
pub(crate) const RATE: usize = 16_000;
/// Samples in a frame.
pub(crate) const FRAME: usize = RATE / 50;
/// How long a frame sounds.
pub(crate) const FRAME_TIME: Duration = Duration::from_millis(20);
/// How much later a sample comes out of the decoder than its frame begins: SILK looks 5 ms ahead, the resamplers take
/// the rest.
pub(crate) const LOOKAHEAD: Duration = Duration::from_micros(6_300);

const BITRATE: i32 = 32_000;
/// The more loss the encoder expects, the finer are its copies.
const EXPECTED_LOSS_PERCENT: i32 = 20;
/// More costs more time than speech gains by it.
const COMPLEXITY: i32 = 5;
/// Of an Opus packet (RFC 6716 §3.2.1: 1275 bytes of frame, one of table of contents).
const MAX_PACKET: usize = 1276;

/// One frame of samples, each between -1 and 1.
pub(crate) type Samples = [f32; FRAME];

/// What opus-rs has to say.
#[derive(Debug, thiserror::Error)]
#[error("the Opus codec cannot {what}: {why}")]
pub(crate) struct CodecError {
    what: &'static str,
    why: &'static str,
}

fn cannot(what: &'static str) -> impl Fn(&'static str) -> CodecError {
    move |why| CodecError { what, why }
}

/// Frames to packets.
pub(crate) struct Encoder(OpusEncoder);

impl Encoder {
    pub(crate) fn new() -> Result<Encoder, CodecError> {
        let mut opus = OpusEncoder::new(RATE as i32, 1, Application::Voip).map_err(cannot("be set up"))?;
        opus.bitrate_bps = BITRATE;
        opus.complexity = COMPLEXITY;
        opus.use_inband_fec = true;
        opus.packet_loss_perc = EXPECTED_LOSS_PERCENT;
        Ok(Encoder(opus))
    }

    pub(crate) fn encode(&mut self, frame: &Samples) -> Result<Vec<u8>, CodecError> {
        let mut packet = vec![0; MAX_PACKET];
        let length = self.0.encode(frame, FRAME, &mut packet).map_err(cannot("encode"))?;
        packet.truncate(length);
        Ok(packet)
    }
}

/// Packets to frames.
pub(crate) struct Decoder(OpusDecoder);

impl Decoder {
    pub(crate) fn new() -> Result<Decoder, CodecError> {
        OpusDecoder::new(RATE as i32, 1).map(Decoder).map_err(cannot("be set up"))
    }

    /// The packet's frame. A packet that is none, or not of 20 ms, is concealed.
    pub(crate) fn decode(&mut self, packet: &[u8]) -> Samples {
        self.run(|opus, frame| opus.decode(packet, FRAME, frame).ok()).unwrap_or_else(|| self.conceal())
    }

    /// The frame before the packet's, from the copy in that packet; concealed if there is none. The packet itself is to be
    /// decoded next.
    pub(crate) fn recover(&mut self, following: &[u8]) -> Samples {
        self.run(|opus, frame| opus.decode_fec(following, FRAME, frame).ok())
            .unwrap_or_else(|| self.conceal())
    }

    /// A frame in place of one that is missing: the sound so far goes on, and fades.
    pub(crate) fn conceal(&mut self) -> Samples {
        self.run(|opus, frame| opus.decode(&[], FRAME, frame).ok()).unwrap_or([0.0; FRAME])
    }

    fn run(
        &mut self,
        decode: impl FnOnce(&mut OpusDecoder, &mut Samples) -> Option<usize>,
    ) -> Option<Samples> {
        let mut frame = [0.0; FRAME];
        if decode(&mut self.0, &mut frame) != Some(FRAME) {
            return None;
        }
        // Packets that no encoder made may decode to anything.
        for sample in &mut frame {
            *sample = if sample.is_finite() { sample.clamp(-1.0, 1.0) } else { 0.0 };
        }
        Some(frame)
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decoder")
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Encoder")
    }
}

/// What a perfect network would have made of `samples`: the same frames, encoded and decoded.
pub(crate) fn round_trip(samples: &[f32]) -> Result<Vec<f32>, CodecError> {
    let (mut encoder, mut decoder) = (Encoder::new()?, Decoder::new()?);
    let mut heard = Vec::with_capacity(samples.len());
    let (frames, _) = samples.as_chunks::<FRAME>();
    for frame in frames {
        heard.extend(decoder.decode(&encoder.encode(frame)?));
    }
    Ok(heard)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::voice::Voice;

    fn packets(count: usize) -> Vec<Vec<u8>> {
        let mut encoder = Encoder::new().unwrap();
        let mut voice = Voice::new(1);
        (0..count).map(|_| encoder.encode(&voice.frame()).unwrap()).collect()
    }

    fn energy(samples: &[f32]) -> f32 {
        samples.iter().map(|sample| sample * sample).sum()
    }

    /// The signal-to-noise ratio in dB, limited so that one frame does not decide.
    fn snr(truth: &[f32], heard: &[f32]) -> f32 {
        let noise: f32 = truth.iter().zip(heard).map(|(a, b)| (a - b) * (a - b)).sum();
        (10.0 * (energy(truth) / noise.max(1e-9)).log10()).clamp(-10.0, 35.0)
    }

    #[test]
    fn speech_costs_about_its_bitrate_and_fits_a_datagram() {
        let packets = packets(500);
        let bytes: usize = packets.iter().map(Vec::len).sum();
        let bitrate = bytes * 8 / 10;
        assert!((8_000..40_000).contains(&bitrate), "{bitrate} bit/s");
        assert!(packets.iter().all(|packet| (2..400).contains(&packet.len())));
    }

    /// A lost frame rebuilt from the copy in the next packet is nearer to the true one than a concealed one, and so is the
    /// frame after it.
    #[test]
    fn redundancy_beats_concealment() {
        let packets = packets(1000);
        let mut perfect = Decoder::new().unwrap();
        let (mut recovering, mut concealing) = (Decoder::new().unwrap(), Decoder::new().unwrap());
        let (mut recovered, mut concealed, mut count) = (0.0, 0.0, 0.0);
        for (at, packet) in packets.iter().enumerate() {
            let truth = perfect.decode(packet);
            let (one, other) = match at % 10 {
                7 => (recovering.recover(&packets[at + 1]), concealing.conceal()),
                _ => (recovering.decode(packet), concealing.decode(packet)),
            };
            if matches!(at % 10, 7 | 8) && energy(&truth) > 0.05 {
                recovered += snr(&truth, &one);
                concealed += snr(&truth, &other);
                count += 1.0;
            }
        }
        let (recovered, concealed) = (recovered / count, concealed / count);
        assert!(recovered > concealed + 3.0, "{recovered} dB by copies, {concealed} dB by concealment");
    }

    #[test]
    fn a_long_loss_fades_to_silence() {
        let mut decoder = Decoder::new().unwrap();
        for packet in packets(60) {
            decoder.decode(&packet);
        }
        let last = (0..50).map(|_| decoder.conceal()).last().unwrap();
        assert!(energy(&last) < 0.01, "{}", energy(&last));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn bytes_that_no_encoder_made_give_a_frame(
            packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..40),
        ) {
            let mut decoder = Decoder::new().unwrap();
            for packet in packets {
                for frame in [decoder.recover(&packet), decoder.decode(&packet)] {
                    prop_assert!(frame.iter().all(|sample| (-1.0..=1.0).contains(sample)));
                }
            }
        }
    }
}
