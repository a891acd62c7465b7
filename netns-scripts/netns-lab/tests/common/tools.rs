//! Servers and programs for the hosts of a lab.

use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use netns_lab::{Host, LabError, Worker};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};

use super::PATIENCE;

/// How often a server looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(20);

/// Echoes what it gets on one port of a host, by UDP and TCP, until it is dropped.
pub(crate) struct Echo {
    stop: Arc<AtomicBool>,
    workers: Vec<Worker<()>>,
}

impl Echo {
    /// Listens on all addresses of the host.
    pub(crate) fn start(host: &Host, port: u16) -> Result<Echo, LabError> {
        let stop = Arc::<AtomicBool>::default();
        let (tcp, udp) =
            host.run(|| (TcpListener::bind(("0.0.0.0", port)), UdpSocket::bind(("0.0.0.0", port))))?;
        let (tcp, udp) = (tcp.expect("a free TCP port"), udp.expect("a free UDP port"));
        let pause = TimeVal::milliseconds(LOOK.as_millis() as i64);
        setsockopt(&tcp, ReceiveTimeout, &pause).expect("accept takes a timeout");
        udp.set_read_timeout(Some(LOOK)).expect("a timeout can be set");
        let (end_tcp, end_udp) = (stop.clone(), stop.clone());
        let tcp = host.start(move || {
            while !end_tcp.load(Ordering::Relaxed) {
                if let Ok((stream, _)) = tcp.accept() {
                    let end = end_tcp.clone();
                    thread::spawn(move || echo(stream, &end));
                }
            }
        })?;
        let udp = host.start(move || {
            let mut buffer = vec![0; 65_536];
            while !end_udp.load(Ordering::Relaxed) {
                if let Ok((length, from)) = udp.recv_from(&mut buffer) {
                    // An answer that can't be sent is a lost one.
                    let _ = udp.send_to(&buffer[..length], from);
                }
            }
        })?;
        Ok(Echo { stop, workers: vec![tcp, udp] })
    }
}

fn echo(mut stream: TcpStream, end: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    stream.set_read_timeout(Some(LOOK)).expect("a timeout can be set");
    while !end.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) if stream.write_all(&buffer[..length]).is_ok() => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Ok(_) | Err(_) => return,
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            worker.join();
        }
    }
}

/// A TCP connection from a host, which gives up after [`PATIENCE`].
pub(crate) fn connect(host: &Host, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = host.run(|| TcpStream::connect_timeout(&to, PATIENCE)).map_err(io::Error::other)??;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Says something on a connection whose other end echoes, and hears it.
pub(crate) fn exchange(stream: &mut TcpStream, words: &[u8]) -> io::Result<()> {
    stream.write_all(words)?;
    let mut heard = vec![0; words.len()];
    stream.read_exact(&mut heard)?;
    if heard == words { Ok(()) } else { Err(io::Error::new(ErrorKind::InvalidData, "another echo")) }
}

/// Asks a UDP echo until it answers; true when it does within `within`.
pub(crate) fn answers(socket: &UdpSocket, to: SocketAddr, within: Duration) -> bool {
    let before = socket.read_timeout().expect("a socket has this");
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout can be set");
    let answered = netns_lab::wait_until(within, || {
        let mut heard = [0; 8];
        let sent = socket.send_to(b"echo?", to).is_ok();
        sent && matches!(socket.recv_from(&mut heard), Ok((5, from)) if from == to)
    });
    socket.set_read_timeout(before).expect("a timeout can be set");
    answered
}

/// Sets a socket option that is a number and that nix has no name for.
pub(crate) fn set_option(socket: &impl AsRawFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the kernel reads four bytes from `value`, which lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as u32,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `ping` with these arguments (beside `-c 1 -W 3`); true when the answer came.
pub(crate) fn ping(from: &Host, to: Ipv4Addr, arguments: &[&str]) -> Result<bool, LabError> {
    let output = run(from, "ping", &[&["-n", "-c", "1", "-W", "3"], arguments, &[&to.to_string()]].concat())?;
    Ok(output.status.success())
}

/// Runs a program in a host to its end.
pub(crate) fn run(host: &Host, program: &str, arguments: &[&str]) -> Result<Output, LabError> {
    let ran = host.command(program)?.args(arguments).output();
    Ok(ran.unwrap_or_else(|error| panic!("can't run {program}: {error} (.ci/run lists the packages)")))
}

/// Runs a program in a host to its end and returns what it printed; a failure is the test's.
pub(crate) fn text(host: &Host, program: &str, arguments: &[&str]) -> Result<String, LabError> {
    let output = run(host, program, arguments)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {}: {}\n{said}{complained}",
        arguments.join(" "),
        output.status
    );
    Ok(said)
}

/// The addresses that `traceroute` names, hop by hop; `None` where nobody answered.
pub(crate) fn traceroute(
    from: &Host,
    to: Ipv4Addr,
    arguments: &[&str],
) -> Result<Vec<Option<Ipv4Addr>>, LabError> {
    let fixed = ["-n", "-q", "1", "-w", "3", "-m", "8"];
    let said = text(from, "traceroute", &[&fixed, arguments, &[&to.to_string()]].concat())?;
    let hop = |line: &str| line.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    Ok(said.lines().skip(1).map(hop).collect())
}

/// A directory of this test's own, removed with all that is in it.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> io::Result<Scratch> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("natbox-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path)?;
        Ok(Scratch(path))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file of it, as an argument.
    pub(crate) fn argument(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("can't remove {}: {error}", self.0.display());
        }
    }
}

/// Bytes that look random and are the same each time: a packet lost, doubled or swapped changes their hash.
#[derive(Clone)]
pub(crate) struct Content(u64);

impl Content {
    pub(crate) fn new(seed: u64) -> Content {
        Content(seed)
    }

    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            // splitmix64
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = self.0;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(word ^ (word >> 31)).to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Sends `length` bytes, closes the sending side, and returns their hash.
pub(crate) fn send_all(stream: &mut TcpStream, seed: u64, length: usize) -> io::Result<u64> {
    let (mut content, mut hash) = (Content::new(seed), DefaultHasher::new());
    let mut buffer = vec![0; 1 << 18];
    let mut left = length;
    while left > 0 {
        let part = left.min(buffer.len());
        content.fill(&mut buffer[..part]);
        hash.write(&buffer[..part]);
        stream.write_all(&buffer[..part])?;
        left -= part;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    Ok(hash.finish())
}

/// Reads to the end and returns how much it was, and its hash.
pub(crate) fn receive_all(stream: &mut TcpStream) -> io::Result<(usize, u64)> {
    let mut hash = DefaultHasher::new();
    let mut buffer = vec![0; 1 << 18];
    let (mut all, mut filled) = (0, 0);
    loop {
        // Hashed in the pieces in which it was sent: the hash of a slice depends on where it is cut.
        let length = stream.read(&mut buffer[filled..])?;
        (all, filled) = (all + length, filled + length);
        if filled == buffer.len() || length == 0 {
            hash.write(&buffer[..filled]);
            filled = 0;
        }
        if length == 0 {
            return Ok((all, hash.finish()));
        }
    }
}
