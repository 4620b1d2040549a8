//! Compiles the BPF programs and writes their skeleton.

use std::{env, path::PathBuf, process::exit};

use libbpf_cargo::SkeletonBuilder;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("tcp.skel.rs");
    let libbpf = env::var("DEP_BPF_INCLUDE").expect("libbpf-sys tells where its headers are");
    if let Err(error) = SkeletonBuilder::new()
        .source("bpf/tcp.bpf.c")
        .clang_args(["-Wall", "-Wextra", "-Werror", "-mcpu=v3", "-isystem", &libbpf])
        .build_and_generate(&out)
    {
        eprintln!("the BPF programs do not compile (clang 14 or newer is needed): {error:#}");
        exit(1);
    }
    println!("cargo:rerun-if-changed=bpf");
}
