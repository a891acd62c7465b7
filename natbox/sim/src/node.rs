//! What runs on a host.

use natbox_core::Time;

use crate::{Input, SendError, Transmit};

/// A protocol under test: a state machine that takes packets and the time, and says what to send and when to call it
/// again. It does no I/O of its own.
///
/// [`Sim`](crate::Sim) drives it in this order: one of [`handle_input`](Node::handle_input),
/// [`handle_timeout`](Node::handle_timeout) or a call of the test's own; then [`poll_transmit`](Node::poll_transmit)
/// until `None`; then [`poll_timeout`](Node::poll_timeout).
pub trait Node {
    /// Something reached the host.
    fn handle_input(&mut self, input: Input<'_>, now: Time);

    /// The time of [`poll_timeout`](Node::poll_timeout) has come, or has long passed while the host slept.
    fn handle_timeout(&mut self, now: Time);

    /// What to send next; `None` when there is nothing.
    fn poll_transmit(&mut self, now: Time) -> Option<Transmit>;

    /// When [`handle_timeout`](Node::handle_timeout) wants to be called; `None` for never.
    fn poll_timeout(&self) -> Option<Time>;

    /// The host's socket refused what the node wanted to send: the address is not the host's (any more), the port not
    /// bound, the datagram too big for the link. By default it is forgotten, like a lost packet.
    fn handle_refused(&mut self, transmit: Transmit, why: SendError, now: Time) {
        let _ = (transmit, why, now);
    }
}

impl<N: Node + ?Sized> Node for Box<N> {
    fn handle_input(&mut self, input: Input<'_>, now: Time) {
        (**self).handle_input(input, now);
    }

    fn handle_timeout(&mut self, now: Time) {
        (**self).handle_timeout(now);
    }

    fn poll_transmit(&mut self, now: Time) -> Option<Transmit> {
        (**self).poll_transmit(now)
    }

    fn poll_timeout(&self) -> Option<Time> {
        (**self).poll_timeout()
    }

    fn handle_refused(&mut self, transmit: Transmit, why: SendError, now: Time) {
        (**self).handle_refused(transmit, why, now);
    }
}
