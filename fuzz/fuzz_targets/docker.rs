//! See `tcptide::fuzz::docker`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    tcptide::fuzz::docker(data);
});
