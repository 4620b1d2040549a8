//! `docs/kernels.md` as the last run wrote it: how many instructions of each program the verifier looked at then.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A program on a kernel's major and minor version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProgramAt {
    pub program: String,
    pub kernel: (u64, u64),
}

/// What the page says of programs. Nothing, where there is no page yet.
#[derive(Debug, Default)]
pub(crate) struct Page(BTreeMap<ProgramAt, u32>);

impl Page {
    pub(crate) fn read(file: &Path) -> Self {
        Self::parse(&fs::read_to_string(file).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let mut all = BTreeMap::new();
        let mut kernels = Vec::new();
        for line in text.lines() {
            let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [first, rest @ ..] = cells.as_slice() else { continue };
            if *first == "program" {
                kernels = rest.iter().map(|name| version(name)).collect();
            } else if line.is_empty() {
                kernels.clear();
            }
            for (kernel, cell) in kernels.iter().zip(rest) {
                if let (Some(kernel), Some(instructions)) = (*kernel, instructions(cell)) {
                    all.insert(ProgramAt { program: (*first).to_owned(), kernel }, instructions);
                }
            }
        }
        Self(all)
    }

    pub(crate) fn instructions(&self, at: &ProgramAt) -> Option<u32> {
        self.0.get(at).copied()
    }
}

/// `6.12`
fn version(name: &str) -> Option<(u64, u64)> {
    let (major, minor) = name.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `attached, 41,719`
fn instructions(cell: &str) -> Option<u32> {
    cell.strip_prefix("attached, ")?.replace(',', "").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_read_by_program_and_kernel() {
        let page = Page::parse(
            "## Programs\n\n| program | 5.10 | 6.1 | 6.12 |\n|---|---|---|---|\n\
             | walk | - | unsupported: no hook | attached, 41,719 |\n| used | - | attached, 70 | off |\n\n\
             | story | 5.10 | 6.1 | 6.12 |\n|---|---|---|---|\n| a | attached, 1 | ok | ok |\n",
        );
        let of =
            |program: &str, kernel| page.instructions(&ProgramAt { program: program.to_owned(), kernel });
        assert_eq!((of("walk", (6, 12)), of("used", (6, 1))), (Some(41_719), Some(70)));
        assert_eq!((of("walk", (6, 1)), of("used", (6, 12)), page.0.len()), (None, None, 2));
    }
}
