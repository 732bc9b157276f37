//! Messages of nfnetlink: header, family, attributes; and what the kernel answers.

use super::attribute::{Attributes, Writer};
use super::uapi::*;

/// `struct nlmsghdr` and `struct nfgenmsg`.
const NLMSG_HEADER: usize = 16;
const NFGENMSG: usize = 4;

/// An answer of the kernel that is not understood, and what of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub(super) &'static str);

/// A request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// `NFT_MSG_*`.
    pub kind: u16,
    /// `NLM_F_*` beside `NLM_F_REQUEST`.
    pub flags: u16,
    pub sequence: u32,
    /// `NFPROTO_*`.
    pub family: u8,
}

/// Writes one message; `None`: it is longer than its lengths can say.
pub(super) fn message(header: Header, attributes: impl FnOnce(&mut Writer)) -> Option<Vec<u8>> {
    framed((NFNL_SUBSYS_NFTABLES << 8) | header.kind, header, 0, attributes)
}

/// The start or the end of a batch for nf_tables.
pub(super) fn bracket(kind: u16, sequence: u32) -> Vec<u8> {
    let header = Header { kind, flags: 0, sequence, family: 0 };
    framed(kind, header, NFNL_SUBSYS_NFTABLES, |_| ()).unwrap_or_default()
}

/// Asks for an answer also where nothing is wrong.
pub(super) fn acknowledge(message: &mut [u8]) {
    let flags = u16::from_ne_bytes([message[6], message[7]]) | libc::NLM_F_ACK as u16;
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
}

fn framed(kind: u16, header: Header, resource: u16, attributes: impl FnOnce(&mut Writer)) -> Option<Vec<u8>> {
    let mut writer = Writer::default();
    attributes(&mut writer);
    let attributes = writer.into_octets()?;
    let len = u32::try_from(NLMSG_HEADER + NFGENMSG + attributes.len()).ok()?;
    let mut message = Vec::with_capacity(len as usize);
    message.extend(len.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((header.flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message.extend(header.sequence.to_ne_bytes());
    // The kernel knows the sender.
    message.extend([0; 4]);
    message.extend([header.family, NFNETLINK_V0]);
    message.extend(resource.to_be_bytes());
    message.extend(attributes);
    Some(message)
}

/// What the kernel says.
#[derive(Debug)]
pub(super) enum Answer<'a> {
    /// An acknowledgement, or a refusal.
    Outcome(Outcome),
    /// The end of a dump; its error, if it has one.
    Done(i32),
    /// The attributes of an object.
    Object(Attributes<'a>),
    /// A message of another subsystem.
    Other,
}

/// Of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// 0: done.
    pub errno: i32,
    /// The kernel's own words.
    pub text: Option<String>,
    /// Where in the request the attribute begins that it does not like.
    pub offset: Option<usize>,
}

/// One answer with what its header says.
#[derive(Debug)]
pub(super) struct Received<'a> {
    pub sequence: u32,
    /// The dump that it is part of was interrupted by a change.
    pub interrupted: bool,
    pub answer: Answer<'a>,
}

/// The messages of one datagram.
pub(super) struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Received<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let whole = std::mem::take(&mut self.0);
        let word = |at: usize| {
            let octets = whole.get(at..at + 4).and_then(<[u8]>::first_chunk);
            octets.map_or(0, |octets| u32::from_ne_bytes(*octets))
        };
        let len = word(0) as usize;
        let Some(body) = whole.get(NLMSG_HEADER..len) else { return Some(Err(Malformed("a torn message"))) };
        self.0 = whole.get(len.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([whole[4], whole[5]]);
        let flags = u16::from_ne_bytes([whole[6], whole[7]]);
        let answer = match read(kind, flags, body) {
            Ok(answer) => answer,
            Err(error) => return Some(Err(error)),
        };
        let interrupted = flags & libc::NLM_F_DUMP_INTR as u16 != 0;
        Some(Ok(Received { sequence: word(8), interrupted, answer }))
    }
}

fn read(kind: u16, flags: u16, body: &[u8]) -> Result<Answer<'_>, Malformed> {
    let number = |body: &[u8]| body.first_chunk().map(|octets| i32::from_ne_bytes(*octets));
    match i32::from(kind) {
        libc::NLMSG_ERROR => Ok(Answer::Outcome(outcome(flags, body)?)),
        libc::NLMSG_DONE => Ok(Answer::Done(number(body).unwrap_or(0).saturating_neg())),
        _ if kind >> 8 == NFNL_SUBSYS_NFTABLES => match body.split_at_checked(NFGENMSG) {
            Some((_, attributes)) => Ok(Answer::Object(Attributes(attributes))),
            None => Err(Malformed("a torn message")),
        },
        _ => Ok(Answer::Other),
    }
}

/// `struct nlmsgerr`; with `NETLINK_CAP_ACK` no more than the request's header is repeated in it.
fn outcome(flags: u16, body: &[u8]) -> Result<Outcome, Malformed> {
    const NLM_F_ACK_TLVS: u16 = 0x200;
    const NLMSGERR_ATTR_MSG: u16 = 1;
    const NLMSGERR_ATTR_OFFS: u16 = 2;
    let (errno, rest) = body.split_first_chunk().ok_or(Malformed("a torn acknowledgement"))?;
    let mut outcome =
        Outcome { errno: i32::from_ne_bytes(*errno).saturating_neg(), text: None, offset: None };
    if flags & NLM_F_ACK_TLVS == 0 {
        return Ok(outcome);
    }
    let attributes = Attributes(rest.get(NLMSG_HEADER..).unwrap_or_default());
    if let Some(text) = attributes.find(NLMSGERR_ATTR_MSG)? {
        outcome.text = Some(text.text()?.to_owned());
    }
    if let Some(offset) = attributes.find(NLMSGERR_ATTR_OFFS)? {
        // Unlike nf_tables', netlink's own integers are the machine's.
        outcome.offset = offset.value.first_chunk().map(|octets| u32::from_ne_bytes(*octets) as usize);
    }
    Ok(outcome)
}

/// Where the attributes of a message begin.
pub(super) const ATTRIBUTES: usize = NLMSG_HEADER + NFGENMSG;
