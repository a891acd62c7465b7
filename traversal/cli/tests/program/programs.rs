//! Two or more programs and a supernode, on this machine: how they end, and what they tell each other about it.

use std::{fs::File, process::Stdio};

use crate::common::{Program, World, hung_up};
use nix::sys::signal::{SigHandler, Signal};
use traversal::{Connection, RecvStream};

#[test]
fn both_ways_to_the_end() {
    let world = World::new("both");
    let (mut listener, id) = world.listen("s", &[], Stdio::piped());
    let mut caller = world.start("a", &["connect", &id], Stdio::piped());
    caller.types("question\n");
    listener.puts_out("question");
    listener.types("answer\n");
    caller.puts_out("answer");
    caller.ends_input();
    listener.ends_input();
    caller.exits(0, &["9 bytes sent, 7 received"]);
    listener.exits(0, &["7 bytes sent, 9 received"]);
}

/// A caller says something to a listener that has nothing to say, and then does `end`: what the caller makes of it.
#[track_caller]
fn the_peer_ends_badly(name: &str, end: impl AsyncFnOnce(&Connection, RecvStream), words: &[&str]) {
    let world = World::new(name);
    world.runtime.block_on(async {
        let node = world.node().await;
        let mut caller = world.start("a", &["connect", &node.id().to_string()], Stdio::piped());
        caller.types("lost\n");
        let connection = node.accept().await.unwrap();
        let (mut send, mut receive) = connection.accept_bi().await.unwrap();
        let mut said = [0; 6];
        receive.read_exact(&mut said[..1]).await.unwrap();
        // The service that is asked for, and that it is served.
        send.write_all(&[0]).await.unwrap();
        send.finish().unwrap();
        receive.read_exact(&mut said[1..]).await.unwrap();
        assert_eq!(&said, b"\x02lost\n");
        if words[0].contains("confirm") {
            caller.ends_input();
        }
        end(&connection, receive).await;
        caller.exits(1, words);
    });
}

#[test]
fn a_peer_that_goes_is_an_error() {
    let end = async |connection: &Connection, _: RecvStream| connection.close(0, b"\x1b[31mgone");
    let words = ["the peer closed the connection", "5 bytes were sent, some of which may not have arrived"];
    the_peer_ends_badly("goes", end, &words);
}

#[test]
fn a_peer_that_stops_reading_is_an_error() {
    let end = async |_: &Connection, mut receive: RecvStream| receive.stop(7u32.into()).unwrap();
    the_peer_ends_badly("stops", end, &["the peer wants no more (code 7)", "5 bytes were sent"]);
}

#[test]
fn a_peer_that_confirms_nothing_is_an_error() {
    let end = async |connection: &Connection, mut receive: RecvStream| {
        assert_eq!(receive.read_to_end(1).await.unwrap(), b"");
        connection.accept_uni().await.unwrap();
        connection.close(0, b"");
    };
    the_peer_ends_badly("unconfirmed", end, &["all 5 bytes have arrived, but the peer does not confirm"]);
}

#[test]
fn a_peer_whose_output_is_closed_is_an_error_here_and_quiet_there() {
    let world = World::new("closed");
    let mut listener = world.unread("s", &["listen"]);
    let id = listener.listens();
    let mut caller = world.start("a", &["connect", &id], Stdio::piped());
    caller.types("too much\n");
    caller.exits(1, &["the peer ended it (its standard output is closed)", "9 bytes were sent"]);
    listener.exits(141, &[]);
    assert!(!listener.said().contains("traverse: "), "{}", listener.said());
}

#[test]
fn a_full_disk_at_the_peer_is_an_error_at_both() {
    let world = World::new("full");
    let mut command = world.command("s", &["listen"]);
    command.stdin(Stdio::null()).stdout(File::options().write(true).open("/dev/full").unwrap());
    let mut listener = Program::spawn(command);
    let id = listener.listens();
    let mut caller = world.start("a", &["connect", &id], Stdio::piped());
    caller.types("for nobody\n");
    // All of it has arrived when the peer finds out.
    caller.ends_input();
    caller.exits(1, &["the peer ended it (it failed)"]);
    listener.exits(1, &["cannot write to standard output", "space"]);
}

#[test]
fn signals_are_told_to_the_peer() {
    let world = World::new("signals");
    for (signal, code) in [(Signal::SIGHUP, 129), (Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let (mut listener, id) = world.listen("s", &[], Stdio::piped());
        let mut caller = world.start("a", &["connect", &id], Stdio::piped());
        caller.types("half of it\n");
        listener.puts_out("half");
        caller.signal(signal);
        listener.exits(1, &["the peer ended it (interrupted)", "11 were received"]);
        caller.exits(code, &[]);

        let (mut listener, id) = world.listen("s", &[], Stdio::piped());
        let mut caller = world.start("a", &["connect", &id], Stdio::piped());
        caller.tells("connected");
        listener.tells("connected");
        listener.signal(signal);
        caller.exits(1, &["the peer ended it (interrupted)", "0 bytes were sent, 0 were"]);
        listener.exits(code, &[]);
    }
}

/// As with `nohup`.
#[test]
fn a_program_may_outlive_its_terminal() {
    let world = World::new("outlives");
    let mut command = world.command("s", &["listen"]);
    hung_up(&mut command, SigHandler::SigIgn);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut listener = Program::spawn(command);
    listener.listens();
    listener.signal(Signal::SIGHUP);
    listener.signal(Signal::SIGTERM);
    listener.exits(143, &[]);
}

#[test]
fn a_ping_ends_by_itself_by_a_signal_and_when_nobody_reads_it() {
    let world = World::new("ping");
    let (_listener, id) = world.listen("s", &["--keep"], Stdio::null());
    let ping = |arguments: &[&str]| {
        let mut all = vec!["ping", &id, "--interval", "0.05"];
        all.extend(arguments);
        world.start("a", &all, Stdio::null())
    };
    let mut counted = ping(&["--count", "3", "--quiet"]);
    counted.exits(0, &[]);
    let lines = counted.output();
    assert!(lines.lines().count() == 1 && lines.contains("3 round trips"), "{lines}");

    let mut interrupted = ping(&[]);
    interrupted.puts_out("   3 ");
    interrupted.signal(Signal::SIGINT);
    interrupted.exits(0, &[]);
    interrupted.puts_out("round trips: least");

    let mut terminated = ping(&[]);
    terminated.puts_out("   1 ");
    terminated.signal(Signal::SIGTERM);
    terminated.exits(143, &[]);

    let mut unread = world.unread("a", &["ping", &id]);
    unread.exits(141, &[]);
    assert_eq!(unread.said(), "");
}

#[test]
fn one_peer_after_the_other_has_its_part_of_the_input() {
    let world = World::new("keep");
    let (mut listener, id) = world.listen("s", &["--keep"], Stdio::piped());
    for (count, word) in (1..).zip(["first", "second", "third"]) {
        let mut caller = world.start("a", &["connect", &id], Stdio::piped());
        listener.types(&format!("{word}\n"));
        caller.puts_out(word);
        assert_eq!(caller.output().trim(), word);
        caller.signal(Signal::SIGINT);
        caller.exits(130, &[]);
        listener.tells_times(count, "0 were received");
    }
    listener.ends_input();
    let mut last = world.start("a", &["connect", &id], Stdio::null());
    last.exits(0, &["0 bytes sent, 0 received"]);
}

#[test]
fn a_key_in_use_is_told_as_wanted() {
    let world = World::new("in-use");
    let (_listener, id) = world.listen("s", &["--keep"], Stdio::null());
    let mut second = world.start("s", &["listen"], Stdio::null());
    second.exits(1, &["another process uses the key", "s.key", "--key FILE"]);

    let ping = |arguments: &[&str]| {
        let mut all = vec!["ping", &id, "--count", "1"];
        all.extend(arguments);
        let mut ping = world.start("s", &all, Stdio::null());
        ping.exits(0, &[]);
        ping.said()
    };
    assert!(ping(&[]).contains("this time only"));
    let json: serde_json::Value = serde_json::from_str(&ping(&["--json"])).unwrap();
    assert_eq!(json["event"], "key-in-use");
    assert_eq!(ping(&["--quiet"]), "");
    // Who one is can be asked at any time.
    let mut asked = world.start("s", &["id"], Stdio::null());
    asked.exits(0, &[]);
    assert_eq!(asked.output().trim(), id);
}

/// README's first two commands: nobody has to end the terminal's input by hand.
#[test]
fn a_file_to_somebody_at_a_terminal() {
    let world = World::new("terminal");
    let terminal = nix::pty::openpty(None, None).unwrap();
    let (mut listener, id) = world.listen("s", &[], Stdio::from(terminal.slave));
    let mut caller = world.start("a", &["connect", &id], Stdio::piped());
    caller.types("a file\n");
    caller.ends_input();
    caller.exits(0, &[]);
    listener.exits(0, &[]);
    assert_eq!(listener.output(), "a file\n");
}

#[test]
fn the_supernode_is_missed_and_found_again() {
    let mut world = World::new("supernode");
    let (mut listener, _) = world.listen("s", &[], Stdio::null());
    world.supernode_ends();
    listener.tells("no supernode answers");
    world.supernode_begins();
    listener.tells("registered again, at 127.0.0.1");
    listener.signal(Signal::SIGINT);
    listener.exits(130, &[]);
}

#[test]
fn nobody_reads() {
    let world = World::new("nobody");
    for command in ["id", "doctor"] {
        let mut program = world.unread("a", &[command]);
        program.exits(141, &[]);
        assert!(!program.said().contains("panicked"), "{}", program.said());
    }
}
