//! What this process may do, and moving a plain user's process to where it may do more.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

use crate::script::{self, STATE_ROOT};

/// Whether this process can make namespaces: it is root (perhaps only in a user namespace of its own, see
/// [`harness::main`](crate::harness::main)), or it could be if it entered one.
///
/// # Errors
/// One line that says what is missing.
pub fn privilege() -> Result<(), String> {
    if geteuid().is_root() {
        // Tried on a thread, which takes the new namespace with it when it ends.
        let tried = thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join();
        return match tried {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!(
                "root here can't make network namespaces ({error}): a container without CAP_SYS_ADMIN?"
            )),
            Err(_) => Err("can't try whether namespaces can be made".to_owned()),
        };
    }
    let tried =
        Command::new("unshare").args(["--user", "--map-root-user", "--mount", "--net", "true"]).output();
    match tried {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!(
            "this machine gives a plain user no namespaces: run as root ({})",
            script::failure(&output)
        )),
        Err(error) => Err(format!("can't run unshare (package util-linux): {error}")),
    }
}

/// Whether this process can open a TUN device, which natbox needs.
///
/// # Errors
/// One line that says what is missing.
pub fn tun() -> Result<(), String> {
    let path = "/dev/net/tun";
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) => {
            let mode =
                fs::metadata(path).map(|found| format!(", mode {:o}", found.permissions().mode() & 0o7777));
            Err(format!("{path} can't be opened ({error}{}): run as root", mode.unwrap_or_default()))
        }
    }
}

/// Moves this process, which must have one thread only, into a user namespace in which it is root, with a network and a
/// mount namespace of its own; there `/run` is empty (`ip netns` keeps its names below it), but for the directory in
/// which labs are written down. That one stays on the real file system, so that a later process finds what this one
/// leaves if it is killed.
pub(crate) fn enter_user_namespace() -> Result<(), String> {
    let state = script::lab(&["__state-root"]).map_err(|error| error.to_string())?;
    let state = PathBuf::from(state.trim_end());
    let (uid, gid) = (geteuid(), getegid());
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: nix::Error| {
            format!("this machine gives a plain user no namespaces: run as root ({what}: {error})")
        }
    };
    let written = |path: &str, text: String| {
        fs::write(path, text).map_err(|error| format!("can't write {path}: {error}"))
    };

    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .map_err(failed("unshare"))?;
    // Without this line the kernel refuses a plain user's group map.
    written("/proc/self/setgroups", "deny".to_owned())?;
    written("/proc/self/uid_map", format!("0 {uid} 1"))?;
    written("/proc/self/gid_map", format!("0 {gid} 1"))?;

    // Opened before /run is covered: the directory may lie below it.
    let kept = File::open(&state).map_err(|error| format!("can't open {}: {error}", state.display()))?;
    mount(Some("netns-lab"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .map_err(failed("mount /run"))?;
    if !state.exists() {
        fs::create_dir_all(&state).map_err(|error| format!("can't make {}: {error}", state.display()))?;
        let source = format!("/proc/self/fd/{}", kept.as_raw_fd());
        mount(Some(source.as_str()), &state, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(failed("bind"))?;
    }
    // The only thread there is sets it, once.
    let _ = STATE_ROOT.set(state);
    Ok(())
}
