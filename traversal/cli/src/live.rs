//! The one line that changes, at the bottom of a terminal: all that is told appears above it.

use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};

static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Shown for as long as this lives. On anything but a terminal it is nothing.
#[derive(Debug)]
pub(crate) struct Bar(pub(crate) ProgressBar);

impl Bar {
    pub(crate) fn show(bar: ProgressBar) -> Bar {
        *BAR.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
        Bar(bar)
    }

    /// A line of words: its message.
    pub(crate) fn line() -> Bar {
        let bar = ProgressBar::new_spinner();
        Bar::show(match ProgressStyle::with_template("{wide_msg}") {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        })
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        *BAR.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Writes whole lines to standard error by `write`, above the line that changes.
pub(crate) fn above(write: impl FnOnce()) {
    match &*BAR.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}
