//! Control messages: any bytes are a message or an error, and what is read is written back and read again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use traversal_proto::wire::{
    message::{FromSupernode, ToSupernode},
    stream,
};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = ToSupernode::decode(bytes) {
        assert_eq!(ToSupernode::decode(&message.encode()), Ok(message));
    }
    if let Ok(message) = FromSupernode::decode(bytes) {
        assert_eq!(FromSupernode::decode(&message.encode()), Ok(message));
    }
    if let Ok(Some(body)) = stream::next_frame(bytes) {
        assert!(!bytes[body].is_empty());
    }
});
