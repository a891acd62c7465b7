//! A call: speaks and listens at the same time, over anything that carries datagrams.

use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    codec::{CodecError, FRAME_TIME, LOOKAHEAD},
    jitter::Counts,
    meter::Meter,
    packet::Packet,
    playout::{Playout, TICK_TIME},
    speaker::{Source, Speaker},
};

#[cfg(test)]
mod tests;

/// Between two status reports, in ticks: 1 s.
const STATUS_TICKS: u64 = 100;
/// Datagrams that are read before the next tick gets its turn: a hundred times what a call needs, so that only a flood
/// meets the limit.
const DATAGRAMS_A_TICK: u32 = 64;
/// How long we wait for the other side's goodbye when we have said ours.
const PATIENCE: Duration = Duration::from_secs(1);

/// What carries the call.
pub(crate) trait Datagrams {
    /// Sends one, or loses it.
    fn send(&self, datagram: Vec<u8>) -> Result<(), Closed>;
    /// Waits for one. May be dropped while it waits, and loses nothing by that.
    async fn receive(&self) -> Result<Vec<u8>, Closed>;
    /// How they go at the moment.
    fn route(&self) -> Route;
}

/// How datagrams go.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Route {
    /// `direct`, `relay` or `none`.
    pub(crate) path: String,
    #[serde(skip)]
    pub(crate) rtt: Option<Duration>,
    /// How often the path has changed since the call began.
    pub(crate) switches: u64,
}

/// Nothing can be sent or received any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Closed {
    /// The peer has closed it, as one does after a call.
    pub(crate) by_peer: bool,
    pub(crate) why: String,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    /// This side hung up.
    HungUp,
    /// The other side hung up.
    PeerHungUp,
    /// What carried the call is gone.
    Broken(String),
}

/// What fails here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error(transparent)]
    Recording(#[from] crate::wav::WavError),
}

/// How the call goes at the moment.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Status {
    pub(crate) seconds: u64,
    #[serde(flatten)]
    pub(crate) route: Route,
    pub(crate) rtt_ms: Option<f64>,
    /// Of what should have arrived.
    pub(crate) lost_percent: f64,
    /// The jitter buffer's depth: what it wants to hold frames back.
    pub(crate) depth_ms: f64,
    /// Levels in decibels of full scale.
    pub(crate) speaking: Meter,
    pub(crate) hearing: Meter,
}

/// How the call was.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) end: End,
    pub(crate) seconds: f64,
    pub(crate) sent: u64,
    #[serde(flatten)]
    pub(crate) counts: Counts,
    pub(crate) lost_percent: f64,
    /// Datagrams that were no packets of a call.
    pub(crate) malformed: u64,
    /// The longest time in one piece for which sound was made up, and when in the call it was over.
    pub(crate) longest_gap_ms: f64,
    pub(crate) longest_gap_at_ms: f64,
    /// What the jitter buffer held frames back: on average, and at most.
    pub(crate) buffer_ms: f64,
    pub(crate) buffer_most_ms: f64,
    /// From mouth to ear, on average: a frame, the codec's lookahead, half the round trip, the jitter buffer.
    pub(crate) mouth_to_ear_ms: f64,
    /// Frames that were played faster, and slower.
    pub(crate) shortened: u64,
    pub(crate) lengthened: u64,
    /// How late this program itself came to a tick, at most: other programs had the processor.
    pub(crate) stall_ms: f64,
    #[serde(flatten)]
    pub(crate) route: Route,
    pub(crate) rtt_ms: Option<f64>,
}

/// One side of a call.
pub(crate) struct Call {
    speaker: Speaker,
    playout: Playout,
    speaking: Meter,
    hearing: Meter,
    /// Hang up after this.
    limit: Option<Duration>,
    /// Hang up when all is said.
    until_silent: bool,
    /// Hung up by us, not in answer to the other side.
    hung_up: bool,
    said_goodbye: Option<Duration>,
    malformed: u64,
    stall: Duration,
}

impl Call {
    /// A call that says `source`, and hangs up after `limit`. Without a limit it ends with the source, if that ends and
    /// `until_silent` is set, or when the other side hangs up.
    pub(crate) fn new(
        source: Source,
        limit: Option<Duration>,
        until_silent: bool,
    ) -> Result<Call, CallError> {
        Ok(Call {
            speaker: Speaker::new(source)?,
            playout: Playout::new()?,
            speaking: Meter::default(),
            hearing: Meter::default(),
            limit,
            until_silent,
            hung_up: false,
            said_goodbye: None,
            malformed: 0,
            stall: Duration::ZERO,
        })
    }

    /// Talks until somebody hangs up: the other side, the limit, or `hang_up`. What is heard goes to `hear`, 10 ms at a
    /// time and from the first moment on; once a second there is a status.
    pub(crate) async fn run(
        mut self,
        link: &impl Datagrams,
        hang_up: impl Future<Output = ()>,
        mut hear: impl FnMut(&[f32]) -> Result<(), CallError>,
        mut tell: impl FnMut(&Status),
    ) -> Result<Summary, CallError> {
        let mut hang_up = std::pin::pin!(hang_up);
        let mut ticks = interval(TICK_TIME);
        // Ticks that were missed are made up for: the sound goes on as that of a sound card would.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let begun = ticks.tick().await;
        let (mut number, mut budget) = (0, DATAGRAMS_A_TICK);
        let end = loop {
            tokio::select! {
                biased;
                datagram = link.receive(), if budget > 0 => match datagram {
                    Ok(datagram) => {
                        budget -= 1;
                        self.handle_datagram(&datagram, begun.elapsed());
                    }
                    Err(closed) => break self.closed(closed),
                },
                at = ticks.tick() => {
                    budget = DATAGRAMS_A_TICK;
                    self.stall = self.stall.max(Instant::now() - at);
                    let now = at - begun;
                    if let Err(closed) = self.speak(number, now, link)? {
                        break self.closed(closed);
                    }
                    if let Some(end) = self.listen(now, &mut hear)? {
                        break end;
                    }
                    number += 1;
                    if number % STATUS_TICKS == 0 {
                        tell(&self.status(number / STATUS_TICKS, link.route()));
                    }
                }
                () = &mut hang_up, if !self.hung_up => self.hang_up(),
            }
        };
        Ok(self.summary(end, begun.elapsed(), link.route()))
    }

    fn handle_datagram(&mut self, datagram: &[u8], now: Duration) {
        match Packet::decode(datagram) {
            Ok(packet) => self.playout.handle_packet(packet, now),
            Err(_) => self.malformed += 1,
        }
    }

    /// Every second tick a frame is spoken.
    fn speak(
        &mut self,
        tick: u64,
        now: Duration,
        link: &impl Datagrams,
    ) -> Result<Result<(), Closed>, CallError> {
        let is_over =
            self.limit.is_some_and(|limit| now >= limit) || (self.until_silent && self.speaker.is_silent());
        if is_over && !self.playout.ended() {
            self.hang_up();
        }
        if tick % 2 == 1 {
            return Ok(Ok(()));
        }
        let Some((frame, packet)) = self.speaker.poll_packet()? else { return Ok(Ok(())) };
        if self.speaker.ended() {
            self.said_goodbye = Some(now);
        }
        self.speaking.feed(&frame);
        Ok(link.send(packet.encode()))
    }

    /// Every tick 10 ms are heard. Returns how the call ended, once it has.
    fn listen(
        &mut self,
        now: Duration,
        hear: &mut impl FnMut(&[f32]) -> Result<(), CallError>,
    ) -> Result<Option<End>, CallError> {
        if !self.playout.ended() {
            let sound = self.playout.poll_sound(now);
            self.hearing.feed(&sound);
            hear(&sound)?;
            if self.playout.ended() {
                self.speaker.hang_up();
            }
        }
        let over = self.said_goodbye.is_some_and(|at| self.playout.ended() || now >= at + PATIENCE);
        Ok(over.then_some(if self.hung_up { End::HungUp } else { End::PeerHungUp }))
    }

    fn hang_up(&mut self) {
        self.hung_up = true;
        self.speaker.hang_up();
    }

    fn closed(&self, closed: Closed) -> End {
        match closed {
            _ if self.hung_up => End::HungUp,
            Closed { by_peer: true, .. } => End::PeerHungUp,
            Closed { why, .. } => End::Broken(why),
        }
    }

    fn status(&self, seconds: u64, route: Route) -> Status {
        Status {
            seconds,
            rtt_ms: route.rtt.map(millis),
            route,
            lost_percent: lost_percent(&self.playout.counts()),
            depth_ms: millis(self.playout.target()),
            speaking: self.speaking,
            hearing: self.hearing,
        }
    }

    fn summary(&self, end: End, lasted: Duration, route: Route) -> Summary {
        let (counts, figures) = (self.playout.counts(), self.playout.figures());
        let there = route.rtt.unwrap_or_default() / 2;
        Summary {
            end,
            seconds: lasted.as_millis() as f64 / 1000.0,
            sent: self.speaker.spoken() as u64,
            counts,
            lost_percent: lost_percent(&counts),
            malformed: self.malformed,
            longest_gap_ms: millis(figures.longest_gap),
            longest_gap_at_ms: millis(figures.longest_gap_at),
            buffer_ms: millis(figures.mean_delay()),
            buffer_most_ms: millis(figures.most_delay),
            mouth_to_ear_ms: millis(FRAME_TIME + LOOKAHEAD + there + figures.mean_delay()),
            shortened: figures.shortened,
            lengthened: figures.lengthened,
            stall_ms: millis(self.stall),
            rtt_ms: route.rtt.map(millis),
            route,
        }
    }
}

/// Of what should have arrived, what did not, in percent.
fn lost_percent(counts: &Counts) -> f64 {
    let expected = counts.received + counts.lost;
    if expected == 0 { 0.0 } else { (counts.lost as f64 * 10_000.0 / expected as f64).round() / 100.0 }
}

/// Milliseconds, to a tenth.
pub(crate) fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}
