//! The program: what it says, and how it ends.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use traversal_proto::wire::message::ToSupernode;

const SOON: Duration = Duration::from_secs(30);

/// A folder for one test, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("supernode-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn supernode(folder: &Folder, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_supernode"));
    command.args(arguments).env("STATE_DIRECTORY", &folder.0).env_remove("RUST_LOG");
    command
}

fn run(folder: &Folder, arguments: &[&str]) -> Output {
    supernode(folder, arguments).output().unwrap()
}

/// What it says to standard error when it refuses: one line.
fn refusal(folder: &Folder, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    assert!(!output.status.success(), "{arguments:?} was taken");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn help_teaches() {
    let folder = Folder::new();
    let help = run(&folder, &["--help"]);
    assert!(help.status.success());
    let text = String::from_utf8(help.stdout).unwrap();
    for needed in ["--listen", "--external", "--config", "--admin", "3478", "Examples:", "RUST_LOG"] {
        assert!(text.contains(needed), "{needed} is not in\n{text}");
    }
}

#[test]
fn the_id_is_kept() {
    let folder = Folder::new();
    let arguments = ["id", "--external", "203.0.113.10"];
    let first = String::from_utf8(run(&folder, &arguments).stdout).unwrap();
    let again = String::from_utf8(run(&folder, &arguments).stdout).unwrap();
    assert_eq!(first, again);
    let (id, connect) = first.trim().split_once('\n').unwrap();
    assert_eq!(connect, format!("{id}@203.0.113.10:3478"));
    let mode = fs::metadata(folder.0.join("key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn mistakes_are_told_in_one_line() {
    let folder = Folder::new();
    // The key is made here, and the program has nothing to say about it later.
    run(&folder, &["id"]);
    let wrong = folder.file("wrong.toml", "tcp = true\nlisten_on = 3\n");
    assert!(refusal(&folder, &["--config", &wrong]).contains("wrong.toml line 2: unknown field `listen_on`"));
    assert!(refusal(&folder, &["--config", "/nowhere.toml"]).contains("/nowhere.toml"));
    let no_key = folder.file("not-a-key", "hello");
    assert!(refusal(&folder, &["--key", &no_key]).contains("64 hexadecimal digits"));
    let a_folder = folder.0.to_str().unwrap();
    assert!(refusal(&folder, &["--key", a_folder]).contains("cannot read the key"));
    assert!(refusal(&folder, &["--set", "limits.connections=0"]).contains("limits.connections is 0"));
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = refusal(&folder, &["--listen", &address]);
    assert!(said.contains(&address) && said.contains("in use"), "{said}");
    let elsewhere = refusal(&folder, &["--listen", "192.0.2.1:3478"]);
    assert!(elsewhere.contains("no interface of this machine has 192.0.2.1"), "{elsewhere}");
}

#[test]
fn a_good_configuration_is_called_good() {
    let folder = Folder::new();
    let good = folder.file("good.toml", "[limits]\nconnections = 5\n");
    let output = run(&folder, &["check", "--config", &good]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!folder.0.join("key").exists(), "looking makes no key");
}

/// A running program, killed if the test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that was started and logs.
fn started(folder: &Folder, arguments: &[&str]) -> (Running, impl Iterator<Item = String> + use<>) {
    let mut command = supernode(folder, &[&["--log", "json"], arguments].concat());
    let mut running = Running(command.stderr(Stdio::piped()).spawn().unwrap());
    let log = BufReader::new(running.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    (running, log)
}

fn until(log: &mut impl Iterator<Item = String>, words: &str) -> String {
    let line = log.find(|line| line.contains(words));
    let line = line.unwrap_or_else(|| panic!("it never says {words:?}"));
    assert!(line.starts_with('{') && line.ends_with('}'), "no JSON: {line}");
    line
}

/// The same, with the key that clients expect.
fn started_with_key(folder: &Folder, arguments: &[&str]) -> (Running, impl Iterator<Item = String> + use<>) {
    let secret = folder.file("secret", &"01".repeat(32));
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    started(folder, &[&["--key", &secret], arguments].concat())
}

fn listens_at(log: &mut impl Iterator<Item = String>) -> SocketAddr {
    let line = until(log, "listening");
    let address = line.split("\"listen\":\"").nth(1).and_then(|rest| rest.split('"').next());
    address.unwrap().parse().unwrap()
}

impl Running {
    fn terminate(&self) {
        let id = i32::try_from(self.0.id()).unwrap();
        // SAFETY: a plain system call on a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(id, libc::SIGTERM) }, 0);
    }

    fn ends_well(&mut self) {
        let deadline = Instant::now() + SOON;
        let status = loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::yield_now();
        };
        assert!(status.success(), "{status}");
    }
}

#[test]
fn sigterm_ends_it_well() {
    let folder = Folder::new();
    let (mut running, mut log) = started(&folder, &["--listen", "127.0.0.1:0"]);
    assert!(until(&mut log, "listening").contains("\"listen\":\"127.0.0.1:"));
    until(&mut log, "peers connect to");
    running.terminate();
    until(&mut log, "stopped");
    running.ends_well();
}

/// A peer that stays, and takes its time over its last words, does not keep a second signal from ending it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_it_at_once() {
    let folder = Folder::new();
    let (mut running, mut log) = started_with_key(&folder, &["--listen", "127.0.0.1:0", "--drain", "3600"]);
    let mut peer = crate::common::Client::quic(listens_at(&mut log), 2).await;
    peer.register().await;
    running.terminate();
    until(&mut log, "asking peers to move");
    running.terminate();
    until(&mut log, "stopped at once");
    running.ends_well();
    assert_eq!(log.next(), None, "it goes on");
}

/// Killed, it tells nobody; started again with the same key, it ends the connections that it does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_its_former_life_are_reset() {
    let folder = Folder::new();
    let (running, mut log) = started_with_key(&folder, &["--listen", "127.0.0.1:0"]);
    let at = listens_at(&mut log);
    let mut peer = crate::common::Client::quic(at, 2).await;
    peer.register().await;
    drop(running);
    let (_running, mut log) = started_with_key(&folder, &["--listen", &at.to_string()]);
    until(&mut log, "peers connect to");
    peer.send(&ToSupernode::Ping { nonce: 1 }).await;
    let (_, connection) = peer.quic.as_ref().unwrap();
    let ended = tokio::time::timeout(crate::common::SOON, connection.closed()).await.expect("it is not told");
    assert!(matches!(ended, quinn::ConnectionError::Reset), "{ended}");
}
