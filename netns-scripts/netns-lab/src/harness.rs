//! A test program's `main` that gives plain users their namespaces.
//!
//! The usual test harness starts threads before any code of ours runs, and then a process can no longer enter a user
//! namespace. So tests that need a lab have `harness = false` in their manifest and this `main`:
//!
//! ```no_run
//! use netns_lab::harness::{self, Test};
//! # fn ping_crosses_the_nat() {}
//! # fn kernel_masquerade_is_symmetric() {}
//! fn main() -> std::process::ExitCode {
//!     harness::main(vec![
//!         Test::new("ping_crosses_the_nat", ping_crosses_the_nat),
//!         Test::new("kernel_masquerade_is_symmetric", kernel_masquerade_is_symmetric).without_tun(),
//!     ])
//! }
//! ```
//!
//! The command line is that of any Rust test (`cargo test -- NAME --test-threads 1 --list`).

use std::fmt::Debug;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial, run};
use nix::unistd::geteuid;

use crate::{privilege, program, tun};

/// One test: a name, and a function that panics or returns an error when it fails.
pub struct Test {
    name: String,
    body: Box<dyn FnOnce() -> Result<(), String> + Send>,
    needs_tun: bool,
    programs: Vec<(&'static str, Missing)>,
    needs_root: bool,
}

impl Test {
    /// A test that brings natboxes up.
    pub fn new<R: Outcome>(name: impl Into<String>, body: impl FnOnce() -> R + Send + 'static) -> Self {
        Self {
            name: name.into(),
            body: Box::new(|| body().outcome()),
            needs_tun: true,
            programs: Vec::new(),
            needs_root: false,
        }
    }

    /// The test uses the kernel's NAT only, so that it runs also where `/dev/net/tun` is closed to this user.
    #[must_use]
    pub fn without_tun(mut self) -> Self {
        self.needs_tun = false;
        self
    }

    /// The test runs a program that becomes another user, which a plain user's namespace has none of: it is ignored there.
    #[must_use]
    pub fn needs_root(mut self) -> Self {
        self.needs_root = true;
        self
    }

    /// The test uses a program that a machine need not have. Where it is missing the test is counted as ignored, with one line
    /// that says so; with `CI` set in the environment that is a failure.
    #[must_use]
    pub fn needs(mut self, program: &'static str) -> Self {
        self.programs.push((program, Missing::FailsCi));
        self
    }

    /// The same for a program that is a service where it is installed, and so is not installed for a test's sake: where it is
    /// missing the test is counted as ignored, always.
    #[must_use]
    pub fn wants(mut self, program: &'static str) -> Self {
        self.programs.push((program, Missing::Ignored));
        self
    }
}

/// What it means that a program is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    FailsCi,
    Ignored,
}

/// What a test may return.
pub trait Outcome {
    /// Whether it passed; if not, why.
    ///
    /// # Errors
    /// The reason.
    fn outcome(self) -> Result<(), String>;
}

impl Outcome for () {
    fn outcome(self) -> Result<(), String> {
        Ok(())
    }
}

impl<E: Debug> Outcome for Result<(), E> {
    fn outcome(self) -> Result<(), String> {
        self.map_err(|error| format!("{error:?}"))
    }
}

/// Runs the tests in parallel. Call it first thing in `main`, before any thread exists.
///
/// A plain user's process moves into a user namespace. A test that this machine doesn't let him run says why in one
/// line and is counted as ignored. For root nothing is ever skipped: the same reason is a failure.
pub fn main(tests: Vec<Test>) -> ExitCode {
    let arguments = Arguments::from_args();
    let root = geteuid().is_root();
    let mut allowed = Ok(());
    if !root && !arguments.list {
        // Built out here: in there is neither a network nor this user's cargo. A failure is told by each test.
        if tests.iter().any(|test| test.needs_tun) && tun().is_ok() {
            let _ = program("natbox");
        }
        allowed = crate::privilege::enter_user_namespace();
    }
    if !arguments.list && allowed.is_ok() {
        allowed = privilege();
    }
    let tun = tun();

    let trial = |test: Test| {
        let needs = if test.needs_tun { tun.clone() } else { Ok(()) };
        let able = allowed.clone().and(needs);
        let missing = test.programs.into_iter().find(|(program, _)| !is_there(program));
        let needs_root = test.needs_root && !root;
        Trial::ignorable_test(test.name, move || match able {
            Ok(()) if needs_root => Ok(Completion::ignored_with("it needs root, and other users beside")),
            Ok(()) => match missing {
                None => (test.body)().map(|()| Completion::Completed).map_err(Failed::from),
                Some((program, Missing::FailsCi)) if std::env::var_os("CI").is_some() => {
                    Err(Failed::from(format!("{program} is not installed (.ci/run lists the packages)")))
                }
                Some((program, _)) => Ok(Completion::ignored_with(format!("{program} is not installed"))),
            },
            Err(reason) if root => Err(Failed::from(reason)),
            Err(reason) => Ok(Completion::ignored_with(reason)),
        })
    };
    run(&arguments, tests.into_iter().map(trial).collect()).exit_code()
}

/// Whether the shell finds this program.
fn is_there(program: &str) -> bool {
    let found = |folder: std::path::PathBuf| folder.join(program).is_file();
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(found))
}
