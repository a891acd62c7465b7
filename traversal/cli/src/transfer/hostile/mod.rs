//! What a hostile peer may say in a transfer, from the bytes that a fuzzer makes up: some are what it says, and some the
//! protocol's own words in an order and with numbers that nobody meant.

pub(crate) mod receiver;
pub(crate) mod sender;

use std::{
    collections::VecDeque,
    fs,
    future::Future,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use anyhow::Result;
use bytes::Bytes;

use super::{
    stream::Chunks,
    wire::{Why, put},
};
use crate::{args::TellArgs, status::Status};

/// Bytes that decide, one after the other; 0 when there are none left.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.byte()) % all.len()]
    }

    /// Of an entry: most often there is one.
    fn index(&mut self) -> u32 {
        match self.byte() {
            255 => u32::MAX,
            byte => u32::from(byte % 9),
        }
    }

    fn why(&mut self) -> Why {
        match self.byte() % 4 {
            0 => Why::Unwanted,
            1 => Why::DiskFull,
            2 => Why::Exists,
            _ => {
                let words = self.bytes(8);
                Why::Other(String::from_utf8_lossy(&words).into_owned())
            }
        }
    }
}

/// A stream in the making, cut wherever the script says.
#[derive(Default)]
struct Pieces {
    done: VecDeque<Bytes>,
    last: Vec<u8>,
}

impl Pieces {
    fn say(&mut self, message: &impl serde::Serialize) {
        // One that is too long is not said.
        let _ = put(message, &mut self.last);
    }

    fn cut(&mut self) {
        self.done.push_back(std::mem::take(&mut self.last).into());
    }
}

impl Chunks for Pieces {
    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        Ok(self.done.pop_front())
    }
}

/// A folder of this call's own.
struct Yard(PathBuf);

impl Yard {
    fn new() -> Yard {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Relaxed);
        let path = std::env::temp_dir().join(format!("traverse-hostile-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder");
        Yard(path)
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn nobody_is_told() -> Status {
    Status::new(TellArgs { json: false, quiet: true })
}

/// What comes of something that waits for nothing but its input.
fn now<T>(work: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(work))
}
