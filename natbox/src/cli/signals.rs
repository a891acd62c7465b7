//! SIGINT, SIGTERM and SIGHUP, handed to a thread of their own.

use std::{
    io::{self, Read, pipe},
    os::fd::IntoRawFd,
    sync::atomic::{AtomicI32, Ordering},
    thread,
};

use nix::{
    errno::Errno,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};

/// The writing end of the pipe between handler and thread.
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// A signal that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    pub(crate) signal: Signal,
    /// The terminal sent it, to every process in its foreground.
    pub(crate) by_terminal: bool,
}

/// Calls `act` on a thread of its own for each signal that asks natbox to end. To be called once.
///
/// Handlers rather than a blocked mask: a command that natbox starts would inherit the mask.
pub(crate) fn watch(mut act: impl FnMut(Arrived) + Send + 'static) -> io::Result<()> {
    let (mut reader, writer) = pipe()?;
    PIPE.store(writer.into_raw_fd(), Ordering::Release);
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let mut note = [0; 2];
        while reader.read_exact(&mut note).is_ok() {
            if let Ok(signal) = Signal::try_from(i32::from(note[0])) {
                act(Arrived { signal, by_terminal: note[1] != 0 });
            }
        }
    })?;
    let action = SigAction::new(SigHandler::SigAction(handle), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only reads an atomic and calls write(2), both of which a handler may.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let errno = Errno::last_raw();
    // SAFETY: the kernel passes a valid siginfo to a handler installed with SA_SIGINFO.
    let by_terminal = unsafe { info.as_ref() }.is_some_and(|info| info.si_code > 0);
    let note = [signal as u8, u8::from(by_terminal)];
    // SAFETY: `note` lives through the call; a pipe that is full or closed loses the note and nothing else.
    unsafe { libc::write(PIPE.load(Ordering::Acquire), note.as_ptr().cast(), note.len()) };
    Errno::set_raw(errno);
}
