//! What the kernel refuses, in its own words.

use std::io;

use rtnetlink::packet_core::{DoneMessage, ErrorMessage, NlasIterator};

/// A refused operation: what was asked, what the kernel answered, in its own words where it has some.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {source}{}", .kernel.as_deref().map(|text| format!(" (kernel: {text})")).unwrap_or_default())]
pub struct NetlinkError {
    operation: String,
    source: io::Error,
    kernel: Option<String>,
}

impl NetlinkError {
    pub(super) fn new(operation: String, failure: Failure) -> Self {
        Self { operation, source: failure.source, kernel: failure.kernel }
    }

    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    pub(super) fn is(&self, errnos: &[i32]) -> bool {
        self.errno().is_some_and(|errno| errnos.contains(&errno))
    }

    pub(super) fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

/// Why a request failed, before it is said what was asked.
#[derive(Debug)]
pub(super) struct Failure {
    source: io::Error,
    kernel: Option<String>,
}

impl Failure {
    /// The end of the connection leaves a request without an answer.
    pub fn broken() -> Self {
        io::Error::new(io::ErrorKind::BrokenPipe, "the netlink socket failed before the answer").into()
    }

    /// The kernel had more to say than the socket's buffer holds.
    pub fn overrun() -> Self {
        io::Error::from_raw_os_error(libc::ENOBUFS).into()
    }

    pub fn malformed(what: &str) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, format!("netlink: {what}")).into()
    }

    /// `None` when the dump came to its proper end.
    pub fn of_dump(end: &DoneMessage) -> Option<Self> {
        (end.code < 0).then(|| Self {
            source: io::Error::from_raw_os_error(end.code.saturating_neg()),
            kernel: text_of(&end.extended_ack),
        })
    }
}

impl From<io::Error> for Failure {
    fn from(source: io::Error) -> Self {
        Self { source, kernel: None }
    }
}

impl From<ErrorMessage> for Failure {
    fn from(message: ErrorMessage) -> Self {
        Self { source: message.to_io(), kernel: extended_text(&message.header) }
    }
}

impl From<rtnetlink::Error> for Failure {
    fn from(error: rtnetlink::Error) -> Self {
        use rtnetlink::Error;
        match error {
            Error::NetlinkError(message) => message.into(),
            Error::RequestFailed => Self::broken(),
            Error::UnexpectedMessage(_)
            | Error::NamespaceError(_)
            | Error::InvalidHardwareAddress(_)
            | Error::InvalidIp(_)
            | Error::InvalidAddress(..)
            | Error::InvalidNla(_) => Self::malformed(&error.to_string()),
        }
    }
}

/// Finds the text behind what an error repeats of its request: with `NETLINK_CAP_ACK` that is the header.
pub(super) fn extended_text(payload: &[u8]) -> Option<String> {
    text_of(payload.get(HEADER..)?)
}

/// `sizeof(struct nlmsghdr)`.
pub(super) const HEADER: usize = 16;

/// Attribute of an extended acknowledgement that carries its text, include/uapi/linux/netlink.h.
pub(super) const NLMSGERR_ATTR_MSG: u16 = 1;

fn text_of(attributes: &[u8]) -> Option<String> {
    let found = NlasIterator::new(attributes).map_while(Result::ok);
    let text = found.into_iter().find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)?;
    Some(String::from_utf8_lossy(text.value()).trim_end_matches('\0').to_owned())
}
