//! What is told of a host: what the commands print and the agent's API serves, as one type each.

pub(crate) mod connections;
pub(crate) mod containers;
pub(crate) mod edges;
pub(crate) mod health;
pub(crate) mod history;
pub(crate) mod listeners;
pub(crate) mod programs;
pub(crate) mod states;
pub(crate) mod totals;
pub(crate) mod watched;
