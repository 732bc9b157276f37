//! A whole small world for end-to-end tests: a node and an outside, real servers, a pod on a real CNI chain, and the agent.
//!
//! Every row can also run over the plain routed path ([`Path::Routed`]), without any of our programs: that proves the
//! row itself, and tells a broken test from a broken product.

pub mod demo;
pub mod rows;
pub mod runtime;
pub mod world;

pub use rows::Report;
pub use world::{Path, Pod, World, WorldOptions};
