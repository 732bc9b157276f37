//! The node agent of tunproxy, as a library: the binary and the end-to-end tests use it.

pub mod upstream;
