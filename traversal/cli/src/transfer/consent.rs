//! Whether an offer is taken: said by the command line, or by somebody at the terminal.

use std::io::{IsTerminal, Write};

use anyhow::{Result, bail};
use indicatif::HumanBytes;
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin, stdin};
use traversal::PeerId;

use super::{
    args::ReceiveArgs,
    manifest::Manifest,
    progress::files,
    wire::{Entry, Kind, cut},
};
use crate::out::harmless;

/// What is taken from anybody, unless more is said: enough for what people send each other, and too little to fill a disk.
const FROM_ANYBODY: u64 = 1 << 30;

/// Names that somebody is asked about.
const NAMES: usize = 6;

/// Bytes of each.
const NAME: usize = 60;

/// Who decides.
pub(crate) enum Consent {
    /// The command line has.
    Given,
    /// Somebody at the terminal.
    Asked(Box<Terminal>),
}

pub(crate) struct Terminal {
    lines: Lines<BufReader<Stdin>>,
    /// A question was withdrawn before it was answered: the next line may be meant for that one.
    is_stale: bool,
}

impl Consent {
    /// As the command line says.
    ///
    /// # Errors
    /// There is nobody to be asked, and nothing was said.
    pub(crate) fn new(args: &ReceiveArgs) -> Result<Consent> {
        if args.yes || !args.allow.is_empty() {
            return Ok(Consent::Given);
        }
        if args.tell.json || !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            bail!(
                "there is nobody to ask before files are taken: say who may send with --allow PEER, or take from \
                 everybody with --yes"
            );
        }
        Ok(Consent::Asked(Box::new(Terminal { lines: BufReader::new(stdin()).lines(), is_stale: false })))
    }

    /// Nobody is asked.
    pub(crate) fn is_given(&self) -> bool {
        matches!(self, Consent::Given)
    }

    /// Whether this offer is taken.
    pub(crate) async fn to(&mut self, peer: PeerId, manifest: &Manifest) -> Result<bool> {
        match self {
            Consent::Given => Ok(true),
            Consent::Asked(terminal) => terminal.ask(&format!("{peer} offers {}", describe(manifest))).await,
        }
    }
}

/// How many bytes are taken at most.
pub(crate) fn limit(args: &ReceiveArgs) -> u64 {
    let is_anybody = args.yes && args.allow.is_empty();
    args.max_size.unwrap_or(if is_anybody { FROM_ANYBODY } else { u64::MAX })
}

impl Terminal {
    async fn ask(&mut self, offer: &str) -> Result<bool> {
        show(&format!("{offer}. Take it? [y/N]"));
        if std::mem::replace(&mut self.is_stale, true) {
            self.lines.next_line().await?;
            show("That may have been meant for the offer before. Take this one? [y/N]");
        }
        let line = self.lines.next_line().await?;
        self.is_stale = false;
        Ok(line.is_some_and(|line| ["y", "yes"].contains(&line.trim().to_ascii_lowercase().as_str())))
    }
}

/// On a line of its own: the connection's may follow before the answer.
fn show(words: &str) {
    // Whoever closed standard error answers nothing either.
    let _ = writeln!(std::io::stderr(), "{}", harmless(words));
}

/// An offer in words.
pub(crate) fn describe(manifest: &Manifest) -> String {
    let names: Vec<_> = manifest.top().take(NAMES + 1).map(shown).collect();
    let (more, rest) = (names.len() > NAMES, manifest.top().count().saturating_sub(NAMES));
    let names = names[..names.len().min(NAMES)].join(", ");
    let more = if more { format!(" and {rest} more") } else { String::new() };
    let folders = match manifest.folders {
        0 => String::new(),
        1 => " in 1 folder".to_owned(),
        count => format!(" in {count} folders"),
    };
    format!("{}{folders}, {}: {names}{more}", files(manifest.files), HumanBytes(manifest.bytes))
}

fn shown(entry: &Entry) -> String {
    let mut name = entry.path.clone();
    cut(&mut name, NAME);
    if name.len() < entry.path.len() {
        name.push('…');
    }
    if entry.kind == Kind::Folder {
        name.push('/');
    }
    name
}

#[cfg(test)]
mod tests {
    use super::{super::wire::About, *};

    #[test]
    fn an_offer_fits_a_few_lines() {
        let about = About { size: 0, modified: (0, 0), executable: false };
        let mut manifest = Manifest { bytes: 3 << 20, files: 40, folders: 1, ..Manifest::default() };
        manifest.entries.push(Entry { path: "photos".into(), kind: Kind::Folder });
        manifest.entries.push(Entry { path: "photos/1".into(), kind: Kind::File(about) });
        assert_eq!(describe(&manifest), "40 files in 1 folder, 3.00 MiB: photos/");
        manifest.entries.extend((0..40).map(|_| Entry { path: "ü".repeat(100), kind: Kind::File(about) }));
        let words = describe(&manifest);
        assert!(words.ends_with(" and 35 more") && words.chars().count() < 300, "{words}");
    }
}
