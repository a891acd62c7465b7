//! Relay frames: any bytes are a frame or an error, and a frame is written back as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use traversal_proto::wire::{Kind, demultiplex, frame::Frame};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame) = Frame::decode(bytes) {
        assert_eq!(demultiplex(bytes[0]), Kind::Relay);
        assert_eq!(frame.to_vec(), bytes);
    }
});
