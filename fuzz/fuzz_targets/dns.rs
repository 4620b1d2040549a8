//! See `tcptide::fuzz::dns`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    tcptide::fuzz::dns(data);
});
