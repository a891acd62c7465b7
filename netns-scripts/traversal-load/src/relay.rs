//! The same load through a supernode and through a TURN server: many pairs of sockets that send to each other, both ways.
//!
//! Every datagram is sent by a call of its own and received by a call of its own, from sockets in one host next to the
//! relay. With a supernode both sockets of a pair are clients, bound to a session, and the pair has a channel. With TURN one
//! is a client with an allocation and a channel, the other is the peer: each packet crosses the relay once, as there.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use traversal_proto::wire::frame::data_header;

use crate::{
    figure::{Figure, cost, gain},
    place::{Place, cpu_of},
    session::{Control, Lobby, bind},
    turn,
};

/// A pair's packets are sent in ticks, as a timer in a program would do.
const TICK: Duration = Duration::from_millis(1);
/// Datagrams taken from one socket before the next has its turn.
const IN_A_ROW: usize = 32;

/// What relays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Ours.
    Supernode,
    /// Any TURN server that wants no credentials.
    Turn,
}

/// What is to be measured.
pub(crate) struct Plan {
    pub(crate) kind: Kind,
    pub(crate) relay: SocketAddr,
    pub(crate) place: Place,
    pub(crate) pid: u32,
    pub(crate) sessions: usize,
    pub(crate) size: u16,
    /// Packets per second of all pairs together; `None`: as many as can be sent.
    pub(crate) rate: Option<u64>,
    pub(crate) window: Duration,
    pub(crate) warm_up: Duration,
}

/// One of the two sockets of a pair.
struct End {
    socket: UdpSocket,
    /// What it sends.
    datagram: Vec<u8>,
    /// How long what it receives has to be.
    expected: usize,
}

/// What the threads share.
#[derive(Default)]
struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
    stop: AtomicBool,
}

pub(crate) fn run(plan: &Plan) -> Result<Vec<Figure>> {
    plan.place.block_on(|| async {
        let lobby = Lobby::new(plan.relay)?;
        let (ends, controls) = match plan.kind {
            Kind::Supernode => through_supernode(plan, &lobby).await?,
            Kind::Turn => (through_turn(plan)?, Vec::new()),
        };
        let (rate, warm_up, window, pid) = (plan.rate, plan.warm_up, plan.window, plan.pid);
        // The runtime goes on meanwhile: it keeps the control connections.
        let loading = move || (load(&ends, rate, warm_up, window, pid), ends);
        let (figures, ends) = tokio::task::spawn_blocking(loading).await?;
        drop(controls);
        lobby.close().await;
        if plan.kind == Kind::Turn {
            ends.iter().step_by(2).try_for_each(|client| turn::release(&client.socket))?;
        }
        figures
    })
}

async fn through_supernode(plan: &Plan, lobby: &Lobby) -> Result<(Vec<End>, Vec<Control>)> {
    let mut controls = lobby.connect(plan.sessions * 2).await?;
    let mut ends = Vec::new();
    for pair in controls.chunks_mut(2) {
        let [a, b] = pair else { bail!("controls come in pairs") };
        let sessions = [a.register().await?, b.register().await?];
        let (near, far) = a.channel_to(b).await?;
        for (session, channel) in sessions.iter().zip([near, far]) {
            let socket = connected(plan.relay)?;
            bind(&socket, session)?;
            let datagram = [&data_header(channel)[..], &vec![0; usize::from(plan.size)]].concat();
            ends.push(End { socket, expected: datagram.len(), datagram });
        }
    }
    Ok((ends, controls))
}

fn through_turn(plan: &Plan) -> Result<Vec<End>> {
    let payload = vec![0; usize::from(plan.size)];
    let framed = [&turn::channel_data_header(plan.size)[..], &payload].concat();
    let mut ends = Vec::new();
    for _ in 0..plan.sessions {
        let client = connected(plan.relay)?;
        let peer = connected(turn::allocate(&client)?)?;
        turn::bind_channel(&client, peer.local_addr()?)?;
        ends.push(End { socket: client, datagram: framed.clone(), expected: framed.len() });
        ends.push(End { socket: peer, datagram: payload.clone(), expected: payload.len() });
    }
    Ok(ends)
}

pub(crate) fn connected(to: SocketAddr) -> Result<UdpSocket> {
    let socket =
        UdpSocket::bind("0.0.0.0:0").context("no more sockets: raise the limit of open files (ulimit -n)")?;
    socket.connect(to)?;
    Ok(socket)
}

fn load(
    ends: &[End],
    rate: Option<u64>,
    warm_up: Duration,
    window: Duration,
    pid: u32,
) -> Result<Vec<Figure>> {
    for end in ends {
        end.socket.set_nonblocking(true)?;
    }
    let counters = Counters::default();
    let look = || {
        let counts = [&counters.sent, &counters.received].map(|count| count.load(Ordering::Relaxed) as f64);
        Ok::<_, anyhow::Error>((counts, cpu_of(pid)?, Instant::now()))
    };
    let ((before, cpu_before, start), (after, cpu_after, end)) = thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(ends, &counters));
        scope.spawn(|| send(ends, rate, &counters));
        thread::sleep(warm_up);
        let first = look();
        thread::sleep(window);
        let last = look();
        counters.stop.store(true, Ordering::Relaxed);
        receiving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok::<_, anyhow::Error>((first?, last?))
    })?;
    let (sent, received, cpu) = (after[0] - before[0], after[1] - before[1], cpu_after - cpu_before);
    if received == 0.0 {
        bail!("nothing came through while the window was open ({sent} datagrams were sent)");
    }
    let seconds = (end - start).as_secs_f64();
    let mut figures = vec![
        gain("delivered", "k/s", received / seconds / 1e3),
        cost("CPU of the relay", "s/million", cpu / (received / 1e6)),
    ];
    if cpu > 0.0 {
        figures.push(gain("delivered per CPU second", "k", received / cpu / 1e3));
    }
    let lost = (100.0 * (1.0 - received / sent)).max(0.0);
    figures.push(cost("lost", "%", lost));
    Ok(figures)
}

/// All sockets in turn, at that rate or as fast as it goes. What the kernel does not take was not sent.
fn send(ends: &[End], rate: Option<u64>, counters: &Counters) {
    let start = Instant::now();
    let (mut tried, mut all) = (0_u64, ends.iter().cycle());
    while !counters.stop.load(Ordering::Relaxed) {
        let due = match rate {
            Some(rate) => (start.elapsed().as_secs_f64() * rate as f64) as u64,
            None => tried + 256,
        };
        if due <= tried {
            thread::sleep(TICK);
            continue;
        }
        for end in all.by_ref().take((due - tried) as usize) {
            if end.socket.send(&end.datagram).is_ok() {
                counters.sent.fetch_add(1, Ordering::Relaxed);
            }
        }
        tried = due;
    }
}

fn receive(ends: &[End], counters: &Counters) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    for (at, end) in ends.iter().enumerate() {
        epoll.add(end.socket.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, at as u64))?;
    }
    let (mut events, mut buffer) = (vec![EpollEvent::empty(); 256], [0; 2048]);
    while !counters.stop.load(Ordering::Relaxed) {
        let ready = match epoll.wait(&mut events, EpollTimeout::from(20_u8)) {
            Ok(ready) => ready,
            Err(nix::Error::EINTR) => continue,
            Err(error) => return Err(error).context("cannot wait for datagrams"),
        };
        for event in &events[..ready] {
            let Some(end) = ends.get(event.data() as usize) else { continue };
            for _ in 0..IN_A_ROW {
                match end.socket.recv(&mut buffer) {
                    Ok(length) if length == end.expected => {
                        counters.received.fetch_add(1, Ordering::Relaxed);
                    }
                    // The supernode's word that a frame was dropped, or a port that was not open yet.
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                    Err(_) => break,
                }
            }
        }
    }
    Ok(())
}
