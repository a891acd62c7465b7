//! The sender's side of what the receiver says: it decides what comes when, of what was offered, each file once.

use std::sync::{Arc, mpsc};

use anyhow::{Result, bail};
use serde_json::json;

use super::{
    list::List,
    progress::Progress,
    send::Final,
    source::{Request, Unwanted},
    stream::{Chunks, Incoming},
    wire::{Entry, FromReceiver, Kind, Malformed, Why},
};
use crate::status::Status;

/// What the receiver has said about an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Said {
    is_checked: bool,
    is_asked: bool,
    is_over: bool,
}

pub(crate) struct Following<'a> {
    list: &'a List,
    requests: mpsc::Sender<Request>,
    unwanted: Arc<Unwanted>,
    progress: &'a Progress,
    status: Status,
    said: Vec<Said>,
}

impl<'a> Following<'a> {
    pub(crate) fn new(
        list: &'a List,
        requests: mpsc::Sender<Request>,
        unwanted: Arc<Unwanted>,
        progress: &'a Progress,
        status: Status,
    ) -> Following<'a> {
        let said = vec![Said::default(); list.entries.len()];
        Following { list, requests, unwanted, progress, status, said }
    }

    /// Passes requests on until the receiver has reported.
    ///
    /// # Errors
    /// The receiver cannot go on, breaks the protocol, or is gone.
    pub(crate) async fn run(mut self, mut incoming: Incoming<impl Chunks>) -> Result<()> {
        loop {
            match incoming.next().await? {
                FromReceiver::Check { index, bytes } => self.check(index, bytes)?,
                FromReceiver::Send { first, count } => self.send(first, count)?,
                FromReceiver::Resume { index, from } => self.resume(index, from)?,
                FromReceiver::Present { index } => {
                    let size = self.size(index)?;
                    self.end(index)?;
                    self.progress.present(size);
                }
                FromReceiver::Failed { index, why } => self.failed(index, &why)?,
                FromReceiver::Report if self.is_over() => return Ok(()),
                FromReceiver::Report => return Err(Malformed("it reports too early").into()),
                FromReceiver::Stopped(why) => {
                    bail!(Final(format!(
                        "the peer cannot go on: {why}; what has arrived is kept, and the same command goes on from there"
                    )))
                }
                FromReceiver::Accept | FromReceiver::Refuse(_) => {
                    return Err(Malformed("a second answer to the offer").into());
                }
            }
        }
    }

    fn check(&mut self, index: u32, bytes: u64) -> Result<(), Malformed> {
        let is_within = bytes <= self.size(index)?;
        let said = &mut self.said[index as usize];
        if !is_within || std::mem::replace(&mut said.is_checked, true) || said.is_asked {
            return Err(Malformed("it checks what there is not"));
        }
        self.ask(Request::Prefix { index, bytes });
        Ok(())
    }

    fn send(&mut self, first: u32, count: u32) -> Result<(), Malformed> {
        let end = first as usize + count as usize;
        let entries = self.list.entries.get(first as usize..end);
        let said = self.said.get_mut(first as usize..end);
        let (Some(entries), Some(said)) = (entries, said) else {
            return Err(Malformed("it asks for what there is not"));
        };
        for (entry, said) in entries.iter().zip(said) {
            if entry.kind == Kind::Folder {
                continue;
            }
            if said.is_checked || said.is_over || std::mem::replace(&mut said.is_asked, true) {
                return Err(Malformed("it asks for a file twice"));
            }
        }
        self.ask(Request::Files { first, count });
        Ok(())
    }

    fn resume(&mut self, index: u32, from: u64) -> Result<(), Malformed> {
        let is_within = from <= self.size(index)?;
        let said = &mut self.said[index as usize];
        if !is_within || !said.is_checked || said.is_over || std::mem::replace(&mut said.is_asked, true) {
            return Err(Malformed("it goes on with what it has not checked"));
        }
        let path = &self.list.entries[index as usize].path;
        let words = match from {
            0 => {
                format!("{path}: it is not what it was, or what is there of it is damaged; it starts afresh")
            }
            from => format!("{path}: goes on at byte {from}"),
        };
        self.status.tell(words, "resumed", json!({ "path": path, "from": from }));
        self.progress.spared(from);
        self.ask(Request::Rest { index, from });
        Ok(())
    }

    fn failed(&mut self, index: u32, why: &Why) -> Result<(), Malformed> {
        self.end(index)?;
        self.unwanted.add(index);
        let Entry { path, kind } = &self.list.entries[index as usize];
        let line = format!("{path}: at the peer: {why}");
        self.status.tell(&line, "failed", json!({ "path": path, "why": why.to_string() }));
        self.progress.failed(line, *kind != Kind::Folder);
        Ok(())
    }

    fn end(&mut self, index: u32) -> Result<(), Malformed> {
        match self.said.get_mut(index as usize) {
            Some(said) if !said.is_over => {
                said.is_over = true;
                Ok(())
            }
            _ => Err(Malformed("it tells the end of what there is not")),
        }
    }

    fn size(&self, index: u32) -> Result<u64, Malformed> {
        match self.list.entries.get(index as usize) {
            Some(Entry { kind: Kind::File(about), .. }) => Ok(about.size),
            _ => Err(Malformed("it names a file that there is not")),
        }
    }

    fn ask(&self, request: Request) {
        // The thread that reads ends only with the transfer, and that is told elsewhere.
        let _ = self.requests.send(request);
    }

    /// Every file was asked for, or is over; one that was taken back by this side was asked for.
    fn is_over(&self) -> bool {
        let mut files =
            self.list.entries.iter().zip(&self.said).filter(|(entry, _)| entry.kind != Kind::Folder);
        files.all(|(_, said)| said.is_asked || said.is_over || said.is_checked)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::wire::About, *};

    fn following(list: &List, progress: &Progress, hear: impl FnOnce(&mut Following)) -> usize {
        let status = Status::new(crate::args::TellArgs { json: false, quiet: true });
        let (requests, asked) = mpsc::channel();
        let mut following = Following::new(list, requests, Arc::default(), progress, status);
        hear(&mut following);
        drop(following);
        asked.iter().count()
    }

    /// Whatever a receiver asks for, it is of what was offered, and once.
    #[test]
    fn a_greedy_receiver_is_refused() {
        let about = About { size: 10, modified: (0, 0), executable: false };
        let mut list = List { files: 2, bytes: 20, ..List::default() };
        for (path, kind) in [("a", Kind::Folder), ("a/b", Kind::File(about)), ("a/c", Kind::File(about))] {
            list.entries.push(Entry { path: path.into(), kind });
        }
        let progress = Progress::new(2, 20);
        let asked = following(&list, &progress, |peer| {
            assert!(peer.check(0, 0).is_err() && peer.check(3, 0).is_err() && peer.check(1, 11).is_err());
            assert!(
                peer.resume(2, 0).is_err()
                    && peer.send(0, 4).is_err()
                    && peer.send(u32::MAX, u32::MAX).is_err()
            );
            peer.check(1, 10).unwrap();
            assert!(peer.check(1, 10).is_err() && peer.resume(1, 11).is_err());
        });
        assert_eq!(asked, 1);
        let asked = following(&list, &progress, |peer| {
            peer.send(0, 3).unwrap();
            assert!(peer.send(1, 1).is_err() && peer.check(1, 5).is_err());
            assert!(peer.is_over());
            peer.failed(1, &Why::Denied).unwrap();
            assert!(peer.failed(1, &Why::Denied).is_err() && peer.failed(9, &Why::Denied).is_err());
        });
        assert_eq!(asked, 1);
        following(&list, &progress, |peer| assert!(!peer.is_over()));
    }
}
