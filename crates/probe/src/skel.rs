//! What libbpf-cargo generates of `bpf/tcp.bpf.c` and, in [`floor`], of `bpf/floor.bpf.c`: the objects, their maps and
//! constants.
#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    unused,
    clippy::all,
    clippy::pedantic
)]

include!(concat!(env!("OUT_DIR"), "/tcp.skel.rs"));

pub(crate) mod floor {
    include!(concat!(env!("OUT_DIR"), "/floor.skel.rs"));
}

// The Rust records are made from the same header by the model crate: hold both to the same layout.
macro_rules! same_layout {
    ($($c:ident = $rust:ident),*) => {$(
        const _: () = assert!(size_of::<types::$c>() == size_of::<model::record::$rust>());
        const _: () = assert!(align_of::<types::$c>() == align_of::<model::record::$rust>());
    )*};
}
same_layout!(
    connection = Connection,
    totals = Totals,
    counters = Counters,
    strays = Strays,
    watched = Watched
);
