//! An endpoint that comes back: it knows the connections of its former life by their ids, and ends them at once by
//! stateless resets (RFC 9000 §10.3) instead of leaving the other end to wait. Both keys follow from the identity.

use std::{io, sync::Arc, time::Duration};

use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig};
use quinn_proto::InvalidCid;
use ring::{hmac, rand::SystemRandom};
use traversal_proto::wire::Identity;

/// Between two resets. Each is shorter than what it answers, and all together are no more than what one network gets.
const RESET_EVERY: Duration = Duration::from_millis(5);
/// Bytes of an id that differ from connection to connection. Never the same twice: whoever was shown a reset token once
/// could end another connection with it (RFC 9000 §10.3.2).
const NONCE: usize = 5;
/// All bytes of an id; the rest is a MAC of the nonce, so that one packet in 16 million of no connection draws a reset.
const LENGTH: usize = 8;

/// Makes the endpoint to be known by, and know, ids and resets of `identity`'s endpoint of this name.
///
/// # Errors
/// No randomness.
pub(crate) fn last(config: &mut EndpointConfig, identity: &Identity, name: &str) -> io::Result<()> {
    let ids = derived(identity, b"traversal connection id 1\0", name);
    let run = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
        .map_err(|_| io::Error::other("the system has no randomness"))?;
    config
        .reset_key(Arc::new(derived(identity, b"traversal stateless reset 1\0", name)))
        .cid_generator(move || Box::new(Ids { ids: ids.clone(), run: run.clone(), count: 0 }))
        .min_reset_interval(RESET_EVERY);
    Ok(())
}

fn derived(identity: &Identity, label: &[u8], name: &str) -> hmac::Key {
    let secret = hmac::Key::new(hmac::HMAC_SHA256, &identity.secret());
    let input = [label, name.as_bytes()].concat();
    hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&secret, &input).as_ref())
}

struct Ids {
    ids: hmac::Key,
    /// Of this run alone.
    run: hmac::Key,
    count: u64,
}

impl Ids {
    fn id(&self, nonce: &[u8]) -> ConnectionId {
        let mut id = [0; LENGTH];
        id[..NONCE].copy_from_slice(nonce);
        id[NONCE..].copy_from_slice(&hmac::sign(&self.ids, nonce).as_ref()[..LENGTH - NONCE]);
        ConnectionId::new(&id)
    }
}

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        self.count += 1;
        self.id(&hmac::sign(&self.run, &self.count.to_be_bytes()).as_ref()[..NONCE])
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        match id.len() == LENGTH && self.id(&id[..NONCE]) == *id {
            true => Ok(()),
            false => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        LENGTH
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(secret: u8, name: &str, run: u8) -> Ids {
        let ids = derived(&Identity::from_secret(&[secret; 32]), b"ids", name);
        Ids { ids, run: hmac::Key::new(hmac::HMAC_SHA256, &[run]), count: 0 }
    }

    #[test]
    fn the_next_life_knows_the_ids_of_the_last() {
        let (mut before, after) = (ids(1, "a", 1), ids(1, "a", 2));
        let strangers = [ids(2, "a", 1), ids(1, "b", 1)];
        let made: Vec<ConnectionId> = (0..100).map(|_| before.generate_cid()).collect();
        assert!(made.iter().all(|id| after.validate(id).is_ok()));
        assert!(made.iter().all(|id| strangers.iter().all(|stranger| stranger.validate(id).is_err())));
        assert!(!made.contains(&ids(1, "a", 2).generate_cid()), "another run has other ids");
        assert!(after.validate(&ConnectionId::new(&[])).is_err());
    }
}
