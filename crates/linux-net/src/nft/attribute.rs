//! Netlink attributes (include/uapi/linux/netlink.h): length, type, value, padding to four octets.

use super::wire::Malformed;

const HEADER: usize = 4;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// Octets of a message, added to in order.
#[derive(Debug, Default)]
pub(super) struct Writer {
    octets: Vec<u8>,
    overlong: bool,
}

impl Writer {
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        let start = self.open(kind);
        self.octets.extend_from_slice(value);
        self.close(start);
    }

    /// Integers of nf_tables are in network byte order.
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub fn u64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub fn text(&mut self, kind: u16, value: &str) {
        let start = self.open(kind);
        self.octets.extend_from_slice(value.as_bytes());
        self.octets.push(0);
        self.close(start);
    }

    pub fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) {
        let start = self.open(kind | NLA_F_NESTED);
        inside(self);
        self.close(start);
    }

    pub fn len(&self) -> usize {
        self.octets.len()
    }

    /// `None`: an attribute has more octets than its length can say.
    pub fn into_octets(self) -> Option<Vec<u8>> {
        (!self.overlong).then_some(self.octets)
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.octets.len();
        self.octets.extend_from_slice(&[0, 0]);
        self.octets.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        let len = u16::try_from(self.octets.len() - start);
        self.overlong |= len.is_err();
        self.octets[start..start + 2].copy_from_slice(&len.unwrap_or_default().to_ne_bytes());
        self.octets.resize(self.octets.len().next_multiple_of(4), 0);
    }
}

/// One attribute as it came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attribute<'a> {
    pub kind: u16,
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    pub fn u8(self) -> Result<u8, Malformed> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub fn u32(self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub fn u64(self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub fn text(self) -> Result<&'a str, Malformed> {
        let text = self.value.strip_suffix(&[0]).unwrap_or(self.value);
        std::str::from_utf8(text).map_err(|_| Malformed("a name that is no text"))
    }

    pub fn nested(self) -> Attributes<'a> {
        Attributes(self.value)
    }

    fn array<const N: usize>(self) -> Result<[u8; N], Malformed> {
        self.value.try_into().map_err(|_| Malformed("an attribute of the wrong length"))
    }
}

/// The attributes of a message or of a nest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// The first of this kind.
    pub fn find(self, kind: u16) -> Result<Option<Attribute<'a>>, Malformed> {
        for attribute in self {
            let attribute = attribute?;
            if attribute.kind == kind {
                return Ok(Some(attribute));
            }
        }
        Ok(None)
    }

    pub fn get(self, kind: u16) -> Result<Attribute<'a>, Malformed> {
        self.find(kind)?.ok_or(Malformed("an attribute is missing"))
    }
}

impl<'a> IntoIterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Malformed>;
    type IntoIter = Remaining<'a>;

    fn into_iter(self) -> Remaining<'a> {
        Remaining(self.0)
    }
}

/// What is still to be read; nothing behind what is torn.
#[derive(Debug)]
pub(super) struct Remaining<'a>(&'a [u8]);

impl<'a> Iterator for Remaining<'a> {
    type Item = Result<Attribute<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let whole = self.0;
        self.0 = &[];
        let Some(header) = whole.first_chunk::<HEADER>() else {
            return Some(Err(Malformed("a torn attribute")));
        };
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let Some(value) = whole.get(HEADER..len) else { return Some(Err(Malformed("a torn attribute"))) };
        self.0 = whole.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Attribute { kind, value }))
    }
}
