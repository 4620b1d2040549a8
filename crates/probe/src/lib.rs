//! x
#![allow(missing_docs)]
mod skel { include!(concat!(env!("OUT_DIR"), "/tcp.skel.rs")); }
