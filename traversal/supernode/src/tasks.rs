//! The tasks of one supernode, so that they end with it.

use std::{
    future::Future,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use tokio::{task::JoinSet, time::timeout};
use traversal_net::Stop;

/// Loops that run until the end, and connections that come and go.
#[derive(Debug)]
pub(crate) struct Tasks {
    loops: Mutex<JoinSet<()>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stop: Stop,
    connections: Mutex<JoinSet<()>>,
}

impl Tasks {
    /// # Errors
    /// The system's: no more file descriptors.
    pub(crate) fn new() -> io::Result<Tasks> {
        let stop = Stop::new()?;
        Ok(Tasks { loops: Mutex::default(), threads: Mutex::default(), stop, connections: Mutex::default() })
    }

    /// A thread that ends when it is told to stop.
    pub(crate) fn spawn_thread(
        &self,
        start: impl FnOnce(Stop) -> io::Result<JoinHandle<()>>,
    ) -> io::Result<()> {
        let thread = start(self.stop.clone())?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }

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
        self.stop.signal();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        // They end at once; one that has panicked is gone as well.
        let joining = || threads.into_iter().for_each(|thread| drop(thread.join()));
        let _ = tokio::task::spawn_blocking(joining).await;
    }

    pub(crate) fn abort(&self) {
        lock(&self.connections).abort_all();
        lock(&self.loops).abort_all();
        self.stop.signal();
    }
}

fn lock(set: &Mutex<JoinSet<()>>) -> MutexGuard<'_, JoinSet<()>> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}
