//! What a connection has seen, in the words of RFC 7857 §2 and RFC 5382.

use super::common::{ACK, FIN, RST, SYN};
use natbox_core::{Behavior, behavior::TcpReset};

/// SYNs and FINs of the inside (0) and of the outside (1), and a reset.
#[derive(Clone, Copy, Default)]
pub struct Seen {
    pub syn: [bool; 2],
    pub fin: [bool; 2],
    pub reset: bool,
    /// The inside has spoken in the middle of it, before any SYN.
    pub picked_up: bool,
    /// The outside has said something that is no SYN, or did so on the connection before.
    pub heard: bool,
}

impl Seen {
    fn is_open(self) -> bool {
        self.syn == [true, true] && !self.reset
    }

    pub fn is_over(self) -> bool {
        self.reset || self.fin == [true, true]
    }

    /// Only one side has spoken.
    pub fn is_unanswered(self) -> bool {
        match self.picked_up {
            true => !self.heard && !self.is_over(),
            false => !self.is_open() && !self.is_over() && (self.syn != [true, false] || !self.heard),
        }
    }

    /// A segment from the inside (0) or the outside (1).
    pub fn hear(&mut self, from: usize, flags: u8) {
        self.heard |= from == 1 && self.picked_up;
        let [syn, fin, reset, ack] = [SYN, FIN, RST, ACK].map(|bit| flags & bit != 0);
        if self.is_over() && syn && !ack && !reset {
            // The same ports again.
            *self = Seen { heard: true, ..Seen::default() };
            self.syn[from] = true;
        } else if reset {
            self.reset = true;
        } else if self.reset {
            // It was forged: the inside still speaks.
            if from == 0 {
                *self = Seen { syn: [true, true], ..Seen::default() };
            }
        } else if self.is_open() {
            self.fin[from] |= fin;
        } else if self.picked_up {
            if from == 1 || fin {
                self.syn = [true, true];
            }
            self.fin[from] |= fin;
        } else {
            self.syn[from] |= syn;
            self.heard |= from == 1 && !syn;
        }
    }

    /// How long it may be idle.
    pub fn timeout(self, behavior: &Behavior) -> std::time::Duration {
        match self {
            Seen { reset: true, .. } => behavior.tcp_reset_timeout,
            seen if seen.is_over() => behavior.tcp_closing_timeout,
            seen if seen.is_open() => behavior.tcp_established_timeout,
            _ => behavior.tcp_opening_timeout,
        }
    }

    /// Whether a reset ends it at once.
    pub fn ends_by_reset(self, how: TcpReset) -> bool {
        match how {
            TcpReset::Keep => false,
            TcpReset::EndUnanswered => self.is_unanswered(),
            TcpReset::End => true,
        }
    }
}
