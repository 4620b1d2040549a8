//! All guests of all kernels, as many at a time as there is room for.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::kernels::Kernel;
use crate::plan::{Cost, Line, Plan, Program, Story, Told, Watched};
use crate::programs::Programs;
use crate::stories::{Functional, Wanted, plans};
use crate::{initramfs, machine};

/// Guests at a time, on two CPUs: each keeps one busy most of the time.
const AT_A_TIME: usize = 3;
/// How many stories that failed are told again on a machine that does nothing else: an emulated processor that shares the
/// real one may stand still for longer than a story expects. As many as one guest tells.
const MOST_AGAIN: usize = 20;
/// How long a guest may take.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// What all guests of one kernel told.
pub(crate) struct Results {
    pub kernel: Kernel,
    /// In the order of the program table.
    pub programs: Vec<Program>,
    pub costs: Vec<Cost>,
    pub watched: Vec<Watched>,
    pub stories: Vec<Told>,
}

impl Results {
    /// Whether every story held.
    pub(crate) fn are_good(&self) -> bool {
        self.stories.iter().all(|told| told.outcome.is_ok())
    }

    fn add(&mut self, lines: Vec<Line>) {
        for line in lines {
            match line {
                Line::Programs(programs) => self.add_programs(programs),
                Line::Costs(costs) => self.costs = costs,
                Line::Overhead(watched) => self.watched.extend(watched),
                Line::Story(told) => self.stories.push(told),
                Line::End => {}
            }
        }
    }

    /// A program that one boot has no use for is known from another.
    fn add_programs(&mut self, programs: Vec<Program>) {
        if self.programs.is_empty() {
            self.programs = programs;
            return;
        }
        for program in programs {
            let known =
                self.programs.iter_mut().find(|known| known.name == program.name && known.status == "off");
            if let Some(known) = known {
                *known = program;
            }
        }
    }
}

/// A guest to be: a kernel, by its place in the list, and one of its plans.
struct Guest {
    kernel: usize,
    number: usize,
    plan: Plan,
}

impl Guest {
    /// One that has to tell again what failed in this one.
    fn again(&self, lines: &[Line]) -> Option<Self> {
        let stories: Vec<_> = lines
            .iter()
            .filter_map(|line| match line {
                Line::Story(told) if told.outcome.is_err() => Some(told.story.clone()),
                _ => None,
            })
            .collect();
        let plan = Plan { boot: self.plan.boot, stories };
        (!plan.stories.is_empty()).then_some(Self { kernel: self.kernel, number: self.number, plan })
    }
}

/// Runs them all; the results are in the order of the kernels.
pub(crate) fn run(
    kernels: &[Kernel],
    programs: &Programs,
    functional: &Functional,
    wanted: Wanted<'_>,
) -> Result<Vec<Results>> {
    let archives = Archives::make(kernels, programs)?;
    let plans = plans(kernels, functional, wanted);
    let guests = plans.into_iter().enumerate().flat_map(|(kernel, plans)| {
        let plans = plans.into_iter().enumerate();
        plans.map(move |(number, plan)| Guest { kernel, number, plan })
    });
    let mut guests: Vec<_> = guests.collect();
    // The long ones first, so that none is left alone at the end.
    guests.sort_by_key(|guest| std::cmp::Reverse(guest.plan.stories.len()));
    let boot = |guest: &Guest| boot(&kernels[guest.kernel], guest, &archives);
    let mut told = tell(guests, AT_A_TIME, &boot)?;
    let again: Vec<_> = told.iter().filter_map(|(guest, lines)| guest.again(lines)).collect();
    let failed = again.iter().map(|guest| guest.plan.stories.len()).sum::<usize>();
    if (1..=MOST_AGAIN).contains(&failed) {
        eprintln!("vm: {failed} stories are told again, with nothing else beside");
        for (guest, lines) in tell(again, 1, &boot)? {
            let first =
                told.iter_mut().find(|(of, _)| (of.kernel, of.number) == (guest.kernel, guest.number));
            if let Some((_, first)) = first {
                replace(first, lines);
            }
        }
    }
    told.sort_by_key(|(guest, _)| (guest.kernel, guest.number));
    let nothing_of = |kernel: &Kernel| Results {
        kernel: kernel.clone(),
        programs: Vec::new(),
        costs: Vec::new(),
        watched: Vec::new(),
        stories: Vec::new(),
    };
    let mut results: Vec<_> = kernels.iter().map(nothing_of).collect();
    for (guest, lines) in told {
        results[guest.kernel].add(lines);
    }
    Ok(results)
}

/// Runs guests, so many at a time.
fn tell(
    guests: Vec<Guest>,
    at_a_time: usize,
    boot: &(impl Fn(&Guest) -> Result<Vec<Line>> + Sync),
) -> Result<Vec<(Guest, Vec<Line>)>> {
    let waiting = Mutex::new(VecDeque::from(guests));
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = || {
        let told = std::iter::from_fn(next).map(|guest| {
            let lines = boot(&guest)?;
            Ok((guest, lines))
        });
        told.collect::<Result<Vec<_>>>()
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..at_a_time).map(|_| scope.spawn(work)).collect();
        let ended = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        let told = ended.collect::<Result<Vec<_>>>()?;
        Ok(told.into_iter().flatten().collect())
    })
}

/// Puts what was told again in the place of what failed.
fn replace(first: &mut Vec<Line>, again: Vec<Line>) {
    for line in again {
        let Line::Story(again) = line else {
            first.push(line);
            continue;
        };
        let failed = first.iter_mut().find_map(|line| match line {
            Line::Story(told) if told.story == again.story => Some(told),
            _ => None,
        });
        if let Some(failed) = failed {
            failed.seconds += again.seconds;
            failed.outcome = match (&failed.outcome, again.outcome) {
                (Err(why), Ok(_)) => Ok(format!("when told again with nothing else beside; before: {why}")),
                (_, outcome) => outcome,
            };
        }
    }
}

/// Runs one guest. A story that it did not tell has failed.
fn boot(kernel: &Kernel, guest: &Guest, archives: &Archives) -> Result<Vec<Line>> {
    let folder = tempfile::tempdir()?;
    let [plan, initramfs] = ["plan.cpio", "initramfs.cpio"].map(|name| folder.path().join(name));
    initramfs::plan(&guest.plan, &plan)?;
    initramfs::join(&archives.of(guest, &plan), &initramfs)?;
    let ran = machine::run(kernel, guest.plan.boot, &initramfs, LIMIT, folder.path())
        .with_context(|| format!("running Linux {}", kernel.release))?;
    let mut lines = ran.lines;
    let told: Vec<_> = lines
        .iter()
        .filter_map(|line| if let Line::Story(told) = line { Some(told.story.clone()) } else { None })
        .collect();
    let mut why = ran.broken;
    for story in guest.plan.stories.iter().filter(|story| !told.contains(story)) {
        let outcome = Err(why.take().unwrap_or_else(|| "not told either".to_owned()));
        lines.push(Line::Story(Told { story: story.clone(), outcome, seconds: 0.0 }));
    }
    let stories =
        lines.iter().filter_map(|line| if let Line::Story(told) = line { Some(told) } else { None });
    let failures: Vec<_> = stories.filter(|told| told.outcome.is_err()).collect();
    for Told { story, outcome, .. } in &failures {
        let why = outcome.as_ref().err().map_or("", String::as_str);
        eprintln!("vm: FAILED on Linux {}: {story}\n{why}", kernel.release);
    }
    let failed = failures.len();
    eprintln!(
        "vm: Linux {}, {}: {} of {} stories hold, {:.0} s",
        kernel.release,
        guest.plan.boot,
        guest.plan.stories.len() - failed,
        guest.plan.stories.len(),
        ran.took.as_secs_f64()
    );
    Ok(lines)
}

/// What several guests have in common.
struct Archives {
    _folder: TempDir,
    programs: PathBuf,
    /// By the name of the file.
    tests: BTreeMap<String, PathBuf>,
    /// For each kernel.
    modules: Vec<PathBuf>,
}

impl Archives {
    fn make(kernels: &[Kernel], programs: &Programs) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(Path::new(name));
        let of_programs = at("programs.cpio");
        initramfs::programs(programs, &of_programs)?;
        let tests = programs.tests.iter().map(|(file, executable)| {
            let archive = at(&format!("tests-{file}.cpio"));
            initramfs::tests(file, executable, &archive)?;
            Ok((file.clone(), archive))
        });
        let tests = tests.collect::<Result<_>>()?;
        let modules = kernels.iter().map(|kernel| {
            let archive = at(&format!("{}.cpio", kernel.release));
            initramfs::modules(kernel, &archive)?;
            Ok(archive)
        });
        let modules = modules.collect::<Result<_>>()?;
        Ok(Self { programs: of_programs, tests, modules, _folder: folder })
    }

    /// Those that a guest is made of.
    fn of<'a>(&'a self, guest: &Guest, plan: &'a Path) -> Vec<&'a Path> {
        let wanted = |file: &str| {
            let is_of = |story: &Story| matches!(story, Story::Functional { file: its, .. } if its == file);
            guest.plan.stories.iter().any(is_of)
        };
        let tests = self.tests.iter().filter(|(file, _)| wanted(file)).map(|(_, archive)| archive);
        let all = [&self.programs, &self.modules[guest.kernel]].into_iter().chain(tests);
        all.map(PathBuf::as_path).chain([plan]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Boot;

    fn line(story: Story, outcome: Result<&str, &str>) -> Line {
        let outcome = outcome.map(str::to_owned).map_err(str::to_owned);
        Line::Story(Told { story, outcome, seconds: 2.0 })
    }

    fn outcomes(lines: &[Line]) -> Vec<Result<&str, &str>> {
        let stories =
            lines.iter().filter_map(|line| if let Line::Story(told) = line { Some(told) } else { None });
        stories.map(|told| told.outcome.as_deref().map_err(String::as_str)).collect()
    }

    #[test]
    fn what_failed_is_told_again_and_the_last_word_counts() {
        let plan = Plan { boot: Boot::Usual, stories: vec![Story::Doctor, Story::NoBtf, Story::Cost] };
        let guest = Guest { kernel: 1, number: 2, plan };
        let mut first = vec![
            line(Story::Doctor, Ok("")),
            line(Story::NoBtf, Err("slow")),
            line(Story::Cost, Err("wrong")),
            Line::End,
        ];
        let again = guest.again(&first).unwrap();
        assert_eq!((again.plan.stories.as_slice(), again.number), (&[Story::NoBtf, Story::Cost][..], 2));
        replace(
            &mut first,
            vec![line(Story::NoBtf, Ok("")), line(Story::Cost, Err("still wrong")), Line::End],
        );
        assert_eq!(
            outcomes(&first),
            [Ok(""), Ok("when told again with nothing else beside; before: slow"), Err("still wrong")]
        );
        assert!(guest.again(&first[..2]).is_none());
    }
}
