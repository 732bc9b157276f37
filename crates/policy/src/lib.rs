//! Pure policy: what a document means, compiled, and asked once per flow.
//!
//! No IO, no clock, no randomness: the same documents and the same question always give the same answer.
//! The crate knows neither files nor Kubernetes; the agent turns documents into [`model`] values.

pub mod decision;
pub mod names;
pub mod workload;

pub use decision::{Decision, DenyReason, FlowQuery, Names, Permit, Protocol, Refusal, RuleId, UpstreamRef, Verdict};
pub use names::{DomainName, DomainPattern, NameError};
pub use workload::Workload;
