//! TCP streams.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};

use super::meter::measure;
use super::{Direction, Ends, Load, LoadError, PATIENCE, Plan, Report, failed};

/// Bytes of one read or write: several super-frames.
const CHUNK: usize = 256 * 1024;

pub(super) fn run(
    load: Load,
    ends: &Ends,
    plan: &Plan,
    direction: Direction,
    flows: u16,
) -> Result<Report, LoadError> {
    let pairs = connect(ends, flows)?;
    let delivered: Vec<AtomicU64> = pairs.iter().map(|_| AtomicU64::new(0)).collect();
    let measured = thread::scope(|scope| {
        for ((client, server), delivered) in pairs.iter().zip(&delivered) {
            let (from, to) = if direction == Direction::Up { (client, server) } else { (server, client) };
            scope.spawn(move || write_all(from));
            scope.spawn(move || read_all(to, delivered));
        }
        let measured = measure(plan, || [delivered.iter().map(|it| it.load(Ordering::Relaxed)).sum()]);
        for stream in pairs.iter().flat_map(|(client, server)| [client, server]) {
            // It ends the threads; a connection that broke before has ended them already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        measured
    });
    let ([bytes], window) = measured?;
    Report { bytes, ..Report::new(load, &window) }.unless_empty()
}

/// So many connections through the NAT: the client's and the server's socket of each.
fn connect(ends: &Ends, flows: u16) -> Result<Vec<(TcpStream, TcpStream)>, LoadError> {
    let listening = ends.server.run(|| {
        let listener = TcpListener::bind((ends.address, 0))?;
        setsockopt(&listener, ReceiveTimeout, &TimeVal::seconds(PATIENCE.as_secs() as i64))?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    })?;
    let (listener, address) =
        listening.map_err(failed(format!("can't listen on {} in {}", ends.address, ends.server.netns)))?;
    let pair = |_| {
        let connected = ends.client.run(|| TcpStream::connect_timeout(&address, PATIENCE))?;
        let client = connected
            .map_err(failed(format!("no TCP connection from {} to {address}", ends.client.netns)))?;
        let (server, _) =
            listener.accept().map_err(failed(format!("a connection never reached {address}")))?;
        Ok((client, server))
    };
    (0..flows).map(pair).collect()
}

fn write_all(mut stream: &TcpStream) {
    let chunk = vec![0x5a; CHUNK];
    while stream.write(&chunk).is_ok() {}
}

fn read_all(mut stream: &TcpStream, delivered: &AtomicU64) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(length @ 1..) = stream.read(&mut chunk) {
        delivered.fetch_add(length as u64, Ordering::Relaxed);
    }
}
