//! What asks a program to end: Ctrl-C, and SIGTERM where there is such a thing.

use std::io;

/// Waits for the first of them. From when this is first polled on, neither ends the program by itself.
pub(crate) async fn stop() -> io::Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted,
            _ = terminate.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}

#[cfg(all(test, unix))]
mod tests {
    use std::{pin::pin, process::Command, time::Duration};

    use super::*;

    #[tokio::test]
    async fn either_signal_is_heard() {
        for signal in ["INT", "TERM"] {
            let mut stop = pin!(stop());
            tokio::select! {
                biased;
                _ = &mut stop => panic!("nobody has asked"),
                () = std::future::ready(()) => {}
            }
            let to_us = format!("kill -{signal} {}", std::process::id());
            assert!(Command::new("sh").args(["-c", &to_us]).status().unwrap().success());
            tokio::time::timeout(Duration::from_secs(20), stop).await.expect(signal).unwrap();
        }
    }
}
