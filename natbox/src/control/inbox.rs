//! How other threads ask the loop: a bounded queue of jobs and an eventfd that wakes it.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel},
    },
    time::{Duration, SystemTime},
};

use natbox_core::Event;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::job::{Ask, Job, Reply};

/// Jobs that may wait for the loop; askers beyond that block until it has caught up.
const QUEUE: usize = 64;
/// Events that a subscriber may be behind before it loses some: half a second of a fast flow generator.
const EVENTS: usize = 16_384;
/// The loop answers within one turn; it is gone or wedged when it takes this long.
const PATIENCE: Duration = Duration::from_secs(10);

/// Both ends of a new queue: the loop keeps the [`Inbox`], everybody else a clone of the [`Handle`].
pub fn channel() -> io::Result<(Handle, Inbox)> {
    let (sender, jobs) = sync_channel(QUEUE);
    let bell = Arc::new(Bell {
        fd: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        rung: AtomicBool::new(false),
    });
    Ok((Handle { sender, bell: bell.clone() }, Inbox { jobs, bell, subscribers: Vec::new() }))
}

#[derive(Debug)]
struct Bell {
    fd: EventFd,
    rung: AtomicBool,
}

/// The loop's end of the queue.
///
/// Poll [`Inbox::fd`] for reading; when it is readable take jobs with `next` until there is none and answer each at
/// once. Hand every [`Event`] of the engine to [`Inbox::publish`].
#[derive(Debug)]
pub struct Inbox {
    jobs: Receiver<Job>,
    bell: Arc<Bell>,
    subscribers: Vec<Subscriber>,
}

#[derive(Debug)]
struct Subscriber {
    /// Asks for events of port blocks alone.
    blocks: bool,
    events: SyncSender<Stamped>,
    lost: Arc<AtomicU64>,
}

impl Inbox {
    /// Readable when a job may be waiting.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.bell.fd.as_fd()
    }

    /// Passes an event on to whoever listens; one who does not keep up loses it and learns how many he lost.
    pub fn publish(&mut self, event: Event) {
        if self.subscribers.is_empty() {
            return;
        }
        let stamped = Stamped { at: SystemTime::now(), event };
        let is_block = matches!(event, Event::BlockAssigned(_) | Event::BlockReleased(_));
        self.subscribers.retain(|subscriber| {
            if subscriber.blocks && !is_block {
                return true;
            }
            match subscriber.events.try_send(stamped) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    subscriber.lost.fetch_add(1, Ordering::Relaxed);
                    true
                }
                Err(TrySendError::Disconnected(_)) => false,
            }
        });
    }

    fn subscribe(&mut self, blocks: bool, reply: &SyncSender<Reply>) {
        let (events, receiver) = sync_channel(EVENTS);
        let lost = Arc::new(AtomicU64::new(0));
        if reply.try_send(Reply::Subscribed(Subscription { events: receiver, lost: lost.clone() })).is_ok() {
            self.subscribers.push(Subscriber { blocks, events, lost });
        }
    }
}

/// The jobs that are waiting; it costs one load when there is none, and there may be some later.
impl Iterator for Inbox {
    type Item = Job;

    fn next(&mut self) -> Option<Job> {
        loop {
            match self.jobs.try_recv() {
                Ok(Job { ask: Ask::Subscribe { blocks }, reply }) => self.subscribe(blocks, &reply),
                Ok(job) => return Some(job),
                // Whoever queues a job rings after it: clear first, then look once more.
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => {
                    if !self.bell.rung.swap(false, Ordering::AcqRel) {
                        return None;
                    }
                    // Only ever fails when there is nothing to read.
                    let _ = self.bell.fd.read();
                }
            }
        }
    }
}

/// Everybody else's end of the queue.
#[derive(Clone, Debug)]
pub struct Handle {
    sender: SyncSender<Job>,
    bell: Arc<Bell>,
}

/// The loop has ended, or has not answered in ten seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("natbox is stopping and no longer answers")]
pub struct Gone;

impl Handle {
    /// Asks the loop and waits for its answer.
    pub fn ask(&self, ask: Ask) -> Result<Reply, Gone> {
        let (reply, answer) = sync_channel(1);
        self.sender.send(Job { ask, reply }).map_err(|_| Gone)?;
        self.bell.rung.store(true, Ordering::Release);
        // A full counter is already readable.
        let _ = self.bell.fd.write(1);
        answer.recv_timeout(PATIENCE).map_err(|_| Gone)
    }
}

/// An event and when it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamped {
    /// Wall-clock time.
    pub at: SystemTime,
    /// What happened.
    pub event: Event,
}

/// A stream of events; dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    events: Receiver<Stamped>,
    lost: Arc<AtomicU64>,
}

impl Subscription {
    /// The next event; `Ok(None)` when none has come in time.
    pub fn next(&self, patience: Duration) -> Result<Option<Stamped>, Gone> {
        match self.events.recv_timeout(patience) {
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Gone),
        }
    }

    /// Events lost since this was last asked, because they came faster than they were taken.
    pub fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}
