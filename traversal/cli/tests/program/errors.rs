//! What goes wrong most often: each is told in one line that says what was wrong, with which input, and what helps.

use std::{
    fs::{self, Permissions},
    net::UdpSocket,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Command, Stdio},
};

use crate::common::{Program, World};
use nix::unistd::Uid;

/// Nobody's in particular, and so one that may do little.
const NOBODY: u32 = 65_534;

/// What it tells at its end: one line, with these words.
#[track_caller]
fn fails(mut command: Command, words: &[&str]) {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let arguments: Vec<_> = command.get_args().map(|text| text.to_string_lossy().into_owned()).collect();
    let mut program = Program::spawn(command);
    program.exits(1, &[]);
    let said = program.said();
    let told = said.strip_prefix("traverse: ").unwrap_or_default();
    assert!(told.trim_end().lines().count() == 1, "{arguments:?}: {said}");
    assert!(words.iter().all(|word| told.contains(word)), "{arguments:?}, not {words:?}: {said}");
}

/// A world with a file to send, and a folder.
fn world(name: &str) -> (World, String, String) {
    let world = World::new(name);
    let (file, folder) = (world.folder.join("file"), world.folder.join("folder"));
    fs::write(&file, "file").unwrap();
    fs::create_dir(&folder).unwrap();
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let texts = (text(&file), text(&folder));
    (world, texts.0, texts.1)
}

/// Every command that talks to somebody, with a peer where it wants one.
fn commands<'a>(peer: &'a str, file: &'a str, folder: &'a str) -> Vec<Vec<&'a str>> {
    vec![
        vec!["send", peer, file],
        vec!["forward", "--remote", "1", peer, "80"],
        vec!["connect", peer],
        vec!["ping", peer],
        vec!["receive", folder, "--yes"],
        vec!["expose", "80"],
        vec!["listen"],
    ]
}

#[test]
fn no_supernode_answers() {
    let (world, file, folder) = world("no-supernode");
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = silent.local_addr().unwrap().to_string();
    let peer = world.id("somebody");
    std::thread::scope(|scope| {
        for (number, arguments) in commands(&peer, &file, &folder).into_iter().enumerate() {
            let (world, at) = (&world, &at);
            scope.spawn(move || {
                let mut command = world.command(&number.to_string(), &arguments);
                command.env("TRAVERSE_SUPERNODE", at);
                fails(command, &["no supernode answered", at, "Is the address right"]);
            });
        }
    });
}

#[test]
fn the_peer_is_unknown_or_does_not_want_us() {
    let (world, file, folder) = world("unknown");
    let unknown = world.id("nobody");
    for arguments in &commands(&unknown, &file, &folder)[..4] {
        fails(
            world.command("a", arguments),
            &[&unknown, "is not registered at our supernode", "is it running"],
        );
    }
    for server in [vec!["receive", &folder], vec!["expose", "80"], vec!["listen"]] {
        let mut program = world.start("s", &[&server[..], &["--allow", &unknown]].concat(), Stdio::null());
        let words = if server[0] == "expose" { "exposing" } else { "traverse" };
        program.tells(words);
        let peer = world.id("s");
        for arguments in &commands(&peer, &file, &folder)[..4] {
            fails(world.command("a", arguments), &[&peer, "does not admit us", "it must allow our id"]);
        }
        program.signal(nix::sys::signal::Signal::SIGTERM);
        program.exits(143, &[]);
    }
}

#[test]
fn the_port_is_in_use() {
    let (world, file, folder) = world("port");
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let peer = world.id("somebody");
    for arguments in commands(&peer, &file, &folder) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_traverse"));
        let usual = world.command("a", &["id"]);
        command.envs(usual.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.args(&arguments).args(["--bind", &at]);
        fails(command, &["cannot open a UDP socket at", &at, "in use"]);
    }
}

#[test]
fn files_that_cannot_be_read_or_written() {
    let (world, file, folder) = world("files");
    let peer = world.id("somebody");
    let run = |arguments: &[&str], words: &[&str]| {
        let mut command = world.command("n", arguments);
        if Uid::effective().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        fails(command, words);
    };
    // Whoever runs it has a folder for the key.
    fs::set_permissions(&world.folder, Permissions::from_mode(0o777)).unwrap();
    run(&["send", &peer, "/nonexistent/file"], &["cannot read /nonexistent/file", "No such file"]);
    fs::set_permissions(&file, Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o555)).unwrap();
    run(&["receive", &folder, "--yes"], &["cannot write in the folder", &folder, "ermission denied"]);
    let below = format!("{folder}/below");
    run(&["receive", &below, "--yes"], &["cannot make the folder", &below, "ermission denied"]);
    run(&["receive", &file, "--yes"], &["cannot make the folder", &file, "exists"]);
    run(&["receive", "/dev/null/x", "--yes"], &["cannot make the folder", "/dev/null/x"]);
    fs::set_permissions(&folder, Permissions::from_mode(0o000)).unwrap();
    run(&["send", &peer, &folder], &["cannot read", &folder, "ermission denied"]);
    run(&["send", &peer, &file], &["cannot read", &file, "ermission denied"]);
    // So that it can be removed.
    fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
}
