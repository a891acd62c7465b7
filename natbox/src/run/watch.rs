//! Keeping up with the machine, on a thread of its own: routes when they change, the host's ports every second.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
        },
    },
};

use super::RunError;
use crate::{
    guard::host_addresses,
    host::{HostPorts, Route, routes},
};

/// How often the host's ports are asked for: a port that the host takes is left alone a second later.
const HOST_PORTS: Duration = Duration::from_secs(1);

/// How often routes are read where the kernel does not tell of changes.
const ROUTES: Duration = Duration::from_secs(5);

/// A change rarely comes alone: wait this long for its companions before reading.
const SETTLE: Duration = Duration::from_millis(50);

const GROUPS: u32 = (libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV4_ROUTE) as u32;

/// An interface whose routes matter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watched {
    /// The side that it is.
    pub(super) side: usize,
    /// The kernel's number for it.
    pub(super) index: u32,
    /// A network that is on the link whatever the host's routes say.
    pub(super) on_link: Option<(Ipv4Addr, u8)>,
}

/// What has changed since the last time.
#[derive(Debug, Default)]
pub(super) struct News {
    /// The routes of a side.
    pub(super) routes: Vec<(usize, Vec<Route>)>,
    /// TCP and UDP ports that the host holds on shared addresses.
    pub(super) host_ports: Option<(Vec<u16>, Vec<u16>)>,
}

/// The thread; it ends with this.
#[derive(Debug)]
pub(super) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    news: Mutex<News>,
    has_news: AtomicBool,
    /// Wakes the loop.
    bell: EventFd,
    /// Ends the thread.
    stop: EventFd,
}

impl Watch {
    /// Reads everything for the first time and starts the thread. `shared` are the external addresses that the host
    /// has too.
    ///
    /// # Errors
    /// What cannot be read now.
    pub(super) fn start(interfaces: Vec<Watched>, shared: Vec<Ipv4Addr>) -> Result<Watch, RunError> {
        let eventfd = || {
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(|error| RunError::system("make an eventfd")(error.into()))
        };
        let findings = Arc::new(Shared {
            news: Mutex::default(),
            has_news: AtomicBool::new(false),
            bell: eventfd()?,
            stop: eventfd()?,
        });
        // Listen before reading: a change in between is then read twice, not missed.
        let changes = listen().ok();
        let mut watcher = Watcher {
            findings: findings.clone(),
            interfaces,
            changes,
            host_ports: None,
            shared: shared.clone(),
            missing: Vec::new(),
        };
        watcher.read_routes()?;
        if !shared.is_empty() {
            let ports = HostPorts::new(shared).map_err(RunError::HostPorts)?;
            watcher.tell(|news| news.host_ports = Some((ports.tcp().to_vec(), ports.udp().to_vec())));
            watcher.host_ports = Some(ports);
        }
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(move || watcher.run());
        let thread = thread.map_err(RunError::system("start a thread"))?;
        Ok(Watch { shared: findings, thread: Some(thread) })
    }

    /// Readable when there is news.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.shared.bell.as_fd()
    }

    /// True when [`take`](Watch::take) has something.
    pub(super) fn has_news(&self) -> bool {
        self.shared.has_news.load(Ordering::Acquire)
    }

    /// What has changed.
    pub(super) fn take(&self) -> News {
        // Fails only when the bell has not been rung.
        let _ = self.shared.bell.read();
        self.shared.has_news.store(false, Ordering::Release);
        std::mem::take(&mut *self.shared.news.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // A counter that is full is readable as well.
        let _ = self.shared.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Watcher {
    findings: Arc<Shared>,
    interfaces: Vec<Watched>,
    /// The kernel's word on changes of links, addresses and routes.
    changes: Option<OwnedFd>,
    host_ports: Option<HostPorts>,
    /// External addresses that the host has too, and those of them that it has no longer.
    shared: Vec<Ipv4Addr>,
    missing: Vec<Ipv4Addr>,
}

impl Watcher {
    fn run(mut self) {
        let interval = match (&self.host_ports, &self.changes) {
            (Some(_), _) => Some(HOST_PORTS),
            (None, None) => Some(ROUTES),
            (None, Some(_)) => None,
        };
        loop {
            let changed = match self.wait(interval) {
                Ok(Some(changed)) => changed,
                Ok(None) => return,
                Err(error) => return eprintln!("natbox: no longer follows routes and ports: {error}"),
            };
            if (changed || self.changes.is_none())
                && let Err(error) = self.read_routes()
            {
                eprintln!("natbox: keeps to the former routes: {error}");
            }
            if changed {
                self.look_for_shared();
            }
            self.read_host_ports();
        }
    }

    /// Waits for a change or the next round; whether there was a change, `None` at the end.
    fn wait(&self, interval: Option<Duration>) -> io::Result<Option<bool>> {
        let mut fds = vec![PollFd::new(self.findings.stop.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.changes.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, interval.map_or(PollTimeout::NONE, timeout)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
        if fds.first().is_some_and(is_ready) {
            return Ok(None);
        }
        if !fds.get(1).is_some_and(is_ready) {
            return Ok(Some(false));
        }
        // Only the end interrupts this.
        if poll(&mut fds[..1], timeout(SETTLE)) == Ok(1) {
            return Ok(None);
        }
        self.drain();
        Ok(Some(true))
    }

    /// Takes every message: that there are some is all that matters, and so is an overflow.
    fn drain(&self) {
        let Some(changes) = &self.changes else { return };
        let mut buffer = [0; 8192];
        loop {
            match recv(changes.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(_) | Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(_) => return,
            }
        }
    }

    fn read_routes(&mut self) -> Result<(), RunError> {
        let mut found = Vec::new();
        for watched in &self.interfaces {
            let mut all = routes(watched.index)?;
            let on_link = watched.on_link.map(|destination| Route { destination, gateway: None, metric: 0 });
            all.extend(on_link);
            found.push((watched.side, all));
        }
        self.tell(|news| news.routes = found);
        Ok(())
    }

    /// Says so when the host has lost an address that natbox shares, or has it again: nobody answers ARP for it then.
    fn look_for_shared(&mut self) {
        if self.shared.is_empty() {
            return;
        }
        let Ok(present) = host_addresses() else { return };
        let missing: Vec<_> = self.shared.iter().copied().filter(|addr| !present.contains(addr)).collect();
        for address in missing.iter().filter(|address| !self.missing.contains(address)) {
            eprintln!(
                "natbox: this host no longer has {address}, which natbox shares: replies to it may find nobody; start \
                 natbox anew to share another address"
            );
        }
        for address in self.missing.iter().filter(|address| !missing.contains(address)) {
            eprintln!("natbox: this host has {address} again");
        }
        self.missing = missing;
    }

    fn read_host_ports(&mut self) {
        let Some(ports) = &mut self.host_ports else { return };
        match ports.refresh() {
            Ok(false) => {}
            Ok(true) => {
                let found = (ports.tcp().to_vec(), ports.udp().to_vec());
                self.tell(|news| news.host_ports = Some(found));
            }
            Err(error) => eprintln!("natbox: keeps to the ports that the host had: {error}"),
        }
    }

    fn tell(&self, what: impl FnOnce(&mut News)) {
        what(&mut self.findings.news.lock().unwrap_or_else(PoisonError::into_inner));
        self.findings.has_news.store(true, Ordering::Release);
        // A counter that is full is readable as well.
        let _ = self.findings.bell.write(1);
    }
}

fn timeout(interval: Duration) -> PollTimeout {
    PollTimeout::try_from(interval).unwrap_or(PollTimeout::MAX)
}

/// A netlink socket that becomes readable when links, addresses or routes change.
fn listen() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
    Ok(fd)
}
