//! TCP connection tracking (RFC 5382, RFC 7857 §2 with the state machine of RFC 6146 §3.5.2), and inbound SYNs that
//! nobody asked for (RFC 5382 REQ-4).

use std::{collections::VecDeque, time::Duration};

use crate::{Behavior, Time, behavior::TcpReset, packed::Outer, packet::tcp::Flags};

/// How long an unsolicited SYN stays unanswered (RFC 5382 REQ-4).
const SILENCE: Duration = Duration::from_secs(6);
/// Unsolicited SYNs that are remembered at once; a scan must not cost memory, and what is forgotten is just never
/// answered.
const MOST_PENDING: usize = 1024;
/// Bytes of an offending packet that are kept for the ICMP error: the longest IPv4 header and 8 bytes.
const QUOTE: usize = 68;

/// What a session has seen of its connection, or of its exchange where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// UDP or ICMP, from one side only.
    New,
    /// UDP or ICMP, from both sides.
    Replied,
    /// UDP with a remote port that has a lifetime of its own, answered or not.
    Brief,
    /// A SYN has gone out and nothing has come back.
    SynOut,
    /// The same, but something has come back that is no SYN, or did so on the connection before this one.
    SynOutHeard,
    /// A SYN has come in and nothing has gone back.
    SynIn,
    /// A connection from before the NAT's time: the inside has spoken in the middle of it, and nothing has come back.
    PickedUp,
    /// The same, and the inside has sent its FIN.
    PickedUpFin,
    /// Both sides have spoken: packets pass either way.
    Established,
    /// The inside has sent its FIN; the outside may go on sending.
    FinOut,
    /// The outside has sent its FIN; the inside may go on sending.
    FinIn,
    /// Both have sent a FIN; a new SYN starts the connection afresh.
    Closed,
    /// One side has sent a reset, which may be forged: any packet from inside but another reset revives the connection.
    /// The outside alone cannot, or three packets of a stranger would make state that lasts for hours.
    Reset,
}

impl State {
    pub(crate) fn word(self) -> &'static str {
        match self {
            State::New => "new",
            State::Replied => "replied",
            State::Brief => "brief",
            State::SynOut | State::SynOutHeard => "syn-out",
            State::SynIn => "syn-in",
            State::PickedUp => "picked-up",
            State::Established => "established",
            State::FinOut | State::PickedUpFin => "fin-out",
            State::FinIn => "fin-in",
            State::Closed => "closed",
            State::Reset => "reset",
        }
    }

    /// How long a TCP session in this state may be idle.
    pub(crate) fn tcp_timeout(self, behavior: &Behavior) -> Duration {
        match self {
            State::New
            | State::Replied
            | State::Brief
            | State::SynOut
            | State::SynOutHeard
            | State::SynIn
            | State::PickedUp => behavior.tcp_opening_timeout,
            State::Established | State::PickedUpFin | State::FinOut | State::FinIn => {
                behavior.tcp_established_timeout
            }
            State::Closed => behavior.tcp_closing_timeout,
            State::Reset => behavior.tcp_reset_timeout,
        }
    }

    /// Whether only one side has spoken; [`State::Brief`] does not tell.
    pub(crate) fn is_unanswered(self) -> bool {
        matches!(self, State::New | State::SynOut | State::SynIn | State::PickedUp | State::PickedUpFin)
    }

    /// Whether a reset in this state ends it at once.
    pub(crate) fn ends_by_reset(self, behavior: &Behavior) -> bool {
        match behavior.tcp_reset {
            TcpReset::Keep => false,
            TcpReset::EndUnanswered => self.is_unanswered(),
            TcpReset::End => true,
        }
    }

    /// The state after a segment in this direction.
    #[inline]
    pub(crate) fn after(self, outbound: bool, flags: Flags) -> State {
        let opened = if outbound { State::SynOutHeard } else { State::SynIn };
        match self {
            State::Closed | State::Reset if flags.opens() => opened,
            _ if flags.rst() => State::Reset,
            State::SynOut | State::SynOutHeard if !outbound && flags.syn() => State::Established,
            State::SynOut if !outbound => State::SynOutHeard,
            State::SynIn if outbound && flags.syn() => State::Established,
            State::PickedUp if !outbound && !flags.fin() => State::Established,
            State::PickedUp if outbound && flags.fin() => State::PickedUpFin,
            State::PickedUpFin if !outbound && !flags.fin() => State::FinOut,
            State::Established | State::PickedUp if flags.fin() => {
                if outbound {
                    State::FinOut
                } else {
                    State::FinIn
                }
            }
            State::FinOut | State::PickedUpFin if !outbound && flags.fin() => State::Closed,
            State::FinIn if outbound && flags.fin() => State::Closed,
            State::Reset if outbound => State::Established,
            same => same,
        }
    }
}

/// An inbound SYN whose sender may yet get an ICMP error.
pub(crate) struct PendingSyn {
    /// When the error is due.
    due: Time,
    /// Where it came in.
    pub(crate) external: Outer,
    /// Who sent it.
    pub(crate) remote: Outer,
    quote: [u8; QUOTE],
    quoted: usize,
}

impl PendingSyn {
    /// The start of the SYN's packet.
    pub(crate) fn quote(&self) -> &[u8] {
        &self.quote[..self.quoted]
    }
}

/// Unsolicited SYNs in the order of their coming, which is that of their deadlines.
pub(crate) struct PendingSyns(VecDeque<PendingSyn>);

impl PendingSyns {
    pub(crate) fn new() -> PendingSyns {
        PendingSyns(VecDeque::new())
    }

    /// Remembers a SYN; one that is sent again keeps its first deadline.
    pub(crate) fn add(&mut self, external: Outer, remote: Outer, packet: &[u8], now: Time) {
        let known = self.0.iter().any(|syn| syn.remote == remote && syn.external == external);
        if known || self.0.len() == MOST_PENDING {
            return;
        }
        let quoted = packet.len().min(QUOTE);
        let mut quote = [0; QUOTE];
        quote[..quoted].copy_from_slice(&packet[..quoted]);
        self.0.push_back(PendingSyn { due: now + SILENCE, external, remote, quote, quoted });
    }

    /// A SYN goes out between the same endpoints: the one that came in was part of a simultaneous open.
    pub(crate) fn cancel(&mut self, external: Outer, remote: Outer) {
        if !self.0.is_empty() {
            self.0.retain(|syn| syn.remote != remote || syn.external != external);
        }
    }

    /// Takes one whose silence is over.
    pub(crate) fn pop(&mut self, now: Time) -> Option<PendingSyn> {
        if self.0.front()?.due <= now { self.0.pop_front() } else { None }
    }

    pub(crate) fn next(&self) -> Option<Time> {
        self.0.front().map(|syn| syn.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: Flags = Flags(Flags::SYN);
    const SYN_ACK: Flags = Flags(Flags::SYN | Flags::ACK);
    const ACK: Flags = Flags(Flags::ACK);
    const FIN: Flags = Flags(Flags::FIN | Flags::ACK);
    const RST: Flags = Flags(Flags::RST);

    fn run(start: State, segments: &[(bool, Flags)]) -> State {
        segments.iter().fold(start, |state, (outbound, flags)| state.after(*outbound, *flags))
    }

    #[test]
    fn handshakes() {
        assert_eq!(run(State::SynOut, &[(true, SYN)]), State::SynOut);
        assert_eq!(run(State::SynOut, &[(false, SYN_ACK), (true, ACK)]), State::Established);
        assert_eq!(run(State::SynOut, &[(false, SYN), (true, SYN_ACK)]), State::Established, "simultaneous");
        assert_eq!(run(State::SynIn, &[(true, SYN_ACK), (false, ACK)]), State::Established);
        assert_eq!(run(State::SynOut, &[(false, ACK)]), State::SynOutHeard, "only a SYN answers a SYN");
        assert_eq!(run(State::SynOut, &[(false, ACK), (false, SYN_ACK)]), State::Established);
        assert_eq!(run(State::PickedUp, &[(true, ACK)]), State::PickedUp);
        assert_eq!(run(State::PickedUp, &[(false, ACK)]), State::Established);
        assert_eq!(run(State::PickedUp, &[(true, FIN), (false, FIN)]), State::Closed);
    }

    #[test]
    fn closing() {
        assert_eq!(run(State::Established, &[(true, FIN), (false, ACK)]), State::FinOut);
        assert_eq!(run(State::Established, &[(true, FIN), (false, FIN), (true, ACK)]), State::Closed);
        assert_eq!(run(State::Established, &[(false, FIN), (true, FIN)]), State::Closed);
        assert_eq!(run(State::Closed, &[(true, SYN)]), State::SynOutHeard, "a port used again");
        assert_eq!(run(State::Closed, &[(true, ACK)]), State::Closed);
    }

    #[test]
    fn resets() {
        assert_eq!(run(State::Established, &[(false, RST)]), State::Reset);
        assert_eq!(
            run(State::Established, &[(false, RST), (false, ACK), (true, ACK)]),
            State::Established,
            "a forged one"
        );
        assert_eq!(run(State::SynIn, &[(false, RST), (false, ACK)]), State::Reset, "a stranger alone");
        assert_eq!(run(State::SynOut, &[(false, RST)]), State::Reset);
        assert_eq!(run(State::Reset, &[(true, SYN)]), State::SynOutHeard);
    }
}
