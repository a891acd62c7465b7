//! A flow that becomes quick.

use std::error::Error;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use netns_lab::{Host, Lab, Nat};

use super::{OWN, PATIENCE, Tested, endpoint, mappings, udp};

/// What `natbox show` says of the fast path: flows now, flows so far, packets.
pub(crate) fn fast(nat: &Nat) -> Result<[u64; 3], Box<dyn Error + Send + Sync>> {
    let status = &nat.show()?["status"]["fast_path"];
    let number = |name: &str| status[name].as_u64().ok_or(format!("no {name} in {status}"));
    Ok([number("flows")?, number("given")?, number("packets")?])
}

/// An exchange of datagrams with the echo at S, each of which must be answered, and once.
pub(crate) struct Exchange {
    pub(crate) socket: UdpSocket,
    pub(crate) to: SocketAddr,
    pub(crate) count: u64,
}

impl Exchange {
    pub(crate) fn new(from: &Host, lab: &Lab) -> Result<Exchange, Box<dyn Error + Send + Sync>> {
        Ok(Exchange { socket: udp(from, 0)?, to: endpoint(lab.host("S")?.addr(), 7), count: 0 })
    }

    pub(crate) fn once(&mut self) -> Tested {
        self.count += 1;
        let sent = self.count.to_be_bytes();
        self.socket.send_to(&sent, self.to)?;
        let mut heard = [0; 16];
        let (length, from) = self.socket.recv_from(&mut heard)?;
        assert_eq!((&heard[..length], from), (&sent[..], self.to), "the answer, once");
        Ok(())
    }

    /// Goes on until the flow is quick, and for a while.
    pub(crate) fn until_quick(&mut self, nat: &Nat) -> Tested {
        let before = fast(nat)?[2];
        let deadline = Instant::now() + PATIENCE;
        while fast(nat)?[2] < before + 100 {
            assert!(Instant::now() < deadline, "the flow does not become quick: {:?}", fast(nat)?);
            (0..100).try_for_each(|_| self.once())?;
        }
        Ok(())
    }

    /// Goes on for some time, quickly.
    pub(crate) fn go_on(&mut self, time: Duration) -> Tested {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.once()?;
        }
        Ok(())
    }

    /// The external port of the flow.
    pub(crate) fn external(&self, nat: &Nat) -> Result<u16, Box<dyn Error + Send + Sync>> {
        let inside = self.socket.local_addr()?.to_string();
        let found = mappings(nat)?.into_iter().find(|mapping| mapping["inside"] == inside.as_str());
        let external: SocketAddr =
            found.ok_or("no mapping")?["external"].as_str().ok_or("no endpoint")?.parse()?;
        assert_eq!(external.ip(), OWN);
        Ok(external.port())
    }
}
