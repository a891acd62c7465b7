//! Frames over byte streams, whatever arrives.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use tokio::io::AsyncWriteExt;
use traversal_net::framing::{FrameReader, FrameWriter, ReadError};
use traversal_proto::wire::stream::MAX_FRAME;

async fn read_all(bytes: &[u8]) -> (Vec<Vec<u8>>, Option<ReadError>) {
    let mut reader = FrameReader::new(bytes);
    let mut frames = Vec::new();
    loop {
        match reader.next().await {
            Ok(Some(body)) => frames.push(body.to_vec()),
            Ok(None) => return (frames, None),
            Err(error) => return (frames, Some(error)),
        }
    }
}

#[tokio::test]
async fn hostile_lengths_end_the_stream() {
    for (bytes, wrong) in [(&[0u8, 0][..], 0), (&[0x10, 0x01, 7], 4097), (&[0xff, 0xff, 7, 7], 65_535)] {
        let (frames, error) = read_all(bytes).await;
        assert!(frames.is_empty());
        assert!(matches!(error, Some(ReadError::BadLength(ref bad)) if bad.0 == wrong), "{error:?}");
    }
    for cut in [&[0u8][..], &[0, 2, 9]] {
        assert!(matches!(read_all(cut).await.1, Some(ReadError::CutShort)));
    }
    let mut writer = FrameWriter::new(Vec::new());
    assert!(writer.push(&[]).is_err());
    assert!(writer.push(&[0; MAX_FRAME + 1]).is_err());
    assert_eq!(writer.pending(), 0);
}

/// One byte at a time through a pipe that holds three, with the reader given up again and again: nothing is lost.
#[tokio::test]
async fn both_are_cancel_safe() {
    let (near, far) = tokio::io::duplex(3);
    let (mut writer, mut reader) = (FrameWriter::new(near), FrameReader::new(far));
    let bodies: Vec<Vec<u8>> = (1..40u8).map(|n| vec![n; usize::from(n) * 7]).collect();
    bodies.iter().for_each(|body| writer.push(body).unwrap());
    let mut received = Vec::new();
    let mut flushed = false;
    while received.len() < bodies.len() {
        tokio::select! {
            biased;
            body = reader.next() => received.push(body.unwrap().unwrap().to_vec()),
            done = writer.flush(), if !flushed => { done.unwrap(); flushed = true; }
            () = tokio::task::yield_now() => {}
        }
    }
    assert_eq!(received, bodies);
    writer.get_mut().shutdown().await.unwrap();
    assert!(reader.next().await.unwrap().is_none());
}

proptest! {
    #[test]
    fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..20_000)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (frames, _) = runtime.block_on(read_all(&bytes));
        prop_assert!(frames.iter().all(|frame| (1..=MAX_FRAME).contains(&frame.len())));
    }

    #[test]
    fn what_is_written_is_read(bodies in proptest::collection::vec(
        proptest::collection::vec(any::<u8>(), 1..MAX_FRAME + 1), 0..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let read = runtime.block_on(async {
            let mut bytes = Vec::new();
            let mut writer = FrameWriter::new(&mut bytes);
            bodies.iter().for_each(|body| writer.push(body).unwrap());
            writer.flush().await.unwrap();
            read_all(&bytes).await
        });
        prop_assert!(read.1.is_none());
        prop_assert_eq!(read.0, bodies);
    }
}
