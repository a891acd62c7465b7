//! Cookies: proof that somebody receives what is sent to an address, without remembering anybody.

use std::net::{IpAddr, SocketAddr};

use hmac::{Hmac, Mac};
use rand_chacha::ChaCha20Rng;
use rand_core::Rng;
use sha2::Sha256;

use crate::{
    SocketId, Time,
    wire::{
        frame::{Cookie, SessionId},
        keyed, same, truncated,
    },
};

/// How long one key is used: a cookie is good for one to two of these.
const EPOCH: u64 = 60_000_000_000;

/// Makes and checks cookies. The key of an epoch is derived from a master key, so rotation needs neither a timer nor
/// randomness; the keys of the current and the last epoch are at hand.
pub(super) struct Cookies {
    master: Hmac<Sha256>,
    epoch: u64,
    current: Hmac<Sha256>,
    last: Hmac<Sha256>,
}

impl Cookies {
    pub(super) fn new(rng: &mut ChaCha20Rng) -> Cookies {
        let mut secret = [0; 32];
        rng.fill_bytes(&mut secret);
        let master = keyed(&secret);
        let (current, last) = (epoch_key(&master, 0), epoch_key(&master, u64::MAX));
        Cookies { master, epoch: 0, current, last }
    }

    /// The cookie of this address, for this session: the epoch's low byte, and 15 bytes of a MAC.
    pub(super) fn make(
        &mut self,
        socket: SocketId,
        from: SocketAddr,
        session: SessionId,
        now: Time,
    ) -> Cookie {
        self.turn(now);
        cookie(self.current.clone(), self.epoch as u8, socket, from, session)
    }

    /// Whether `presented` was made for this address lately.
    pub(super) fn check(
        &mut self,
        presented: &Cookie,
        socket: SocketId,
        from: SocketAddr,
        session: SessionId,
        now: Time,
    ) -> bool {
        self.turn(now);
        let key = match presented[0] {
            byte if byte == self.epoch as u8 => &self.current,
            byte if byte == self.epoch.wrapping_sub(1) as u8 => &self.last,
            _ => return false,
        };
        same(&cookie(key.clone(), presented[0], socket, from, session), presented)
    }

    fn turn(&mut self, now: Time) {
        let epoch = now.as_nanos() / EPOCH;
        if epoch != self.epoch {
            self.epoch = epoch;
            self.current = epoch_key(&self.master, epoch);
            self.last = epoch_key(&self.master, epoch.wrapping_sub(1));
        }
    }
}

fn epoch_key(master: &Hmac<Sha256>, epoch: u64) -> Hmac<Sha256> {
    keyed(&master.clone().chain_update(epoch.to_be_bytes()).finalize().into_bytes())
}

fn cookie(key: Hmac<Sha256>, epoch: u8, socket: SocketId, from: SocketAddr, session: SessionId) -> Cookie {
    let ip = match from.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let mac = key
        .chain_update(socket.0.to_be_bytes())
        .chain_update(ip.octets())
        .chain_update(from.port().to_be_bytes())
        .chain_update(session.0.to_be_bytes());
    let mut cookie = truncated(mac);
    cookie[0] = epoch;
    cookie
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand_core::SeedableRng;

    use super::*;

    #[test]
    fn good_for_its_address_and_for_a_while() {
        let mut cookies = Cookies::new(&mut ChaCha20Rng::seed_from_u64(1));
        let (here, there) = ("192.0.2.1:5000".parse().unwrap(), "192.0.2.1:5001".parse().unwrap());
        let (socket, session) = (SocketId(1), SessionId(9));
        let start = Time::from_nanos(EPOCH * 7);
        let cookie = cookies.make(socket, here, session, start);

        assert!(cookies.check(&cookie, socket, here, session, start));
        assert!(!cookies.check(&cookie, socket, there, session, start));
        assert!(!cookies.check(&cookie, SocketId(2), here, session, start));
        assert!(!cookies.check(&cookie, socket, here, SessionId(8), start));
        assert!(!cookies.check(&[0; 16], socket, here, session, start));
        assert!(cookies.check(&cookie, socket, here, session, start + Duration::from_secs(119)));
        assert!(!cookies.check(&cookie, socket, here, session, start + Duration::from_secs(120)));
        // 256 epochs later the byte is the same again, the key is not.
        assert!(!cookies.check(&cookie, socket, here, session, start + Duration::from_secs(256 * 60)));
    }
}
