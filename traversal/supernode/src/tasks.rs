//! The tasks of one supernode, so that they end with it.

use std::{
    future::Future,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{task::JoinSet, time::timeout};

/// Loops that run until the end, and connections that come and go.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    loops: Mutex<JoinSet<()>>,
    connections: Mutex<JoinSet<()>>,
}

impl Tasks {
    pub(crate) fn spawn_loop(&self, task: impl Future<Output = ()> + Send + 'static) {
        lock(&self.loops).spawn(task);
    }

    pub(crate) fn spawn_connection(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut connections = lock(&self.connections);
        // Two for one, so that what has ended never gathers.
        for _ in 0..2 {
            connections.try_join_next();
        }
        connections.spawn(task);
    }

    /// Gives connections that are about to end `grace` to do so; then ends everything.
    pub(crate) async fn end(&self, grace: Duration) {
        let mut connections = std::mem::take(&mut *lock(&self.connections));
        let _ = timeout(grace, async { while connections.join_next().await.is_some() {} }).await;
        connections.shutdown().await;
        let mut loops = std::mem::take(&mut *lock(&self.loops));
        loops.shutdown().await;
    }

    pub(crate) fn abort(&self) {
        lock(&self.connections).abort_all();
        lock(&self.loops).abort_all();
    }
}

fn lock(set: &Mutex<JoinSet<()>>) -> MutexGuard<'_, JoinSet<()>> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}
