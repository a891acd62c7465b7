//! The STUN reflector, with the behaviour discovery of RFC 5780.

use std::net::SocketAddr;

use super::{DropReason, Listen, Supernode, Verdict, unproven};
use crate::{
    SocketId, Time, Transmit,
    wire::stun::{Change, Reflection, ReflectorReply, ReflectorRequest, StunError, peek},
};

/// An attribute that is not understood (RFC 8489 §14.8).
const UNKNOWN_ATTRIBUTE: u16 = 420;
/// A request that contradicts itself.
const BAD_REQUEST: u16 = 400;
const CHANGE_REQUEST: u16 = 0x0003;

impl Supernode {
    /// A STUN message on one of our sockets. Requests are answered within what [`unproven`] allows; nothing is
    /// remembered.
    pub(super) fn reflect(&mut self, socket: SocketId, from: SocketAddr, bytes: &[u8], now: Time) -> Verdict {
        let request = match ReflectorRequest::decode(bytes) {
            Ok(request) => request,
            Err(StunError::UnknownAttributes(unknown)) => {
                return self.decline(socket, from, bytes, UNKNOWN_ATTRIBUTE, unknown, now);
            }
            Err(_) => return self.drop(DropReason::Malformed),
        };
        let Some(asked) = self.config.listen.iter().find(|listen| listen.socket == socket).copied() else {
            return self.drop(DropReason::Unexpected);
        };
        // RFC 5780 §7.5: the two contradict each other, for a padded answer is not to go to another port.
        if request.response_port.is_some() && request.padding > 0 {
            return self.decline(socket, from, bytes, BAD_REQUEST, Vec::new(), now);
        }
        let Some(origin) = self.other(asked, request.change.unwrap_or_default()) else {
            return self.decline(socket, from, bytes, UNKNOWN_ATTRIBUTE, vec![CHANGE_REQUEST], now);
        };
        let to = SocketAddr::new(from.ip(), request.response_port.unwrap_or(from.port()));
        let reflection = Reflection {
            id: request.id,
            mapped: from,
            origin: Some(origin.address),
            other: self.other(asked, Change { address: true, port: true }).map(|other| other.address),
            padding: request.padding,
            fingerprint: request.fingerprint,
        };
        let reply = ReflectorReply::Success(reflection.within(unproven::STUN * bytes.len())).encode();
        let verdict = self.reply_unproven(origin.socket, to, bytes.len(), reply, unproven::STUN, now);
        if matches!(verdict, Verdict::Handled) {
            self.counters.reflections += 1;
        }
        verdict
    }

    /// Our socket that differs from `asked` as wished, and not otherwise.
    fn other(&self, asked: Listen, change: Change) -> Option<Listen> {
        let fits = |listen: &&Listen| {
            (listen.address.ip() != asked.address.ip()) == change.address
                && (listen.address.port() != asked.address.port()) == change.port
                && listen.address.is_ipv4() == asked.address.is_ipv4()
        };
        self.config.listen.iter().find(fits).copied()
    }

    fn decline(
        &mut self,
        socket: SocketId,
        from: SocketAddr,
        bytes: &[u8],
        code: u16,
        unknown: Vec<u16>,
        now: Time,
    ) -> Verdict {
        let Ok(header) = peek(bytes) else { return self.drop(DropReason::Malformed) };
        let reply = ReflectorReply::Error { id: header.id, code, unknown }.encode();
        let verdict = self.reply_unproven(socket, from, bytes.len(), reply, unproven::STUN, now);
        if matches!(verdict, Verdict::Handled) {
            self.counters.reflection_errors += 1;
        }
        verdict
    }

    /// Sends an answer to an address that has proved nothing, if that is allowed.
    pub(super) fn reply_unproven(
        &mut self,
        socket: SocketId,
        to: SocketAddr,
        received: usize,
        bytes: Vec<u8>,
        factor: usize,
        now: Time,
    ) -> Verdict {
        if !self.unproven.allows(to, received, bytes.len(), factor, now) {
            return self.drop(DropReason::Unproven);
        }
        self.out.transmit(Transmit { socket, to, bytes, hops: None }, &mut self.counters);
        Verdict::Handled
    }
}
