//! The command line.

use std::{path::PathBuf, str::FromStr, time::Duration};

use anyhow::{Context, Result};
use clap::Parser;
use traversal::PeerId;

use crate::{speaker::Source, voice::Voice, wav};

const EXAMPLES: &str = "\
Between two machines, each behind its NAT; a supernode is the public server that both use:
  there$ cargo run --release --example call -- 203.0.113.10:3478               prints its id
  here$  cargo run --release --example call -- 203.0.113.10:3478 ID --seconds 30

  … --speak hello.wav --record answer.wav         from and to WAV files
  … --record heard.wav --compare voice:2          was it heard as it was spoken?

Exit codes: 0 the call ended as it should; 1 there was no call, or a file failed; 2 the command line; 3 the call broke;
4 what was heard is not the reference.";

/// A voice call between two machines behind any pair of NATs: Opus over datagrams, relayed at once, direct where possible.
///
/// Who is called hangs up when the caller does; Ctrl-C, and SIGTERM as well, hangs up for both.
#[derive(Debug, Parser)]
#[command(name = "call", after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Args {
    /// The supernode that both use, as ADDRESS:PORT or ID@ADDRESS:PORT
    pub(crate) supernode: String,
    /// Whom to call: the id that `call` prints there [default: wait to be called]
    pub(crate) peer: Option<PeerId>,
    /// What to say: a WAV file, or voice:N, the generated voice number N [default: voice:1 calls, voice:2 is called]
    #[arg(long, value_name = "SOURCE")]
    pub(crate) speak: Option<SourceName>,
    /// Write what is heard to this WAV file
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
    /// Hang up after this many seconds [default: at the end of the file; who is called, and a voice, go on]
    #[arg(long, value_name = "N", value_parser = seconds)]
    pub(crate) seconds: Option<Duration>,
    /// Never directly: the peer learns no address of this machine
    #[arg(long)]
    pub(crate) relay_only: bool,
    /// Compare what was heard with what the other side said (a WAV file, or voice:N) as it is without a network
    #[arg(long, value_name = "SOURCE")]
    pub(crate) compare: Option<SourceName>,
    /// The least segmental signal-to-noise ratio, in dB, that passes for the reference
    #[arg(long, value_name = "DB", default_value = "8", requires = "compare", allow_negative_numbers = true)]
    pub(crate) least_snr: f64,
    /// One JSON object a line, on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// The name of a source of sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SourceName {
    Voice(u64),
    File(PathBuf),
}

impl FromStr for SourceName {
    type Err = String;

    fn from_str(text: &str) -> Result<SourceName, String> {
        match text.strip_prefix("voice:") {
            Some(number) => match number.parse() {
                Ok(number) => Ok(SourceName::Voice(number)),
                Err(_) => Err(format!("{number:?} is no voice's number; write voice:1")),
            },
            None if text.is_empty() => Err("a file, or voice:N, is wanted".to_owned()),
            None => Ok(SourceName::File(text.into())),
        }
    }
}

impl SourceName {
    pub(crate) fn open(&self) -> Result<Source> {
        Ok(match self {
            SourceName::Voice(number) => Source::Voice(Box::new(Voice::new(*number))),
            SourceName::File(path) => {
                let samples = wav::read(path)?;
                (!samples.is_empty())
                    .then_some(samples)
                    .map(Source::Samples)
                    .context(format!("{} is empty", path.display()))?
            }
        })
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds, such as 30, is wanted".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if (Duration::from_millis(100)..=Duration::from_secs(86_400)).contains(&duration) => {
            Ok(duration)
        }
        _ => Err("between 0.1 and 86400 seconds".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn sources() {
        assert_eq!("voice:2".parse(), Ok(SourceName::Voice(2)));
        assert_eq!("my.wav".parse(), Ok(SourceName::File("my.wav".into())));
        assert!("voice:x".parse::<SourceName>().is_err());
        assert!("".parse::<SourceName>().is_err());
        let error = SourceName::File("/nowhere/my.wav".into()).open().unwrap_err().to_string();
        assert!(error.contains("/nowhere/my.wav"), "{error}");
    }

    #[test]
    fn durations() {
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        for bad in ["", "x", "-1", "0", "1e9", "NaN"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
