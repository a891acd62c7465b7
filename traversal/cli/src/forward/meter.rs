//! What goes through, counted.

use std::{cell::Cell, rc::Rc};

use serde::Serialize;

/// TCP connections at a time, from and to one peer.
pub(crate) const MAX_CONNECTIONS: u32 = 256;
/// UDP flows at a time, from and to one peer.
pub(crate) const MAX_FLOWS: u32 = 1024;

/// Since the start of the program, over all peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Figures {
    /// TCP connections now.
    pub(crate) connections: u32,
    /// UDP flows now.
    pub(crate) flows: u32,
    /// Ports of this machine that peers listen at now.
    pub(crate) listeners: u32,
    /// All of these, so far.
    pub(crate) opened: u64,
    /// Bytes to peers, without any headers.
    pub(crate) sent: u64,
    /// Bytes from peers.
    pub(crate) received: u64,
    /// Connections and flows that came to nothing.
    pub(crate) refused: u64,
    pub(crate) dropped: Drops,
}

/// UDP packets that went no further, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Drops {
    /// There was no connection to the peer.
    pub(crate) not_connected: u64,
    /// One flow more than there may be.
    pub(crate) too_many_flows: u64,
    /// More was waiting to be sent than may, or the flow was just refused.
    pub(crate) queue_full: u64,
    /// The peer sent it for a flow that is not there: it has just ended, as a rule.
    pub(crate) unknown_flow: u64,
    /// It has more than 65,507 bytes, as IPv6 alone can carry.
    pub(crate) too_long: u64,
    /// The socket did not take it.
    pub(crate) socket: u64,
}

impl Drops {
    pub(crate) fn all(&self) -> u64 {
        self.not_connected
            + self.too_many_flows
            + self.queue_full
            + self.unknown_flow
            + self.too_long
            + self.socket
    }
}

/// The figures of one program.
#[derive(Debug, Default)]
pub(crate) struct Meter(Cell<Figures>);

impl Meter {
    pub(crate) fn figures(&self) -> Figures {
        self.0.get()
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut Figures)) {
        let mut figures = self.0.get();
        change(&mut figures);
        self.0.set(figures);
    }
}

/// What a peer has open of one kind.
#[derive(Debug)]
pub(crate) struct Places {
    taken: Cell<u32>,
    most: u32,
}

impl Places {
    pub(crate) const fn new(most: u32) -> Places {
        Places { taken: Cell::new(0), most }
    }

    /// A place for as long as the guard lives; `now` is where the figures count it.
    pub(crate) fn take(
        self: &Rc<Self>,
        meter: &Rc<Meter>,
        now: fn(&mut Figures) -> &mut u32,
    ) -> Option<Place> {
        if self.taken.get() >= self.most {
            return None;
        }
        self.taken.set(self.taken.get() + 1);
        meter.count(|figures| {
            figures.opened += 1;
            *now(figures) += 1;
        });
        Some(Place { places: Rc::clone(self), meter: Rc::clone(meter), now })
    }
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Place {
    places: Rc<Places>,
    meter: Rc<Meter>,
    now: fn(&mut Figures) -> &mut u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken.set(self.places.taken.get() - 1);
        self.meter.count(|figures| *(self.now)(figures) -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_and_given_back() {
        let (places, meter) = (Rc::new(Places::new(2)), Rc::new(Meter::default()));
        let take = || places.take(&meter, |figures| &mut figures.flows);
        let (first, second) = (take(), take());
        assert!(first.is_some() && second.is_some() && take().is_none());
        assert_eq!((meter.figures().flows, meter.figures().opened), (2, 2));
        drop(first);
        assert_eq!(meter.figures().flows, 1);
        assert!(take().is_some());
    }
}
