//! Network namespaces of a test's own, without names: they end with the test, whatever becomes of it.
//!
//! A [`Space`] is held by a descriptor; work in it is done by threads and programs that enter it. Settings for
//! natbox's library and a second process of this binary ([`actor`]) are here as well, for all tests that need them.

#![allow(dead_code)] // each test binary uses a part of it

use std::{
    fs::File,
    io::{BufRead, BufReader},
    os::{
        fd::AsRawFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Child, Command, ExitCode, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::Trial;
use natbox::{
    host::{HostError, Plan, Wiring},
    settings::{FastPathChoice, GuardChoice, InsideSpec, Settings, Workers},
};
use natbox_core::{Behavior, Limits};
use nix::{
    sched::{CloneFlags, setns, unshare},
    unistd::Uid,
};

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Space {
    file: File,
}

impl Space {
    /// A namespace with its loopback interface up and without reverse-path filters.
    pub(crate) fn new() -> Space {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests make network namespaces");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let space = Space { file: file.join().unwrap() };
        space.ip("link set lo up");
        for of in ["all", "default"] {
            space.sysctl(&format!("net/ipv4/conf/{of}/rp_filter"), "0");
        }
        space
    }

    /// A path by which any program finds it, as long as this test runs.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs `work` on a thread in it.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A program that will run in it.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let file = self.file.try_clone().unwrap();
        // SAFETY: setns(2) is a system call and nothing else.
        unsafe { command.pre_exec(move || Ok(setns(&file, CloneFlags::CLONE_NEWNET)?)) };
        command
    }

    /// Runs a program in it to its end.
    pub(crate) fn output(&self, words: &str) -> Output {
        let (program, arguments) = words.split_once(' ').unwrap_or((words, ""));
        let mut command = self.command(program);
        command.args(arguments.split_whitespace()).output().unwrap_or_else(|error| panic!("{words}: {error}"))
    }

    /// What a program in it prints; it must succeed.
    pub(crate) fn prints(&self, words: &str) -> String {
        let output = self.output(words);
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.prints(&format!("ip {arguments}"))
    }

    /// Sets a value under `/proc/sys`.
    pub(crate) fn sysctl(&self, path: &str, value: &str) {
        self.run(|| std::fs::write(format!("/proc/sys/{path}"), value))
            .unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    /// Its interfaces, addresses, routes and filters, as text.
    pub(crate) fn state(&self) -> String {
        let parts = ["ip -d link", "ip addr", "ip route show table all", "ip rule"];
        let nft = self.output("nft list ruleset");
        let text = parts.map(|part| self.prints(part)).concat() + &String::from_utf8_lossy(&nft.stdout);
        text.lines().filter_map(settled).collect::<Vec<_>>().join("\n")
    }
}

/// A line without what the kernel settles in its own time after a cable was plugged in: whether there is a carrier (of
/// routes, too), and IPv6's multicast routes. `None` when nothing is left.
fn settled(line: &str) -> Option<String> {
    if line.starts_with("multicast ff00::/8") {
        return None;
    }
    let (Some((name, rest)), Some((_, state))) = (line.split_once(": <"), line.split_once(" state ")) else {
        return Some(line.replace(" linkdown", ""));
    };
    let (flags, rest) = rest.split_once('>').unwrap();
    let up = flags.split(',').any(|flag| flag == "UP");
    let rest = rest.split_once(" state ").unwrap().0;
    let state = state.split_once(' ').unwrap().1;
    Some(format!("{name}: up={up} {rest} {state}"))
}

/// A host with an outside interface and a router beyond it.
pub(crate) struct Net {
    pub(crate) host: Space,
    pub(crate) router: Space,
}

impl Net {
    pub(crate) fn new() -> Net {
        let net = Net { host: Space::new(), router: Space::new() };
        cable((&net.host, "eth0", "192.0.2.10/24"), (&net.router, "eth0", "192.0.2.1/24"));
        net.host.ip("route add default via 192.0.2.1");
        net
    }

    pub(crate) fn plan(&self, settings: &Settings) -> Result<Plan, HostError> {
        self.host.run(|| Plan::new(settings))
    }

    pub(crate) fn apply(&self, settings: &Settings) -> Wiring {
        self.host.run(|| Plan::new(settings).unwrap().apply().unwrap())
    }

    /// The one line of the error that these settings meet, and proof that nothing was changed.
    pub(crate) fn refusal(&self, settings: &Settings) -> String {
        let before = self.host.state();
        let error = self.host.run(|| Plan::new(settings).and_then(Plan::apply)).unwrap_err().to_string();
        assert_eq!(self.host.state(), before);
        assert!(!error.contains('\n'), "{error}");
        error
    }
}

/// With these inside devices, as on the command line.
pub(crate) fn with_inside(inside: &[&str]) -> Settings {
    let inside: Vec<InsideSpec> = inside.iter().map(|spec| spec.parse().unwrap()).collect();
    Settings { inside, ..settings("eth0") }
}

/// Runs a program to its end, which must be a good one; what it printed.
pub(crate) fn succeeds(mut command: Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
    text.into_owned()
}

/// Two interfaces joined by a cable: `(space, name, ADDR/LEN)`.
pub(crate) fn cable(a: (&Space, &str, &str), b: (&Space, &str, &str)) {
    a.0.ip(&format!("link add {} type veth peer name {} netns {}", a.1, b.1, b.0.path()));
    for (space, name, net) in [a, b] {
        // No router solicitations and the like: what is on the wire is the test's.
        space.ip(&format!("link set {name} addrgenmode none"));
        if !net.is_empty() {
            space.ip(&format!("addr add {net} dev {name}"));
        }
        space.ip(&format!("link set {name} up"));
    }
}

/// As `natbox --outside OUTSIDE` alone would have them.
pub(crate) fn settings(outside: &str) -> Settings {
    Settings {
        behavior: Behavior::default(),
        preset: None,
        seed: None,
        outside: outside.to_owned(),
        inside: Vec::new(),
        lan: Vec::new(),
        external: Vec::new(),
        forwards: Vec::new(),
        limits: Limits::default(),
        mtu: None,
        offload: true,
        fast_path: FastPathChoice::Auto,
        guard: GuardChoice::Auto,
        workers: Workers::default(),
        command: None,
        log_packets: false,
        names: Vec::new(),
        json: false,
        control: None,
    }
}

const ACTOR: &str = "NATBOX_TEST_ACTOR";

/// The part that this process plays, if it is a second process of a test.
pub(crate) fn actor() -> Option<String> {
    std::env::var(ACTOR).ok()
}

/// A second process of this binary, to play a part: `command` starts it, such as `unshare` or the binary itself.
pub(crate) fn play(mut command: Command, part: &str) -> Command {
    command.env(ACTOR, part);
    command
}

/// The binary itself in a namespace.
pub(crate) fn self_in(space: &Space) -> Command {
    space.command(std::env::current_exe().unwrap().to_str().unwrap())
}

/// A second process that has said "ready"; killed on drop.
pub(crate) struct Ready {
    child: Child,
}

impl Ready {
    pub(crate) fn start(mut command: Command) -> Ready {
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let ready = Ready { child };
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        ready
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: it has no chance to clean up.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        assert_eq!(self.child.wait().unwrap().signal(), Some(9));
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// For a second process: says that it is ready and lives until it is killed or its parent is gone.
pub(crate) fn ready() -> ExitCode {
    println!("ready");
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
    ExitCode::SUCCESS
}

/// Waits until `condition` gives something.
pub(crate) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "timed out: {what}");
        thread::yield_now();
    }
}

/// A test from a function that panics when it fails. Without root it is listed as ignored: it makes namespaces, tcx
/// programs and TUN devices.
pub(crate) fn trial(name: impl Into<String>, test: impl FnOnce() + Send + 'static) -> Trial {
    let run = move || {
        test();
        Ok(())
    };
    Trial::test(name, run).with_kind("root").with_ignored_flag(!Uid::effective().is_root())
}
