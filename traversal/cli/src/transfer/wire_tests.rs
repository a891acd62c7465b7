use proptest::{collection::vec, prelude::*};

use super::*;

/// Everything in `pieces`, as `Ok`s, and then the error if there is one.
fn decode(pieces: &[&[u8]]) -> (Vec<FromSender>, Vec<u8>, Option<Malformed>) {
    let (mut decoder, mut messages, mut data) = (Decoder::default(), Vec::new(), Vec::new());
    for mut piece in pieces.iter().copied() {
        loop {
            match decoder.next(&mut piece) {
                Ok(Some(Part::Message(message))) => messages.push(message),
                Ok(Some(Part::Data(bytes))) => data.extend_from_slice(bytes),
                Ok(None) => break,
                Err(error) => return (messages, data, Some(error)),
            }
            assert!(decoder.body.capacity() <= 2 * MAX_BODY, "more is held than a message has");
        }
        assert!(piece.is_empty(), "a decoder that wants more has taken everything");
    }
    (messages, data, None)
}

fn why() -> impl Strategy<Value = Why> {
    prop_oneof![Just(Why::Exists), Just(Why::DiskFull), ".*".prop_map(|words| Why::Other(brief(words)))]
}

fn entry() -> impl Strategy<Value = Entry> {
    let about = (any::<u64>(), any::<(i64, u32)>(), any::<bool>())
        .prop_map(|(size, modified, executable)| Kind::File(About { size, modified, executable }));
    (".{0,40}", prop_oneof![Just(Kind::Folder), about]).prop_map(|(path, kind)| Entry { path, kind })
}

fn message() -> impl Strategy<Value = FromSender> {
    prop_oneof![
        (any::<u32>(), any::<u64>()).prop_map(|(entries, bytes)| FromSender::Offer { entries, bytes }),
        vec(entry(), 0..20).prop_map(FromSender::List),
        (any::<u32>(), any::<Hash>()).prop_map(|(index, hash)| FromSender::Prefix { index, hash }),
        (any::<u32>(), any::<u64>()).prop_map(|(index, from)| FromSender::File { index, from }),
        any::<Hash>().prop_map(|hash| FromSender::End { hash }),
        (any::<u32>(), why()).prop_map(|(index, why)| FromSender::Gone { index, why }),
    ]
}

proptest! {
    #[test]
    fn any_bytes_are_messages_or_an_error(bytes in vec(any::<u8>(), 0..400), cut in 0usize..400) {
        let (first, second) = bytes.split_at(cut.min(bytes.len()));
        prop_assert_eq!(decode(&[first, second]), decode(&[&bytes]));
    }

    /// Bytes that have the form of a frame get further than others.
    #[test]
    fn any_body_is_a_message_or_an_error(kind in 0u8..3, variant in 0u8..8, body in vec(any::<u8>(), 0..200)) {
        let mut bytes = header(kind, body.len() + 1).to_vec();
        bytes.push(variant);
        bytes.extend(&body);
        let (messages, data, error) = decode(&[&bytes]);
        let is_one = |is: bool| usize::from(is);
        let came = is_one(!messages.is_empty()) + is_one(!data.is_empty()) + is_one(error.is_some());
        prop_assert_eq!(came, 1);
    }

    #[test]
    fn what_is_written_is_read(
        messages in vec(message(), 0..8),
        data in vec(any::<u8>(), 0..300),
        cuts in vec(0usize..5000, 0..6),
    ) {
        let mut bytes = Vec::new();
        for message in &messages {
            put(message, &mut bytes).unwrap();
            bytes.extend(data_header(data.len()));
            bytes.extend(&data);
        }
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<_> = cuts.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect();
        prop_assert_eq!(decode(&pieces), (messages.clone(), data.repeat(messages.len()), None));
    }
}

#[test]
fn what_is_too_long_is_not_held() {
    let (messages, _, error) = decode(&[&header(MESSAGE, MAX_BODY + 1)]);
    assert_eq!((messages, error), (vec![], Some(Malformed("a message is too long"))));
    let long = FromSender::Gone { index: 0, why: Why::Other("x".repeat(MAX_BODY)) };
    assert_eq!(put(&long, &mut Vec::new()), Err(Malformed("a message is too long")));
    assert_eq!(brief("ü".repeat(1000)).len(), MAX_WORDS);
}

#[test]
fn a_cut_stream_is_seen() {
    let mut bytes = Vec::new();
    put(&FromSender::End { hash: [7; 32] }, &mut bytes).unwrap();
    let mut decoder = Decoder::default();
    for length in 1..bytes.len() {
        assert_eq!(decoder.next::<FromSender>(&mut &bytes[length - 1..length]), Ok(None));
        assert!(!decoder.is_between());
    }
    assert!(matches!(decoder.next::<FromSender>(&mut &bytes[bytes.len() - 1..]), Ok(Some(_))));
    assert!(decoder.is_between());
}
