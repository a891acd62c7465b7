//! Peers that do not keep to the protocol of a transfer: made by hand, byte by byte, after docs/transfer.md. Nothing they do
//! reaches outside the folder, and an honest peer is served afterwards.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use crate::common::{Program, World};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use traversal::{Connection, Node, RecvStream, SendStream};

const PATIENCE: Duration = Duration::from_secs(20);

type Hash = [u8; 32];

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry(String, Kind);

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Kind {
    Folder,
    File { size: u64, modified: (i64, u32), executable: bool },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Why {
    Unwanted,
    Exists,
    Blocked,
    Denied,
    DiskFull,
    InUse,
    Changed,
    Corrupt,
    Unreadable(String),
    Other(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum FromSender {
    Offer(u32, u64),
    List(Vec<Entry>),
    Prefix(u32, Hash),
    File(u32, u64),
    End(Hash),
    Gone(u32, Why),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum FromReceiver {
    Accept,
    Refuse(Refusal),
    Check(u32, u64),
    Send(u32, u32),
    Resume(u32, u64),
    Present(u32),
    Failed(u32, Why),
    Report,
    Stopped(Why),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Refusal {
    Version(u8),
    Declined,
    TooLarge(u64),
    List(String),
}

fn file(path: &str, size: u64) -> Entry {
    Entry(path.to_owned(), Kind::File { size, modified: (i64::MIN, u32::MAX), executable: true })
}

fn folder(path: &str) -> Entry {
    Entry(path.to_owned(), Kind::Folder)
}

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32).to_be_bytes();
    [&[kind], &length[1..], body].concat()
}

fn message(message: &impl Serialize) -> Vec<u8> {
    frame(0, &postcard::to_allocvec(message).unwrap())
}

fn data(bytes: &[u8]) -> Vec<u8> {
    frame(1, bytes)
}

/// One end of a transfer, by hand.
struct Hand {
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
}

impl Hand {
    /// To a program that receives: it serves the stream.
    async fn connect(node: &Node, id: &str, version: u8) -> Hand {
        let connection = node.connect(id.parse().unwrap()).await.unwrap();
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        send.write_all(&[3]).await.unwrap();
        let mut answer = [9];
        receive.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, [0]);
        send.write_all(&[version]).await.unwrap();
        Hand { connection, send, receive }
    }

    /// From a program that sends: the stream is served.
    async fn accept(node: &Node) -> Hand {
        let connection = node.accept().await.unwrap();
        let (mut send, mut receive) = connection.accept_bi().await.unwrap();
        let mut asked = [0; 2];
        receive.read_exact(&mut asked[..1]).await.unwrap();
        send.write_all(&[0]).await.unwrap();
        receive.read_exact(&mut asked[1..]).await.unwrap();
        assert_eq!(asked, [3, 1]);
        Hand { connection, send, receive }
    }

    /// A peer that has had enough reads no more.
    async fn says(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.send.write_all(bytes.as_ref()).await;
    }

    async fn offers(&mut self, entries: &[Entry]) {
        let sizes =
            entries.iter().map(|Entry(_, kind)| if let Kind::File { size, .. } = kind { *size } else { 0 });
        let sum = sizes.fold(0, u64::wrapping_add);
        self.says(message(&FromSender::Offer(entries.len() as u32, sum))).await;
        self.says(message(&FromSender::List(entries.to_vec()))).await;
    }

    /// The next message; `None`: the stream or the connection is over.
    async fn hears<M: for<'a> Deserialize<'a>>(&mut self) -> Option<M> {
        let hearing = async {
            let mut header = [0; 4];
            self.receive.read_exact(&mut header).await.ok()?;
            let mut body = vec![0; u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize];
            self.receive.read_exact(&mut body).await.ok()?;
            Some(postcard::from_bytes(&body).unwrap())
        };
        timeout(PATIENCE, hearing).await.expect("an answer, or an end")
    }

    /// Waits until this file is asked for, and so many after it.
    async fn is_asked(&mut self, first: u32, count: u32) {
        loop {
            match self.hears().await {
                Some(FromReceiver::Send(at, many)) if (at, many) == (first, count) => break,
                Some(FromReceiver::Report) | None => panic!("nobody asks for {first}"),
                Some(_) => {}
            }
        }
    }

    async fn hears_all(&mut self) -> Vec<FromReceiver> {
        let mut all = Vec::new();
        while let Some(message) = self.hears().await {
            let is_last = matches!(message, FromReceiver::Report | FromReceiver::Refuse(_));
            all.push(message);
            if is_last {
                break;
            }
        }
        all
    }
}

/// A receiver, with a folder beside its own in which nothing may ever appear.
struct Victim {
    world: World,
    node: Option<Node>,
    program: Program,
    id: String,
    inside: PathBuf,
    outside: PathBuf,
}

impl Victim {
    fn new(name: &str) -> Victim {
        let world = World::new(name);
        let (inside, outside) = (world.folder.join("inside"), world.folder.join("outside"));
        fs::create_dir_all(&inside).unwrap();
        fs::create_dir_all(&outside).unwrap();
        let arguments = [inside.to_str().unwrap(), "--yes", "--keep", "--max-size", "1M"];
        let (program, id) = world.receive("s", &arguments);
        let node = Some(world.runtime.block_on(world.node()));
        Victim { world, node, program, id, inside, outside }
    }

    /// One transfer by hand, and what is heard at its end.
    fn attacked(&self, by: impl AsyncFnOnce(&mut Hand)) -> Vec<FromReceiver> {
        self.world.runtime.block_on(async {
            let mut hand = Hand::connect(self.node.as_ref().unwrap(), &self.id, 1).await;
            by(&mut hand).await;
            let heard = hand.hears_all().await;
            let _ = hand.send.finish();
            hand.connection.close(0, b"");
            heard
        })
    }

    #[track_caller]
    fn refuses(&self, entries: &[Entry], words: &str) {
        let heard = self.attacked(async |hand| hand.offers(entries).await);
        let [FromReceiver::Refuse(Refusal::List(told))] = &heard[..] else {
            panic!("{heard:?}: {entries:?}")
        };
        assert!(told.contains(words), "{told}");
    }

    /// What is in the folder.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.inside).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    /// An honest peer is served, and nothing is where it should not be.
    fn ends_well(mut self) {
        let letter = self.world.folder.join("letter");
        fs::write(&letter, "a letter").unwrap();
        let arguments = ["send", &self.id, letter.to_str().unwrap()];
        self.world.start("a", &arguments, Stdio::null()).exits(0, &["1 file sent"]);
        assert_eq!(fs::read(self.inside.join("letter")).unwrap(), b"a letter");
        assert_eq!(fs::read_dir(&self.outside).unwrap().count(), 0);
        let mut beside: Vec<_> =
            fs::read_dir(&self.world.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        beside.retain(|name| !name.to_str().unwrap().ends_with(".key"));
        assert_eq!(beside.len(), 3, "{beside:?}");
        let node = self.node.take().unwrap();
        self.world.runtime.block_on(node.close());
        assert!(!self.program.said().contains("panicked"), "{}", self.program.said());
        self.program.signal(nix::sys::signal::Signal::SIGINT);
        self.program.exits(130, &[]);
    }
}

#[test]
fn names_that_lead_out_and_lists_that_lie() {
    let victim = Victim::new("names");
    for name in
        ["..", ".", "", "/", "/etc/passwd", "../outside/x", "a/../../outside/x", "a//b", "a/", "./a", "a\0b"]
    {
        victim.refuses(&[folder("a"), file(name, 1)], "is no name to be received by");
    }
    let [long, deep] = ["x".repeat(256), "x/".repeat(200) + "x"];
    victim.refuses(&[file(&long, 1)], "longer than");
    victim.refuses(&[file(&deep, 1)], "deeper than");
    victim.refuses(&[file(".traverse-00.part", 1)], "an unfinished transfer");
    victim.refuses(&[file("a", 1), file("a", 1)], "comes twice");
    victim.refuses(&[file("a", 1), file("a/b", 1)], "in something that is no folder");
    victim.refuses(&[file("a/b", 1)], "in something that is no folder");
    victim.refuses(&[file("a", u64::MAX), file("b", 2)], "more bytes than were announced");
    let too_large = victim.attacked(async |hand| hand.offers(&[file("a", u64::MAX)]).await);
    assert_eq!(too_large, [FromReceiver::Refuse(Refusal::TooLarge(1 << 20))]);
    let many = victim.attacked(async |hand| hand.says(message(&FromSender::Offer(u32::MAX, 0))).await);
    assert!(matches!(&many[..], [FromReceiver::Refuse(Refusal::List(_))]), "{many:?}");
    let version = victim.world.runtime.block_on(async {
        Hand::connect(victim.node.as_ref().unwrap(), &victim.id, 2).await.hears_all().await
    });
    assert_eq!(version, [FromReceiver::Refuse(Refusal::Version(1))]);
    assert_eq!(victim.names(), [""; 0]);
    victim.ends_well();
}

/// On Unix these are names as any other.
#[test]
fn names_of_other_systems_are_harmless() {
    let victim = Victim::new("drives");
    let names = ["..\\outside\\x", "C:\\x", "NUL", "a:b", "~", "-rf", "$HOME", "\u{1b}[31m"];
    let entries = names.map(|name| file(name, 0));
    let heard = victim.attacked(async |hand| {
        hand.offers(&entries).await;
        hand.is_asked(0, names.len() as u32).await;
        for index in 0..names.len() as u32 {
            hand.says(message(&FromSender::File(index, 0))).await;
            hand.says(message(&FromSender::End(blake3::hash(b"").into()))).await;
        }
    });
    assert_eq!(heard.last(), Some(&FromReceiver::Report), "{heard:?}");
    assert_eq!(victim.names().len(), names.len());
    assert!(!victim.program.said().contains('\u{1b}'));
    victim.ends_well();
}

/// Whatever breaks the protocol ends the transfer; no file comes of it.
#[test]
fn streams_that_make_no_sense() {
    let victim = Victim::new("sense");
    let hash = |bytes: &[u8]| -> Hash { blake3::hash(bytes).into() };
    let begin = message(&FromSender::File(1, 0));
    let attacks: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("more bytes than announced", vec![begin.clone(), data(&[1; 11])]),
        ("more in two parts", vec![begin.clone(), data(&[1; 10]), data(&[1])]),
        ("fewer", vec![begin.clone(), data(&[1; 9]), message(&FromSender::End(hash(&[1; 9])))]),
        ("data of nothing", vec![data(&[1])]),
        ("an end of nothing", vec![message(&FromSender::End(hash(b"")))]),
        ("another place", vec![message(&FromSender::File(1, 5))]),
        ("a folder's content", vec![message(&FromSender::File(0, 0))]),
        ("no such file", vec![message(&FromSender::File(9, 0))]),
        ("a file in a file", vec![begin.clone(), begin.clone()]),
        (
            "twice",
            vec![begin.clone(), data(&[1; 10]), message(&FromSender::End(hash(&[1; 10]))), begin.clone()],
        ),
        ("nobody asked", vec![message(&FromSender::Prefix(1, hash(b"")))]),
        ("gone and nowhere", vec![message(&FromSender::Gone(7, Why::Changed))]),
        ("a second list", vec![message(&FromSender::List(vec![folder("late")]))]),
        ("no frame", vec![vec![0xff; 1000]]),
        ("too long a message", vec![vec![0, 0xff, 0xff, 0xff]]),
        ("a message with a tail", vec![frame(0, &[4; 64])]),
        ("half a message", vec![begin[..5].to_vec()]),
        ("nothing more", vec![]),
    ];
    for (round, (name, bytes)) in attacks.into_iter().enumerate() {
        let names = [format!("d{round}"), format!("d{round}/x"), format!("d{round}/y")];
        let heard = victim.attacked(async |hand| {
            hand.offers(&[folder(&names[0]), file(&names[1], 10), file(&names[2], 10)]).await;
            hand.is_asked(1, 2).await;
            hand.says(bytes.concat()).await;
            hand.send.finish().unwrap();
        });
        assert!(!heard.contains(&FromReceiver::Report), "{name}: {heard:?}");
        victim.program.tells_times(round + 1, "the transfer broke off");
        assert!(!victim.inside.join(&names[2]).exists(), "{name}");
        assert_eq!(victim.inside.join(&names[1]).exists(), name == "twice", "{name}");
    }
    victim.ends_well();
}

/// What arrives is not what was sent: it never gets the name.
#[test]
fn a_wrong_hash() {
    let victim = Victim::new("hash");
    let heard = victim.attacked(async |hand| {
        hand.offers(&[file("x", 3)]).await;
        hand.is_asked(0, 1).await;
        hand.says(
            [message(&FromSender::File(0, 0)), data(b"abc"), message(&FromSender::End([0; 32]))].concat(),
        )
        .await;
    });
    assert_eq!(&heard[..], [FromReceiver::Failed(0, Why::Corrupt), FromReceiver::Report], "{heard:?}");
    assert_eq!(victim.names(), [""; 0]);
    victim.ends_well();
}

/// Links that were there before, and links that come in the middle, lead nowhere.
#[test]
fn planted_links() {
    let victim = Victim::new("links");
    let partial = |path: &str| format!(".traverse-{}.part", &blake3::hash(path.as_bytes()).to_hex()[..32]);
    symlink(&victim.outside, victim.inside.join("before")).unwrap();
    symlink(victim.outside.join("x"), victim.inside.join("dangling")).unwrap();
    symlink(victim.outside.join("y"), victim.inside.join(partial("file"))).unwrap();
    let entries = [
        folder("before"),
        file("before/x", 3),
        folder("later"),
        file("later/x", 3),
        file("dangling", 3),
        file("file", 3),
    ];
    let heard = victim.attacked(async |hand| {
        hand.offers(&entries).await;
        hand.is_asked(5, 1).await;
        // Everything has been looked at. Now the race, lost by whoever plants links.
        fs::rename(victim.inside.join("later"), victim.inside.join("moved")).unwrap();
        symlink(&victim.outside, victim.inside.join("later")).unwrap();
        for index in [3, 5] {
            hand.says(message(&FromSender::File(index, 0))).await;
            hand.says([data(b"abc"), message(&FromSender::End(blake3::hash(b"abc").into()))].concat()).await;
        }
    });
    let blocked = |message: &FromReceiver| {
        matches!(
            message,
            FromReceiver::Failed(3, Why::Blocked) | FromReceiver::Failed(5, Why::Exists | Why::Blocked)
        )
    };
    assert_eq!(heard.iter().filter(|message| blocked(message)).count(), 2, "{heard:?}");
    assert_eq!(fs::read_dir(victim.inside.join("moved")).unwrap().count(), 0);
    assert!(fs::symlink_metadata(victim.inside.join("dangling")).unwrap().is_symlink());
    victim.ends_well();
}

/// A receiver that asks for what was not offered gets nothing, and the sender says so.
#[test]
fn a_greedy_receiver() {
    let world = World::new("greedy");
    let path = world.folder.join("file");
    fs::write(&path, vec![7; 1000]).unwrap();
    let path: &Path = &path;
    world.runtime.block_on(async {
        let node = world.node().await;
        let id = node.id().to_string();
        let asks = [
            vec![FromReceiver::Send(0, 2)],
            vec![FromReceiver::Send(u32::MAX, u32::MAX)],
            vec![FromReceiver::Check(0, 1001)],
            vec![FromReceiver::Check(1, 0)],
            vec![FromReceiver::Resume(0, 0)],
            vec![FromReceiver::Send(0, 1), FromReceiver::Send(0, 1)],
            vec![FromReceiver::Report],
            vec![FromReceiver::Accept],
        ];
        for asked in asks {
            let mut sender = world.start("a", &["send", &id, path.to_str().unwrap()], Stdio::null());
            let mut hand = Hand::accept(&node).await;
            let offer: Option<FromSender> = hand.hears().await;
            assert!(matches!(offer, Some(FromSender::Offer(1, 1000))), "{offer:?}");
            hand.says(message(&FromReceiver::Accept)).await;
            for message in asked.iter().map(message) {
                hand.says(message).await;
            }
            hand.connection.closed().await;
            sender.exits(1, &["the peer breaks the protocol"]);
        }
        // One that only speaks the truth, and dies.
        let mut sender = world.start("a", &["send", &id, path.to_str().unwrap()], Stdio::null());
        let mut hand = Hand::accept(&node).await;
        hand.says(message(&FromReceiver::Accept)).await;
        hand.says(message(&FromReceiver::Stopped(Why::DiskFull))).await;
        sender.exits(1, &["the peer cannot go on: the disk is full"]);
        hand.connection.close(0, b"");
        node.close().await;
    });
}
