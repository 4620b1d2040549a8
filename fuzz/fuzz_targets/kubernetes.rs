//! See `tcptide::fuzz::kubernetes`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    tcptide::fuzz::kubernetes(data);
});
