//! Programs, and a supernode for them to meet at.

use std::{
    fs,
    io::{Read, Write},
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{SigHandler, Signal, kill, signal},
    unistd::Pid,
};
use supernode::{Config, Supernode};
use tokio::runtime::Runtime;
use traversal::{Identity, Node};

/// Everything that is waited for comes within this time: less than a peer waits that is told nothing (a minute).
const LIMIT: Duration = Duration::from_secs(40);

/// A supernode at a port of this machine's, and a folder for keys.
pub(crate) struct World {
    pub(crate) folder: PathBuf,
    pub(crate) runtime: Runtime,
    supernode: Option<Supernode>,
    address: SocketAddr,
}

impl World {
    pub(crate) fn new(name: &str) -> World {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(format!("traverse-test-{process}-{number}-{name}"));
        fs::create_dir_all(&folder).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let address = ([127, 0, 0, 1], 0).into();
        let mut world = World { folder, runtime, supernode: None, address };
        world.supernode_begins();
        world
    }

    /// Where it was before, if it was.
    pub(crate) fn supernode_begins(&mut self) {
        let mut config = Config::new(Identity::from_secret(&[1; 32]));
        config.listen = vec![self.address];
        let supernode = self.runtime.block_on(Supernode::bind(config)).unwrap();
        self.address = supernode.local_addresses()[0];
        self.supernode = Some(supernode);
    }

    pub(crate) fn supernode_ends(&mut self) {
        let supernode = self.supernode.take().unwrap();
        self.runtime.block_on(supernode.shutdown());
    }

    /// A node in this process, that others may connect to.
    pub(crate) async fn node(&self) -> Node {
        let builder = Node::builder().bind(([127, 0, 0, 1], 0).into());
        builder.supernode(self.address.to_string()).start().await.unwrap()
    }

    /// traverse, with a key of `who`'s.
    pub(crate) fn command(&self, who: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_traverse"));
        command.env("XDG_CONFIG_HOME", &self.folder).env_remove("TRAVERSE_CONFIG");
        command.env("TRAVERSE_KEY", self.folder.join(format!("{who}.key")));
        command.env("TRAVERSE_SUPERNODE", self.address.to_string());
        command.args(arguments);
        hung_up(&mut command, SigHandler::SigDfl);
        if arguments[0] != "id" {
            command.args(["--bind", "127.0.0.1:0"]);
        }
        command
    }

    pub(crate) fn start(&self, who: &str, arguments: &[&str], input: Stdio) -> Program {
        let mut command = self.command(who, arguments);
        command.stdin(input).stdout(Stdio::piped());
        Program::spawn(command)
    }

    /// Nobody reads its standard output.
    pub(crate) fn unread(&self, who: &str, arguments: &[&str]) -> Program {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = self.command(who, arguments);
        command.stdin(Stdio::null()).stdout(writer);
        Program::spawn(command)
    }

    /// `traverse listen`, when it does, and its id.
    pub(crate) fn listen(&self, who: &str, arguments: &[&str], input: Stdio) -> (Program, String) {
        let mut program = self.start(who, &[&["listen"], arguments].concat(), input);
        let id = program.listens();
        (program, id)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl World {
    /// Who `who` is.
    pub(crate) fn id(&self, who: &str) -> String {
        let output = self.command(who, &["id"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// `traverse receive`, when it does, and its id. Who may send is to be said in the arguments.
    pub(crate) fn receive(&self, who: &str, arguments: &[&str]) -> (Program, String) {
        let program = self.start(who, &[&["receive"], arguments].concat(), Stdio::null());
        let ready = ["traverse send ", "\"listening\""];
        let receives = wait_until(|| ready.iter().any(|words| program.said().contains(words)));
        assert!(receives, "{}", program.said());
        (program, self.id(who))
    }
}

/// What the program does when its terminal is closed, whatever these tests are to do.
pub(crate) fn hung_up(command: &mut Command, handler: SigHandler) {
    // SAFETY: setting a signal's disposition is allowed between fork and exec, and none of ours runs a function.
    unsafe {
        command.pre_exec(move || {
            signal(Signal::SIGHUP, handler)?;
            Ok(())
        });
    }
}

/// A program that runs for as long as this lives.
pub(crate) struct Program {
    child: Child,
    input: Option<ChildStdin>,
    output: Heard,
    errors: Heard,
}

impl Program {
    pub(crate) fn spawn(command: Command) -> Program {
        Program::spawn_telling(command, Stdio::piped())
    }

    /// What it tells goes elsewhere.
    pub(crate) fn spawn_telling(mut command: Command, errors: Stdio) -> Program {
        let mut child = command.stderr(errors).spawn().unwrap();
        let (output, errors) = (Heard::default(), Heard::default());
        output.listen(child.stdout.take());
        errors.listen(child.stderr.take());
        Program { input: child.stdin.take(), child, output, errors }
    }

    pub(crate) fn types(&mut self, text: &str) {
        self.input.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    pub(crate) fn ends_input(&mut self) {
        self.input = None;
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// What it has put out so far.
    pub(crate) fn output(&self) -> String {
        self.output.text()
    }

    /// What it has told so far, on standard error.
    pub(crate) fn said(&self) -> String {
        self.errors.text()
    }

    /// Waits until it listens, and returns its id.
    pub(crate) fn listens(&mut self) -> String {
        self.tells("listening");
        self.said().lines().find_map(|line| line.split("connect ").nth(1)).unwrap().to_owned()
    }

    #[track_caller]
    pub(crate) fn puts_out(&self, words: &str) {
        let out = wait_until(|| self.output().contains(words));
        assert!(out, "no {words:?} in {:?}; it says {}", self.output(), self.said());
    }

    #[track_caller]
    pub(crate) fn tells(&self, words: &str) {
        assert!(wait_until(|| self.said().contains(words)), "no {words:?} in {}", self.said());
    }

    #[track_caller]
    pub(crate) fn tells_times(&self, times: usize, words: &str) {
        let told = wait_until(|| self.said().matches(words).count() >= times);
        assert!(told, "not {times} times {words:?} in {}", self.said());
    }

    /// Waits for the end: with this code, after these words.
    #[track_caller]
    pub(crate) fn exits(&mut self, code: i32, words: &[&str]) {
        let mut status: Option<ExitStatus> = None;
        let ended = wait_until(|| {
            status = self.child.try_wait().unwrap();
            status.is_some() && self.output.is_over() && self.errors.is_over()
        });
        let said = self.said();
        assert!(ended, "it goes on: {said}");
        assert_eq!(status.and_then(|status| status.code()), Some(code), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "not {words:?}: {said}");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What comes out of a pipe; over when nobody holds it any more.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<u8>>>);

impl Heard {
    fn listen(&self, pipe: Option<impl Read + Send + 'static>) {
        let (Some(mut pipe), heard) = (pipe, self.clone()) else { return };
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                heard.0.lock().unwrap().extend_from_slice(&buffer[..length]);
            }
        });
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    fn is_over(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

/// Waits until `is_so`; false when the time is up.
pub(crate) fn wait_until(mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    true
}
