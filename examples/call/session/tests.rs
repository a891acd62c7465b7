//! Whole calls over a simulated channel, under a paused clock: real Opus, minutes in seconds, the same for the same seed.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::OnceLock};

use tokio::sync::Notify;

use super::*;
use crate::{
    codec::{FRAME, round_trip},
    compare::{Comparison, compare},
    voice::Voice,
};

/// What the channel does to datagrams at a time of the call.
#[derive(Clone, Copy, Debug)]
struct Conditions {
    delay_ms: f64,
    jitter_ms: f64,
    loss: f64,
    repeat: f64,
}

const CLEAN: Conditions = Conditions { delay_ms: 40.0, jitter_ms: 0.0, loss: 0.0, repeat: 0.0 };

type Weather = fn(f64) -> Conditions;

/// One direction.
struct Pipe {
    weather: Weather,
    begun: Instant,
    seed: u64,
    sent: u64,
    /// By the time of arrival.
    flying: BTreeMap<(Instant, u64), Vec<u8>>,
    closed: Option<Closed>,
}

/// One end of the channel.
struct Line {
    out: Rc<(RefCell<Pipe>, Notify)>,
    back: Rc<(RefCell<Pipe>, Notify)>,
}

fn channel(weather: Weather, seed: u64) -> (Line, Line) {
    let pipe = |seed| {
        let begun = Instant::now();
        let pipe = Pipe { weather, begun, seed, sent: 0, flying: BTreeMap::new(), closed: None };
        Rc::new((RefCell::new(pipe), Notify::new()))
    };
    let (one, other) = (pipe(seed), pipe(!seed));
    (Line { out: one.clone(), back: other.clone() }, Line { out: other, back: one })
}

impl Pipe {
    fn random(&mut self) -> f64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 11) as f64 / (1u64 << 53) as f64
    }

    fn send(&mut self, datagram: &[u8]) {
        let now = Instant::now();
        let Conditions { delay_ms, jitter_ms, loss, repeat } =
            (self.weather)((now - self.begun).as_secs_f64());
        let (lost, copies) = (self.random() < loss, 1 + u64::from(self.random() < repeat));
        for _ in 0..copies {
            let delay = Duration::from_secs_f64((delay_ms + jitter_ms * self.random()) / 1000.0);
            self.sent += 1;
            if !lost {
                self.flying.insert((now + delay, self.sent), datagram.to_vec());
            }
        }
    }
}

impl Line {
    fn close(&self, by_peer: bool) {
        for pipe in [&self.out, &self.back] {
            pipe.0.borrow_mut().closed = Some(Closed { by_peer, why: "cut".to_owned() });
            pipe.1.notify_waiters();
        }
    }
}

impl Datagrams for Line {
    fn send(&self, datagram: Vec<u8>) -> Result<(), Closed> {
        let mut pipe = self.out.0.borrow_mut();
        pipe.closed.clone().map_or(Ok(()), Err)?;
        pipe.send(&datagram);
        self.out.1.notify_waiters();
        Ok(())
    }

    async fn receive(&self) -> Result<Vec<u8>, Closed> {
        let (pipe, changed) = (&self.back.0, &self.back.1);
        loop {
            let change = changed.notified();
            let next = {
                let mut pipe = pipe.borrow_mut();
                pipe.closed.clone().map_or(Ok(()), Err)?;
                match pipe.flying.first_entry() {
                    Some(first) if first.key().0 <= Instant::now() => return Ok(first.remove()),
                    Some(first) => Some(first.key().0),
                    None => None,
                }
            };
            match next {
                Some(at) => tokio::select! { () = tokio::time::sleep_until(at) => {}, () = change => {} },
                None => change.await,
            }
        }
    }

    fn route(&self) -> Route {
        Route { path: "simulated".to_owned(), rtt: None, switches: 0 }
    }
}

fn voice(number: u64) -> Source {
    Source::Voice(Box::new(Voice::new(number)))
}

/// One side's result: how it was, and what was heard.
type Side = (Summary, Vec<f32>);

async fn side(end: &Line, number: u64, limit: Option<u64>, hang_up: impl Future<Output = ()>) -> Side {
    let call = Call::new(voice(number), limit.map(Duration::from_secs), false).unwrap();
    let mut heard = Vec::new();
    let hear = |sound: &[f32]| {
        heard.extend_from_slice(sound);
        Ok(())
    };
    let summary = call.run(end, hang_up, hear, |_| {}).await.unwrap();
    (summary, heard)
}

/// A call of `seconds` between voice 1 and voice 2; the caller hangs up.
async fn call(weather: Weather, seconds: u64, seed: u64) -> (Side, Side) {
    let (here, there) = channel(weather, seed);
    let never = std::future::pending;
    tokio::join!(side(&here, 1, Some(seconds), never()), side(&there, 2, None, never()))
}

/// What `side` heard, against voice `number` without a network.
fn quality(side: &Side, number: u64) -> Comparison {
    /// Half a minute of both voices, as a perfect network delivers them.
    static REFERENCES: [OnceLock<Vec<f32>>; 2] = [OnceLock::new(), OnceLock::new()];
    let reference =
        REFERENCES[number as usize - 1].get_or_init(|| round_trip(&voice(number).beginning(1500)).unwrap());
    compare(&reference[..side.1.len() / FRAME * FRAME], &side.1).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_clean_channel_is_heard_as_if_there_were_none() {
    let (caller, called) = call(|_| CLEAN, 15, 1).await;
    assert_eq!((&caller.0.end, &called.0.end), (&End::HungUp, &End::PeerHungUp));
    for (side, number) in [(&caller, 2), (&called, 1)] {
        let (summary, quality) = (&side.0, quality(side, number));
        assert_eq!(
            (summary.counts.lost, summary.counts.concealed, summary.longest_gap_ms),
            (0, 0, 0.0),
            "{summary:?}"
        );
        assert!(summary.counts.received > 700 && summary.counts.late == 0, "{summary:?}");
        assert!(quality.segmental_snr_db > 30.0 && quality.longest_gap_ms == 0, "{quality:?}");
        // The recording is the truth: the path's 40 ms, and what the buffer adds.
        let buffered = quality.offset_ms - 40.0;
        assert!((buffered - summary.buffer_ms).abs() < 12.0, "{buffered} ms, where {summary:?}");
        let mouth_to_ear = quality.offset_ms + millis(FRAME_TIME + LOOKAHEAD);
        assert!(mouth_to_ear <= 40.0 + 80.0, "mouth to ear {mouth_to_ear} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn loss_jitter_repetition_and_disorder_are_heard_through() {
    let weather = |_| Conditions { delay_ms: 30.0, jitter_ms: 30.0, loss: 0.05, repeat: 0.05 };
    for seed in 0..3 {
        let (caller, called) = call(weather, 20, seed).await;
        for (side, number) in [(&caller, 2), (&called, 1)] {
            let (summary, quality) = (&side.0, quality(side, number));
            assert!((2.0..9.0).contains(&summary.lost_percent), "seed {seed}: {summary:?}");
            assert!(summary.counts.duplicates > 20, "seed {seed}: {summary:?}");
            assert!(quality.segmental_snr_db > 10.0, "seed {seed}: {quality:?}");
            assert!(quality.found_percent > 95.0, "seed {seed}: {quality:?}");
            assert!(summary.longest_gap_ms <= 60.0, "seed {seed}: {summary:?}");
            let over = quality.offset_ms - 30.0 + millis(FRAME_TIME + LOOKAHEAD);
            assert!(over <= 110.0, "seed {seed}: {over} ms over the path's delay");
        }
    }
}

/// Relay, direct, relay: 60 ms, 15 ms from the eighth second on, 60 ms again from the twentieth on.
#[tokio::test(start_paused = true)]
async fn switches_of_the_path_make_no_gap_over_60_ms() {
    fn weather(at: f64) -> Conditions {
        let delay_ms = if (8.0..20.0).contains(&at) { 15.0 } else { 60.0 };
        Conditions { delay_ms, jitter_ms: 3.0, loss: 0.0, repeat: 0.0 }
    }
    for seed in 0..2 {
        let (caller, called) = call(weather, 28, seed).await;
        for (side, number) in [(&caller, 2), (&called, 1)] {
            let (summary, quality) = (&side.0, quality(side, number));
            assert_eq!(summary.counts.lost, 0);
            assert!(summary.longest_gap_ms <= 60.0, "seed {seed}: {summary:?}");
            assert!(summary.shortened > 3, "seed {seed}: {summary:?}");
            assert!(quality.segmental_snr_db > 20.0, "seed {seed}: {quality:?}");
        }
    }
}

/// For a second nothing gets through; then the call is as it was.
#[tokio::test(start_paused = true)]
async fn an_outage_is_one_gap() {
    fn weather(at: f64) -> Conditions {
        Conditions { loss: if (6.0..7.0).contains(&at) { 1.0 } else { 0.0 }, ..CLEAN }
    }
    let (caller, called) = call(weather, 15, 3).await;
    for (side, number) in [(&caller, 2), (&called, 1)] {
        let (summary, quality) = (&side.0, quality(side, number));
        assert!((980.0..=1040.0).contains(&summary.longest_gap_ms), "{summary:?}");
        assert!((7000.0..7200.0).contains(&summary.longest_gap_at_ms), "{summary:?}");
        assert!(quality.segmental_snr_db > 25.0 && quality.longest_gap_ms > 200, "{quality:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn either_side_may_hang_up() {
    let (here, there) = channel(|_| Conditions { loss: 0.3, ..CLEAN }, 7);
    let soon = tokio::time::sleep(Duration::from_secs(3));
    let (caller, called) =
        tokio::join!(side(&here, 1, None, std::future::pending()), side(&there, 2, None, soon));
    assert_eq!((caller.0.end, called.0.end), (End::PeerHungUp, End::HungUp));
    assert!((3.0..4.5).contains(&caller.0.seconds), "{}", caller.0.seconds);
}

#[tokio::test(start_paused = true)]
async fn a_file_ends_the_call_of_the_caller() {
    let (here, there) = channel(|_| CLEAN, 7);
    let samples = voice(1).beginning(100);
    let call = Call::new(Source::Samples(samples), None, true).unwrap();
    let never = std::future::pending;
    let caller = call.run(&here, never(), |_| Ok(()), |_| {});
    let (caller, called) = tokio::join!(caller, side(&there, 2, None, never()));
    assert_eq!(caller.unwrap().end, End::HungUp);
    assert!((2.0..2.5).contains(&called.0.seconds), "{}", called.0.seconds);
}

/// Nobody answers the goodbye: the call is over all the same.
#[tokio::test(start_paused = true)]
async fn nobody_at_the_other_end() {
    let (here, _there) = channel(|_| CLEAN, 7);
    let (summary, heard) = side(&here, 1, Some(2), std::future::pending()).await;
    assert_eq!(summary.end, End::HungUp);
    assert!((3.0..3.3).contains(&summary.seconds), "{}", summary.seconds);
    assert_eq!((summary.counts.received, summary.longest_gap_ms), (0, 0.0));
    assert!(heard.iter().all(|sample| *sample == 0.0));
}

#[tokio::test(start_paused = true)]
async fn a_cut_line_is_told_from_a_goodbye() {
    for (by_peer, end) in [(false, End::Broken("cut".to_owned())), (true, End::PeerHungUp)] {
        let (here, there) = channel(|_| CLEAN, 7);
        let cut = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            there.close(by_peer);
        };
        let (summary, ()) = tokio::join!(side(&here, 1, None, std::future::pending()), cut);
        assert_eq!(summary.0.end, end);
    }
}

/// Datagrams that are no packets, and packets that are no Opus, are counted or concealed; the call goes on.
#[tokio::test(start_paused = true)]
async fn garbage_does_no_harm() {
    let (here, there) = channel(|_| CLEAN, 7);
    let garbage = async {
        for number in 0..2000u64 {
            tokio::time::sleep(Duration::from_millis(3)).await;
            let bytes = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
            let bad = there.send(bytes[..number as usize % 8].to_vec());
            let strange = there.send([&[0x10], &bytes[..], &bytes[..]].concat());
            if bad.and(strange).is_err() {
                break;
            }
        }
    };
    let ((summary, _), ()) = tokio::join!(side(&here, 1, Some(5), std::future::pending()), garbage);
    assert_eq!(summary.end, End::HungUp);
    assert!(summary.malformed > 1000, "{summary:?}");
}
