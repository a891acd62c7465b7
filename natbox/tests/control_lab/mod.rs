//! A NAT in memory, the loop that owns it, and the server that its clients meet.

use std::{
    net::Ipv4Addr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
        mpsc::{Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use etherparse::PacketBuilder;
use natbox::{
    control::{self, About, Client, ClientError, Datapath, Only, PortStats, Request, Server},
    output::State,
};
use natbox_core::{Config, InsideId, InsidePort, Nat, Packet, PortRange, Side, Time, Verdict};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 2);
pub(crate) const EXTERNAL: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const REMOTE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// What the loop is told besides its inbox: inside ports of UDP packets to be translated outwards, and whether they pass.
type Outbound = (std::ops::Range<u16>, bool, Sender<()>);

/// A NAT in memory that is served.
pub(crate) struct Lab {
    server: Option<Server>,
    pub(crate) path: PathBuf,
    outbound: Arc<Mutex<Vec<Outbound>>>,
    stop: Arc<AtomicBool>,
    pub(crate) turns: Arc<AtomicU32>,
    turning: Option<JoinHandle<()>>,
}

pub(crate) fn place() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    // Short: the path of a unix socket has 107 bytes at most.
    std::env::temp_dir().join(format!("natbox-test-{}-{number}", std::process::id()))
}

pub(crate) fn about(shared: bool) -> About {
    About {
        outside: "eth0".to_owned(),
        inside: vec![
            ("tun0".to_owned(), (Ipv4Addr::new(10, 64, 0, 1), 24)),
            ("tun1".to_owned(), (Ipv4Addr::new(10, 65, 0, 1), 24)),
        ],
        external: vec![EXTERNAL],
        shared,
        guard: "off".to_owned(),
        preset: Some("rfc".to_owned()),
    }
}

impl Lab {
    pub(crate) fn start(shared: bool) -> Lab {
        let path = place();
        let ports = if shared { PortRange::new(1024, 32_767).unwrap() } else { PortRange::ALL };
        let config = Config { report_events: true, ports, ..Config::new(EXTERNAL.into()) };
        let mut nat = Nat::new(config, 7).unwrap();
        for third in [64, 65] {
            let gateway = Ipv4Addr::new(10, third, 0, 1).into();
            nat.add_inside(InsidePort { gateway, prefix_len: 24, mtu: 1500, shared: false }).unwrap();
        }
        let (handle, mut inbox) = control::channel().unwrap();
        let (stop, turns, outbound) =
            (Arc::default(), Arc::default(), Arc::<Mutex<Vec<Outbound>>>::default());
        let turning = {
            let (stop, turns, outbound) = (Arc::clone(&stop), Arc::clone(&turns), Arc::clone(&outbound));
            thread::spawn(move || {
                let started = Instant::now();
                let port = PortStats {
                    name: "tun0".to_owned(),
                    counters: vec![("received_packets", 3)],
                    workers: Vec::new(),
                };
                let datapath = Datapath { ports: vec![port], fast_path: None };
                while !AtomicBool::load(&stop, Ordering::Acquire) {
                    let now = Time::ZERO + started.elapsed();
                    for (range, passes, done) in outbound.lock().unwrap().drain(..) {
                        range.for_each(|port| send(&mut nat, port, passes, now));
                        done.send(()).unwrap();
                    }
                    for job in inbox.by_ref() {
                        let _ = job.answer(&mut nat, &datapath, now);
                    }
                    while let Some(event) = nat.poll_event() {
                        inbox.publish(event);
                    }
                    AtomicU32::fetch_add(&turns, 1, Ordering::Relaxed);
                    let mut fds = [PollFd::new(inbox.fd(), PollFlags::POLLIN)];
                    poll(&mut fds, PollTimeout::from(1u8)).unwrap();
                }
            })
        };
        let server = Server::start(Some(&path), handle, about(shared)).unwrap();
        Lab { server: Some(server), path, outbound, stop, turns, turning: Some(turning) }
    }

    /// Sends a UDP packet from each of these ports of the inside host.
    pub(crate) fn send_from(&self, ports: std::ops::Range<u16>) {
        self.try_from(ports, true);
    }

    fn try_from(&self, ports: std::ops::Range<u16>, passes: bool) {
        let (done, sent) = channel();
        self.outbound.lock().unwrap().push((ports, passes, done));
        sent.recv_timeout(DEADLINE).unwrap();
    }

    /// The same, and each of them is refused.
    pub(crate) fn refuse(&self, ports: std::ops::Range<u16>) {
        let drops = |lab: &Lab| lab.show(Only::default()).counted.unwrap().dropped();
        let (before, count) = (drops(self), ports.len() as u64);
        self.try_from(ports, false);
        assert_eq!(drops(self), before + count);
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(Some(&self.path)).unwrap()
    }

    pub(crate) fn show(&self, only: Only) -> State {
        let mut state = State::default();
        let request = Request::Show { mappings: true, sessions: true, ports: true, subscribers: true, only };
        self.client().request(&request, |line| state.take(line)).unwrap();
        state
    }

    pub(crate) fn refused(&self, request: &Request) -> String {
        match self.client().request(request, |_| ()) {
            Err(ClientError::Refused(message)) => message,
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.server = None;
        self.stop.store(true, Ordering::Release);
        let ended = self.turning.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking());
        assert!(!self.path.exists() || thread::panicking(), "the socket stayed behind");
    }
}

fn send(nat: &mut Nat, port: u16, passes: bool, now: Time) {
    let mut bytes = Vec::new();
    let packet = PacketBuilder::ipv4(INSIDE.octets(), REMOTE.octets(), 64).udp(port, 53);
    packet.write(&mut bytes, b"hello").unwrap();
    let verdict = nat.outbound(InsideId(0), &mut Packet::plain(&mut bytes), now);
    assert_eq!(verdict == Verdict::Forward(Side::Outside), passes, "port {port}: {verdict:?}");
}
