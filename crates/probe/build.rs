//! Compiles the BPF programs and writes their skeletons.

use std::{env, path::PathBuf, process::exit};

use libbpf_cargo::SkeletonBuilder;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let libbpf = env::var("DEP_BPF_INCLUDE").expect("libbpf-sys tells where its headers are");
    for object in ["tcp", "floor"] {
        if let Err(error) = SkeletonBuilder::new()
            .source(format!("bpf/{object}.bpf.c"))
            .clang_args(["-Wall", "-Wextra", "-Werror", "-mcpu=v3", "-isystem", &libbpf])
            .build_and_generate(out.join(format!("{object}.skel.rs")))
        {
            eprintln!("the BPF programs do not compile (clang 14 or newer is needed): {error:#}");
            exit(1);
        }
    }
    println!("cargo:rerun-if-changed=bpf");
}
