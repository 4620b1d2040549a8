//! The program; all of it is in the library, so that the fuzzer reaches it too.

use std::process::ExitCode;

fn main() -> ExitCode {
    tcptide::main()
}
