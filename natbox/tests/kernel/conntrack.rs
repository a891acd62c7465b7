//! Which segments connection tracking calls invalid: the one thing about TCP in which the engine is more generous (see
//! docs/limitations.md). The tables are those of nf_conntrack_proto_tcp.c; window checks are not here.

use super::{ACK, FIN, Inward, RST, SYN};

/// In the order of the tables' columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    None,
    SynSent,
    SynReceived,
    Established,
    FinWait,
    CloseWait,
    LastAck,
    TimeWait,
    Close,
    /// A simultaneous open.
    SynSent2,
}

const STATES: [(char, State); 10] = [
    ('0', State::None),
    ('s', State::SynSent),
    ('r', State::SynReceived),
    ('E', State::Established),
    ('F', State::FinWait),
    ('W', State::CloseWait),
    ('L', State::LastAck),
    ('T', State::TimeWait),
    ('C', State::Close),
    ('2', State::SynSent2),
];

/// By direction and kind of segment (SYN, SYN and ACK, FIN, ACK, RST), the next state for each state; `-` is invalid and `i`
/// is let through without looking.
const TABLES: [[&str; 5]; 2] = [
    ["ssiiiiiss2", "--r------r", "--FFLLLTC-", "E-EEWWTTC-", "-CCCCCCCCC"],
    ["-2-----s-2", "-riiiiiiir", "--FFLLLTC-", "-irEWWTTCi", "-CCCCCCCCC"],
];

/// One connection, as the kernel sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tracked {
    state: State,
    answered: bool,
    /// Something was out of place, or a port is used again: from then on the kernel's opinion depends on sequence numbers,
    /// too, and the connection is left alone.
    over: bool,
}

impl Tracked {
    pub(crate) fn new() -> Tracked {
        Tracked { state: State::None, answered: false, over: false }
    }

    /// A segment; false when the kernel calls it invalid.
    pub(crate) fn segment(&mut self, way: Inward, flags: u8) -> bool {
        let kind = match flags & (SYN | FIN | RST | ACK) {
            flags if flags & RST != 0 => 4,
            flags if flags & SYN != 0 => usize::from(flags & ACK != 0),
            flags if flags & FIN != 0 => 2,
            _ => 3,
        };
        let column = self.state as usize;
        match TABLES[way as usize][kind].as_bytes()[column] as char {
            '-' => {
                self.over = self.state != State::None;
                false
            }
            // A SYN in the middle, or a second answer: it passes, and the next one may be taken for a new connection's.
            'i' => {
                self.over = true;
                true
            }
            name => {
                let answered = self.answered || way == Inward::Inbound;
                let reopened = kind == 0 && matches!(self.state, State::TimeWait | State::Close);
                if kind == 4 && !self.answered {
                    *self = Tracked::new();
                    return true;
                }
                let next =
                    STATES.iter().find(|(known, _)| *known == name).map_or(self.state, |(_, state)| *state);
                self.over |= reopened;
                (self.state, self.answered) = (next, answered);
                // From outside that is a new connection, which the firewall does not let in.
                !(reopened && way == Inward::Inbound)
            }
        }
    }

    /// What a sane peer would send next: the control bits to choose from.
    pub(crate) fn plausible(&self, way: Inward) -> &'static [u8] {
        match (self.state, way) {
            (State::None | State::Close, Inward::Outbound) => &[SYN, SYN, SYN, ACK],
            (State::SynSent, Inward::Outbound) => &[SYN, RST],
            (State::SynSent, Inward::Inbound) => &[SYN | ACK, SYN | ACK, SYN | ACK, SYN, RST],
            (State::SynSent2, _) => &[SYN | ACK],
            (State::TimeWait | State::Close, Inward::Inbound) => &[ACK, RST],
            (State::TimeWait, Inward::Outbound) => &[ACK, SYN],
            _ => &[ACK, ACK, ACK, ACK, FIN | ACK, FIN | ACK, RST],
        }
    }

    /// Whether there is no such connection, or none any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.state == State::None
    }

    /// Whether it is neither opening nor closed by both sides.
    pub(crate) fn is_under_way(&self) -> bool {
        matches!(self.state, State::Established | State::FinWait | State::CloseWait)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over
    }
}
