//! A peer of `traverse forward` and `traverse expose`: any bytes are a message or an error, and none leads where the list does not.
#![no_main]

use libfuzzer_sys::fuzz_target;
use traverse::hostile::by_a_forwarder;

fuzz_target!(|bytes: &[u8]| {
    by_a_forwarder(bytes);
    // With a header that is right more of it is understood.
    let body = &bytes[..bytes.len().min(512)];
    by_a_forwarder(&[&[1, (body.len() >> 8) as u8, body.len() as u8], body].concat());
});
