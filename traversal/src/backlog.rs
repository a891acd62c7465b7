//! Connections that wait to be accepted.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

use crate::Connection;

/// More that wait are closed: an application that does not accept has no use for them.
const MAX_WAITING: usize = 64;

/// A queue from the driver to whoever accepts. One that ends while it waits makes room for others.
#[derive(Default)]
pub(crate) struct Backlog {
    queue: Mutex<Queue>,
    added: Notify,
    /// Connections that found no room.
    refused: AtomicU64,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Connection>,
    is_over: bool,
}

/// The driver's end; without it nothing more comes.
pub(crate) struct Filler(pub(crate) Arc<Backlog>);

/// The node's end: without it nobody accepts, and what waits is closed, or it would keep the driver alive.
pub(crate) struct Incoming(pub(crate) Arc<Backlog>);

impl Backlog {
    /// The next connection that is alive; `None` once the driver is gone.
    pub(crate) async fn next(&self) -> Option<Connection> {
        loop {
            let mut added = std::pin::pin!(self.added.notified());
            added.as_mut().enable();
            let (connection, is_over) = {
                let mut queue = self.lock();
                let dead = queue.waiting.iter().take_while(|waiting| is_dead(waiting)).count();
                queue.waiting.drain(..dead);
                (queue.waiting.pop_front(), queue.is_over)
            };
            if connection.is_some() || is_over {
                return connection;
            }
            added.await;
        }
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Filler {
    /// Lets a connection wait, or closes it when too many do.
    pub(crate) fn put(&self, connection: Connection) {
        let mut queue = self.0.lock();
        if queue.is_over {
            drop(queue);
            return connection.close(0, b"nobody accepts connections");
        }
        if queue.waiting.len() >= MAX_WAITING {
            queue.waiting.retain(|waiting| !is_dead(waiting));
        }
        if queue.waiting.len() >= MAX_WAITING {
            drop(queue);
            self.0.refused.fetch_add(1, Ordering::Relaxed);
            return connection.close(0, b"too many connections wait to be accepted");
        }
        queue.waiting.push_back(connection);
        drop(queue);
        self.0.added.notify_one();
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.added.notify_waiters();
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let waiting = {
            let mut queue = self.0.lock();
            queue.is_over = true;
            std::mem::take(&mut queue.waiting)
        };
        drop(waiting);
    }
}

fn is_dead(connection: &Connection) -> bool {
    connection.close_reason().is_some()
}
