//! The jitter buffer against networks that hold up, lose, repeat and reorder, and clocks that drift.

use proptest::prelude::*;

use super::*;

/// What a cut takes from a frame, or a stretch adds, in the player that these tests play.
const CHANGE: i64 = 8_000;

/// The way of a packet that is lost.
const NEVER: i64 = i64::MAX;

/// A packet on its way: frame number and time of arrival in microseconds.
type Arriving = (i64, i64);

/// What a network does to frames that are spoken every 20 ms.
#[derive(Clone, Debug)]
struct Network {
    frames: i64,
    first_sequence: u16,
    first_timestamp: u32,
    /// The way without queues, in microseconds, for each frame.
    way: fn(i64) -> i64,
    /// At most so much more, in microseconds.
    jitter: i64,
    loss_percent: u64,
    repeat_percent: u64,
    /// How much faster the speaker's clock is than the player's, in parts per million.
    drift: i64,
    seed: u64,
}

impl Default for Network {
    fn default() -> Network {
        Network {
            frames: 1000,
            first_sequence: 0,
            first_timestamp: 0,
            way: |_| 40_000,
            jitter: 0,
            loss_percent: 0,
            repeat_percent: 0,
            drift: 0,
            seed: 1,
        }
    }
}

/// What came of it.
#[derive(Debug, Default)]
struct Heard {
    /// Frames played or rebuilt, in order, with the time.
    frames: Vec<(i64, i64)>,
    /// When something was concealed.
    concealed: Vec<i64>,
    /// Delays of the frames played, with the time.
    delays: Vec<(i64, i64)>,
    most_waiting: usize,
    counts: Counts,
    target: i64,
}

impl Network {
    fn random(seed: &mut u64, limit: i64) -> i64 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        i64::try_from(*seed >> 33).unwrap() % limit.max(1)
    }

    fn arrivals(&self) -> Vec<Arriving> {
        let mut seed = self.seed;
        let mut arrivals = Vec::new();
        for frame in 0..self.frames {
            let spoken = frame * (FRAME * 1_000_000 / (1_000_000 + self.drift));
            let way = (self.way)(frame);
            let lost = Self::random(&mut seed, 100) < self.loss_percent as i64 || way == NEVER;
            let copies = 1 + i64::from(Self::random(&mut seed, 100) < self.repeat_percent as i64);
            for _ in 0..copies {
                let late = Self::random(&mut seed, self.jitter + 1);
                if !lost {
                    arrivals.push((frame, spoken + way + late));
                }
            }
        }
        arrivals.sort_by_key(|(_, arrival)| *arrival);
        arrivals
    }

    fn packet(&self, frame: i64) -> Packet {
        Packet {
            sequence: self.first_sequence.wrapping_add(frame as u16),
            timestamp: self.first_timestamp.wrapping_add((frame * 960) as u32),
            last: frame == self.frames - 1,
            payload: frame.to_be_bytes().to_vec(),
        }
    }

    /// Plays until the last frame has been played, or long enough.
    fn play(&self) -> Heard {
        let (mut buffer, mut heard) = (JitterBuffer::default(), Heard::default());
        let arrivals = self.arrivals();
        let end = arrivals.last().map_or(0, |(_, arrival)| arrival + 1_000_000);
        let (mut waiting, mut now) = (arrivals.into_iter().peekable(), 0);
        while now < end {
            while let Some((frame, arrival)) = waiting.next_if(|(_, arrival)| *arrival <= now) {
                buffer.handle_packet(self.packet(frame), time(arrival));
                heard.most_waiting = heard.most_waiting.max(buffer.len());
            }
            now += match buffer.poll_frame(time(now)) {
                Frame::Silence => FRAME / 2,
                Frame::Conceal => {
                    heard.concealed.push(now);
                    FRAME
                }
                Frame::Recover { sequence, following } => {
                    let frame = self.number(&following) - 1;
                    assert_eq!(sequence, frame + i64::from(self.first_sequence));
                    heard.frames.push((frame, now));
                    FRAME
                }
                Frame::Play { payload, pace, last, delay, .. } => {
                    heard.frames.push((self.number(&payload), now));
                    heard.delays.push((now, micros(delay)));
                    if last {
                        break;
                    }
                    match pace {
                        Pace::Even => FRAME,
                        Pace::Faster => FRAME - CHANGE,
                        Pace::Slower => FRAME + CHANGE,
                    }
                }
            };
        }
        heard.counts = buffer.counts();
        heard.target = micros(buffer.target());
        heard
    }

    fn number(&self, payload: &[u8]) -> i64 {
        i64::from_be_bytes(payload.try_into().unwrap())
    }
}

fn time(micros: i64) -> Duration {
    Duration::from_micros(micros.unsigned_abs())
}

impl Heard {
    /// No frame twice, none after a later one, and never more held than allowed.
    fn check(&self) -> Result<(), TestCaseError> {
        for pair in self.frames.windows(2) {
            prop_assert!(pair[0].0 < pair[1].0, "frame {} after frame {}", pair[1].0, pair[0].0);
        }
        prop_assert!(self.most_waiting <= MAX_FRAMES as usize, "{} waited", self.most_waiting);
        Ok(())
    }

    /// Concealed since `from`, in microseconds.
    fn concealed_since(&self, from: i64) -> usize {
        self.concealed.iter().filter(|at| **at >= from).count()
    }

    fn delays_since(&self, from: i64) -> impl Iterator<Item = i64> {
        self.delays.iter().filter(move |(at, _)| *at >= from).map(|(_, delay)| *delay)
    }
}

#[test]
fn a_perfect_network_is_played_as_it_is_and_the_delay_falls_to_the_least() {
    let heard = Network::default().play();
    heard.check().unwrap();
    assert_eq!(heard.frames.len(), 1000);
    assert_eq!((heard.concealed.len(), heard.counts.skipped), (0, 0));
    assert_eq!(heard.target, *TARGET.start());
    let most = heard.delays_since(5_000_000).max().unwrap();
    assert!(most <= TARGET.start() + TOLERANCE, "{most} µs");
}

#[test]
fn one_lost_frame_is_rebuilt_or_concealed_and_moves_nothing() {
    // Spoken after 4 s, when the delay has settled: the next packet is there or not.
    let lost = |frame| if frame == 200 { NEVER } else { 40_000 };
    let heard = Network { way: lost, frames: 400, ..Network::default() }.play();
    assert_eq!((heard.concealed.len() as u64 + heard.counts.recovered, heard.counts.lost), (1, 1));
    let delays: Vec<i64> = heard.delays_since(3_800_000).collect();
    assert!(delays.iter().all(|delay| (delay - delays[0]).abs() <= CHANGE), "{delays:?}");

    // Spoken at the beginning, when the delay is still 40 ms: the next packet is there.
    let lost = |frame| if frame == 3 { NEVER } else { 40_000 };
    let heard = Network { way: lost, frames: 400, ..Network::default() }.play();
    assert_eq!((heard.concealed.len(), heard.counts.recovered), (0, 1));
}

/// Whether the next packet is there at a lost frame's time or not: one frame is made up for it, and no more.
#[test]
fn a_lost_frame_costs_a_frame() {
    let way = |frame| if frame % 150 == 149 { NEVER } else { 40_000 };
    let (mut concealed, mut recovered) = (0, 0);
    for drift in [-800, -400, 400] {
        let counts = Network { way, drift, frames: 6001, ..Network::default() }.play().counts;
        assert_eq!(counts.concealed + counts.recovered, counts.lost, "{counts:?}");
        concealed += counts.concealed;
        recovered += counts.recovered;
    }
    assert!(concealed > 10 && recovered > 10, "{concealed} concealed, {recovered} rebuilt");
}

#[test]
fn steady_loss_makes_it_wait_for_the_copies() {
    // The drift keeps the delay at its least, where the next packet would come too late.
    let heard = Network { loss_percent: 8, drift: -1000, frames: 3000, ..Network::default() }.play();
    heard.check().unwrap();
    let (rebuilt, lost) = (heard.counts.recovered, heard.counts.lost);
    assert!(lost > 150 && rebuilt * 10 > lost * 8, "{rebuilt} of {lost} rebuilt");
}

#[test]
fn a_shorter_path_costs_nothing_and_its_delay_is_gone_soon() {
    let way = |frame| if frame < 500 { 120_000 } else { 20_000 };
    let heard = Network { way, frames: 1500, jitter: 4_000, ..Network::default() }.play();
    heard.check().unwrap();
    assert_eq!((heard.concealed.len(), heard.counts.skipped, heard.frames.len()), (0, 0, 1500));
    // The window has forgotten the old path after 5 s; then it takes 2 s.
    let most = heard.delays_since(17_500_000).max().unwrap();
    assert!(most < 40_000, "{most} µs");
}

#[test]
fn a_longer_path_costs_its_difference_once() {
    let way = |frame| if frame < 500 { 20_000 } else { 70_000 };
    let heard = Network { way, frames: 1500, jitter: 4_000, ..Network::default() }.play();
    heard.check().unwrap();
    assert!((1..=3).contains(&heard.concealed.len()), "{:?}", heard.concealed);
    assert_eq!(heard.frames.len(), 1500);
    let most = heard.delays_since(19_000_000).max().unwrap();
    assert!(most < 40_000, "{most} µs");
}

#[test]
fn an_outage_is_bridged_and_what_comes_late_all_at_once_is_left_out() {
    // For a second nothing comes: lost, or delivered in a burst at the end.
    let lost = |frame| if (400..450).contains(&frame) { NEVER } else { 40_000 };
    let heard = Network { way: lost, ..Network::default() }.play();
    heard.check().unwrap();
    assert!((49..=52).contains(&heard.concealed.len()), "{}", heard.concealed.len());
    assert!(heard.delays_since(9_500_000).all(|delay| delay < 60_000));

    let late = |frame| if (400..450).contains(&frame) { 40_000 + (450 - frame) * FRAME } else { 40_000 };
    let heard = Network { way: late, ..Network::default() }.play();
    heard.check().unwrap();
    assert!(heard.counts.skipped > 20, "{:?}", heard.counts);
    assert!(heard.delays_since(18_000_000).all(|delay| delay < 60_000));
}

#[test]
fn a_flood_pushes_the_oldest_out() {
    let (mut buffer, network) = (JitterBuffer::default(), Network::default());
    for frame in 0..500 {
        buffer.handle_packet(network.packet(frame), time(frame));
        assert!(buffer.len() <= MAX_FRAMES as usize, "{} wait", buffer.len());
    }
    assert_eq!(buffer.counts().skipped, 500 - MAX_FRAMES as u64);
}

#[test]
fn spikes_are_kept_in_mind() {
    // Every two seconds a packet is 80 ms late: not one in a hundred, so they are waited for.
    let way = |frame| if frame % 50 == 49 { 120_000 } else { 40_000 };
    let heard = Network { way, frames: 2000, ..Network::default() }.play();
    assert!(heard.concealed_since(10_000_000) == 0, "{:?}", heard.concealed);
    assert!((80_000..=100_000).contains(&heard.target), "{}", heard.target);
}

#[test]
fn packets_before_the_first_are_taken_and_strangers_do_no_harm() {
    let mut buffer = JitterBuffer::default();
    let network = Network::default();
    assert_eq!(buffer.handle_packet(network.packet(1), time(0)), Arrival::Kept);
    assert_eq!(buffer.handle_packet(network.packet(0), time(1)), Arrival::Kept);
    assert_eq!(buffer.handle_packet(network.packet(0), time(2)), Arrival::Duplicate);
    let mut first = None;
    for now in 0..10 {
        if let Frame::Play { sequence, .. } = buffer.poll_frame(time(now * 10_000)) {
            first = Some(sequence);
            break;
        }
    }
    assert_eq!(first, Some(0));
    assert_eq!(buffer.handle_packet(network.packet(0), time(90_000)), Arrival::Duplicate);
    assert_eq!(buffer.handle_packet(network.packet(-1), time(90_000)), Arrival::Late);
    // At the end of time the one that waits is played, and then nothing is there.
    assert!(matches!(buffer.poll_frame(Duration::MAX), Frame::Play { sequence: 1, .. }));
    assert_eq!(buffer.poll_frame(Duration::MAX), Frame::Conceal);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn never_twice_never_backwards_never_too_many(
        jitter in 0i64..400_000, loss_percent in 0u64..60, repeat_percent in 0u64..40, drift in -5_000i64..5_000,
        first_sequence: u16, first_timestamp: u32, seed: u64,
    ) {
        let network = Network {
            frames: 400, jitter, loss_percent, repeat_percent, drift, first_sequence, first_timestamp, seed,
            ..Network::default()
        };
        let heard = network.play();
        heard.check()?;
        let Counts { received, late, played, skipped, .. } = heard.counts;
        prop_assert_eq!(received, late + played + skipped, "{:?}", heard.counts);
    }

    /// Without loss, jitter within what it adapts to is heard once and then waited for.
    #[test]
    fn it_adapts_to_jitter(jitter in 0i64..200_000, repeat_percent in 0u64..20, first_sequence: u16, seed: u64) {
        let network = Network { frames: 1500, jitter, repeat_percent, first_sequence, seed, ..Network::default() };
        let heard = network.play();
        heard.check()?;
        prop_assert_eq!(heard.counts.lost, 0);
        let concealed = heard.concealed_since(8_000_000);
        prop_assert!(concealed <= 33, "{} of 1100 concealed", concealed);
        prop_assert!(heard.target <= jitter + SLACK + FRAME + TARGET.start(), "target {}", heard.target);
        let most = heard.delays_since(10_000_000).max().unwrap_or(0);
        prop_assert!(most <= jitter + SLACK + TOLERANCE + 2 * FRAME, "held back for {} µs", most);
    }

    /// A clock that drifts is followed: for a minute nothing is concealed or left out, and the delay stays.
    #[test]
    fn it_follows_a_clock(drift in -2_000i64..2_000, jitter in 0i64..20_000, seed: u64) {
        let heard = Network { frames: 3_000, drift, jitter, seed, ..Network::default() }.play();
        heard.check()?;
        prop_assert_eq!(heard.counts.skipped, 0);
        prop_assert!(heard.concealed_since(5_000_000) <= 20, "{} concealed", heard.concealed.len());
        let most = heard.delays_since(5_000_000).max().unwrap_or(0);
        prop_assert!(most <= jitter + SLACK + TOLERANCE + 2 * FRAME, "held back for {} µs", most);
    }

    /// Whatever packets come whenever: no panic, no frame twice or backwards, bounded.
    #[test]
    fn it_survives_everything(
        events in prop::collection::vec((any::<u16>(), any::<u32>(), 0u64..200_000, any::<bool>(), any::<bool>()), 0..400),
    ) {
        let (mut buffer, mut now, mut before) = (JitterBuffer::default(), Duration::ZERO, i64::MIN);
        for (sequence, timestamp, later, last, near) in events {
            now += Duration::from_micros(later);
            // Near ones wander, others jump anywhere.
            let sequence = if near { sequence % 100 } else { sequence };
            buffer.handle_packet(Packet { sequence, timestamp, last, payload: vec![0] }, now);
            prop_assert!(buffer.len() <= MAX_FRAMES as usize);
            prop_assert!(TARGET.contains(&buffer.target));
            if let Frame::Play { sequence, .. } | Frame::Recover { sequence, .. } = buffer.poll_frame(now) {
                prop_assert!(sequence > before, "{} after {}", sequence, before);
                before = sequence;
            }
        }
    }
}
