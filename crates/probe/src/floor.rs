//! Programs that do nothing, on the hooks that a monitor takes: what it costs that there is a program at all.

use std::{mem::MaybeUninit, os::fd::AsFd as _};

use libbpf_rs::{
    Link,
    skel::{OpenSkel as _, Skel as _, SkelBuilder as _},
};

use crate::{
    error::Error,
    kernel::{Kernel, check_privileges},
    skel::floor::{FloorSkel, FloorSkelBuilder},
    start::with_log,
    stats,
};

/// The empty programs at work, until it is dropped. For comparisons: tcptide itself never loads them.
pub struct Floor {
    _links: Vec<Link>,
    skel: FloorSkel<'static>,
    _measuring: Option<std::os::fd::OwnedFd>,
}

impl Floor {
    /// Attaches one to each hook that this kernel has. `measure`: the kernel measures their run times meanwhile.
    pub fn attach(measure: bool) -> Result<Self, Error> {
        check_privileges()?;
        let kernel = Kernel::look()?;
        // As with a monitor's object, libbpf wants it to stay where it is.
        let place = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open =
            FloorSkelBuilder::default().open(place).map_err(|e| Error::system("open the BPF object", e))?;
        for mut program in open.open_object_mut().progs_mut() {
            let hook = program.section().to_string_lossy().into_owned();
            let there =
                hook.strip_prefix("tp_btf/").is_some_and(|hook| kernel.tracepoint_arguments(hook).is_some());
            program.set_autoload(there);
        }
        let (skel, _) = with_log(|| open.load());
        let mut skel = skel.map_err(|e| Error::system("load the empty programs", e))?;
        let loaded = skel.object_mut().progs_mut().filter(|program| program.autoload());
        let links = loaded.map(|program| program.attach()).collect::<Result<Vec<_>, _>>();
        let links = links.map_err(|e| Error::system("attach the empty programs", e))?;
        let measuring = if measure { Some(stats::enable()?) } else { None };
        Ok(Self { _links: links, skel, _measuring: measuring })
    }

    /// What each has taken: its hook, nanoseconds as the kernel measures them, runs.
    pub fn cost(&self) -> Result<Vec<(String, u64, u64)>, Error> {
        let mut costs = Vec::new();
        for program in self.skel.object().progs() {
            if program.autoload() {
                let run = stats::of(program.as_fd())?;
                let hook = program.name().to_string_lossy().trim_start_matches("on_").to_owned();
                costs.push((hook, run.run_time_ns, run.runs));
            }
        }
        Ok(costs)
    }
}
