//! Network namespaces for tests: bring a small internet up, work inside its hosts, take it all down.
//!
//! # Theory of operation
//!
//! The lab itself is bash: `netns-scripts/lab` and the topologies beside it, each opening with its drawing. This crate
//! is its Rust face and decides nothing about networks. [`Lab::up`] runs `lab up … --json` and reads back what is where;
//! [`Lab`]'s drop runs `lab down`. So whatever a test does can be done again by hand, step by step, in a terminal.
//!
//! A [`Host`] is a namespace. What happens *in* a host happens on a thread that has moved there ([`Host::run`],
//! [`Host::start`], [`Host::block_on`]) or in a process that moves there before it executes ([`Host::command`],
//! [`Host::spawn`]); the calling thread stays where it is. Sockets belong to the namespace in which they were opened,
//! so they may be handed back and used anywhere.
//!
//! A [`Nat`] is a handle on one NAT of the topology: stop it, kill it, start it as another one, ask a natbox for its
//! table.
//!
//! Every lab names the process that it lives for. A test that panics takes its lab down while it unwinds; a process
//! that is killed cannot, and the first `Lab::up` of any later one removes what dead owners left (`lab down --stale`).
//! Processes started by [`Host::spawn`] die with the test process itself.
//!
//! The programs under test are built by this crate, through cargo, once for each process ([`program`]): what is
//! tested is what the source says now.
//!
//! # Privilege
//!
//! Root can do all of this. A plain user can on machines that give plain users a user namespace; a process must enter
//! it before it has a second thread, which is what [`harness::main`] is for. [`privilege`] and [`tun`] tell in one line
//! what is missing.
//!
//! ```no_run
//! # fn main() -> Result<(), netns_lab::LabError> {
//! use netns_lab::Lab;
//! use std::net::UdpSocket;
//!
//! let lab = Lab::up("one-nat").nat("N1", "symmetric").start()?;
//! let server = lab.host("S")?.run(|| UdpSocket::bind("0.0.0.0:53"))?.expect("a free port");
//! let client = lab.host("A")?.run(|| UdpSocket::bind("0.0.0.0:4242"))?.expect("a free port");
//! client.send_to(b"hello", (lab.host("S")?.addr(), 53)).expect("a route");
//! println!("seen from outside: {:?}", server.recv_from(&mut [0; 5]));
//! println!("{}", lab.nat("N1")?.show()?);
//! # Ok(())
//! # }
//! ```

mod build;
mod error;
pub mod harness;
mod host;
mod lab;
pub mod load;
mod nat;
mod privilege;
pub mod probe;
mod process;
mod script;

use std::thread;
use std::time::{Duration, Instant};

pub use build::{example, program};
pub use error::LabError;
pub use host::{Host, Worker};
pub use lab::{Builder, Lab};
pub use nat::{Nat, NatKind};
pub use privilege::{privilege, tun};
pub use process::Process;

/// Waits until `condition` holds and says whether it did within `limit`. It looks every few milliseconds, and at least
/// once.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}
