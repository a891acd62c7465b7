//! STUN: no bytes bring the reader down, and nobody makes a check without its key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use traversal_proto::wire::stun::{Check, CheckKey, ReflectorReply, ReflectorRequest, peek};

fuzz_target!(|bytes: &[u8]| {
    // A header that is right lets the attributes be reached sooner.
    let mut message = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    message.resize(20, 0);
    message.extend_from_slice(&bytes[..bytes.len().min(1400) / 4 * 4]);
    let length = u16::try_from(message.len() - 20).unwrap_or(0);
    message[2..4].copy_from_slice(&length.to_be_bytes());
    for class in [0x00, 0x01] {
        message[0] = class;
        for bytes in [bytes, &message] {
            let _ = (peek(bytes), ReflectorReply::decode(bytes));
            if let Ok(request) = ReflectorRequest::decode(bytes) {
                assert_eq!(ReflectorRequest::decode(&request.encode()), Ok(request));
            }
            assert!(Check::decode(bytes, &CheckKey::new(&[7; 32])).is_err());
        }
    }
});
