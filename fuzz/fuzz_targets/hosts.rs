//! See `tcptide::fuzz::hosts`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    tcptide::fuzz::hosts(data);
});
