//! From sound to packets.

use crate::{
    codec::{CodecError, Encoder, FRAME, Samples},
    packet::Packet,
    voice::Voice,
};

/// The first packet's number: every call wraps within its first second, so that a listener who cannot is noticed at once.
const FIRST_SEQUENCE: u16 = u16::MAX - 24;
/// A frame in the timestamp's unit, 1/48000 s.
const TIMESTAMPS: u32 = 960;
/// How often the last packet's flag is sent, in as many frames: one loss must not keep the other side waiting.
const GOODBYES: u32 = 5;

/// What is said.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// A generated voice, without an end.
    Voice(Box<Voice>),
    /// These samples, then silence.
    Samples(Vec<f32>),
}

impl Source {
    /// Its first `frames` frames, or fewer if it has fewer.
    pub(crate) fn beginning(self, frames: usize) -> Vec<f32> {
        match self {
            Source::Voice(mut voice) => (0..frames).flat_map(|_| voice.frame()).collect(),
            Source::Samples(mut samples) => {
                samples.truncate(frames * FRAME);
                samples
            }
        }
    }

    fn frame(&mut self, number: usize) -> Samples {
        match self {
            Source::Voice(voice) => voice.frame(),
            Source::Samples(samples) => {
                let mut frame = [0.0; FRAME];
                let rest = samples.get(number * FRAME..).unwrap_or_default();
                let length = rest.len().min(FRAME);
                frame[..length].copy_from_slice(&rest[..length]);
                frame
            }
        }
    }
}

/// Says something, a packet at a time.
#[derive(Debug)]
pub(crate) struct Speaker {
    source: Source,
    encoder: Encoder,
    spoken: usize,
    /// Packets that are still to be sent; `None`: no end in sight.
    left: Option<u32>,
}

impl Speaker {
    pub(crate) fn new(source: Source) -> Result<Speaker, CodecError> {
        Ok(Speaker { source, encoder: Encoder::new()?, spoken: 0, left: None })
    }

    /// The next 20 ms and their packet; `None`: hung up.
    pub(crate) fn poll_packet(&mut self) -> Result<Option<(Samples, Packet)>, CodecError> {
        if self.left == Some(0) {
            return Ok(None);
        }
        let frame = self.source.frame(self.spoken);
        let packet = Packet {
            sequence: FIRST_SEQUENCE.wrapping_add(self.spoken as u16),
            timestamp: (self.spoken as u32).wrapping_mul(TIMESTAMPS),
            last: self.left.is_some(),
            payload: self.encoder.encode(&frame)?,
        };
        self.spoken += 1;
        self.left = self.left.map(|left| left - 1);
        Ok(Some((frame, packet)))
    }

    /// Says goodbye; a second time changes nothing.
    pub(crate) fn hang_up(&mut self) {
        self.left.get_or_insert(GOODBYES);
    }

    /// The last packet has been given.
    pub(crate) fn ended(&self) -> bool {
        self.left == Some(0)
    }

    /// Nothing is left to be said. A voice has always something.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(&self.source, Source::Samples(samples) if self.spoken * FRAME >= samples.len())
    }

    /// Packets given so far.
    pub(crate) fn spoken(&self) -> usize {
        self.spoken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_then_silence_then_goodbye() {
        let mut speaker = Speaker::new(Source::Samples(vec![0.5; FRAME + 1])).unwrap();
        let (first, one) = speaker.poll_packet().unwrap().unwrap();
        let (second, two) = speaker.poll_packet().unwrap().unwrap();
        assert!(speaker.is_silent());
        assert_eq!((first[FRAME - 1], second[0], second[1]), (0.5, 0.5, 0.0));
        assert_eq!(two.sequence, one.sequence.wrapping_add(1));
        assert_eq!(two.timestamp, one.timestamp + 960);
        speaker.hang_up();
        let lasts: Vec<bool> =
            std::iter::from_fn(|| speaker.poll_packet().unwrap()).map(|(_, packet)| packet.last).collect();
        assert_eq!(lasts, [true; GOODBYES as usize]);
        assert!(speaker.ended());
    }

    #[test]
    fn the_beginning_is_what_is_spoken() {
        let mut speaker = Speaker::new(Source::Voice(Box::new(Voice::new(1)))).unwrap();
        let spoken: Vec<f32> = (0..10).flat_map(|_| speaker.poll_packet().unwrap().unwrap().0).collect();
        assert_eq!(Source::Voice(Box::new(Voice::new(1))).beginning(10), spoken);
    }
}
