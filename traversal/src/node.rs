//! A node: one key, one socket, any number of connections.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use serde::Serialize;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use traversal_proto::wire::PeerId;

use crate::{
    Builder, ConnectError, Connection, Counters, DoctorError, DoctorOptions, Policy, Punched, Report,
    backlog::Incoming, driver::Command,
};

/// One key, one socket, any number of connections. Clones are the same node.
#[derive(Clone)]
pub struct Node(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) id: PeerId,
    pub(crate) local: SocketAddr,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) incoming: Incoming,
    pub(crate) punched: Mutex<mpsc::Receiver<Punched>>,
    pub(crate) supernodes: watch::Receiver<Vec<SupernodeStatus>>,
    pub(crate) _life: Arc<Life>,
}

/// Dropped by the last node or connection that holds it, and then the driver ends.
pub(crate) struct Life(pub(crate) Option<oneshot::Sender<()>>);

/// How a node stands with a supernode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SupernodeStatus {
    /// As configured.
    pub address: String,
    /// Its key, once it has shown it.
    pub id: Option<PeerId>,
    /// Registered there now.
    pub registered: bool,
    /// The control connection runs over TLS, because QUIC did not get through.
    pub by_tcp: bool,
    /// Relayed packets go by UDP; if not, by the control connection.
    pub relay_by_udp: bool,
    /// This node's address as that supernode sees it.
    pub observed: Option<SocketAddr>,
    /// What went wrong last.
    pub problem: Option<String>,
}

impl Node {
    /// Sets up a node.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let mut config = supernode::Config::new(traversal::generate_identity()?);
    /// # config.listen = vec!["127.0.0.1:0".parse()?];
    /// # let supernode = supernode::Supernode::bind(config).await?;
    /// # let supernode = supernode.connect_string();
    /// let node = traversal::Node::builder().supernode(supernode).start().await?;
    /// assert!(node.supernodes()[0].registered);
    /// node.close().await;
    /// # Ok(()) }
    /// ```
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Who this node is.
    pub fn id(&self) -> PeerId {
        self.0.id
    }

    /// The address that the node's UDP socket is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.local
    }

    /// How the node stands with its supernodes, in the order in which they were named.
    pub fn supernodes(&self) -> Vec<SupernodeStatus> {
        self.0.supernodes.borrow().clone()
    }

    /// Waits until [`supernodes`](Self::supernodes) are no longer as they are `known`, and returns them.
    ///
    /// ```
    /// # use traversal::{Node, SupernodeStatus};
    /// async fn registered(node: &Node) {
    ///     let mut supernodes = node.supernodes();
    ///     while !supernodes.iter().any(|supernode| supernode.registered) {
    ///         supernodes = node.supernodes_changed(&supernodes).await;
    ///     }
    /// }
    /// ```
    pub async fn supernodes_changed(&self, known: &[SupernodeStatus]) -> Vec<SupernodeStatus> {
        let mut supernodes = self.0.supernodes.clone();
        if let Ok(changed) = supernodes.wait_for(|now| now != known).await {
            return changed.clone();
        }
        // The driver is gone: nothing changes any more.
        std::future::pending().await
    }

    /// Connects to a peer. The connection is usable at once, over the relay if need be. A peer that is connected already
    /// gives the connection that there is, as it is; a new one has the builder's policy.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(&self, peer: PeerId) -> Result<Connection, ConnectError> {
        self.connect_by(peer, None).await
    }

    /// Connects to a peer by this policy. A connection that there is already has it from then on, whoever shares it. If
    /// [`Policy::DirectOnly`] finds no direct path only this call fails, and the connection keeps the policy that it had; one
    /// that nobody else has is closed.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect_with(&self, peer: PeerId, policy: Policy) -> Result<Connection, ConnectError> {
        self.connect_by(peer, Some(policy)).await
    }

    async fn connect_by(&self, peer: PeerId, policy: Option<Policy>) -> Result<Connection, ConnectError> {
        if peer == self.0.id {
            return Err(ConnectError::Myself);
        }
        let (reply, answer) = oneshot::channel();
        let command = Command::Connect { peer, policy, reply };
        self.0.commands.send(command).await.map_err(|_| ConnectError::Closed)?;
        answer.await.map_err(|_| ConnectError::Closed)?
    }

    /// Waits for a peer that has connected to this node; `None` once the node is closed. Up to 64 connections wait to be
    /// accepted; those that end meanwhile are left out.
    pub async fn accept(&self) -> Option<Connection> {
        self.0.incoming.0.next().await
    }

    /// Makes a hole to a peer from a fresh UDP socket, and hands the socket over: for programs with a transport of their own
    /// (games, WireGuard). The peer must [accept punches](Builder::accept_punches), and gets its own end from
    /// [`accept_punch`](Self::accept_punch). A connection between the two nodes is made on the way, or used, whatever its
    /// policy. A node punches up to 64 holes at the same time, and up to 4 for the same peer.
    ///
    /// # Errors
    /// See [`ConnectError`]; [`NotDirect`](ConnectError::NotDirect) if there is no direct path after `within`,
    /// [`TooManyPunches`](ConnectError::TooManyPunches) beyond the limits of either side.
    pub async fn punch(&self, peer: PeerId, within: Duration) -> Result<Punched, ConnectError> {
        // Held until the end: over it, the two tell each other where their sockets are.
        let _connection = self.connect(peer).await?;
        let (reply, answer) = oneshot::channel();
        let command = Command::Punch { peer, within, reply };
        self.0.commands.send(command).await.map_err(|_| ConnectError::Closed)?;
        answer.await.map_err(|_| ConnectError::Closed)?
    }

    /// Waits for a socket with a hole to a peer that has punched to this node; `None` once the node is closed.
    pub async fn accept_punch(&self) -> Option<Punched> {
        self.0.punched.lock().await.recv().await
    }

    /// What has happened so far; `None` once the node is closed.
    pub async fn counters(&self) -> Option<Counters> {
        let (reply, answer) = oneshot::channel();
        self.0.commands.send(Command::Counters { reply }).await.ok()?;
        answer.await.ok()
    }

    /// Finds out behind what kind of NAT this node is, and what that means towards others. Takes some seconds; with
    /// [`DoctorOptions::lifetime`] longer.
    ///
    /// # Errors
    /// See [`DoctorError`].
    pub async fn doctor(&self) -> Result<Report, DoctorError> {
        self.doctor_with(DoctorOptions::default()).await
    }

    /// [`doctor`](Self::doctor), more or less thorough.
    ///
    /// # Errors
    /// See [`DoctorError`].
    pub async fn doctor_with(&self, options: DoctorOptions) -> Result<Report, DoctorError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Doctor { options, reply };
        self.0.commands.send(command).await.map_err(|_| DoctorError::Closed)?;
        answer.await.map_err(|_| DoctorError::Closed)?
    }

    /// Says that the network has changed: paths are checked, and addresses gathered, at once. The node notices changes of
    /// the machine's addresses by itself within five seconds.
    pub async fn network_changed(&self) {
        // A closed node has no network.
        let _ = self.0.commands.send(Command::NetworkChanged).await;
    }

    /// Closes all connections, takes the registrations back, and waits until the peers know, for two seconds at the most.
    pub async fn close(&self) {
        let (reply, answer) = oneshot::channel();
        if self.0.commands.send(Command::Close { reply }).await.is_ok() {
            // An error means that the driver has ended already.
            let _ = answer.await;
        }
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("id", &self.0.id).field("local", &self.0.local).finish_non_exhaustive()
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            // The driver may have ended already.
            let _ = end.send(());
        }
    }
}
