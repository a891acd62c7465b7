//! Ways between two peers: candidates, NAT profiles, what to expect of a pair of them, and which path is best.
//!
//! - [`candidate`]: addresses at which a peer might be reached, and the order to try them in.
//! - [`safety`]: which of them may be probed.
//! - [`profile`], [`discovery`]: what NAT a node is behind, and how that is found out.
//! - [`strategy`]: what two such NATs let through, and by which technique.
//! - [`score`]: which of several paths that work is best.

pub mod candidate;
pub mod discovery;
pub mod profile;
pub mod safety;
pub mod score;
mod sockets;
pub mod strategy;

pub use candidate::{Candidate, CandidateKind, Transport};
pub use discovery::Discovery;
pub use profile::{Filtering, Mapping, NatProfile, PortAssignment};
pub use sockets::{OpenId, Purpose, SocketRequest};
