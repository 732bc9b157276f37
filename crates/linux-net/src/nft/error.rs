//! What the kernel refuses: which object, and why, in its own words.

use std::io;

use super::wire::{Malformed, Outcome};

/// A refused or failed operation on nftables.
#[derive(Debug, thiserror::Error)]
#[error("nftables: {subject}{}: {source}{}",
    .expression.map(|name| format!(", expression {name}")).unwrap_or_default(),
    .kernel.as_deref().map(|text| format!(" (kernel: {text})")).unwrap_or_default())]
pub struct NftError {
    subject: String,
    expression: Option<&'static str>,
    source: io::Error,
    kernel: Option<String>,
}

impl NftError {
    pub(super) fn new(subject: &str, source: io::Error) -> Self {
        Self { subject: subject.to_owned(), expression: None, source, kernel: None }
    }

    pub(super) fn refused(subject: &str, expression: Option<&'static str>, outcome: Outcome) -> Self {
        let source = io::Error::from_raw_os_error(outcome.errno);
        Self { subject: subject.to_owned(), expression, source, kernel: outcome.text }
    }

    pub(super) fn malformed(subject: &str, error: Malformed) -> Self {
        Self::new(subject, io::Error::new(io::ErrorKind::InvalidData, error.0))
    }

    pub(super) fn overlong(subject: &str) -> Self {
        Self::new(
            subject,
            io::Error::new(io::ErrorKind::InvalidInput, "longer than a message of netlink can be"),
        )
    }

    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// The table belongs to another socket that is open, or this process may not change nftables at all.
    pub fn is_forbidden(&self) -> bool {
        self.errno() == Some(libc::EPERM)
    }
}
