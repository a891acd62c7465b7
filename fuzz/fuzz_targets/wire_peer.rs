//! What peers tell each other: any bytes are a message or an error, what is read is written back and read again as the
//! same, and of the candidates in it none that may not be probed gets through.
#![no_main]

use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;
use traversal_proto::{
    address::{Scope, scope},
    path::safety::{Evidence, Interface, MOST_PRIVATE, sift},
    wire::{peer::MAX_CANDIDATES, peer::PeerMessage},
};

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = PeerMessage::decode(bytes) else { return };
    assert_eq!(PeerMessage::decode(&message.encode()), Ok(message.clone()));
    let PeerMessage::Candidates(told) = message else { return };
    assert!(told.list.len() <= MAX_CANDIDATES);
    let interface = Interface { address: [10, 1, 1, 2].into(), prefix_len: 24 };
    let (own, reflexive) =
        (SocketAddr::from(([10, 1, 1, 2], 4000)), SocketAddr::from(([198, 51, 100, 9], 4000)));
    let evidence =
        Evidence { interfaces: &[interface], own: &[own], reflexive: &[reflexive], loopback: false };
    let (usable, refused) = sift(&told.list, &evidence);
    assert!(usable.len() + refused.len() <= told.list.len());
    let is_private = |address: &SocketAddr| matches!(scope(address.ip()), Scope::Private | Scope::Shared);
    for candidate in &usable {
        let at = candidate.address;
        assert!(at.port() != 0 && at != own);
        assert!(scope(at.ip()) == Scope::Global || is_private(&at), "{at} may not be probed");
    }
    assert!(usable.iter().filter(|candidate| is_private(&candidate.address)).count() <= MOST_PRIVATE);
});
