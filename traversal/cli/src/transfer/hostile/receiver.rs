//! A hostile receiver, before whatever `traverse send` does between the offer and the last byte.

use std::{
    fs,
    sync::{Arc, OnceLock, mpsc as std_mpsc},
};

use tokio::sync::mpsc;

use super::{Pieces, Script, Yard, nobody_is_told, now};
use crate::transfer::{
    following::Following,
    list::List,
    progress::Progress,
    source::{Buffer, Source, Unwanted},
    stream::Incoming,
    wire::{Decoder, FromReceiver, FromSender, Kind, Part, Refusal},
};

/// More blocks than come of all the files.
const BLOCKS: usize = 1024;

/// A sender that hears whatever a receiver says once it has accepted the offer: a folder with four files. How many bytes
/// of them it is sent.
///
/// # Panics
/// Something is sent that is not of the list, not as it is in its file, or twice.
pub fn by_a_receiver(bytes: &[u8]) -> u64 {
    static OFFERED: OnceLock<(Yard, Arc<List>)> = OnceLock::new();
    let (_, list) = OFFERED.get_or_init(offered);
    let mut script = Script(bytes);
    let mut said = Pieces::default();
    while !script.is_over() {
        speak(&mut script, &mut said);
    }
    said.cut();

    let (requests, asked) = std_mpsc::channel();
    let (blocks, mut sent) = mpsc::channel(BLOCKS);
    let (unwanted, progress) = (Arc::<Unwanted>::default(), Arc::new(Progress::new(list.files, list.bytes)));
    let status = nobody_is_told();
    let following = Following::new(list, requests, unwanted.clone(), &progress, status);
    // That the receiver breaks the protocol is its own affair: what it asked for before is served.
    let _ = now(following.run(Incoming::new(said)));
    let source = Source {
        list: list.clone(),
        blocks,
        unwanted,
        progress: progress.clone(),
        status,
        buffer: Buffer::default(),
    };
    source.run(&asked).expect("whoever takes the blocks is there");

    let (mut decoder, mut current, mut begun) = (Decoder::default(), None, vec![false; list.entries.len()]);
    let mut sent_bytes = 0;
    while let Ok(block) = sent.try_recv() {
        let mut input = &block.bytes[..];
        while let Some(part) = decoder.next(&mut input).expect("frames") {
            if let Part::Data(bytes) = &part {
                sent_bytes += bytes.len() as u64;
            }
            hear(list, part, &mut current, &mut begun);
        }
    }
    assert!(decoder.is_between() && current.is_none(), "a file has no end");
    sent_bytes
}

/// Holds what is sent to what is in the file of that entry; `current`: the rest of the one that is being sent.
fn hear(list: &List, part: Part<FromSender>, current: &mut Option<Vec<u8>>, begun: &mut [bool]) {
    let size = |index: u32| match list.entries[index as usize].kind {
        Kind::File(about) => about.size,
        Kind::Folder => panic!("a folder is sent"),
    };
    match part {
        Part::Message(FromSender::File { index, from }) => {
            assert!(from <= size(index) && !std::mem::replace(&mut begun[index as usize], true), "twice");
            let content = fs::read(list.source(&list.entries[index as usize])).expect("a file");
            assert!(current.replace(content[from as usize..].to_vec()).is_none(), "a file in another");
        }
        Part::Data(bytes) => {
            let rest = current.as_mut().expect("data of a file");
            assert!(rest.starts_with(bytes), "other data than the file's");
            rest.drain(..bytes.len());
        }
        Part::Message(FromSender::End { .. }) => assert_eq!(current.take(), Some(Vec::new())),
        Part::Message(FromSender::Prefix { index, .. } | FromSender::Gone { index, .. }) => {
            let _ = size(index);
        }
        Part::Message(other) => panic!("{other:?}"),
    }
}

fn offered() -> (Yard, Arc<List>) {
    let yard = Yard::new();
    let folder = yard.0.join("offered");
    fs::create_dir(&folder).expect("a folder");
    for (name, size) in [("empty", 0), ("one", 1), ("small", 300), ("large", 300_000)] {
        let content: Vec<u8> =
            (0..size).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        fs::write(folder.join(name), content).expect("a file");
    }
    fs::write(yard.0.join("secret"), "kept").expect("a file");
    let list = List::of(&[folder], |path, why| panic!("{}: {why}", path.display())).expect("a list");
    (yard, Arc::new(list))
}

/// One thing more.
fn speak(script: &mut Script, said: &mut Pieces) {
    let size = |script: &mut Script| script.one_of(&[0, 1, 299, 300, 301, 150_000, 300_000, u64::MAX]);
    match script.byte() % 10 {
        0 => said.last.extend(script.bytes(40)),
        1 => said.say(&FromReceiver::Check { index: script.index(), bytes: size(script) }),
        2 => said.say(&FromReceiver::Resume { index: script.index(), from: size(script) }),
        3 => said.say(&FromReceiver::Present { index: script.index() }),
        4 => said.say(&FromReceiver::Failed { index: script.index(), why: script.why() }),
        5 => said.cut(),
        6 => said.say(&match script.byte() % 4 {
            0 => FromReceiver::Report,
            1 => FromReceiver::Accept,
            2 => FromReceiver::Refuse(Refusal::Declined),
            _ => FromReceiver::Stopped(script.why()),
        }),
        _ => said.say(&FromReceiver::Send { first: script.index(), count: script.index() }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn what_was_offered_is_sent_once() {
        let all = [7, 0, 5];
        assert_eq!(by_a_receiver(&all), 300_301);
        assert_eq!(by_a_receiver(&[all, all].concat()), 300_301);
        assert_eq!(by_a_receiver(&[7, 0, 6]), 0);
    }

    proptest! {
        #[test]
        fn no_receiver_gets_what_it_was_not_offered(bytes in vec(any::<u8>(), 0..200)) {
            by_a_receiver(&bytes);
        }
    }
}
