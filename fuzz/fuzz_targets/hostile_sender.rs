//! A peer that sends files to `traverse receive`: nothing outside the folder is touched, nothing that is there is lost.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    traverse::hostile::by_a_sender(bytes);
});
