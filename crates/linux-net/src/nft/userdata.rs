//! What nft keeps beside objects for itself (libnftnl's udata.h): tag, length, value. The kernel only stores it.

use super::field::KeyType;
use super::wire::Malformed;

const RULE_COMMENT: u8 = 0;
const SET_KEY_BYTE_ORDER: u8 = 0;
const ELEMENT_FLAGS: u8 = 1;

/// Octets of a rule's comment at most: the end of text and its length, in one octet, count.
pub(super) const LONGEST_COMMENT: usize = 127;

pub(super) fn comment(text: &str) -> Vec<u8> {
    let mut data = vec![RULE_COMMENT, text.len() as u8 + 1];
    data.extend(text.as_bytes());
    data.push(0);
    data
}

pub(super) fn read_comment(data: &[u8]) -> Result<String, Malformed> {
    let text = match data {
        [RULE_COMMENT, len, text @ ..] if usize::from(*len) == text.len() => text.strip_suffix(&[0]),
        _ => None,
    };
    let text = text.and_then(|text| std::str::from_utf8(text).ok());
    text.map(ToOwned::to_owned).ok_or(Malformed("a comment of unknown kind"))
}

/// The order in which a set's elements are shown; a key of several parts has none.
pub(super) fn byte_order(key: &[KeyType]) -> Vec<u8> {
    const INVALID: u32 = 0;
    const BIG_ENDIAN: u32 = 2;
    number(SET_KEY_BYTE_ORDER, if key.len() == 1 { BIG_ENDIAN } else { INVALID })
}

/// An element without an end reaches to the last address, and is not that one address alone.
pub(super) fn open_interval() -> Vec<u8> {
    const INTERVAL_OPEN: u32 = 1;
    number(ELEMENT_FLAGS, INTERVAL_OPEN)
}

fn number(tag: u8, value: u32) -> Vec<u8> {
    [&[tag, size_of::<u32>() as u8][..], &value.to_ne_bytes()].concat()
}
