//! See `tcptide::fuzz::http`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    tcptide::fuzz::http(data);
});
