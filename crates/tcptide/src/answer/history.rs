//! What containers counted, step by step.

use std::sync::Arc;

use jiff::Timestamp;
use model::container::Container;
use schemars::JsonSchema;
use serde::Serialize;

use super::totals::Metrics;

/// A span of time.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Span {
    #[schemars(with = "String")]
    pub(crate) began: Timestamp,
    pub(crate) seconds: f64,
}

/// What a container counted in one of the steps.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct CountedThen {
    /// Which of `steps`, from 0.
    pub(crate) step: usize,
    /// What was new, of what it counted; what goes up and down as it was seen last.
    pub(crate) metrics: Metrics,
}

/// A container, and the steps in which it counted anything.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Past {
    pub(crate) container: Arc<Container>,
    pub(crate) steps: Vec<CountedThen>,
}

/// What an agent remembers of containers.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct History {
    /// The metrics that are measured, of those asked for: one that is absent from a step is zero there.
    pub(crate) measured: Vec<&'static str>,
    /// The oldest first, one after the other.
    pub(crate) steps: Vec<Span>,
    /// How many containers there are that were asked for and counted anything; `containers` may have fewer.
    pub(crate) matched: u64,
    /// Those that sent and received most segments first.
    pub(crate) containers: Vec<Past>,
}
