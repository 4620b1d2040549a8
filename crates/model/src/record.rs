//! What the kernel side hands over, as it does: generated from `crates/probe/bpf/record.h`, comments included.
//!
//! Numbers are the kernel's, not yet meaning; [`crate::connection`] and [`crate::metrics`] make that of them.
#![allow(clippy::unreadable_literal)]

include!(concat!(env!("OUT_DIR"), "/record.rs"));
