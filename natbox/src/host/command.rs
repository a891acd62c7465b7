//! A command in a network namespace of its own, behind the NAT.
//!
//! The command runs as root, or, when natbox was started by sudo, as the user who started it (`SUDO_UID`), with that
//! user's groups and home. It stays in natbox's process group, so the terminal's own signals (Ctrl-C, Ctrl-\) reach it
//! directly. If natbox dies, even by SIGKILL, the command gets SIGHUP: its line is gone.
//!
//! It shares every namespace with the host but the network's; where the host's resolver cannot be reached from behind
//! the NAT, it also has a mount namespace of its own with another `/etc/resolv.conf`.

use std::{
    ffi::{CStr, CString, OsString},
    fs, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{
            ffi::OsStringExt,
            process::{CommandExt, ExitStatusExt},
        },
    },
    process::{Child, Command, ExitStatus},
    sync::mpsc,
    thread,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::{
        prctl,
        signal::{self, SigSet, Signal},
    },
    unistd::{Gid, Pid, Uid, User, getgrouplist, getpid, getppid, setgid, setgroups, setuid},
};

use super::{CommandSpace, HostError, error::failed};

/// A command that runs behind the NAT.
#[derive(Debug)]
pub struct Behind {
    pid: u32,
    pidfd: OwnedFd,
    waiter: thread::JoinHandle<io::Result<ExitStatus>>,
}

impl Behind {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends it a signal; one that has ended already is none the worse for it.
    ///
    /// Signals that the terminal sent have reached it without this (`si_code` above 0 in natbox's own).
    ///
    /// # Errors
    /// The kernel's, should it refuse.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        // SAFETY: the descriptor is open, and without extra information the third argument is a null pointer.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                signal as libc::c_int,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match io::Error::last_os_error() {
            _ if sent == 0 => Ok(()),
            error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            error => Err(error),
        }
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// The kernel's, should it refuse to wait.
    pub fn wait(self) -> io::Result<ExitStatus> {
        self.waiter.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// What natbox's own exit status is when its command has ended: the command's, or 128 and the signal that ended it.
pub fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// Starts `command`, a program and its arguments, in its namespace. `on_exit` is called when it has ended.
///
/// # Errors
/// The program is missing or may not be run, or the kernel refuses its namespaces.
pub fn spawn_behind(
    space: &CommandSpace,
    command: &[OsString],
    on_exit: impl FnOnce() + Send + 'static,
) -> Result<Behind, HostError> {
    let program = command.first().map(|program| program.to_string_lossy().into_owned()).unwrap_or_default();
    let fail = |source| HostError::Command { command: program.clone(), source };
    let prepared = prepare(space, command).map_err(fail)?;
    // The kernel tells a child of its parent's death when the thread that started it ends: this one waits for it.
    let (started, start) = mpsc::channel();
    let waiter = thread::Builder::new()
        .name("natbox-command".to_owned())
        .spawn(move || {
            let mut child = prepared.start(&started)?;
            let status = child.wait();
            on_exit();
            status
        })
        .map_err(failed("start a thread"))?;
    match start.recv() {
        Ok(Ok((pid, pidfd))) => Ok(Behind { pid, pidfd, waiter }),
        Ok(Err(source)) => Err(fail(source)),
        Err(mpsc::RecvError) => Err(fail(io::Error::other("its thread ended before it started"))),
    }
}

type Started = mpsc::Sender<io::Result<(u32, OwnedFd)>>;

/// A command with everything that it needs between fork and exec, where nothing may be allocated.
struct Prepared(Command);

impl Prepared {
    fn start(mut self, started: &Started) -> io::Result<Child> {
        let outcome = self.0.spawn().and_then(|child| {
            let pidfd = open_pidfd(child.id())?;
            Ok((child, pidfd))
        });
        let report = |result| {
            // Whoever asked has gone only if it panicked.
            let _ = started.send(result);
        };
        match outcome {
            Ok((child, pidfd)) => {
                report(Ok((child.id(), pidfd)));
                Ok(child)
            }
            Err(error) => {
                let copy =
                    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
                report(Err(error));
                Err(copy)
            }
        }
    }
}

fn prepare(space: &CommandSpace, words: &[OsString]) -> io::Result<Prepared> {
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "there is no command"))?;
    let mut command = Command::new(program);
    command.args(arguments);
    let user = Invoker::find()?;
    if let Some(user) = &user {
        command.envs(user.environment.iter().map(|(name, value)| (name, value)));
    }
    let netns = space.netns.try_clone()?;
    let resolv_conf = match &space.resolv_conf {
        Some(path) => Some(CString::new(path.clone().into_os_string().into_vec())?),
        None => None,
    };
    let parent = getpid();
    // SAFETY: between fork and exec the closure only makes system calls on what was prepared here.
    unsafe {
        command.pre_exec(move || {
            setns(&netns, CloneFlags::CLONE_NEWNET)?;
            if let Some(resolv_conf) = &resolv_conf {
                replace_resolv_conf(resolv_conf)?;
            }
            if let Some(user) = &user {
                user.become_it()?;
            }
            // natbox takes its signals on a thread and blocks them everywhere else: not the command's business.
            SigSet::empty().thread_set_mask()?;
            hang_up_with(parent)
        });
    }
    Ok(Prepared(command))
}

/// Shows this process, and nobody else, another `/etc/resolv.conf`.
fn replace_resolv_conf(with: &CStr) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let nothing = None::<&CStr>;
    mount(nothing, c"/", nothing, MsFlags::MS_REC | MsFlags::MS_SLAVE, nothing)?;
    mount(Some(with), c"/etc/resolv.conf", nothing, MsFlags::MS_BIND, nothing)?;
    Ok(())
}

/// Asks for SIGHUP when natbox dies, and heeds it even where natbox itself was told not to (nohup): without natbox the
/// command's network is dead. After a change of user, which clears it.
fn hang_up_with(parent: Pid) -> io::Result<()> {
    // SAFETY: the default disposition runs no code of ours.
    unsafe { signal::signal(Signal::SIGHUP, signal::SigHandler::SigDfl) }?;
    prctl::set_pdeathsig(Signal::SIGHUP)?;
    // It may have died before it could be asked for.
    if getppid() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ECHILD)) }
}

fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// The user who started natbox by sudo.
struct Invoker {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    environment: Vec<(&'static str, OsString)>,
}

impl Invoker {
    /// `None` when there was no sudo, or root itself used it, or that user does not exist in this user namespace.
    fn find() -> io::Result<Option<Invoker>> {
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
        let (Some(uid), gid) = (number("SUDO_UID").filter(|uid| *uid != 0), number("SUDO_GID")) else {
            return Ok(None);
        };
        if !Uid::effective().is_root() || !is_mapped(&fs::read_to_string("/proc/self/uid_map")?, uid) {
            return Ok(None);
        }
        Ok(Some(match User::from_uid(Uid::from_raw(uid))? {
            Some(user) => {
                let name = CString::new(user.name.as_str())?;
                Invoker {
                    uid: user.uid,
                    gid: user.gid,
                    groups: getgrouplist(&name, user.gid)?,
                    environment: vec![
                        ("HOME", user.dir.into_os_string()),
                        ("USER", OsString::from(&user.name)),
                        ("LOGNAME", OsString::from(&user.name)),
                        ("SHELL", user.shell.into_os_string()),
                    ],
                }
            }
            None => {
                let gid = Gid::from_raw(gid.unwrap_or(uid));
                Invoker { uid: Uid::from_raw(uid), gid, groups: vec![gid], environment: Vec::new() }
            }
        }))
    }

    fn become_it(&self) -> io::Result<()> {
        setgroups(&self.groups)?;
        setgid(self.gid)?;
        setuid(self.uid)?;
        Ok(())
    }
}

/// Whether a user namespace with this `uid_map` has the user.
fn is_mapped(uid_map: &str, uid: u32) -> bool {
    uid_map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u64>().ok());
        match (numbers.next().flatten(), numbers.nth(1).flatten()) {
            (Some(first), Some(count)) => (first..first.saturating_add(count)).contains(&uid.into()),
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_shell_s() {
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(exit_code(ExitStatus::from_raw(15)), 143);
    }

    #[test]
    fn user_namespaces_map_some_users() {
        let (whole, root_only) = ("         0          0 4294967295\n", "0 1000 1\n");
        assert!(is_mapped(whole, 1000) && !is_mapped(root_only, 1000) && is_mapped(root_only, 0));
        assert!(!is_mapped("", 0));
    }
}
