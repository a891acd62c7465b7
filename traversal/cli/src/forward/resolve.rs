//! From a target to a socket that is connected to it. What was checked is what is connected to: a name is resolved once, and
//! only the addresses that came of it and passed are tried.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Semaphore, time::timeout};

use super::{
    address::{Name, Target},
    allow::Leads,
    wire::{Host, Refusal},
};

/// For a target to be reached, with all its addresses.
const REACH: Duration = Duration::from_secs(10);
/// For one address, while there is another to be tried.
const ONE: Duration = Duration::from_secs(4);
/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 4;
/// Names that are looked up at a time. The system's resolver takes a thread for each.
const LOOKUPS: usize = 8;

/// Asks the system for addresses.
pub(crate) struct Resolver(Arc<Semaphore>);

impl Default for Resolver {
    fn default() -> Resolver {
        Resolver(Arc::new(Semaphore::new(LOOKUPS)))
    }
}

impl Resolver {
    /// What a target that is allowed leads to, of that what `is_allowed`.
    pub(crate) async fn addresses(
        &self,
        leads: Leads,
        port: u16,
        is_allowed: impl Fn(IpAddr) -> bool,
    ) -> Result<Vec<SocketAddr>, Refusal> {
        match leads {
            Leads::To(addresses) => {
                Ok(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())
            }
            Leads::Name(name) => some(self.look_up(name, port).await?, is_allowed),
        }
    }

    /// What a target leads to that this side's user has named.
    pub(crate) async fn any(&self, target: &Target) -> Result<Vec<SocketAddr>, Refusal> {
        match &target.host {
            Host::Address(address) => Ok(vec![SocketAddr::new(*address, target.port)]),
            Host::Name(name) => some(self.look_up(name.clone(), target.port).await?, |_| true),
        }
    }

    async fn look_up(&self, name: Name, port: u16) -> Result<Vec<SocketAddr>, Refusal> {
        let turn = Arc::clone(&self.0).acquire_owned().await.map_err(|_| Refusal::Failed)?;
        let asking = tokio::task::spawn_blocking(move || {
            // Held until the system has answered, also if nobody waits any more.
            let _turn = turn;
            (name.as_str(), port).to_socket_addrs().map(Iterator::collect)
        });
        asking.await.map_err(|_| Refusal::Failed)?.map_err(|_: io::Error| Refusal::NoSuchName)
    }
}

fn some(found: Vec<SocketAddr>, is_allowed: impl Fn(IpAddr) -> bool) -> Result<Vec<SocketAddr>, Refusal> {
    let mut found: Vec<_> = found.into_iter().filter(|at| is_allowed(at.ip())).collect();
    found.truncate(MAX_ADDRESSES);
    if found.is_empty() { Err(Refusal::NoSuchName) } else { Ok(found) }
}

/// Connects to the first of the addresses that takes it.
pub(crate) async fn reach<T>(
    addresses: impl Future<Output = Result<Vec<SocketAddr>, Refusal>>,
    connect: impl AsyncFn(SocketAddr) -> io::Result<T>,
) -> Result<T, Refusal> {
    let reaching = async {
        let addresses = addresses.await?;
        let mut why = Refusal::NoSuchName;
        for (left, address) in (0..addresses.len()).rev().zip(&addresses) {
            let limit = if left == 0 { REACH } else { ONE };
            why = match timeout(limit, connect(*address)).await {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(error)) => Refusal::of(&error),
                Err(_) => Refusal::TimedOut,
            };
        }
        Err(why)
    };
    timeout(REACH, reaching).await.unwrap_or(Err(Refusal::TimedOut))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[tokio::test]
    async fn the_first_address_that_answers_is_taken_and_none_that_is_not_allowed() {
        let at = |last| SocketAddr::from(([192, 0, 2, last], 80));
        let found = some(vec![at(1), at(2), at(3)], |address| address != at(1).ip());
        assert_eq!(found, Ok(vec![at(2), at(3)]));
        assert_eq!(some(vec![at(1)], |_| false), Err(Refusal::NoSuchName));

        let connect = async |to: SocketAddr| match to {
            to if to == at(2) => Err(ErrorKind::ConnectionRefused.into()),
            to => Ok(to),
        };
        assert_eq!(reach(async { found }, connect).await, Ok(at(3)));
        assert_eq!(reach(async { Ok(vec![at(2)]) }, connect).await, Err(Refusal::Refused));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_waited_for_for_ever() {
        let connect = async |_: SocketAddr| std::future::pending::<io::Result<()>>().await;
        let addresses = vec![SocketAddr::from(([192, 0, 2, 1], 80)); MAX_ADDRESSES];
        assert_eq!(reach(async { Ok(addresses) }, connect).await, Err(Refusal::TimedOut));
        assert_eq!(reach(std::future::pending(), connect).await, Err(Refusal::TimedOut));
    }
}
