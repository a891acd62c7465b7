//! The command lines of `send` and `receive`.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use traversal::PeerId;

use crate::args::{NodeArgs, PathArgs, TellArgs, seconds};

pub(crate) const SEND: &str = "\
Examples:
  there$ traverse receive downloads             prints the PEER to type here
  here$  traverse send PEER letter.txt photos/  files and folders, with all that is in them
  here$  traverse send PEER photos/             again, after either side broke off: it goes on where it was
  here$  traverse send PEER big.iso --retry 600 and by itself, for ten minutes

Of a file, its content, its time and whether it may be executed are kept. Links, devices, pipes and sockets, and names that \
are not UTF-8, are left out: each is told, and the exit code is 1. So it is when a file could not be read, changed while it \
was sent, or is refused by the other side; all other files are sent nonetheless.";

pub(crate) const RECEIVE: &str = "\
Examples:
  traverse receive                              into this folder; asks before anything is taken
  traverse receive downloads --allow PEER       from that peer, without a question
  traverse receive inbox --yes --keep --max-size 500M    from everybody, one after the other

A file appears under its name when all of it is there and verified. What is there already under the same name is kept: if it \
is the same, it is not transferred, else the file fails (or replaces it, with --overwrite). When the connection is lost, or \
either side dies, start again what has ended, with the same command: what is there is not sent twice.";

#[derive(Debug, Args)]
pub(crate) struct SendArgs {
    /// To whom: what `traverse receive` prints there
    pub(crate) peer: PeerId,
    /// Files and folders
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// When the peer is not there, or the connection is lost: try again, for so long without success
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) retry: Option<Duration>,
    #[command(flatten)]
    pub(crate) path: PathArgs,
    #[command(flatten)]
    pub(crate) tell: TellArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ReceiveArgs {
    /// Where everything goes; made if it is not there
    #[arg(default_value = ".")]
    pub(crate) folder: PathBuf,
    /// Only this peer may send, and nobody is asked; may be repeated [default: whoever knows this machine's id, if you agree]
    #[arg(long, value_name = "PEER")]
    pub(crate) allow: Vec<PeerId>,
    /// Take from whoever knows this machine's id, without asking
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Refuse more than this, such as 500M or 20G [default: 1G with --yes; else no limit]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) max_size: Option<u64>,
    /// Replace files that are there and differ
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Write each file to the disk before it gets its name: it outlives a power failure, too
    #[arg(long)]
    pub(crate) sync: bool,
    /// Go on after the first transfer
    #[arg(long, short)]
    pub(crate) keep: bool,
    #[command(flatten)]
    pub(crate) path: PathArgs,
    #[command(flatten)]
    pub(crate) tell: TellArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

/// Bytes, or with a letter units of 1024.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || "a size, such as 300000, 500M or 20G, is wanted".to_owned();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("0", 0), ("12", 12), ("1k", 1024), ("500M", 500 << 20), ("20GiB", 20 << 30)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "M", "-1", "1.5G", "1X", "99999999999T", "ü"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
