//! Pure policy: what a document means, compiled, and asked once per flow.
//!
//! No IO, no clock, no randomness: the same documents and the same question always give the same answer.
//! The crate knows neither files nor Kubernetes; the agent turns documents into [`model`] values.

mod compile;
pub mod decision;
mod evaluate;
pub mod explain;
mod index;
pub mod model;
pub mod names;
mod networks;
mod ports;
mod rule;
pub mod selector;
pub mod workload;

pub use compile::{NodeDefault, NodeSettings, PolicySet};
pub use decision::{
    Decision, DenyReason, FlowQuery, Names, Permit, Protocol, Refusal, RuleId, UpstreamRef, Verdict,
};
pub use evaluate::WorkloadPolicy;
pub use explain::Explanation;
pub use names::{DomainName, DomainPattern, NameError};
pub use selector::LabelSelector;
pub use workload::Workload;
