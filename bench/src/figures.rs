//! What was measured and compared, as a table and as JSON.

use std::{collections::BTreeMap, fmt, fs, process::Command};

use anyhow::Result;
use functional::{process::output, tcptide::Tcptide};
use jiff::{Timestamp, Unit};
use serde::Serialize;

/// Where and when it was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    at: Timestamp,
    kernel: String,
    cpu: String,
    cpus: usize,
    memory_mib: u64,
    /// Load average of the last minute when it began: what else was going on.
    load: String,
    tcptide: String,
    bytes_of_binary: u64,
}

impl Machine {
    pub(crate) fn look(tcptide: &Tcptide) -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let cpu = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let memory = fs::read_to_string("/proc/meminfo")?;
        let kib: u64 = memory.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        Ok(Self {
            at: Timestamp::now().round(Unit::Second)?,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpu: cpu.map_or("unknown", |(_, name)| name).to_owned(),
            cpus: std::thread::available_parallelism()?.get(),
            memory_mib: kib / 1024,
            load: fs::read_to_string("/proc/loadavg")?.split(' ').next().unwrap_or_default().to_owned(),
            tcptide: output(Command::new(tcptide.path()).arg("--version"))?,
            bytes_of_binary: fs::metadata(tcptide.path())?.len(),
        })
    }

    /// For tests.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Self {
        Self {
            at: Timestamp::UNIX_EPOCH,
            kernel: String::new(),
            cpu: String::new(),
            cpus: 1,
            memory_mib: 1,
            load: String::new(),
            tcptide: String::new(),
            bytes_of_binary: 1,
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, kernel, cpu, cpus, memory_mib, load, tcptide, bytes_of_binary } = self;
        writeln!(f, "{tcptide} ({:.1} MiB), {at}", *bytes_of_binary as f64 / f64::from(1 << 20))?;
        writeln!(f, "Linux {kernel}, {cpus} x {cpu}, {memory_mib} MiB, load {load} at the start")
    }
}

/// What a figure must not exceed.
type Limit = Option<f64>;

/// One thing, measured several times.
#[derive(Debug, Serialize)]
struct Figure {
    name: String,
    unit: &'static str,
    median: f64,
    min: f64,
    max: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Limit,
    samples: Vec<f64>,
}

impl Figure {
    fn add(&mut self, value: f64) {
        self.samples.push(value);
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        self.min = sorted[0];
        self.max = sorted[n - 1];
        self.median = f64::midpoint(sorted[(n - 1) / 2], sorted[n / 2]);
    }

    /// The median decides: a machine that does other things too has outliers.
    fn is_kept(&self) -> bool {
        self.limit.is_none_or(|limit| self.median < limit)
    }
}

/// Something that tcptide and a second witness both counted.
#[derive(Debug, Serialize)]
struct Check {
    what: String,
    tcptide: u64,
    witness: u64,
    equal: bool,
}

/// All of it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    figures: Vec<Figure>,
    checks: Vec<Check>,
    #[serde(skip)]
    places: BTreeMap<(String, &'static str), usize>,
}

impl Report {
    pub(crate) fn new(machine: Machine) -> Self {
        Self { machine, figures: Vec::new(), checks: Vec::new(), places: BTreeMap::new() }
    }

    /// Adds a measurement; figures are shown in the order in which they were first met.
    pub(crate) fn add(&mut self, name: &str, unit: &'static str, value: f64) {
        self.add_limited(name, unit, value, None);
    }

    /// As [`add`](Self::add), of what has to stay below `limit`.
    pub(crate) fn add_limited(&mut self, name: &str, unit: &'static str, value: f64, limit: Limit) {
        let at = *self.places.entry((name.to_owned(), unit)).or_insert_with(|| {
            let (name, samples) = (name.to_owned(), Vec::new());
            self.figures.push(Figure { name, unit, median: 0.0, min: 0.0, max: 0.0, limit, samples });
            self.figures.len() - 1
        });
        self.figures[at].add(value);
    }

    /// Adds a comparison. What is compared several times is added up, and equal only if it always was.
    pub(crate) fn check(&mut self, what: &str, tcptide: u64, witness: u64) {
        let equal = tcptide == witness;
        match self.checks.iter_mut().find(|check| check.what == what) {
            Some(check) => {
                check.tcptide += tcptide;
                check.witness += witness;
                check.equal &= equal;
            }
            None => self.checks.push(Check { what: what.to_owned(), tcptide, witness, equal }),
        }
    }

    /// Whether every limit was kept and every comparison equal.
    pub(crate) fn is_good(&self) -> bool {
        self.figures.iter().all(Figure::is_kept) && self.checks.iter().all(|check| check.equal)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        let width = self.figures.iter().map(|figure| figure.name.len()).max().unwrap_or(0);
        writeln!(f, "{:width$} {:>9} {:>9} {:>9} {:>3}  unit", "", "median", "min", "max", "n")?;
        for figure in &self.figures {
            let [median, min, max] = [figure.median, figure.min, figure.max].map(number);
            let (name, unit, n) = (&figure.name, figure.unit, figure.samples.len());
            write!(f, "{name:width$} {median:>9} {min:>9} {max:>9} {n:>3}  {unit}")?;
            match figure.limit {
                Some(limit) if figure.is_kept() => writeln!(f, " (limit {limit}: kept)")?,
                Some(limit) => writeln!(f, " (limit {limit}: MISSED)")?,
                None => writeln!(f)?,
            }
        }
        if self.checks.is_empty() {
            return Ok(());
        }
        let width = self.checks.iter().map(|check| check.what.len()).max().unwrap_or(0);
        writeln!(f, "\n{:width$} {:>9} {:>9}", "", "tcptide", "witness")?;
        for Check { what, tcptide, witness, equal } in &self.checks {
            writeln!(
                f,
                "{what:width$} {tcptide:>9} {witness:>9}{}",
                if *equal { "" } else { "  DIFFERENT" }
            )?;
        }
        Ok(())
    }
}

/// Three digits that matter, or all of a large number.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        small if small < 10.0 => format!("{value:.2}"),
        middle if middle < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(limit: Limit, samples: &[f64]) -> Figure {
        let [median, min, max] = [0.0; 3];
        let mut figure =
            Figure { name: String::new(), unit: "ms", median, min, max, limit, samples: Vec::new() };
        for &sample in samples {
            figure.add(sample);
        }
        figure
    }

    #[test]
    fn the_median_is_in_the_middle_and_decides() {
        let odd = figure(Some(100.0), &[500.0, 1.0, 99.0]);
        assert_eq!([odd.median, odd.min, odd.max].map(number), ["99.0", "1.00", "500"]);
        assert!(odd.is_kept());
        let even = figure(Some(100.0), &[99.0, 101.0]);
        assert_eq!(number(even.median), "100");
        assert!(!even.is_kept());
    }

    #[test]
    fn errors_that_even_out_are_errors() {
        let mut report = Report::new(Machine::nowhere());
        report.check("sockets", 1, 1);
        assert!(report.is_good());
        report.check("sockets", 2, 1);
        report.check("sockets", 1, 2);
        assert!(!report.is_good());
        assert_eq!((report.checks.len(), report.checks[0].tcptide, report.checks[0].witness), (1, 4, 4));
        assert!(report.to_string().contains("DIFFERENT"));
    }

    #[test]
    fn numbers_have_three_digits_or_all() {
        assert_eq!([0.0, 1.234, 12.34, 123.4, 12345.6].map(number), ["0", "1.23", "12.3", "123", "12346"]);
    }
}
