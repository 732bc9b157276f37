//! Rules, written as conditions and an end.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::expression::{Expression, Reject, Verdict};
use super::field::{Field, Payload, address, registers};
use super::uapi::NFT_REG_1;
use super::userdata::LONGEST_COMMENT;

/// A rule. Conditions hold together, in the order in which they are written; nothing is added to them: one who looks at
/// a port says first that it is TCP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub(super) expressions: Vec<Expression>,
    pub(super) comment: Option<String>,
}

impl Rule {
    pub fn new() -> Self {
        Self::default()
    }

    /// For people, in what `nft list` shows; 127 octets at most, the rest is cut off.
    pub fn comment(mut self, text: &str) -> Self {
        let end = text.floor_char_boundary(LONGEST_COMMENT);
        self.comment = Some(text[..end].to_owned());
        self
    }

    /// The field has this number, in the field's own width and order.
    pub fn is(self, field: Field, number: u64) -> Self {
        let value = field.number(number);
        self.compare(field, true, value)
    }

    pub fn is_not(self, field: Field, number: u64) -> Self {
        let value = field.number(number);
        self.compare(field, false, value)
    }

    /// Of the bits in `mask` just those in `number` are set.
    pub fn masked(mut self, field: Field, mask: u64, number: u64) -> Self {
        self.load(field).mask(field.number(mask));
        self.expressions.push(compare(true, field.number(number)));
        self
    }

    /// Any of the bits in `mask` is set.
    pub fn any_of(mut self, field: Field, mask: u64) -> Self {
        self.load(field).mask(field.number(mask));
        self.expressions.push(compare(false, field.number(0)));
        self
    }

    /// None of the bits in `mask` is set.
    pub fn none_of(self, field: Field, mask: u64) -> Self {
        self.masked(field, mask, 0)
    }

    pub fn is_address(self, field: Field, ip: IpAddr) -> Self {
        self.compare(field, true, address(ip))
    }

    pub fn is_not_address(self, field: Field, ip: IpAddr) -> Self {
        self.compare(field, false, address(ip))
    }

    /// The address is in the network. Where the prefix ends between two octets only those before are looked at.
    pub fn in_network(mut self, field: Field, network: IpNet) -> Self {
        let prefix = u32::from(network.prefix_len());
        let value = address(network.network());
        if prefix == 0 {
            return self;
        }
        if prefix.is_multiple_of(8)
            && let Field::Payload(Payload { base, offset, .. }) = field
        {
            let length = prefix / 8;
            return self.compare(
                Field::payload(base, offset, length),
                true,
                value[..length as usize].to_vec(),
            );
        }
        self.load(field).mask(address(network.netmask()));
        self.expressions.push(compare(true, value));
        self
    }

    /// The interface has this name.
    pub fn is_name(self, field: Field, name: &str) -> Self {
        self.compare(field, true, interface_name(name))
    }

    pub fn is_not_name(self, field: Field, name: &str) -> Self {
        self.compare(field, false, interface_name(name))
    }

    /// The set has the fields, taken together.
    pub fn in_set(self, fields: &[Field], set: &str) -> Self {
        self.lookup(fields, set, true)
    }

    pub fn not_in_set(self, fields: &[Field], set: &str) -> Self {
        self.lookup(fields, set, false)
    }

    /// Puts the fields, taken together, into the set for this long, or renews them there; a set that is full ends the
    /// rule here.
    pub fn update(self, fields: &[Field], set: &str, timeout: Duration) -> Self {
        self.put(fields, set, timeout, true)
    }

    /// The same, but what is there already keeps its time.
    pub fn add(self, fields: &[Field], set: &str, timeout: Duration) -> Self {
        self.put(fields, set, timeout, false)
    }

    /// The packet's mark becomes this.
    pub fn set_mark(mut self, mark: u32) -> Self {
        self.immediate(mark);
        self.expressions.push(Expression::SetMark { register: NFT_REG_1 });
        self
    }

    /// The packet's mark becomes the connection's.
    pub fn set_mark_from_ct(mut self) -> Self {
        self.load(Field::CT_MARK);
        self.expressions.push(Expression::SetMark { register: NFT_REG_1 });
        self
    }

    /// The connection's mark becomes this.
    pub fn set_ct_mark(mut self, mark: u32) -> Self {
        self.immediate(mark);
        self.expressions.push(Expression::SetCtMark { register: NFT_REG_1 });
        self
    }

    pub fn counter(mut self) -> Self {
        self.expressions.push(Expression::Counter);
        self
    }

    pub fn verdict(mut self, verdict: Verdict) -> Self {
        self.expressions.push(Expression::Verdict(verdict));
        self
    }

    pub fn accept(self) -> Self {
        self.verdict(Verdict::Accept)
    }

    pub fn drop(self) -> Self {
        self.verdict(Verdict::Drop)
    }

    /// Goes on in another chain of the table, at whose end the packet is where it would be at the end of this one.
    pub fn goto(self, chain: &str) -> Self {
        self.verdict(Verdict::Goto(chain.to_owned()))
    }

    pub fn reject(mut self, reject: Reject) -> Self {
        self.expressions.push(Expression::Reject(reject));
        self
    }

    fn compare(mut self, field: Field, equal: bool, value: Vec<u8>) -> Self {
        self.load(field);
        self.expressions.push(compare(equal, value));
        self
    }

    fn lookup(mut self, fields: &[Field], set: &str, present: bool) -> Self {
        self.load_all(fields);
        self.expressions.push(Expression::Lookup { set: set.to_owned(), register: NFT_REG_1, present });
        self
    }

    fn put(mut self, fields: &[Field], set: &str, timeout: Duration, renew: bool) -> Self {
        self.load_all(fields);
        self.expressions.push(Expression::Put { set: set.to_owned(), register: NFT_REG_1, timeout, renew });
        self
    }

    fn load(&mut self, field: Field) -> &mut Self {
        self.expressions.push(Expression::Load { field, register: NFT_REG_1 });
        self
    }

    fn load_all(&mut self, fields: &[Field]) {
        let loads = registers(fields).into_iter();
        self.expressions.extend(loads.map(|(field, register)| Expression::Load { field, register }));
    }

    fn mask(&mut self, mask: Vec<u8>) {
        self.expressions.push(Expression::Mask { register: NFT_REG_1, mask });
    }

    fn immediate(&mut self, number: u32) {
        let value = number.to_ne_bytes().to_vec();
        self.expressions.push(Expression::Immediate { register: NFT_REG_1, value });
    }
}

fn compare(equal: bool, value: Vec<u8>) -> Expression {
    Expression::Compare { register: NFT_REG_1, equal, value }
}

/// As the kernel has it in a register: padded with zeroes. A longer name is no interface's, and equals none.
fn interface_name(name: &str) -> Vec<u8> {
    let mut octets = name.as_bytes().to_vec();
    octets.resize(libc::IFNAMSIZ, 0);
    octets
}
