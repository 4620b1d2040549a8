//! x
pub(crate) fn run(_: &crate::args::AgentArgs) -> anyhow::Result<()> { Ok(()) }
