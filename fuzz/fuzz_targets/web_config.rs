//! See `tcptide::fuzz::web_config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    tcptide::fuzz::web_config(data);
});
