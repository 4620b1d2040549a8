//! See `tcptide::fuzz::certificate`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    tcptide::fuzz::certificate(data);
});
