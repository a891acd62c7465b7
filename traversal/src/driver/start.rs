//! The beginning of a node.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use tokio::sync::{Mutex, mpsc, oneshot};
use traversal_net::socket::DatagramSocket;

use super::{Command, Driver, MAIN, Seeds, punching};
use crate::{
    Builder, Node, StartError,
    backlog::{Backlog, Filler, Incoming},
    builder::random_seed,
    network::Network,
    node::{self, Life},
};

/// Commands that wait: whoever sends more waits, too.
const MAX_COMMANDS: usize = 1024;

/// Starts a node: returns when it is registered at a supernode.
pub(crate) async fn start(builder: Builder) -> Result<Node, StartError> {
    let supernodes = builder.supernodes.iter().cloned().collect::<Result<Vec<_>, _>>()?;
    if supernodes.is_empty() {
        return Err(StartError::NoSupernode);
    }
    let identity = match &builder.identity {
        Some(identity) => identity.clone(),
        None => crate::generate_identity()?,
    };
    let seed = builder.seed.map_or_else(random_seed, Ok)?;
    let seeds = Seeds { first: seed, next: 0, fixed: builder.seed.is_some() };
    let main = open(&*builder.network, builder.bind)?;
    let (commands, receiver) = mpsc::channel(MAX_COMMANDS);
    let backlog = Arc::new(Backlog::default());
    let (punched, holes) = mpsc::channel(punching::MAX_ACCEPTED);
    let (end, life) = oneshot::channel();
    let held = Arc::new(Life(Some(end)));
    let start_timeout = builder.start_timeout;

    let mut driver = Driver::new(
        builder,
        identity,
        main,
        seeds,
        (commands.clone(), receiver),
        (Filler(Arc::clone(&backlog)), punched, life),
    )?;
    driver.held = Arc::downgrade(&held);
    let now = driver.now();
    for address in supernodes {
        driver.add_home(address, true, now);
    }
    let (id, local) = (driver.id, driver.sockets.local(MAIN));
    let mut statuses = driver.statuses.subscribe();
    tokio::spawn(accept(driver.endpoint.clone(), commands.clone()));
    tokio::spawn(driver.run());

    let node = Node(Arc::new(node::Inner {
        id,
        local,
        commands,
        incoming: Incoming(backlog),
        punched: Mutex::new(holes),
        supernodes: statuses.clone(),
        _life: held,
    }));
    let ready = statuses.wait_for(|homes| homes.iter().any(|home| home.registered && home.id.is_some()));
    // No guard of what is watched is held from here on: so the future can be sent to another thread.
    let ready = tokio::time::timeout(start_timeout, ready).await.is_ok_and(|ready| ready.is_ok());
    if ready {
        return Ok(node);
    }
    let homes = node.supernodes();
    let tried = homes.iter().map(|home| home.address.as_str()).collect::<Vec<_>>().join(", ");
    let last = homes.iter().find_map(|home| home.problem.clone());
    let last = last.unwrap_or_else(|| "nothing came back".to_owned());
    node.close().await;
    Err(StartError::Unreachable { tried, last, after: start_timeout })
}

/// The node's socket: dual-stack where that is possible.
fn open(network: &dyn Network, address: Option<SocketAddr>) -> Result<Arc<dyn DatagramSocket>, StartError> {
    let (v6, v4): (SocketAddr, SocketAddr) =
        ((Ipv6Addr::UNSPECIFIED, 0).into(), (Ipv4Addr::UNSPECIFIED, 0).into());
    let result = match address {
        Some(address) => network.bind(address),
        None => network.bind(v6).or_else(|_| network.bind(v4)),
    };
    let address = address.unwrap_or(v4).to_string();
    result.map_err(|source| StartError::Bind { address, source })
}

/// Hands handshakes that begin to the driver.
async fn accept(endpoint: quinn::Endpoint, commands: mpsc::Sender<Command>) {
    while let Some(incoming) = endpoint.accept().await {
        if commands.send(Command::Incoming(Box::new(incoming))).await.is_err() {
            return;
        }
    }
}
