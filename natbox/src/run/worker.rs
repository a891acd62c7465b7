//! A thread that moves packets: the part of the loop that every one of them runs.
//!
//! Each has its own queue of every TUN and its own sockets on every Ethernet interface. On Ethernet the kernel gives all
//! packets of a flow to the same worker, chosen by a hash; on a TUN as well, until answers come by another one, which has the
//! flow from then on. So the order within a flow is kept but for that moment. It is not kept between flows, nor between a
//! datagram in fragments and others of its flow: fragments have no ports to choose a worker by.

use std::os::fd::RawFd;

use natbox_core::Time;

use super::{
    BUDGET, CHECK, Clock, RunError,
    forward::Forwarder,
    spin::Spinner,
    state::{Claims, Loss},
    wait::{Waiter, Woken},
};
use crate::datapath::PortError;

pub(super) struct Worker<C: Claims> {
    pub(super) forwarder: Forwarder<C>,
    pub(super) waiter: Waiter,
    spinner: Spinner,
    clock: Clock,
    next_check: Time,
}

impl<C: Claims> Worker<C> {
    /// `ends` are the descriptors that become readable when it is to end, `errands` those that tell of other work. They
    /// stay open as long as the worker lives.
    pub(super) fn new(forwarder: Forwarder<C>, clock: Clock, ends: &[RawFd], errands: &[RawFd]) -> Worker<C> {
        let waiter = Waiter::new(forwarder.fds(), ends, errands);
        Worker { forwarder, waiter, spinner: Spinner::default(), clock, next_check: clock.now() + CHECK }
    }

    pub(super) fn now(&self) -> Time {
        self.clock.now()
    }

    /// When ports are asked next how they are.
    pub(super) fn next_check(&self) -> Time {
        self.next_check
    }

    /// Moves packets and nothing else, until all workers end.
    pub(super) fn run(mut self) -> Result<(), RunError> {
        while !self.forwarder.shared().is_ending() {
            let now = self.now();
            let work = self.pump(now)?;
            if now >= self.next_check {
                self.check_all(now)?;
            }
            if !self.goes_on(work, now)? && self.wait(now, self.next_check)? == Woken::Stop {
                return Ok(());
            }
            self.check_failed()?;
        }
        Ok(())
    }

    /// A batch from every port that may have one, outside first; returns how many frames there were.
    pub(super) fn pump(&mut self, now: Time) -> Result<usize, RunError> {
        let mut work = 0;
        for side in 0..self.forwarder.sides() {
            if self.waiter.is_ready(side) {
                work += self.receive(side, now)?;
            }
        }
        Ok(work)
    }

    fn receive(&mut self, side: usize, now: Time) -> Result<usize, RunError> {
        let received = match self.forwarder.pump(side, BUDGET, now) {
            Err(RunError::Port(error @ PortError::Gone { .. })) => {
                self.lost(side, error)?;
                0
            }
            other => other?,
        };
        self.waiter.received(side, received);
        Ok(received)
    }

    /// Whether to look for packets again at once: there were some, or there will be some soon.
    pub(super) fn goes_on(&mut self, work: usize, now: Time) -> Result<bool, RunError> {
        if work > 0 {
            self.spinner.worked();
        } else if !self.spinner.again(now) {
            return Ok(false);
        }
        self.waiter.worked().map_err(RunError::system("poll"))?;
        Ok(true)
    }

    /// Waits for input, an errand, the end, or `deadline`.
    pub(super) fn wait(&mut self, now: Time, deadline: Time) -> Result<Woken, RunError> {
        self.waiter.wait(now, deadline).map_err(RunError::system("poll"))
    }

    /// Looks after ports on which poll saw an error.
    pub(super) fn check_failed(&mut self) -> Result<(), RunError> {
        while let Some(side) = self.waiter.take_failed() {
            self.check(side)?;
        }
        Ok(())
    }

    /// Asks every port how it is.
    pub(super) fn check_all(&mut self, now: Time) -> Result<(), RunError> {
        self.next_check = now + CHECK;
        (0..self.forwarder.sides()).try_for_each(|side| self.check(side))
    }

    fn check(&mut self, side: usize) -> Result<(), RunError> {
        match self.forwarder.check(side) {
            Err(error @ PortError::Gone { .. }) => self.lost(side, error),
            other => Ok(other?),
        }
    }

    /// A device is gone: the others go on, if there is still something to do.
    fn lost(&mut self, side: usize, error: PortError) -> Result<(), RunError> {
        self.waiter.forget(side);
        self.forwarder.forget(side);
        let loss = self.forwarder.shared().lock().lose(side, self.now());
        match loss {
            Loss::Others => eprintln!("natbox: {error}; its hosts are cut off, the others are served"),
            Loss::Known => {}
            Loss::All => return Err(error.into()),
        }
        Ok(())
    }
}
