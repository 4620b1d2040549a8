//! Makes Rust of `record.h`, the header that says what crosses from the kernel side.
//!
//! The header keeps to a plain form (its first lines say which), so that a reader of lines is enough and this crate
//! needs no C compiler. The probe asserts that both sides agree on every size.

use std::{env, error::Error, fmt::Write as _, fs, path::PathBuf};

const HEADER: &str = "../probe/bpf/record.h";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={HEADER}");
    let rust = translate(&fs::read_to_string(HEADER)?)?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    fs::write(out.join("record.rs"), rust)?;
    Ok(())
}

enum Block {
    None,
    Enum { next: u32 },
    Struct { name: String, zeros: String },
}

fn translate(header: &str) -> Result<String, Box<dyn Error>> {
    let mut out = String::new();
    let mut block = Block::None;
    let mut doc = String::new();
    let mut in_comment = false;
    for (number, line) in header.lines().enumerate() {
        let line = line.trim();
        let at = || format!("{HEADER}:{}: not understood: {line}", number + 1);
        if in_comment {
            in_comment = !line.ends_with("*/");
        } else if let Some(text) = line.strip_prefix("/* ").and_then(|l| l.strip_suffix(" */")) {
            text.clone_into(&mut doc);
        } else if line.starts_with("/*") {
            in_comment = true;
        } else if let Some(rest) = line.strip_prefix("#define ") {
            if let Some((name, value)) = rest.split_once(' ') {
                let kind = match name {
                    _ if name.starts_with("CGROUP_") && name != "CGROUP_PATH_LEN" => "u64",
                    _ if name.starts_with("FLAG_") || name.starts_with("WANTED") => "u8",
                    _ => "usize",
                };
                writeln!(out, "#[doc = {doc:?}]\npub const {name}: {kind} = {value};")?;
            }
        } else if let Some(name) = line.strip_prefix("enum ").and_then(|l| l.strip_suffix(" {")) {
            writeln!(out, "#[doc = {doc:?}]\npub mod {name} {{")?;
            block = Block::Enum { next: 0 };
        } else if let Some(name) = line.strip_prefix("struct ").and_then(|l| l.strip_suffix(" {")) {
            let name = camel(name);
            writeln!(
                out,
                "#[doc = {doc:?}]\n#[repr(C)]\n#[derive(Debug, Clone, Copy, PartialEq, Eq)]\npub struct {name} {{"
            )?;
            block = Block::Struct { name, zeros: String::new() };
        } else if line == "};" {
            writeln!(out, "}}")?;
            if let Block::Struct { name, zeros } = &block {
                writeln!(out, "impl Default for {name} {{ fn default() -> Self {{ Self {{ {zeros} }} }} }}")?;
            }
            block = Block::None;
        } else if !(line.is_empty() || line.starts_with("#if") || line.starts_with("#endif")) {
            match &mut block {
                Block::Enum { next } => {
                    let name = line.strip_suffix(',').ok_or_else(at)?;
                    writeln!(out, "    #[doc = {doc:?}]\n    pub const {name}: usize = {next};")?;
                    *next += 1;
                }
                Block::Struct { zeros, .. } => {
                    let (kind, field) =
                        line.strip_suffix(';').and_then(|l| l.rsplit_once(' ')).ok_or_else(at)?;
                    let (member, zero) = member(kind, field).ok_or_else(at)?;
                    writeln!(out, "    #[doc = {doc:?}]\n    pub {member},")?;
                    zeros.push_str(&zero);
                }
                Block::None => return Err(at().into()),
            }
        }
    }
    Ok(out)
}

/// `__u64` and `many[N]` to `many: [u64; N]` and its zero.
fn member(kind: &str, field: &str) -> Option<(String, String)> {
    let kind = match kind.strip_prefix("struct ") {
        Some(name) => camel(name),
        None => format!("u{}", kind.strip_prefix("__u")?),
    };
    let zero = if kind.starts_with('u') { "0".to_owned() } else { format!("{kind}::default()") };
    let Some((name, len)) = field.strip_suffix(']').and_then(|f| f.split_once('[')) else {
        return Some((format!("{field}: {kind}"), format!("{field}: {zero}, ")));
    };
    // A length that is the last value of an enum stands in that enum's module.
    let len = match len {
        "DIRECTIONS" => "direction::DIRECTIONS".to_owned(),
        "REASONS" => "reason::REASONS".to_owned(),
        "LIMITS" => "limit::LIMITS".to_owned(),
        "WINDOWS" => "window::WINDOWS".to_owned(),
        "CONGESTIONS" => "congestion::CONGESTIONS".to_owned(),
        "FAST_OPENS" => "fast_open::FAST_OPENS".to_owned(),
        "RETRANSMITS" => "retransmit::RETRANSMITS".to_owned(),
        other => other.to_owned(),
    };
    Some((format!("{name}: [{kind}; {len}]"), format!("{name}: [0; {len}], ")))
}

fn camel(name: &str) -> String {
    name.split('_')
        .map(|word| {
            let mut letters = word.chars();
            letters.next().map(|c| c.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
        })
        .collect()
}
