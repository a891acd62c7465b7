//! The loop: packets in, the engine's verdict, packets out; one thread for all of it, or several that share the packets.
//!
//! A turn does the following, in this order, each within a budget, so that nothing starves what comes after it:
//!
//! 1. a batch from outside, translated inwards and sent;
//! 2. a batch from each inside port, translated outwards and sent;
//! 3. what the engine and ARP have to say: timers, packets of their own making;
//! 4. control jobs, news about the machine, events for whoever listens.
//!
//! When a turn had nothing to do the loop waits for descriptors and deadlines. Whatever else takes time (reading routes
//! and the host's ports, serving the control socket, printing) happens on other threads.
//!
//! With several workers the first one does all of this, and the others do 1 and 2 on ports of their own (`worker`). There
//! is one engine for all (`shared`), so that a NAT with several workers behaves as one with a single worker does: they
//! share ports, limits and timers.

mod error;
mod express;
mod forward;
mod log;
mod setup;
mod shared;
mod spin;
mod state;
mod tally;
#[cfg(test)]
mod tests;
mod wait;
mod watch;
mod worker;

use std::{
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
    panic::resume_unwind,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use natbox_core::{Event, Protocol, Time};

use crate::{
    control::{self, Inbox, Job},
    datapath::PortStats,
    guard::Guard,
    host::Wiring,
    output::PacketLog,
    settings::Settings,
};
pub use error::RunError;
use express::Express;
use forward::Forwarder;
use shared::Shared;
use state::{Claims, State};
use tally::Tally;
use wait::Woken;
use watch::{News, Watch};
use worker::Worker;

/// Frames taken from one port before the next one's turn.
const BUDGET: usize = crate::datapath::BATCH_LEN;

/// Control jobs and news are looked for this often while packets keep the loop from waiting.
const ERRANDS: Duration = Duration::from_millis(1);

/// Ports are asked how they are this often: it brings their counters up to date, and a device that is gone to light.
const CHECK: Duration = Duration::from_secs(1);

/// Control jobs done in one turn.
const JOBS: usize = 4;

/// Events passed on in one turn.
const EVENTS: usize = 1024;

/// A NAT at work between its ports.
pub struct Gateway {
    /// The first worker, on the thread that calls [`run`](Gateway::run).
    worker: Worker<Guard>,
    /// The others, and what each of their ports has counted.
    others: Vec<Worker<Guard>>,
    tallies: Vec<Vec<Arc<Tally>>>,
    shared: Arc<Shared<Guard>>,
    inbox: Inbox,
    watch: Watch,
    /// Kept open as long as the worker waits for it.
    _stop: OwnedFd,
    /// External addresses that are the host's too.
    host_shares: Vec<Ipv4Addr>,
    next_errands: Time,
    fast_path: String,
    /// Room for what happened to mappings since it was last told.
    events: Vec<Event>,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("fast_path", &self.fast_path).finish_non_exhaustive()
    }
}

impl Gateway {
    /// Opens the ports of `wiring` and makes the NAT that `settings` describe. `stop` is an eventfd: the gateway ends
    /// when it becomes readable.
    ///
    /// # Errors
    /// When an interface, the configuration or a forward cannot be used.
    pub fn new(
        mut wiring: Wiring,
        settings: &Settings,
        guard: Guard,
        inbox: Inbox,
        log: Option<PacketLog>,
        stop: OwnedFd,
    ) -> Result<Gateway, RunError> {
        let clock = Clock::start();
        let devices = setup::devices(&mut wiring);
        let host_shares = if wiring.shared { wiring.external.clone() } else { Vec::new() };
        let mut nat = setup::nat(&wiring, settings)?;
        setup::forwards(&mut nat, &wiring, settings, clock.now())?;
        let watch = Watch::start(setup::watched(&wiring), host_shares.clone())?;
        let mut ports: Vec<Vec<_>> = (0..wiring.workers).map(|_| Vec::new()).collect();
        let mut neighbors = Vec::new();
        for side in setup::sides(wiring, settings)? {
            ports.iter_mut().zip(side.ports).for_each(|(ports, port)| ports.push(port));
            neighbors.push(side.neighbors);
        }
        let sides = neighbors.len();
        let mut state = State::new(nat, neighbors, guard, log);
        apply_news(&mut state, watch.take());
        let (express, fast_path) = setup::fast_path(devices, &ports, settings, clock.now())?;
        state.express = express;
        let shared = Shared::new(state).map_err(|error| RunError::system("make an eventfd")(error.into()))?;
        let shared = Arc::new(shared);

        let forwarder = |ports, tallies: &[Arc<Tally>]| {
            Forwarder::new(shared.clone(), ports, tallies).map_err(RunError::system("get memory for frames"))
        };
        let mut ports = ports.into_iter();
        let first = forwarder(ports.next().unwrap_or_default(), &[])?;
        let (mut others, mut tallies) = (Vec::new(), Vec::new());
        for ports in ports {
            let counted: Vec<_> = (0..sides).map(|_| Arc::new(Tally::new())).collect();
            others.push(Worker::new(forwarder(ports, &counted)?, clock, &[shared.end().as_raw_fd()], &[]));
            tallies.push(counted);
        }
        let mut ends = vec![stop.as_raw_fd()];
        let mut errands = vec![inbox.fd().as_raw_fd(), watch.fd().as_raw_fd()];
        if !others.is_empty() {
            ends.push(shared.end().as_raw_fd());
            errands.push(shared.bell().as_raw_fd());
        }
        Ok(Gateway {
            worker: Worker::new(first, clock, &ends, &errands),
            others,
            tallies,
            shared,
            inbox,
            watch,
            _stop: stop,
            host_shares,
            next_errands: clock.now(),
            fast_path,
            events: Vec::with_capacity(EVENTS),
        })
    }

    /// Whether packets of quick flows are moved by programs in the kernel: `on`, or `off` and why.
    pub fn fast_path(&self) -> &str {
        &self.fast_path
    }

    /// Runs until it is stopped, or until the outside interface or the last inside device is gone.
    ///
    /// # Errors
    /// What keeps it from going on.
    ///
    /// # Panics
    /// When a worker has, with its panic.
    pub fn run(mut self) -> Result<(), RunError> {
        let end = End(self.shared.clone());
        let others = std::mem::take(&mut self.others);
        let (threads, started) = start(others, &self.shared);
        let mut ended = started.and_then(|()| self.turns());
        drop(end);
        let mut panicked = None;
        for thread in threads {
            match thread.join() {
                Ok(other) => ended = ended.and(other),
                Err(panic) => panicked = Some(panic),
            }
        }
        panicked.map_or(ended, |panic| resume_unwind(panic))
    }

    /// The first worker's turns.
    fn turns(&mut self) -> Result<(), RunError> {
        loop {
            let now = self.worker.now();

            // 1. From outside. 2. From every inside port.
            let mut work = self.worker.pump(now)?;

            // 3. Timers, and what they make the engine and ARP send.
            if self.shared.due() <= now {
                self.worker.forwarder.handle_timeout(now)?;
                work += 1;
            }

            // 4. Errands.
            let mut woken = None;
            if now >= self.next_errands {
                self.next_errands = now + ERRANDS;
                work += self.errands(now)?;
                woken = Some(self.worker.waiter.look().map_err(RunError::system("poll"))?);
            }

            // 5. Wait, or look again.
            if !self.worker.goes_on(work, now)? {
                // When there is something to do even if no packet comes.
                let deadline = self.shared.fall_asleep(self.worker.next_check());
                woken = Some(self.worker.wait(now, deadline)?);
                self.shared.wake_up();
            }
            match woken {
                Some(Woken::Stop) => return Ok(()),
                Some(Woken::Errand) => self.next_errands = Time::ZERO,
                Some(Woken::Port) | None => {}
            }
            self.worker.check_failed()?;
        }
    }

    /// What does not belong to a packet. Returns how much there was to do.
    fn errands(&mut self, now: Time) -> Result<usize, RunError> {
        let mut done = 0;
        if !self.tallies.is_empty() {
            self.shared.quieten();
        }
        for _ in 0..JOBS {
            let Some(job) = self.inbox.next() else { break };
            self.answer(job, now)?;
            done += 1;
        }
        if self.watch.has_news() {
            let news = self.watch.take();
            apply_news(&mut self.shared.lock(), news);
        }
        done += self.pass_events_on();
        self.worker.forwarder.work(now, |state| {
            state.tend(now);
            Ok(())
        })?;
        if now >= self.worker.next_check() {
            self.worker.check_all(now)?;
            let mut state = self.shared.lock();
            let out_of_reach = state.check_devices(now);
            let refreshed = state.claims.refresh();
            drop(state);
            if let Some(stats) = out_of_reach.and_then(|side| self.worker.forwarder.stats().nth(side)) {
                eprintln!(
                    "natbox: the kernel no longer reaches {}: natbox moves all of its packets itself",
                    stats.name
                );
            }
            if let Err(error) = refreshed {
                eprintln!("natbox: the guard keeps to the host's former addresses: {error}");
            }
        }
        // The queue may hold more than one turn does.
        Ok(if done > 0 { 1 } else { 0 })
    }

    fn pass_events_on(&mut self) -> usize {
        let mut state = self.shared.lock();
        self.events.extend(std::iter::from_fn(|| state.nat.poll_event()).take(EVENTS));
        drop(state);
        let count = self.events.len();
        self.events.drain(..).for_each(|event| self.inbox.publish(event));
        count
    }

    fn answer(&mut self, job: Job, now: Time) -> Result<(), RunError> {
        let datapath = self.datapath(now);
        let host_shares = &self.host_shares;
        self.worker.forwarder.work(now, |state| {
            let Some(external) = job.answer(&mut state.nat, &datapath, now) else { return Ok(()) };
            let owned: Vec<_> = external.into_iter().filter(|addr| !host_shares.contains(addr)).collect();
            state.claims.set_owned(&owned).map_err(RunError::Guard)?;
            state.set_owned(owned.into_iter().map(|addr| (addr, 32)).collect());
            Ok(())
        })
    }

    /// What the ports have counted, over all workers, and what did not pass them.
    fn datapath(&self, now: Time) -> control::Datapath {
        let mut state = self.shared.lock();
        state.catch_up_all(now);
        let express = state.express.as_ref();
        let first = self.worker.forwarder.stats().enumerate();
        let ports = first.map(|(side, first)| self.sum(side, first, express)).collect();
        control::Datapath { ports, fast_path: express.map(|express| express.totals().into()) }
    }

    fn sum(&self, side: usize, first: &PortStats, express: Option<&Express>) -> control::PortStats {
        let moved = |stats: &PortStats| control::WorkerStats {
            received_packets: stats.received_packets,
            sent_packets: stats.sent_packets,
        };
        let (mut sum, mut workers) = (first.clone(), vec![moved(first)]);
        for tallies in &self.tallies {
            let stats = tallies[side].stats();
            workers.push(moved(&stats));
            sum.add(&stats);
        }
        if workers.len() == 1 {
            workers.clear();
        }
        if let Some(express) = express {
            express.add_to(&mut sum, side);
        }
        control::PortStats { counters: sum.named().collect(), name: sum.name, workers }
    }
}

/// Lets every worker end as soon as one has, in whatever way.
struct End<C: Claims>(Arc<Shared<C>>);

impl<C: Claims> Drop for End<C> {
    fn drop(&mut self) {
        self.0.finish();
    }
}

type Threads = Vec<JoinHandle<Result<(), RunError>>>;

/// Starts the threads of these workers; those that were started before one could not be are there as well.
fn start<C: Claims + Send + 'static>(
    workers: Vec<Worker<C>>,
    shared: &Arc<Shared<C>>,
) -> (Threads, Result<(), RunError>) {
    let mut threads = Vec::with_capacity(workers.len());
    for (worker, number) in workers.into_iter().zip(1..) {
        let end = End(shared.clone());
        let thread = thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            let _end = end;
            worker.run()
        });
        match thread {
            Ok(thread) => threads.push(thread),
            Err(error) => return (threads, Err(RunError::system("start a thread")(error))),
        }
    }
    (threads, Ok(()))
}

fn apply_news<C: Claims>(state: &mut State<C>, news: News) {
    for (side, routes) in news.routes {
        state.set_routes(side, routes);
    }
    if let Some((tcp, udp)) = news.host_ports {
        state.nat.set_reserved(Protocol::Tcp, &tcp);
        state.nat.set_reserved(Protocol::Udp, &udp);
    }
}

/// The engine's clock: time since the gateway was made.
#[derive(Clone, Copy, Debug)]
struct Clock(Instant);

impl Clock {
    fn start() -> Clock {
        Clock(Instant::now())
    }

    fn now(&self) -> Time {
        Time::ZERO + self.0.elapsed()
    }
}
