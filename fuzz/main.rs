//! All targets in one program, which takes a fraction of the time to build that one for each takes. The variable `TARGET` says which
//! is run, as libFuzzer has the command line.
#![no_main]

use std::{env, sync::OnceLock};

use tcptide::fuzz::{TARGETS, Target};

static CHOSEN: OnceLock<Target> = OnceLock::new();

fn choose() -> Target {
    let name = env::var("TARGET").unwrap_or_default();
    let chosen = TARGETS.into_iter().find(|(target, _)| *target == name);
    chosen.unwrap_or_else(|| {
        panic!("TARGET={name}: it has to be one of {:?}", TARGETS.map(|(target, _)| target))
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (_, run) = CHOSEN.get_or_init(choose);
    run(data);
});
