//! Changing how it behaves while it runs: links and paths. What concerns NATs is in `rebind.rs`.

use std::net::Ipv4Addr;

use natbox_core::Time;

use crate::{Conditions, ControlError, Direction, LinkConditions, LinkCounters, LinkId, Net, link::Pipe};

impl Net {
    /// Gives a link other conditions in both directions. What waits in its queue leaves at the new rate; what is on the
    /// wire arrives as it would have.
    pub fn set_link(
        &mut self,
        link: LinkId,
        conditions: impl Into<LinkConditions>,
        now: Time,
    ) -> Result<(), ControlError> {
        let LinkConditions { up, down } = conditions.into();
        up.check()?;
        down.check()?;
        self.set_conditions(link, Direction::Up, up, now)?;
        self.set_conditions(link, Direction::Down, down, now)
    }

    /// Gives one direction of a link other conditions.
    pub fn set_conditions(
        &mut self,
        link: LinkId,
        direction: Direction,
        conditions: Conditions,
        now: Time,
    ) -> Result<(), ControlError> {
        conditions.check()?;
        self.advance(now);
        let now = self.now;
        self.pipe_mut(link, direction)?.set_conditions(conditions, now);
        Ok(())
    }

    /// Cuts a link: it swallows everything and tells nobody. What is on the wire still arrives.
    pub fn cut(&mut self, link: LinkId, now: Time) -> Result<(), ControlError> {
        Direction::BOTH.into_iter().try_for_each(|direction| self.set_cut(link, direction, true, now))
    }

    /// Mends a link that was cut.
    pub fn restore(&mut self, link: LinkId, now: Time) -> Result<(), ControlError> {
        Direction::BOTH.into_iter().try_for_each(|direction| self.set_cut(link, direction, false, now))
    }

    /// Cuts or mends one direction of a link.
    pub fn set_cut(
        &mut self,
        link: LinkId,
        direction: Direction,
        is_cut: bool,
        now: Time,
    ) -> Result<(), ControlError> {
        self.advance(now);
        self.pipe_mut(link, direction)?.is_cut = is_cut;
        Ok(())
    }

    /// Lets the internet swallow everything from one public address to another, or carry it again: one path dies while
    /// both ends keep all their others. For a host behind a NAT this is the NAT's external address.
    pub fn set_blocked(&mut self, from: Ipv4Addr, to: Ipv4Addr, is_blocked: bool, now: Time) {
        self.advance(now);
        self.set_path(from, to, if is_blocked { 1.0 } else { 0.0 });
    }

    /// Lets the internet lose packets from one public address to another with this probability, 0 to 1, each on its own:
    /// one path is bad in one direction. It takes the place of what was set for the two before, a block among it.
    pub fn set_path_loss(
        &mut self,
        from: Ipv4Addr,
        to: Ipv4Addr,
        loss: f64,
        now: Time,
    ) -> Result<(), ControlError> {
        Conditions { loss, ..Conditions::PERFECT }.check()?;
        self.advance(now);
        self.set_path(from, to, loss);
        Ok(())
    }

    fn set_path(&mut self, from: Ipv4Addr, to: Ipv4Addr, loss: f64) {
        if loss > 0.0 {
            self.blocks.insert(block_word(from, to), loss);
        } else {
            self.blocks.remove(&block_word(from, to));
        }
    }

    /// The conditions of one direction of a link.
    pub fn conditions(&self, link: LinkId, direction: Direction) -> Option<Conditions> {
        self.pipe(link, direction).map(|pipe| pipe.conditions)
    }

    /// What one direction of a link has done so far.
    pub fn link_counters(&self, link: LinkId, direction: Direction) -> Option<LinkCounters> {
        self.pipe(link, direction).map(|pipe| pipe.counters)
    }

    /// Bytes that wait for the rate of one direction of a link.
    pub fn backlog(&self, link: LinkId, direction: Direction) -> Option<u64> {
        self.pipe(link, direction).map(|pipe| pipe.backlog(self.now))
    }

    fn pipe(&self, link: LinkId, direction: Direction) -> Option<&Pipe> {
        self.links.get(link.0).map(|record| record.pipe(direction))
    }

    fn pipe_mut(&mut self, link: LinkId, direction: Direction) -> Result<&mut Pipe, ControlError> {
        let record = self.links.get_mut(link.0).ok_or(ControlError::NoSuchLink(link))?;
        Ok(record.pipe_mut(direction))
    }
}

pub(crate) fn block_word(from: Ipv4Addr, to: Ipv4Addr) -> u64 {
    u64::from(from.to_bits()) << 32 | u64::from(to.to_bits())
}
