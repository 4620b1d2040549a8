//! What this kernel and these privileges allow, asked before anything is loaded.

use std::{
    fs,
    io::{self, Read as _},
    os::fd::{FromRawFd as _, OwnedFd},
};

use libbpf_rs::btf::{Btf, types};
use rustix::thread::{CapabilitySet, capabilities};

use crate::{
    error::{Capability, Error},
    programs::Status,
};

/// The running kernel's description of itself.
pub struct Kernel {
    btf: Btf<'static>,
    /// As `uname -r` prints it.
    pub release: String,
}

impl Kernel {
    /// Reads the kernel's BTF and makes sure that the kernel is new enough.
    pub fn look() -> Result<Self, Error> {
        let mut first = [0];
        fs::File::open("/sys/kernel/btf/vmlinux")
            .and_then(|mut f| f.read_exact(&mut first))
            .map_err(Error::NoBtf)?;
        let btf = Btf::from_vmlinux().map_err(|e| Error::system("read the kernel's BTF", e))?;
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let kernel = Self { btf, release };
        // Among what is needed it came last.
        if kernel.enum_value("bpf_func_id", "BPF_FUNC_sock_from_file").is_none() {
            return Err(Error::KernelTooOld(kernel.release));
        }
        Ok(kernel)
    }

    /// How many arguments a tracepoint hands to its programs; `None` where the kernel has no such tracepoint.
    pub fn tracepoint_arguments(&self, name: &str) -> Option<usize> {
        let hook: types::Typedef<'_> = self.btf.type_by_name(&format!("btf_trace_{name}"))?;
        let pointer = types::Ptr::try_from(hook.next_type()?).ok()?;
        let function = types::FuncProto::try_from(pointer.next_type()?).ok()?;
        // The first is the tracepoint's own.
        Some(function.iter().count().saturating_sub(1))
    }

    /// How many arguments a kernel function takes; `None` where the kernel has no such function, or not as one of its own.
    pub(crate) fn function_arguments(&self, name: &str) -> Option<usize> {
        let function: types::Func<'_> = self.btf.type_by_name(name)?;
        Some(types::FuncProto::try_from(function.next_type()?).ok()?.iter().count())
    }

    /// Whether the kernel takes programs at this place (`fentry` or `fexit`) of a function of its own: some are made not to.
    pub(crate) fn takes(&self, place: &str, function: &str) -> Status {
        let Some(id) = self.btf.type_by_name::<types::Func<'_>>(function).map(|f| f.type_id()) else {
            return Status::Unsupported(format!("kernel {} has no function {function}", self.release));
        };
        match load_empty(place, id.into()) {
            Ok(()) => Status::Attached,
            Err(error) => Status::Refused(format!("{place} programs: {error}")),
        }
    }

    /// The names and values of an enum in this kernel; none where it has no such enum.
    pub fn enum_values(&self, name: &str) -> Vec<(String, i64)> {
        let list: Option<types::Enum<'_>> = self.btf.type_by_name(name);
        let named = |m: types::EnumMember<'_>| Some((m.name?.to_string_lossy().into_owned(), m.value));
        list.into_iter().flat_map(|list| list.iter().filter_map(named).collect::<Vec<_>>()).collect()
    }

    /// An enum's value in this kernel.
    pub fn enum_value(&self, name: &str, value: &str) -> Option<i64> {
        let list: types::Enum<'_> = self.btf.type_by_name(name)?;
        list.iter().find(|m| m.name.is_some_and(|n| n == value)).map(|m| m.value)
    }
}

/// Loads a program that does nothing at a function, to see whether the kernel takes it, and lets go of it.
fn load_empty(place: &str, function: u32) -> io::Result<()> {
    // r0 = 0; exit
    let instructions = [
        libbpf_sys::bpf_insn { code: 0xb7, ..Default::default() },
        libbpf_sys::bpf_insn { code: 0x95, ..Default::default() },
    ];
    let mut options = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
        expected_attach_type: if place == "fentry" {
            libbpf_sys::BPF_TRACE_FENTRY
        } else {
            libbpf_sys::BPF_TRACE_FEXIT
        },
        attach_btf_id: function,
        ..Default::default()
    };
    // SAFETY: the strings end in zero, the instructions are as many as is said, and all of them outlive the call.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_TRACING,
            c"tcptide_empty".as_ptr(),
            c"GPL".as_ptr(),
            instructions.as_ptr(),
            instructions.len() as libbpf_sys::size_t,
            &raw mut options,
        )
    };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the descriptor is new and nobody else's.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// In the order in which a person would grant them; whether nothing works without it.
const NEEDED: &[(CapabilitySet, &str, &str, bool)] = &[
    (CapabilitySet::BPF, "CAP_BPF", "load BPF programs", true),
    (CapabilitySet::PERFMON, "CAP_PERFMON", "attach them to tracepoints", true),
    (
        CapabilitySet::SYS_ADMIN,
        "CAP_SYS_ADMIN",
        "enter other network namespaces, for connections from before that no process holds and for what the kernel counts there; measure run times",
        false,
    ),
    (
        CapabilitySet::SYS_PTRACE,
        "CAP_SYS_PTRACE",
        "find the network namespaces of other users' processes, for the same",
        false,
    ),
];

/// Which capabilities this process has not got.
fn missing_capabilities() -> impl Iterator<Item = (Capability, bool)> {
    let held = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    NEEDED
        .iter()
        // Before 5.8 CAP_SYS_ADMIN was both of the first two, and it still is.
        .filter(move |(capability, _, _, required)| {
            !(held.contains(*capability) || (*required && held.contains(CapabilitySet::SYS_ADMIN)))
        })
        .map(|(_, name, purpose, required)| (Capability { name, purpose }, *required))
}

/// An error that names every capability that is missing, and for what it is needed, if nothing works without one of them;
/// else those without which something is not shown.
pub fn check_privileges() -> Result<Vec<Capability>, Error> {
    let missing: Vec<_> = missing_capabilities().collect();
    let fatal = missing.iter().any(|(_, required)| *required);
    let names = missing.into_iter().map(|(capability, _)| capability).collect();
    if fatal { Err(Error::Privileges(names)) } else { Ok(names) }
}

/// Whether lockdown forbids what the monitor does.
pub(crate) fn is_confidential() -> bool {
    fs::read_to_string("/sys/kernel/security/lockdown").is_ok_and(|modes| modes.contains("[confidentiality]"))
}
