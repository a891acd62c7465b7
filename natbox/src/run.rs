//! The loop: packets in, the engine's verdict, packets out; one thread for all of it.
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

mod forward;
mod setup;
mod spin;
#[cfg(test)]
mod tests;
mod wait;
mod watch;

use std::{
    io,
    net::Ipv4Addr,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use natbox_core::{ConfigError, MappingError, Protocol, Time};

use crate::{
    control::{self, Inbox, Job},
    datapath::PortError,
    guard::Guard,
    host::{HostError, Wiring},
    output::PacketLog,
    settings::{Forward, Settings},
};
use forward::{Forwarder, OUTSIDE};
use spin::Spinner;
use wait::{Waiter, Woken};
use watch::Watch;

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

/// Why natbox cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// An interface cannot be used, or is gone.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The engine refuses its configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A static forward cannot be made.
    #[error("cannot forward {forward}: {source}")]
    Forward {
        /// The forward.
        forward: Forward,
        /// Why not.
        source: MappingError,
    },
    /// A static forward to a network that no inside port has.
    #[error("cannot forward {0}: there is no such inside port")]
    NoInside(Forward),
    /// The machine's routes cannot be read.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The host's own ports cannot be read, so no port of a shared address is safe to use.
    #[error("cannot list the ports that this host's sockets hold: {0}")]
    HostPorts(io::Error),
    /// The guard no longer does its work.
    #[error("the guard no longer takes ports: {0}; the host would answer for natbox")]
    Guard(io::Error),
    /// The system is out of something.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl RunError {
    fn system(action: &'static str) -> impl FnOnce(io::Error) -> RunError {
        move |source| RunError::System { action, source }
    }
}

/// A NAT at work between its ports.
#[derive(Debug)]
pub struct Gateway {
    forwarder: Forwarder,
    guard: Guard,
    inbox: Inbox,
    watch: Watch,
    waiter: Waiter,
    spinner: Spinner,
    clock: Clock,
    /// External addresses that are the host's too.
    shared: Vec<Ipv4Addr>,
    next_errands: Time,
    next_check: Time,
}

impl Gateway {
    /// Opens the ports of `wiring` and makes the NAT that `settings` describe. `stop` is an eventfd: the gateway ends
    /// when it becomes readable.
    ///
    /// # Errors
    /// When an interface, the configuration or a forward cannot be used.
    pub fn new(
        wiring: Wiring,
        settings: &Settings,
        guard: Guard,
        inbox: Inbox,
        log: Option<PacketLog>,
        stop: OwnedFd,
    ) -> Result<Gateway, RunError> {
        let clock = Clock::start();
        let shared = if wiring.shared { wiring.external.clone() } else { Vec::new() };
        let mut nat = setup::nat(&wiring, settings)?;
        setup::forwards(&mut nat, &wiring, settings, clock.now())?;
        let watch = Watch::start(setup::watched(&wiring), shared.clone())?;
        let mut forwarder = Forwarder::new(nat, setup::sides(wiring, settings)?, log)
            .map_err(RunError::system("get memory for frames"))?;
        let waiter = Waiter::new(&forwarder, &inbox, &watch, stop);
        apply_news(&mut forwarder, &watch);
        let now = clock.now();
        Ok(Gateway {
            forwarder,
            guard,
            inbox,
            watch,
            waiter,
            spinner: Spinner::default(),
            clock,
            shared,
            next_errands: now,
            next_check: now + CHECK,
        })
    }

    /// Runs until it is stopped, or until the outside interface or the last inside device is gone.
    ///
    /// # Errors
    /// What keeps it from going on.
    pub fn run(mut self) -> Result<(), RunError> {
        loop {
            let now = self.clock.now();

            // 1. From outside.
            let mut work = 0;
            if self.waiter.is_ready(OUTSIDE) {
                work += self.receive(OUTSIDE, now)?;
            }

            // 2. From every inside port.
            for side in OUTSIDE + 1..self.forwarder.sides() {
                if self.waiter.is_ready(side) {
                    work += self.receive(side, now)?;
                }
            }

            // 3. Timers, and what they make the engine and ARP send.
            if self.forwarder.poll_timeout().is_some_and(|due| due <= now) {
                self.forwarder.handle_timeout(now, &mut self.guard)?;
                work += 1;
            }

            // 4. Errands.
            let mut woken = None;
            if now >= self.next_errands {
                self.next_errands = now + ERRANDS;
                work += self.errands(now)?;
                woken = Some(self.waiter.look());
            }

            // 5. Wait, or look again.
            if work > 0 {
                self.spinner.worked();
                self.waiter.worked().map_err(RunError::system("poll"))?;
            } else if self.spinner.again(now) {
                self.waiter.worked().map_err(RunError::system("poll"))?;
            } else {
                woken = Some(self.waiter.wait(now, self.deadline()));
            }
            match woken.transpose().map_err(RunError::system("poll"))? {
                Some(Woken::Stop) => return Ok(()),
                Some(Woken::Errand) => self.next_errands = Time::ZERO,
                Some(Woken::Port) | None => {}
            }
            self.check_failed()?;
        }
    }

    fn receive(&mut self, side: usize, now: Time) -> Result<usize, RunError> {
        let received = match self.forwarder.pump(side, BUDGET, now, &mut self.guard) {
            Err(RunError::Port(error @ PortError::Gone { .. })) => self.lost(side, error)?,
            other => other?,
        };
        self.waiter.received(side, received);
        Ok(received)
    }

    /// Looks after ports on which poll saw an error.
    fn check_failed(&mut self) -> Result<(), RunError> {
        while let Some(side) = self.waiter.take_failed() {
            self.check(side)?;
        }
        Ok(())
    }

    fn check(&mut self, side: usize) -> Result<(), RunError> {
        match self.forwarder.check(side) {
            Err(error @ PortError::Gone { .. }) => self.lost(side, error).map(drop),
            other => Ok(other?),
        }
    }

    /// A device is gone: the others go on, if there is still something to do.
    fn lost(&mut self, side: usize, error: PortError) -> Result<usize, RunError> {
        self.waiter.forget(side);
        if self.forwarder.lose(side) {
            eprintln!("natbox: {error}; its hosts are cut off, the others are served");
            return Ok(0);
        }
        Err(error.into())
    }

    /// What does not belong to a packet. Returns how much there was to do.
    fn errands(&mut self, now: Time) -> Result<usize, RunError> {
        let mut done = 0;
        for _ in 0..JOBS {
            let Some(job) = self.inbox.next() else { break };
            self.answer(job, now)?;
            done += 1;
        }
        if self.watch.has_news() {
            apply_news(&mut self.forwarder, &self.watch);
        }
        for _ in 0..EVENTS {
            let Some(event) = self.forwarder.nat.poll_event() else { break };
            self.inbox.publish(event);
            done += 1;
        }
        if now >= self.next_check {
            self.next_check = now + CHECK;
            for side in OUTSIDE..self.forwarder.sides() {
                self.check(side)?;
            }
            if let Err(error) = self.guard.refresh() {
                eprintln!("natbox: the guard keeps to the host's former addresses: {error}");
            }
        }
        // The queue may hold more than one turn does.
        Ok(if done > 0 { 1 } else { 0 })
    }

    fn answer(&mut self, job: Job, now: Time) -> Result<(), RunError> {
        let stats: Vec<_> = self.forwarder.stats().map(control_stats).collect();
        let external = job.answer(&mut self.forwarder.nat, &stats, now);
        if let Some(external) = external {
            let owned: Vec<_> = external.into_iter().filter(|addr| !self.shared.contains(addr)).collect();
            self.guard.set_owned(&owned).map_err(RunError::Guard)?;
            self.forwarder.set_owned(owned.into_iter().map(|addr| (addr, 32)).collect());
        }
        self.forwarder.settle(now, &mut self.guard)
    }

    /// When the loop has something to do even if no packet comes.
    fn deadline(&self) -> Time {
        self.forwarder.poll_timeout().unwrap_or(Time::NEVER).min(self.next_check)
    }
}

fn control_stats(stats: &crate::datapath::PortStats) -> control::PortStats {
    control::PortStats { name: stats.name.clone(), counters: stats.named().collect() }
}

fn apply_news(forwarder: &mut Forwarder, watch: &Watch) {
    let news = watch.take();
    for (side, routes) in news.routes {
        forwarder.set_routes(side, routes);
    }
    if let Some((tcp, udp)) = news.host_ports {
        forwarder.nat.set_reserved(Protocol::Tcp, &tcp);
        forwarder.nat.set_reserved(Protocol::Udp, &udp);
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
