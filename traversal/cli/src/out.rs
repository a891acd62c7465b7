//! Standard output. Whoever reads it may have had enough (`| head`): then the program ends, quietly.

use std::{
    fmt::Display,
    io::{self, ErrorKind, Write},
};

use anyhow::{Error, Result};

use crate::stop::Ended;

/// Writes a line.
pub(crate) fn line(text: impl Display) -> Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{text}").and_then(|()| output.flush()).map_err(failed)
}

/// What a write that failed means.
pub(crate) fn failed(error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::BrokenPipe => Ended::OutputClosed.into(),
        _ => Error::new(error).context("cannot write to standard output"),
    }
}

/// `text` without control characters: what others have sent must not steer our terminal.
pub(crate) fn harmless(text: &str) -> String {
    text.replace(char::is_control, " ")
}
