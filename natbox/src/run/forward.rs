//! From port to engine to port: a worker's ports, and a batch's way between them.
//!
//! A batch is received without the lock, translated under it, and sent without it. Packets of one flow that come in by
//! one worker leave in their order.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
};

use natbox_core::{Time, packet::Offload};

use super::{
    RunError,
    shared::Shared,
    state::{Claims, Fate, State},
    tally::Tally,
};
use crate::datapath::{Batch, Outgoing, Port, PortError, PortStats, coalesce::coalesce};

/// One of a worker's ports.
struct Lane {
    port: Box<dyn Port + Send>,
    /// Frames of the batch in hand that leave by this port.
    outgoing: Vec<Outgoing>,
    /// Frames of our own making that do.
    own: Vec<Outgoing>,
    is_lost: bool,
    /// Where others may read what the port has counted.
    tally: Option<Arc<Tally>>,
}

impl Lane {
    fn publish(&self) {
        if let Some(tally) = &self.tally {
            tally.set(self.port.stats());
        }
    }
}

/// One worker's ports, outside first, then inside in the order of the engine's ids.
struct Lanes {
    lanes: Vec<Lane>,
    /// Frames of our own making: ARP, ICMP errors, packets that waited for ARP.
    own: Batch,
}

impl Lanes {
    /// Puts down where a frame of the batch in hand goes.
    fn put(&mut self, from: usize, frame: usize, fate: Fate) {
        match fate {
            Fate::To(side, to) => self.lanes[side].outgoing.push(Outgoing { frame, to }),
            Fate::Ignored => self.lanes[from].port.stats_mut().ignored_local += 1,
            Fate::Gone => {}
        }
    }

    /// Fetches what the engine and ARP have made; true when there may be more than there is room for.
    fn gather<C: Claims>(&mut self, state: &mut State<C>, now: Time) -> bool {
        while !self.own.is_full() {
            let Some((side, made)) = state.poll_engine(now) else { break };
            self.put_own(side, &made.packet, made.offload, (made.protocol, made.to));
        }
        for side in 0..self.lanes.len() {
            self.lanes[side].port.stats_mut().dropped_unresolved += state.take_unresolved(side);
            while !self.own.is_full() {
                let Some(made) = state.poll_link(side) else { break };
                self.put_own(side, &made.packet, made.offload, (made.protocol, made.to));
            }
        }
        self.own.is_full()
    }

    fn put_own(&mut self, side: usize, packet: &[u8], offload: Offload, (protocol, to): (u16, [u8; 6])) {
        // One that is longer than any packet is not sent.
        if self.own.push(packet, offload, protocol) {
            self.lanes[side].own.push(Outgoing { frame: self.own.len() - 1, to });
        }
    }

    fn send(&mut self, batch: &mut Batch) {
        for lane in &mut self.lanes {
            if !lane.outgoing.is_empty() {
                send(&mut *lane.port, batch, &mut lane.outgoing);
                lane.publish();
            }
        }
    }

    fn send_own(&mut self) {
        if self.own.is_empty() {
            return;
        }
        for lane in self.lanes.iter_mut().filter(|lane| !lane.own.is_empty()) {
            send(&mut *lane.port, &mut self.own, &mut lane.own);
            lane.publish();
        }
        self.own.clear();
    }
}

fn send(port: &mut dyn Port, batch: &mut Batch, list: &mut Vec<Outgoing>) {
    if list.len() > 1 {
        let takes = port.takes();
        port.stats_mut().coalesced += coalesce(batch, list, takes);
    }
    port.send(batch, list);
    list.clear();
}

/// The shared engine between one worker's ports.
pub(super) struct Forwarder<C: Claims> {
    shared: Arc<Shared<C>>,
    lanes: Lanes,
}

impl<C: Claims> Forwarder<C> {
    /// `ports` are the outside one and then the engine's inside ports in the order of their ids. What they count can be
    /// read in `tallies`, as many as there are ports, or nowhere else when there are none.
    pub(super) fn new(
        shared: Arc<Shared<C>>,
        ports: Vec<Box<dyn Port + Send>>,
        tallies: &[Arc<Tally>],
    ) -> io::Result<Forwarder<C>> {
        let lane = |(side, port)| Lane {
            port,
            outgoing: Vec::new(),
            own: Vec::new(),
            is_lost: false,
            tally: tallies.get(side).cloned(),
        };
        let lanes = ports.into_iter().enumerate().map(lane).collect();
        Ok(Forwarder { shared, lanes: Lanes { lanes, own: Batch::new()? } })
    }

    pub(super) fn shared(&self) -> &Arc<Shared<C>> {
        &self.shared
    }

    pub(super) fn sides(&self) -> usize {
        self.lanes.lanes.len()
    }

    /// What to wait on for input; -1 where the port must be asked.
    pub(super) fn fds(&self) -> impl Iterator<Item = RawFd> {
        self.lanes.lanes.iter().map(|lane| lane.port.fd().map_or(-1, |fd| fd.as_raw_fd()))
    }

    pub(super) fn stats(&self) -> impl Iterator<Item = &PortStats> {
        self.lanes.lanes.iter().map(|lane| lane.port.stats())
    }

    pub(super) fn check(&mut self, side: usize) -> Result<(), PortError> {
        let lane = &mut self.lanes.lanes[side];
        if lane.is_lost {
            return Ok(());
        }
        let checked = lane.port.check();
        lane.publish();
        checked
    }

    /// Receives nothing more from a device that is gone.
    pub(super) fn forget(&mut self, side: usize) {
        self.lanes.lanes[side].is_lost = true;
    }

    /// Moves up to `budget` frames from one port to where they belong; returns how many there were.
    pub(super) fn pump(&mut self, from: usize, budget: usize, now: Time) -> Result<usize, RunError> {
        let Forwarder { shared, lanes } = self;
        let lane = &mut lanes.lanes[from];
        if lane.is_lost {
            return Ok(0);
        }
        let mut batch = lane.port.receive(budget)?;
        let count = batch.len();
        if count == 0 {
            lane.port.release(batch);
            return Ok(0);
        }
        let settled = {
            let mut state = shared.lock();
            state.begin(now);
            state.prefetch(from, &batch);
            for index in 0..count {
                let fate = state.take(from, &mut batch, index, now);
                lanes.put(from, index, fate);
            }
            state.settle(now).map(|()| lanes.gather(&mut state, now))
        };
        if settled.is_ok() {
            lanes.send(&mut batch);
        }
        let lane = &mut lanes.lanes[from];
        lane.port.release(batch);
        lane.publish();
        self.send_own(settled?, now);
        Ok(count)
    }

    /// Does what is due, and sends what comes of it.
    pub(super) fn handle_timeout(&mut self, now: Time) -> Result<(), RunError> {
        self.work(now, |state| {
            state.handle_timeout(now);
            Ok(())
        })
    }

    /// Lets something other than a packet change the state, and sends what comes of it.
    pub(super) fn work(
        &mut self,
        now: Time,
        change: impl FnOnce(&mut State<C>) -> Result<(), RunError>,
    ) -> Result<(), RunError> {
        let more = {
            let mut state = self.shared.lock();
            state.begin(now);
            change(&mut state)?;
            state.settle(now)?;
            self.lanes.gather(&mut state, now)
        };
        self.send_own(more, now);
        Ok(())
    }

    /// Sends what has been gathered, and as long as there is more, that too.
    fn send_own(&mut self, mut more: bool, now: Time) {
        self.lanes.send_own();
        while more {
            more = self.lanes.gather(&mut self.shared.lock(), now);
            self.lanes.send_own();
        }
    }
}
