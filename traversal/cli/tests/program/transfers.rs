//! Files and folders between two programs on this machine: what arrives, what does not, and what is told about it.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, UNIX_EPOCH},
};

use crate::common::{Program, World, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A folder of this world's.
fn folder(world: &World, name: &str) -> PathBuf {
    let path = world.folder.join(name);
    fs::create_dir_all(&path).unwrap();
    path
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Bytes that repeat nowhere near.
fn content(length: usize, seed: u32) -> Vec<u8> {
    (0..length as u32).map(|at| (at.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
}

/// The name of a file's partial, as docs/transfer.md has it.
fn partial(path: &str) -> String {
    format!(".traverse-{}.part", &blake3::hash(path.as_bytes()).to_hex()[..32])
}

fn send(world: &World, id: &str, arguments: &[&str]) -> Program {
    world.start("a", &[&["send", id], arguments].concat(), Stdio::null())
}

/// What a program has told as JSON, of one kind.
fn events(program: &Program, kind: &str) -> Vec<Value> {
    let said = program.said();
    let all = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    all.filter(|event| event["event"] == kind).collect()
}

/// Every path below, sorted, with its content.
fn tree(root: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let all = walkdir::WalkDir::new(root).min_depth(1).sort_by_file_name().into_iter().map(Result::unwrap);
    all.map(|entry| {
        let content = entry.file_type().is_file().then(|| fs::read(entry.path()).unwrap());
        (entry.path().strip_prefix(root).unwrap().to_owned(), content)
    })
    .collect()
}

#[test]
fn a_tree_arrives_as_it_was_and_once() {
    let world = World::new("tree");
    let (there, here) = (folder(&world, "there"), folder(&world, "here"));
    let tree_there = folder(&world, "there/tree");
    fs::create_dir_all(tree_there.join("empty/inner")).unwrap();
    fs::create_dir_all(tree_there.join("ü\nö")).unwrap();
    for (number, length) in [0usize, 1, 1000, 65_537, 3_000_001].into_iter().enumerate() {
        fs::write(tree_there.join(format!("ü\nö/{length}")), content(length, number as u32)).unwrap();
    }
    for number in 0..700 {
        fs::write(tree_there.join(format!("small-{number}")), content(number, 7)).unwrap();
    }
    let run = tree_there.join("run");
    fs::write(&run, "#!/bin/sh").unwrap();
    fs::set_permissions(&run, fs::Permissions::from_mode(0o700)).unwrap();
    let long_ago = UNIX_EPOCH - Duration::new(100, 5);
    File::options().write(true).open(&run).unwrap().set_modified(long_ago).unwrap();
    fs::write(there.join("alone"), "alone").unwrap();

    let paths = [text(&tree_there), text(&there.join("alone"))].map(str::to_owned);
    let all = [&paths[0], &paths[1], "--json"];
    let (mut receiver, id) = world.receive("s", &[text(&here), "--yes"]);
    let mut sender = send(&world, &id, &all);
    sender.exits(0, &[]);
    receiver.exits(0, &["707 files received", "offered: 707 files in 4 folders"]);
    assert!(
        tree(&there) == tree(&here),
        "{:?}",
        tree(&here).iter().map(|(path, _)| path).collect::<Vec<_>>()
    );
    let run = fs::metadata(here.join("tree/run")).unwrap();
    assert_eq!((run.mode() & 0o700, run.modified().unwrap()), (0o700, long_ago));
    assert_eq!(fs::metadata(here.join("alone")).unwrap().mode() & 0o111, 0);
    let done = &events(&sender, "done")[0];
    let bytes: usize = tree(&there).iter().filter_map(|(_, content)| content.as_ref()).map(Vec::len).sum();
    assert_eq!(
        (done["files"].as_u64(), done["transferred"].as_u64()),
        (Some(707), Some(bytes as u64)),
        "{done}"
    );

    // What is there is not sent again, and not asked about.
    let (mut receiver, id) = world.receive("s", &[text(&here), "--yes"]);
    let mut sender = send(&world, &id, &all);
    sender.exits(0, &[]);
    receiver.exits(0, &["0 files received", "707 files there already"]);
    let done = &events(&sender, "done")[0];
    assert_eq!((done["present"].as_u64(), done["transferred"].as_u64()), (Some(707), Some(0)), "{done}");
}

#[test]
fn nothing_is_overwritten_without_being_told() {
    let world = World::new("overwrite");
    let (there, here) = (folder(&world, "there/t"), folder(&world, "here"));
    let mine = folder(&world, "here/t");
    for name in ["same", "differs", "longer", "is-folder", "new", "is-link"] {
        fs::write(there.join(name), format!("theirs {}", name.len())).unwrap();
    }
    fs::create_dir(there.join("is-file")).unwrap();
    fs::write(there.join("is-file/inner"), "theirs").unwrap();
    fs::write(mine.join("same"), "theirs 4").unwrap();
    fs::write(mine.join("differs"), "mine!! 7").unwrap();
    fs::write(mine.join("longer"), "mine, and it is longer").unwrap();
    fs::write(mine.join("is-file"), "mine").unwrap();
    fs::create_dir(mine.join("is-folder")).unwrap();
    symlink("same", mine.join("is-link")).unwrap();
    let before = tree(&mine);

    let (mut receiver, id) = world.receive("s", &[text(&here), "--yes"]);
    let mut sender = send(&world, &id, &[text(&there)]);
    // The folder that cannot be made counts, and so does what is in it.
    sender.exits(1, &["6 failed, all else is done", "t/differs: at the peer: something else has its name"]);
    receiver.exits(
        1,
        &["1 file received", "1 file there already", "6 failed", "t/is-file/inner: a link or a file"],
    );
    let after = tree(&mine);
    assert_eq!(after.len(), before.len() + 1, "{after:?}");
    assert!(before.iter().all(|entry| after.contains(entry)), "{after:?}");

    let (mut receiver, id) = world.receive("s", &[text(&here), "--yes", "--overwrite", "--sync"]);
    let mut sender = send(&world, &id, &[text(&there)]);
    sender.exits(1, &["3 failed"]);
    receiver.exits(1, &["3 files received", "2 files there already"]);
    for name in ["same", "differs", "longer", "new", "is-link"] {
        assert_eq!(fs::read(mine.join(name)).unwrap(), format!("theirs {}", name.len()).as_bytes(), "{name}");
    }
    assert!(fs::symlink_metadata(mine.join("is-link")).unwrap().is_file());
    assert_eq!(fs::read(mine.join("is-file")).unwrap(), b"mine");
}

#[test]
fn what_is_no_file_is_left_out_and_told() {
    let world = World::new("odd");
    let (there, here) = (folder(&world, "there/t"), folder(&world, "here"));
    symlink("/etc", there.join("link")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, there.join("pipe"), rustix::fs::Mode::RWXU).unwrap();
    fs::write(there.join(OsStr::from_bytes(b"\xff\xfe")), "").unwrap();
    fs::write(there.join("file"), "file").unwrap();
    let (mut receiver, id) = world.receive("s", &[text(&here), "--yes"]);
    let mut sender = send(&world, &id, &[text(&there)]);
    let lines =
        ["t/link: left out: it is a symbolic link", "t/pipe: left out: it is a named pipe", "is not UTF-8"];
    sender.exits(1, &[&lines[..], &["3 were left out, all else is done"]].concat());
    receiver.exits(0, &["1 file received"]);
    let names: Vec<_> = tree(&here).into_iter().map(|(path, _)| path).collect();
    assert_eq!(names, [Path::new("t"), Path::new("t/file")]);

    for (path, words) in
        [("/dev/null", "is a device"), ("/", "has no name"), ("/nonexistent/x", "cannot read")]
    {
        send(&world, &id, &[path]).exits(1, &[path, words]);
    }
}

/// What was listed may be gone, or another, when its turn comes.
#[test]
fn files_that_change_meanwhile_fail_alone() {
    let world = World::new("changes");
    let (there, here) = (folder(&world, "there"), folder(&world, "here"));
    for name in ["gone", "grows", "link", "stays"] {
        fs::write(there.join(name), content(5000, 1)).unwrap();
    }
    let (receiver, id) = world.receive("s", &[text(&here), "--yes"]);
    drop(receiver);
    let mut sender = send(&world, &id, &[text(&there), "--retry", "30"]);
    sender.tells("next attempt in 1 s");
    fs::remove_file(there.join("gone")).unwrap();
    fs::write(there.join("grows"), content(6000, 1)).unwrap();
    fs::remove_file(there.join("link")).unwrap();
    symlink("/etc/passwd", there.join("link")).unwrap();
    let (mut receiver, _) = world.receive("s", &[text(&here), "--yes"]);
    sender.exits(
        1,
        &["there/gone: cannot read it", "there/grows: it changed", "there/link: cannot read it", "3 failed"],
    );
    receiver.exits(1, &["1 file received", "3 failed"]);
    assert_eq!(tree(&here).len(), 2, "{:?}", tree(&here));
}

/// A partial is believed only if it is the beginning of the file as it is now.
#[test]
fn a_partial_is_continued_if_it_is_right() {
    let world = World::new("partial");
    let (there, here) = (folder(&world, "there"), folder(&world, "here"));
    let whole = content(1_000_000, 3);
    let mut damaged = whole[..600_000].to_vec();
    damaged[300_000] ^= 1;
    for (name, part, from) in [
        ("right", &whole[..600_000], Some(600_000)),
        ("all", &whole[..], Some(1_000_000)),
        ("damaged", &damaged[..], Some(0)),
        ("empty", &[][..], None),
        ("too-long", &content(1_000_001, 4)[..], None),
    ] {
        fs::write(there.join(name), &whole).unwrap();
        fs::write(here.join(partial(name)), part).unwrap();
        let (mut receiver, id) = world.receive("s", &[text(&here), "--yes", "--json"]);
        let mut sender = send(&world, &id, &[text(&there.join(name)), "--json"]);
        sender.exits(0, &[]);
        receiver.exits(0, &[]);
        for program in [&sender, &receiver] {
            let resumed: Vec<_> =
                events(program, "resumed").iter().map(|event| event["from"].as_u64()).collect();
            assert_eq!(resumed, from.map(Some).into_iter().collect::<Vec<_>>(), "{name}");
            let transferred = events(program, "done")[0]["transferred"].as_u64();
            assert_eq!(transferred, Some(1_000_000 - from.unwrap_or(0)), "{name}");
        }
        assert!(fs::read(here.join(name)).unwrap() == whole, "{name}");
        fs::remove_file(there.join(name)).unwrap();
    }
    assert_eq!(tree(&here).len(), 5, "{:?}", tree(&here).iter().map(|(path, _)| path).collect::<Vec<_>>());
}

#[test]
fn nobody_fills_a_disk() {
    let world = World::new("limit");
    let (there, here) = (folder(&world, "there"), folder(&world, "here"));
    let mut unasked = world.start("s", &["receive", text(&here)], Stdio::null());
    unasked.exits(1, &["there is nobody to ask", "--allow PEER", "--yes"]);
    fs::write(there.join("large"), content(2000, 1)).unwrap();
    fs::write(there.join("small"), content(1000, 1)).unwrap();
    File::create(there.join("huge")).unwrap().set_len((1 << 30) + 1).unwrap();

    let (mut receiver, id) = world.receive("s", &[text(&here), "--yes", "--max-size", "1k"]);
    send(&world, &id, &[text(&there.join("large"))])
        .exits(1, &["takes 1.00 KiB at most", "--max-size there"]);
    receiver.tells("refused: it is more than 1.00 KiB; waiting for another");
    send(&world, &id, &[text(&there.join("small"))]).exits(0, &[]);
    receiver.exits(0, &[]);

    let (_receiver, id) = world.receive("s", &[text(&here), "--yes"]);
    send(&world, &id, &[text(&there.join("huge"))]).exits(1, &["takes 1.00 GiB at most"]);
    assert_eq!(tree(&here).len(), 1);
}

/// A program at a terminal of its own; what it shows there.
fn at_terminal(world: &World, arguments: &[&str]) -> (Program, File, impl Fn() -> String + use<>) {
    let terminal = nix::pty::openpty(None, None).unwrap();
    let mut command = world.command("s", arguments);
    command.stdin(Stdio::from(terminal.slave.try_clone().unwrap())).stdout(Stdio::null());
    let program = Program::spawn_telling(command, Stdio::from(terminal.slave));
    let (keyboard, shown) = (File::from(terminal.master), Arc::new(Mutex::new(String::new())));
    let (mut screen, seen) = (keyboard.try_clone().unwrap(), shown.clone());
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = screen.read(&mut buffer) {
            seen.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    });
    (program, keyboard, move || shown.lock().unwrap().clone())
}

#[test]
fn somebody_at_a_terminal_is_asked() {
    let world = World::new("asked");
    let (there, here) = (folder(&world, "there"), folder(&world, "here"));
    fs::write(there.join("letter"), content(3_000_000, 1)).unwrap();
    let (mut receiver, mut keyboard, shown) = at_terminal(&world, &["receive", text(&here)]);
    let sees = |words: &str, times: usize| {
        assert!(wait_until(|| shown().matches(words).count() >= times), "no {words:?} in {}", shown());
    };
    sees("traverse send ", 1);
    let id = shown().split("traverse send ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let letter = there.join("letter");

    let mut sender = send(&world, &id, &[text(&letter)]);
    sees("offers 1 file, 2.86 MiB: letter. Take it? [y/N]", 1);
    sender.tells("waiting for the peer to agree");
    keyboard.write_all(b"n\n").unwrap();
    sender.exits(1, &["the peer refuses: somebody there has said no"]);
    sees("refused: you said no", 1);

    // An offer that is withdrawn: what is typed then is not the next one's answer.
    let mut sender = send(&world, &id, &[text(&letter)]);
    sees("Take it? [y/N]", 2);
    sender.signal(Signal::SIGINT);
    sender.exits(130, &[]);
    sees("interrupted", 1);
    keyboard.write_all(b"y\n").unwrap();
    let mut sender = send(&world, &id, &[text(&letter)]);
    sees("Take this one? [y/N]", 1);
    assert_eq!(tree(&here).len(), 0);
    keyboard.write_all(b"y\n").unwrap();
    sender.exits(0, &["1 file sent"]);
    receiver.exits(0, &[]);
    assert!(shown().contains("1 file received") && shown().contains("/1 files"), "{}", shown());
    assert!(fs::read(here.join("letter")).unwrap() == content(3_000_000, 1));
}

#[test]
fn who_cannot_send_is_told_why() {
    let world = World::new("who");
    let there = folder(&world, "there");
    let here = folder(&world, "here");
    let path = there.join("file");
    fs::write(&path, "file").unwrap();
    let (listener, id) = world.listen("l", &["--keep"], Stdio::null());
    send(&world, &id, &[text(&path)]).exits(1, &["the peer does not run `traverse receive`"]);
    drop(listener);

    let (receiver, id) = world.receive("s", &[text(&here), "--allow", &world.id("b")]);
    send(&world, &id, &[text(&path)]).exits(1, &["does not admit us"]);
    world.start("b", &["connect", &id], Stdio::null()).exits(1, &["the peer does not run `traverse listen`"]);
    world.start("b", &["ping", &id, "--count", "1"], Stdio::null()).exits(0, &[]);
    // Whoever is allowed is not asked about.
    world.start("b", &["send", &id, text(&path), "--quiet"], Stdio::null()).exits(0, &[]);
    drop(receiver);
    send(&world, &id, &[text(&path)]).exits(1, &["is not registered at our supernode"]);
}

/// One transfer at a time. The receiver waits for a sender that is gone, and takes it back at once.
#[test]
fn a_sender_is_interrupted_and_comes_back() {
    const LENGTH: u64 = 60_000_000;
    let world = World::new("interrupted");
    let (there, here) = (folder(&world, "there"), folder(&world, "here"));
    let whole = content(LENGTH as usize, 1);
    fs::write(there.join("file"), &whole).unwrap();
    fs::write(there.join("other"), "other").unwrap();
    let (mut receiver, id) = world.receive("s", &[text(&here), "--yes", "--json"]);
    let mut sender = send(&world, &id, &[text(&there.join("file")), "--json"]);
    let part = here.join(partial("file"));
    let arrived = || fs::metadata(&part).map_or(0, |part| part.len());
    assert!(wait_until(|| arrived() > 1_000_000), "{}", receiver.said());
    let mut other = world.start("b", &["send", &id, text(&there.join("other"))], Stdio::null());
    other.exits(1, &["the peer is busy with another connection"]);
    sender.signal(Signal::SIGINT);
    sender.exits(130, &[]);
    let kept = arrived();
    assert!(kept > 0, "it was over already");
    // The word about it may be lost on a busy line: then the new connection ends the old one.
    let mut sender = send(&world, &id, &[text(&there.join("file")), "--json"]);
    sender.exits(0, &[]);
    receiver.exits(0, &["\"event\":\"lost\""]);
    let from = events(&sender, "resumed")[0]["from"].as_u64().unwrap();
    assert!(from >= kept, "{kept} bytes were here, and it went on at {from}");
    assert_eq!(events(&sender, "done")[0]["transferred"].as_u64(), Some(LENGTH - from));
    assert!(fs::read(here.join("file")).unwrap() == whole);
}
