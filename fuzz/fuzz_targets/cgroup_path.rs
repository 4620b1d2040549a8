//! See `tcptide::fuzz::cgroup_path`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    tcptide::fuzz::cgroup_path(data);
});
