//! When a socket can be read or written again, as tokio's reactor tells it.
#![allow(unsafe_code, reason = "the reactor takes descriptors on trust")]

#[cfg(not(unix))]
pub(crate) use other::Readiness;
#[cfg(unix)]
pub(crate) use unix::Readiness;

/// tokio watches a socket of its own for reading and for writing, and is woken for each datagram that has left: as often
/// as for those that come. So a socket is watched for reading once somebody reads from it in a task, and for writing while
/// it is full.
#[cfg(unix)]
mod unix {
    use std::{
        io,
        net::UdpSocket,
        os::fd::{AsRawFd, RawFd},
        sync::{
            Arc, Mutex, OnceLock, PoisonError,
            atomic::{AtomicBool, Ordering},
        },
        task::{Context, Poll, ready},
    };

    use tokio::io::{Interest, unix::AsyncFd};

    use crate::Wakers;

    #[derive(Debug)]
    pub(crate) struct Readiness {
        socket: Arc<UdpSocket>,
        reading: OnceLock<AsyncFd<Watched>>,
        /// The kernel's buffer was full, and nobody has waited since until it no longer was.
        full: AtomicBool,
        /// A descriptor of its own: the reactor takes each only once.
        writing: Mutex<Option<AsyncFd<Watched>>>,
        writers: Arc<Wakers>,
    }

    /// Owns the descriptor that the reactor watches: it stays open, and the same, for as long as this is there.
    #[derive(Debug)]
    struct Watched(Arc<UdpSocket>);

    fn watch(socket: Watched, interest: Interest) -> io::Result<AsyncFd<Watched>> {
        // SAFETY: `Watched` owns its descriptor and always names the same, and the reactor forgets it before it is closed:
        // `AsyncFd` owns both.
        Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
    }

    impl AsRawFd for Watched {
        fn as_raw_fd(&self) -> RawFd {
            self.0.as_raw_fd()
        }
    }

    impl Readiness {
        #[expect(clippy::unnecessary_wraps, reason = "where the system is another one it can fail")]
        pub(crate) fn new(socket: &Arc<UdpSocket>) -> io::Result<Readiness> {
            Ok(Readiness {
                socket: Arc::clone(socket),
                reading: OnceLock::new(),
                full: AtomicBool::new(false),
                writing: Mutex::new(None),
                writers: Arc::default(),
            })
        }

        /// What `receive` returns, as soon as that is not `WouldBlock`.
        pub(crate) fn poll_read<T>(
            &self,
            cx: &mut Context<'_>,
            mut receive: impl FnMut() -> io::Result<T>,
        ) -> Poll<io::Result<T>> {
            let reading = match self.reading.get() {
                Some(reading) => reading,
                None => {
                    let watched = Watched(Arc::clone(&self.socket));
                    let reading = watch(watched, Interest::READABLE)?;
                    self.reading.get_or_init(|| reading)
                }
            };
            loop {
                let mut guard = ready!(reading.poll_read_ready(cx))?;
                if let Ok(result) = guard.try_io(|_| receive()) {
                    return Poll::Ready(result);
                }
            }
        }

        /// The kernel did not take a datagram.
        pub(crate) fn is_full(&self) {
            self.full.store(true, Ordering::Release);
        }

        pub(crate) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            if !self.full.load(Ordering::Acquire) {
                return Poll::Ready(Ok(()));
            }
            self.writers.register(cx.waker());
            let mut slot = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
            let writing = match slot.take() {
                Some(writing) => writing,
                None => watch(Watched(Arc::new(self.socket.try_clone()?)), Interest::WRITABLE)?,
            };
            if let Poll::Ready(ready) =
                writing.poll_write_ready(&mut Context::from_waker(&self.writers.shared()))
            {
                let result = ready.map(drop);
                self.full.store(false, Ordering::Release);
                drop(slot);
                self.writers.wake_all();
                return Poll::Ready(result);
            }
            *slot = Some(writing);
            Poll::Pending
        }
    }
}

#[cfg(not(unix))]
mod other {
    use std::{
        io,
        net::UdpSocket,
        sync::Arc,
        task::{Context, Poll, ready},
    };

    use tokio::io::Interest;

    use crate::Wakers;

    #[derive(Debug)]
    pub(crate) struct Readiness {
        io: tokio::net::UdpSocket,
        writers: Arc<Wakers>,
    }

    impl Readiness {
        pub(crate) fn new(socket: &Arc<UdpSocket>) -> io::Result<Readiness> {
            let io = tokio::net::UdpSocket::from_std(socket.try_clone()?)?;
            Ok(Readiness { io, writers: Arc::default() })
        }

        pub(crate) fn poll_read<T>(
            &self,
            cx: &mut Context<'_>,
            mut receive: impl FnMut() -> io::Result<T>,
        ) -> Poll<io::Result<T>> {
            loop {
                ready!(self.io.poll_recv_ready(cx))?;
                match self.io.try_io(Interest::READABLE, &mut receive) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return Poll::Ready(result),
                }
            }
        }

        pub(crate) fn is_full(&self) {
            let full = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            // Its only effect is the one wanted: the reactor looks again.
            let _ = self.io.try_io(Interest::WRITABLE, full);
        }

        pub(crate) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.writers.register(cx.waker());
            let ready = self.io.poll_send_ready(&mut Context::from_waker(&self.writers.shared()));
            if ready.is_ready() {
                self.writers.wake_all();
            }
            ready
        }
    }
}
