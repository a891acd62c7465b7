//! From packets to sound: jitter buffer, decoder, and what is left of the last frame.

use std::{collections::VecDeque, time::Duration};

use crate::{
    codec::{CodecError, Decoder, FRAME, FRAME_TIME, RATE},
    jitter::{Counts, Frame, JitterBuffer, Pace},
    packet::Packet,
    stretch,
};

/// How much is played at a time: 10 ms.
pub(crate) const TICK: usize = RATE / 100;
/// How long that sounds.
pub(crate) const TICK_TIME: Duration = Duration::from_millis(10);

/// Plays what comes.
#[derive(Debug)]
pub(crate) struct Playout {
    jitter: JitterBuffer,
    decoder: Decoder,
    /// Decoded and not yet played; less than a frame and a stretch.
    queue: VecDeque<f32>,
    ended: bool,
    gap: Duration,
    figures: Figures,
}

/// How well it went.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    /// The longest time in one piece for which the sound was made up.
    pub(crate) longest_gap: Duration,
    /// When that was over.
    pub(crate) longest_gap_at: Duration,
    /// The sum over `played` frames of what the jitter buffer held them back.
    delay_sum: Duration,
    played: u32,
    /// The most that it held one back.
    pub(crate) most_delay: Duration,
    /// Frames played faster.
    pub(crate) shortened: u64,
    /// Frames played slower.
    pub(crate) lengthened: u64,
}

impl Figures {
    /// What the jitter buffer held frames back, on average.
    pub(crate) fn mean_delay(&self) -> Duration {
        self.delay_sum.checked_div(self.played).unwrap_or_default()
    }
}

impl Playout {
    pub(crate) fn new() -> Result<Playout, CodecError> {
        Ok(Playout {
            jitter: JitterBuffer::default(),
            decoder: Decoder::new()?,
            queue: VecDeque::with_capacity(3 * FRAME),
            ended: false,
            gap: Duration::ZERO,
            figures: Figures::default(),
        })
    }

    /// Takes a packet that arrived at `now`.
    pub(crate) fn handle_packet(&mut self, packet: Packet, now: Duration) {
        self.jitter.handle_packet(packet, now);
    }

    /// The 10 ms that sound from `now` on.
    pub(crate) fn poll_sound(&mut self, now: Duration) -> [f32; TICK] {
        while self.queue.len() < TICK {
            let at = now + Duration::from_secs_f64(self.queue.len() as f64 / RATE as f64);
            if self.ended || !self.more(at) {
                self.queue.resize(TICK, 0.0);
            }
        }
        let mut sound = [0.0; TICK];
        for (sample, queued) in sound.iter_mut().zip(self.queue.drain(..TICK)) {
            *sample = queued;
        }
        sound
    }

    /// The speaker has hung up, and everything was played.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    pub(crate) fn counts(&self) -> Counts {
        self.jitter.counts()
    }

    pub(crate) fn figures(&self) -> Figures {
        self.figures
    }

    /// What the jitter buffer wants to hold frames back.
    pub(crate) fn target(&self) -> Duration {
        self.jitter.target()
    }

    /// Decodes one more frame, to be played at `at`; `false`: there is none yet.
    fn more(&mut self, at: Duration) -> bool {
        let frame = match self.jitter.poll_frame(at) {
            Frame::Silence => return false,
            Frame::Conceal => {
                self.gap += FRAME_TIME;
                if self.gap > self.figures.longest_gap {
                    (self.figures.longest_gap, self.figures.longest_gap_at) = (self.gap, at + FRAME_TIME);
                }
                self.queue.extend(self.decoder.conceal());
                return true;
            }
            Frame::Recover { following, .. } => self.decoder.recover(&following),
            Frame::Play { payload, last, delay, pace, .. } => {
                self.ended = last;
                self.figures.played += 1;
                self.figures.delay_sum += delay;
                self.figures.most_delay = self.figures.most_delay.max(delay);
                let frame = self.decoder.decode(&payload);
                if let Some(changed) = self.paced(&frame, pace) {
                    self.gap = Duration::ZERO;
                    self.queue.extend(changed);
                    return true;
                }
                frame
            }
        };
        self.gap = Duration::ZERO;
        self.queue.extend(frame);
        true
    }

    fn paced(&mut self, frame: &crate::codec::Samples, pace: Pace) -> Option<Vec<f32>> {
        match pace {
            Pace::Even => None,
            Pace::Faster => stretch::shorter(frame).inspect(|_| self.figures.shortened += 1),
            Pace::Slower => stretch::longer(frame).inspect(|_| self.figures.lengthened += 1),
        }
    }
}
