//! A peer that `traverse send` sends files to: it gets what it was offered, each file once, and nothing else.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    traverse::hostile::by_a_receiver(bytes);
});
