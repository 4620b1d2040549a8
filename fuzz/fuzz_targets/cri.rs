//! See `tcptide::fuzz::cri`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    tcptide::fuzz::cri(data);
});
