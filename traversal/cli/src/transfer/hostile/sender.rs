//! A hostile sender, before whatever `traverse receive` does between the first byte and the last.

use std::{fs, os::unix::fs::symlink, path::Path, sync::Arc};

use tokio::sync::mpsc;

use super::{Pieces, Script, Yard, nobody_is_told, now};
use crate::{
    out::harmless,
    transfer::{
        consent::describe,
        folder::Folder,
        ledger::Ledger,
        manifest::Manifest,
        name, plan,
        progress::Progress,
        store::{Manner, Store},
        stream::Incoming,
        taking::list,
        wire::{About, Entry, FromReceiver, FromSender, Hash, Kind, data_header},
    },
};

/// Of which entries are made: names of what is there, of links that lead out, and of what no file may be called.
const PATHS: [&str; 16] = [
    "new",
    "dir",
    "dir/new",
    "dir/deep",
    "dir/deep/x",
    "same",
    "partial",
    "link",
    "out",
    "out/x",
    "..",
    "../secret",
    "/tmp",
    "",
    "dir/../../x",
    "\u{1b}[2J\n",
];
const SIZES: [u64; 8] = [0, 1, 4, 5, 10, 300, 70_000, u64::MAX];
const SECRET: &[u8] = b"kept";
const SAME: &[u8] = b"same!";
/// What is there of a file of ten bytes.
const PARTIAL: &[u8] = b"part";
/// More messages than the receiver can say of so few entries.
const MESSAGES: usize = 1024;
const LIMIT: u64 = 1 << 40;

/// A receiver that hears whatever a sender says after its version, with something of everything in its folder already. Whether
/// every file is over in the end.
///
/// # Panics
/// Something outside the folder, or something that had a name in it, is not what it was; a file has a name and not the size
/// that was listed; or the receiver reports before every file is over, or not at all when all are.
pub fn by_a_sender(bytes: &[u8]) -> bool {
    let mut script = Script(bytes);
    let (overwrite, is_planned) = (script.byte() & 1 == 1, script.byte() != 255);
    let mut said = Pieces::default();
    offer(&mut script, &mut said);
    while !script.is_over() {
        speak(&mut script, &mut said);
    }
    said.cut();

    let mut incoming = Incoming::new(said);
    let Ok(Ok(manifest)) = now(list(&mut incoming, LIMIT)) else { return false };
    let shown = harmless(&describe(&manifest));
    assert!(!shown.contains(char::is_control) && shown.len() < 1000, "{shown:?}");

    let yard = Yard::new();
    furnish(&yard.0);
    let folder = Folder::open(&yard.0.join("inside")).expect("the folder is there");
    let (out, mut messages) = mpsc::channel(MESSAGES);
    let progress = Arc::new(Progress::new(manifest.files, manifest.bytes));
    let ledger = Arc::new(Ledger::new(manifest, progress, nobody_is_told(), out));
    if is_planned {
        plan::run(folder.clone(), &ledger, overwrite).expect("whoever takes the messages is there");
    }
    let Incoming { receive, decoder, rest } = incoming;
    let (blocks, stored) = mpsc::channel(receive.done.len() + 1);
    for block in std::iter::once(rest).chain(receive.done) {
        blocks.try_send(block).expect("there is room");
    }
    drop(blocks);
    let store = Store::new(folder, ledger.clone(), Manner { overwrite, sync: false });
    // That the sender breaks the protocol is its own affair.
    let _ = store.run(decoder, stored);
    let heard: Vec<_> = std::iter::from_fn(|| messages.try_recv().ok()).collect();
    untouched(&yard.0, overwrite, &ledger.manifest);
    assert_eq!(heard.contains(&FromReceiver::Report), ledger.is_over(), "{heard:?}");
    assert!(heard.iter().rev().skip(1).all(|message| *message != FromReceiver::Report), "{heard:?}");
    ledger.is_over()
}

/// What is there before.
fn furnish(yard: &Path) {
    let inside = yard.join("inside");
    fs::create_dir(&inside).expect("a folder");
    for (name, content) in [
        ("secret", SECRET),
        ("inside/same", SAME),
        (&format!("inside/{}", name::partial("partial")), PARTIAL),
    ] {
        fs::write(yard.join(name), content).expect("a file");
    }
    symlink("../secret", inside.join("link")).expect("a link");
    symlink("..", inside.join("out")).expect("a link");
}

fn untouched(yard: &Path, overwrite: bool, manifest: &Manifest) {
    let mut outside: Vec<_> =
        fs::read_dir(yard).expect("a folder").flatten().map(|at| at.file_name()).collect();
    outside.sort();
    assert_eq!(outside, ["inside", "secret"]);
    assert_eq!(fs::read(yard.join("secret")).expect("a file"), SECRET);
    let inside = yard.join("inside");
    if !overwrite {
        assert_eq!(fs::read(inside.join("same")).expect("a file"), SAME);
    }
    for link in ["link", "out"] {
        // It may have been replaced, if it may be: by a file, and never followed.
        let about = fs::symlink_metadata(inside.join(link)).expect("it has its name");
        assert!(about.is_symlink() || (overwrite && about.is_file()), "{link}");
    }
    for Entry { path, kind } in &manifest.entries {
        let Ok(about) = fs::symlink_metadata(inside.join(path)) else { continue };
        let was_there = ["same", "link", "out"].contains(&path.as_str());
        if let (Kind::File(file), false) = (kind, was_there) {
            assert!(!about.is_file() || about.len() == file.size, "{path} has {} bytes", about.len());
        }
    }
}

/// A list of a few entries, mostly as it should be.
fn offer(script: &mut Script, said: &mut Pieces) {
    let mut entries = Vec::new();
    let mut bytes = 0u64;
    for _ in 0..script.byte() % 9 {
        let path = match script.byte() {
            255 => String::from_utf8_lossy(&script.bytes(12)).into_owned(),
            byte => PATHS[usize::from(byte) % PATHS.len()].to_owned(),
        };
        let kind = match script.byte() {
            byte if byte % 4 == 0 => Kind::Folder,
            byte => {
                let size = SIZES[usize::from(byte / 4) % SIZES.len()];
                bytes = bytes.saturating_add(size);
                Kind::File(About { size, modified: (i64::from(byte), u32::MAX), executable: byte % 4 == 1 })
            }
        };
        entries.push(Entry { path, kind });
    }
    let lie = u32::from(script.byte() == 255);
    said.say(&FromSender::Offer { entries: entries.len() as u32 + lie, bytes });
    said.say(&FromSender::List(entries));
}

/// One thing more.
fn speak(script: &mut Script, said: &mut Pieces) {
    let hash = |content: &[u8]| -> Hash { blake3::hash(content).into() };
    match script.byte() % 10 {
        0 => said.last.extend(script.bytes(40)),
        1 => {
            let content = script.one_of(&[SAME, PARTIAL, b"", b"other"]);
            said.say(&FromSender::Prefix { index: script.index(), hash: hash(content) });
        }
        2 => said.say(&FromSender::File { index: script.index(), from: script.one_of(&SIZES) }),
        3 => data(said, &vec![7; usize::from(script.byte())]),
        4 => said.say(&FromSender::End { hash: hash(&vec![7; usize::from(script.byte())]) }),
        5 => said.say(&FromSender::Gone { index: script.index(), why: script.why() }),
        6 => said.say(&FromSender::List(Vec::new())),
        7 => said.cut(),
        // A file as it should be.
        _ => {
            let from = script.one_of(&SIZES[..3]);
            said.say(&FromSender::File { index: script.index(), from });
            let content = vec![7; script.one_of(&SIZES[..7]).saturating_sub(from) as usize];
            data(said, &content);
            said.say(&FromSender::End { hash: hash(&content) });
        }
    }
}

fn data(said: &mut Pieces, content: &[u8]) {
    said.last.extend(data_header(content.len()));
    said.last.extend(content);
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// One new file of ten bytes, and what is sent of it.
    #[test]
    fn a_whole_file_is_taken() {
        for (size, is_whole) in [(4, true), (5, false), (3, false)] {
            assert_eq!(
                by_a_sender(&[0, 0, 1, 0, 17, 0, 9, 0, 0, size]),
                is_whole,
                "{}",
                SIZES[size as usize]
            );
        }
    }

    proptest! {
        #[test]
        fn no_sender_leads_out_of_the_folder(bytes in vec(any::<u8>(), 0..300)) {
            by_a_sender(&bytes);
        }
    }
}
