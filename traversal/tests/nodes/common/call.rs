//! A call: both ends send all the time, and it is measured for how long nothing came.

use std::{
    fmt,
    future::Future,
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{task::AbortHandle, time::Instant};
use traversal::{Connection, Node};

use super::within;

/// Between two datagrams, and between two pieces of the stream, in each direction.
pub(crate) const EVERY: Duration = Duration::from_millis(20);
/// Bytes of one piece.
const PIECE: usize = 1000;

/// What comes in one way.
#[derive(Clone, Copy, Debug)]
struct Arrivals {
    last: Instant,
    longest: Duration,
    count: u64,
}

impl Arrivals {
    fn new() -> Arrivals {
        Arrivals { last: Instant::now(), longest: Duration::ZERO, count: 0 }
    }

    fn arrived(&mut self) {
        self.longest = self.longest_so_far();
        (self.last, self.count) = (Instant::now(), self.count + 1);
    }

    fn longest_so_far(&self) -> Duration {
        self.longest.max(self.last.elapsed())
    }

    fn forget(&mut self) {
        *self = Arrivals { last: Instant::now(), longest: Duration::ZERO, ..*self };
    }
}

struct End {
    datagrams: Arrivals,
    stream: Arrivals,
    sent: u64,
    problem: Option<String>,
}

/// The longest times without anything new, at both ends: of datagrams, and of a stream's bytes in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Silence {
    pub(crate) datagrams: Duration,
    pub(crate) stream: Duration,
}

impl Silence {
    pub(crate) fn max(self, other: Silence) -> Silence {
        let (datagrams, stream) = (self.datagrams.max(other.datagrams), self.stream.max(other.stream));
        Silence { datagrams, stream }
    }

    /// The longest of many.
    pub(crate) fn worst(all: impl IntoIterator<Item = Silence>) -> Silence {
        all.into_iter().fold(Silence::default(), Silence::max)
    }
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} without a datagram, {:?} without bytes", self.datagrams, self.stream)
    }
}

/// Both ends of a connection, talking.
pub(crate) struct Call {
    pub(crate) ends: [Connection; 2],
    state: [Arc<Mutex<End>>; 2],
    tasks: Vec<AbortHandle>,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Call {
    /// Connects the two, and lets them talk. Nobody else may accept at `b`.
    pub(crate) async fn new(a: &Node, b: &Node) -> Call {
        let both = async { tokio::join!(a.connect(b.id()), b.accept()) };
        let (ours, theirs) = within(Duration::from_secs(20), "connect", both).await;
        Call::between([ours.unwrap(), theirs.unwrap()])
    }

    pub(crate) fn between(ends: [Connection; 2]) -> Call {
        let state = [(); 2].map(|()| {
            let (datagrams, stream) = (Arrivals::new(), Arrivals::new());
            Arc::new(Mutex::new(End { datagrams, stream, sent: 0, problem: None }))
        });
        let mut call = Call { ends: ends.clone(), state, tasks: Vec::new() };
        for (here, end) in ends.into_iter().zip(call.state.clone()) {
            call.spawn(hear_datagrams(here.clone(), end.clone()));
            call.spawn(hear_stream(here.clone(), end.clone()));
            call.spawn(say_datagrams(here.clone(), end));
            call.spawn(say_stream(here));
        }
        call
    }

    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.push(tokio::spawn(task).abort_handle());
    }

    /// The longest silence since the beginning, or since [`forget`](Self::forget), with one that still goes on.
    pub(crate) fn silence(&self) -> Silence {
        let silence = |end: &Arc<Mutex<End>>| {
            let end = end.lock().unwrap();
            Silence { datagrams: end.datagrams.longest_so_far(), stream: end.stream.longest_so_far() }
        };
        Silence::worst(self.state.iter().map(silence))
    }

    pub(crate) fn forget(&self) {
        for end in &self.state {
            let mut end = end.lock().unwrap();
            end.datagrams.forget();
            end.stream.forget();
        }
    }

    /// Datagrams that each end has sent, and how many of them came.
    pub(crate) fn counts(&self) -> [(u64, u64); 2] {
        let [a, b] = [0, 1].map(|at| {
            let end = self.state[at].lock().unwrap();
            (end.sent, end.datagrams.count)
        });
        [(a.0, b.1), (b.0, a.1)]
    }

    /// Nothing is wrong, and both ends hear each other now.
    pub(crate) async fn is_sound(&self, within: Duration) -> Result<(), String> {
        let counts = |call: &Call| {
            let count = |end: &Arc<Mutex<End>>| {
                let end = end.lock().unwrap();
                (end.datagrams.count, end.stream.count)
            };
            [0, 1].map(|at| count(&call.state[at]))
        };
        let (before, start) = (counts(self), Instant::now());
        loop {
            for (connection, end) in self.ends.iter().zip(&self.state) {
                if let Some(reason) = connection.close_reason() {
                    return Err(format!("closed: {reason:?}"));
                }
                if let Some(problem) = &end.lock().unwrap().problem {
                    return Err(problem.clone());
                }
            }
            let now = counts(self);
            if (0..2).all(|at| now[at].0 > before[at].0 && now[at].1 > before[at].1) {
                return Ok(());
            }
            if start.elapsed() >= within {
                let paths = [0, 1].map(|at| self.ends[at].path().to_string());
                return Err(format!("silent for {:?}, {paths:?}", start.elapsed()));
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Fails unless both ends hear each other soon.
    pub(crate) async fn goes_on(&self) {
        self.is_sound(Duration::from_secs(20)).await.unwrap_or_else(|problem| panic!("{problem}"));
    }

    /// Waits until both ends send directly.
    pub(crate) async fn is_direct(&self, deadline: Duration) {
        let [a, b] = [0, 1].map(|at| self.ends[at].wait_direct(deadline));
        let (a, b) = tokio::join!(a, b);
        for result in [a, b] {
            result.unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

async fn say_datagrams(connection: Connection, end: Arc<Mutex<End>>) {
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        ticks.tick().await;
        let number = {
            let mut end = end.lock().unwrap();
            end.sent += 1;
            end.sent
        };
        if connection.send_datagram(number.to_be_bytes().to_vec()).is_err() {
            return;
        }
    }
}

async fn hear_datagrams(connection: Connection, end: Arc<Mutex<End>>) {
    while connection.read_datagram().await.is_ok() {
        end.lock().unwrap().datagrams.arrived();
    }
}

fn byte_at(position: u64) -> u8 {
    (position ^ position >> 8 ^ position >> 16) as u8
}

async fn say_stream(connection: Connection) {
    let Ok(mut stream) = connection.open_uni().await else { return };
    let (mut ticks, mut position) = (tokio::time::interval(EVERY), 0);
    loop {
        ticks.tick().await;
        let piece: Vec<u8> = (position..).take(PIECE).map(byte_at).collect();
        position += PIECE as u64;
        if stream.write_all(&piece).await.is_err() {
            return;
        }
    }
}

async fn hear_stream(connection: Connection, end: Arc<Mutex<End>>) {
    let Ok(mut stream) = connection.accept_uni().await else { return };
    let (mut buffer, mut position) = ([0; PIECE], 0u64);
    while let Ok(Some(len)) = stream.read(&mut buffer).await {
        let is_right = (position..).zip(&buffer[..len]).all(|(at, byte)| *byte == byte_at(at));
        position += len as u64;
        let mut end = end.lock().unwrap();
        end.stream.arrived();
        if !is_right {
            end.problem = Some(format!("wrong bytes before {position}"));
        }
    }
}

/// Runs a scenario once for each seed, in a runtime of its own with a paused clock, and returns what came of each. A seed
/// that fails is named; with `SEED` in the environment that one alone is run.
pub(crate) fn for_each_seed<F: Future>(seeds: Range<u64>, scenario: impl Fn(u64) -> F) -> Vec<F::Output> {
    let only = std::env::var("SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let seeds = only.map_or(seeds, |seed| seed..seed + 1);
    let results = std::cell::RefCell::new(Vec::new());
    natbox_sim::for_each_seed(seeds, |seed| {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let result = runtime.block_on(scenario(seed));
        results.borrow_mut().push(result);
    });
    results.into_inner()
}
