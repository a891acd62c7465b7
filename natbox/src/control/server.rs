//! The control socket's side of natbox: a thread that lets clients in, and one for each of them.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, Shutdown},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use natbox_core::InsideId;

use super::{
    answer::{serve, write_line},
    inbox::Handle,
    line::Line,
    place::{self, PlaceError},
};
use crate::settings::Forward;

/// Clients at a time: people, scripts and a few streams of events. Each may hold one copy of the tables.
const CLIENTS: usize = 16;
/// A client that takes nothing for so long is cut off, and its copy of the tables freed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Rest after a failure to accept.
const REST: Duration = Duration::from_millis(500);

/// What the server knows about the natbox that it speaks for.
#[derive(Debug)]
pub struct About {
    /// The outside interface.
    pub outside: String,
    /// The inside interfaces in the order of their ids, each with the network behind it.
    pub inside: Vec<(String, (Ipv4Addr, u8))>,
    /// The external addresses at the start.
    pub external: Vec<Ipv4Addr>,
    /// The external address is the host's as well.
    pub shared: bool,
    /// What keeps the host's stack quiet.
    pub guard: String,
    /// The preset that the behaviour started from.
    pub preset: Option<String>,
}

impl About {
    /// Which inside port `forward` leads to: the one that it names, the one whose network has the address, or the only
    /// one.
    pub fn inside_port(&self, forward: &Forward) -> Result<InsideId, String> {
        let within = |(gateway, len): (Ipv4Addr, u8)| {
            let mask = u32::MAX.checked_shl(32 - u32::from(len.min(32))).unwrap_or(0);
            (u32::from(gateway) ^ u32::from(forward.inside.0)) & mask == 0
        };
        let found: Vec<usize> = match forward.inside_port {
            Some(index) if index < self.inside.len() => vec![index],
            Some(index) => {
                return Err(format!(
                    "{forward}: there is no inside port {index}; they are 0 to {}",
                    self.inside.len() - 1
                ));
            }
            None if self.inside.len() == 1 => vec![0],
            None => (0..self.inside.len()).filter(|index| within(self.inside[*index].1)).collect(),
        };
        match found[..] {
            [index] => Ok(InsideId(index as u16)),
            [] => Err(format!("{forward}: {} is in no inside network; say which with #N", forward.inside.0)),
            _ => Err(format!(
                "{forward}: {} is in several inside networks; say which with #N",
                forward.inside.0
            )),
        }
    }
}

/// The control socket of a running natbox. Dropping it removes the socket and cuts its clients off.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What every client's thread needs.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) handle: Handle,
    pub(super) about: About,
    pub(super) started: Instant,
    /// The preset that the behaviour started from; a client may change it.
    pub(super) preset: Mutex<Option<String>>,
    clients: Mutex<HashMap<u64, UnixStream>>,
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind the locks is always whole: a panic elsewhere spoils nothing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// Makes the control socket, at `path` or in the usual place, and serves it until dropped.
    pub fn start(path: Option<&Path>, handle: Handle, about: About) -> Result<Server, PlaceError> {
        let (listener, path) = place::listen_at(path)?;
        let preset = Mutex::new(about.preset.clone());
        let clients = Mutex::new(HashMap::new());
        let shared = Arc::new(Shared { handle, about, started: Instant::now(), preset, clients });
        let stop = Arc::new(AtomicBool::new(false));
        let accept = {
            let (shared, stop) = (shared.clone(), stop.clone());
            move || accept_all(&listener, &shared, &stop)
        };
        let thread = thread::Builder::new()
            .name("control".to_owned())
            .spawn(accept)
            .map_err(|error| PlaceError::System { path: path.clone(), error })?;
        Ok(Server { path, stop, shared, thread: Some(thread) })
    }

    /// Where the socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread that waits for a client.
        let woken = UnixStream::connect(&self.path).is_ok();
        place::leave(&self.path);
        for client in locked(&self.shared.clients).values() {
            let _ = client.shutdown(Shutdown::Both);
        }
        if let (true, Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

fn accept_all(listener: &UnixListener, shared: &Arc<Shared>, stop: &AtomicBool) {
    for id in 0u64.. {
        let accepted = listener.accept();
        if stop.load(Ordering::Acquire) {
            return;
        }
        match accepted {
            Ok((stream, _)) => admit(id, stream, shared),
            // Out of descriptors, most likely: they come back when clients leave.
            Err(_) => thread::sleep(REST),
        }
    }
}

fn admit(id: u64, stream: UnixStream, shared: &Arc<Shared>) {
    let _ = stream.set_write_timeout(Some(PATIENCE));
    let mut clients = locked(&shared.clients);
    if clients.len() >= CLIENTS {
        drop(clients);
        let message = format!("{CLIENTS} clients are connected already: try again later");
        let _ = write_line(&mut &stream, &Line::Error { message });
        return;
    }
    let Ok(twin) = stream.try_clone() else { return };
    clients.insert(id, twin);
    drop(clients);
    let served = shared.clone();
    let thread = thread::Builder::new().name("control-client".to_owned()).spawn(move || {
        // A client that hangs up or stands still ends its own thread and nothing else.
        let _ = serve(&stream, &served);
        locked(&served.clients).remove(&id);
    });
    if thread.is_err() {
        locked(&shared.clients).remove(&id);
    }
}
