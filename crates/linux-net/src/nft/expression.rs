//! Expressions: what a rule is made of, as the kernel has it.

use std::time::Duration;

use super::attribute::{Attribute, Attributes, Writer};
use super::field::{Base, Ct, Field, Meta, Payload};
use super::uapi::*;
use super::wire::Malformed;

/// One step of a rule. Steps run in order, until one does not match or a verdict is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Puts a field into a register.
    Load {
        field: Field,
        register: u32,
    },
    /// Masks a register.
    Mask {
        register: u32,
        mask: Vec<u8>,
    },
    /// Goes on when a register has, or has not, this value.
    Compare {
        register: u32,
        equal: bool,
        value: Vec<u8>,
    },
    /// Goes on when a set has, or has not, what stands in the registers from this one on.
    Lookup {
        set: String,
        register: u32,
        present: bool,
    },
    /// Puts what stands in the registers into a set. Where the set is full the rule ends.
    Put {
        set: String,
        register: u32,
        timeout: Duration,
        /// What is there already begins this time anew; else it keeps its own.
        renew: bool,
    },
    /// Writes a register to the packet's mark.
    SetMark {
        register: u32,
    },
    /// Writes a register to the connection's mark.
    SetCtMark {
        register: u32,
    },
    /// Puts a value into a register.
    Immediate {
        register: u32,
        value: Vec<u8>,
    },
    /// Counts packets and octets.
    Counter,
    Verdict(Verdict),
    /// Ends, and tells the sender.
    Reject(Reject),
}

/// What happens to the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

/// How a sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    TcpReset,
    /// Of ICMP and ICMPv6, as the packet's family needs.
    AdminProhibited,
}

/// Numbers of sets that a transaction makes, for expressions that name them.
pub(super) trait SetIds {
    fn id(&self, set: &str) -> Option<u32>;
}

impl Expression {
    /// What messages call it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Load { field: Field::Payload(_), .. } => "payload",
            Self::Load { field: Field::Meta(_), .. } | Self::SetMark { .. } => "meta",
            Self::Load { field: Field::Ct(_), .. } | Self::SetCtMark { .. } => "ct",
            Self::Mask { .. } => "bitwise",
            Self::Compare { .. } => "cmp",
            Self::Lookup { .. } => "lookup",
            Self::Put { .. } => "dynset",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Counter => "counter",
            Self::Reject(_) => "reject",
        }
    }

    /// Attributes in nft's order.
    pub(super) fn write(&self, writer: &mut Writer, sets: &impl SetIds) {
        writer.text(NFTA_EXPR_NAME, self.name());
        writer.nest(NFTA_EXPR_DATA, |writer| self.write_data(writer, sets));
    }

    fn write_data(&self, writer: &mut Writer, sets: &impl SetIds) {
        match self {
            Self::Load { field, register } => write_load(*field, *register, writer),
            Self::Mask { register, mask } => {
                writer.u32(NFTA_BITWISE_SREG, *register);
                writer.u32(NFTA_BITWISE_DREG, *register);
                writer.u32(NFTA_BITWISE_LEN, mask.len() as u32);
                writer.nest(NFTA_BITWISE_MASK, |data| data.bytes(NFTA_DATA_VALUE, mask));
                writer.nest(NFTA_BITWISE_XOR, |data| data.bytes(NFTA_DATA_VALUE, &vec![0; mask.len()]));
            }
            Self::Compare { register, equal, value } => {
                writer.u32(NFTA_CMP_SREG, *register);
                writer.u32(NFTA_CMP_OP, if *equal { NFT_CMP_EQ } else { NFT_CMP_NEQ });
                writer.nest(NFTA_CMP_DATA, |data| data.bytes(NFTA_DATA_VALUE, value));
            }
            Self::Lookup { set, register, present } => {
                writer.u32(NFTA_LOOKUP_SREG, *register);
                writer.text(NFTA_LOOKUP_SET, set);
                if let Some(id) = sets.id(set) {
                    writer.u32(NFTA_LOOKUP_SET_ID, id);
                }
                if !present {
                    writer.u32(NFTA_LOOKUP_FLAGS, NFT_LOOKUP_F_INV);
                }
            }
            Self::Put { set, register, timeout, renew } => {
                writer.u32(NFTA_DYNSET_SREG_KEY, *register);
                let operation = if *renew { NFT_DYNSET_OP_UPDATE } else { NFT_DYNSET_OP_ADD };
                writer.u32(NFTA_DYNSET_OP, operation);
                writer.u64(NFTA_DYNSET_TIMEOUT, timeout.as_millis() as u64);
                writer.text(NFTA_DYNSET_SET_NAME, set);
                if let Some(id) = sets.id(set) {
                    writer.u32(NFTA_DYNSET_SET_ID, id);
                }
            }
            Self::SetMark { register } => {
                writer.u32(NFTA_META_KEY, Meta::Mark.code());
                writer.u32(NFTA_META_SREG, *register);
            }
            Self::SetCtMark { register } => {
                writer.u32(NFTA_CT_KEY, Ct::Mark.code());
                writer.u32(NFTA_CT_SREG, *register);
            }
            Self::Immediate { register, value } => {
                writer.u32(NFTA_IMMEDIATE_DREG, *register);
                writer.nest(NFTA_IMMEDIATE_DATA, |data| data.bytes(NFTA_DATA_VALUE, value));
            }
            // nft leaves its numbers to the kernel.
            Self::Counter => {}
            Self::Verdict(verdict) => {
                writer.u32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
                writer.nest(NFTA_IMMEDIATE_DATA, |data| {
                    data.nest(NFTA_DATA_VERDICT, |writer| verdict.write(writer));
                });
            }
            Self::Reject(Reject::TcpReset) => {
                writer.u32(NFTA_REJECT_TYPE, NFT_REJECT_TCP_RST);
                writer.bytes(NFTA_REJECT_ICMP_CODE, &[0]);
            }
            Self::Reject(Reject::AdminProhibited) => {
                writer.u32(NFTA_REJECT_TYPE, NFT_REJECT_ICMPX_UNREACH);
                writer.bytes(NFTA_REJECT_ICMP_CODE, &[NFT_REJECT_ICMPX_ADMIN_PROHIBITED]);
            }
        }
    }

    /// Reads what the kernel says of an expression.
    pub(super) fn read(expression: Attributes<'_>) -> Result<Self, Malformed> {
        let data = expression.get(NFTA_EXPR_DATA)?.nested();
        match expression.get(NFTA_EXPR_NAME)?.text()? {
            "payload" => Ok(Self::Load {
                field: Field::Payload(Payload {
                    base: Base::from_code(data.get(NFTA_PAYLOAD_BASE)?.u32()?)?,
                    offset: data.get(NFTA_PAYLOAD_OFFSET)?.u32()?,
                    length: data.get(NFTA_PAYLOAD_LEN)?.u32()?,
                }),
                register: data.get(NFTA_PAYLOAD_DREG)?.u32()?,
            }),
            "meta" => read_meta(data),
            "ct" => read_ct(data),
            "bitwise" => read_mask(data),
            "cmp" => Ok(Self::Compare {
                register: data.get(NFTA_CMP_SREG)?.u32()?,
                equal: match data.get(NFTA_CMP_OP)?.u32()? {
                    NFT_CMP_EQ => true,
                    NFT_CMP_NEQ => false,
                    _ => return Err(Malformed("a comparison of unknown kind")),
                },
                value: data.get(NFTA_CMP_DATA)?.nested().get(NFTA_DATA_VALUE)?.value.to_vec(),
            }),
            "lookup" => Ok(Self::Lookup {
                set: data.get(NFTA_LOOKUP_SET)?.text()?.to_owned(),
                register: data.get(NFTA_LOOKUP_SREG)?.u32()?,
                present: data.find(NFTA_LOOKUP_FLAGS)?.map_or(Ok(0), Attribute::u32)? & NFT_LOOKUP_F_INV == 0,
            }),
            "dynset" => Ok(Self::Put {
                set: data.get(NFTA_DYNSET_SET_NAME)?.text()?.to_owned(),
                renew: match data.get(NFTA_DYNSET_OP)?.u32()? {
                    NFT_DYNSET_OP_UPDATE => true,
                    NFT_DYNSET_OP_ADD => false,
                    _ => return Err(Malformed("a change of a set of unknown kind")),
                },
                register: data.get(NFTA_DYNSET_SREG_KEY)?.u32()?,
                timeout: Duration::from_millis(
                    data.find(NFTA_DYNSET_TIMEOUT)?.map_or(Ok(0), Attribute::u64)?,
                ),
            }),
            "immediate" => read_immediate(data),
            "counter" => Ok(Self::Counter),
            "reject" => match data.get(NFTA_REJECT_TYPE)?.u32()? {
                NFT_REJECT_TCP_RST => Ok(Self::Reject(Reject::TcpReset)),
                NFT_REJECT_ICMPX_UNREACH
                    if data.get(NFTA_REJECT_ICMP_CODE)?.u8()? == NFT_REJECT_ICMPX_ADMIN_PROHIBITED =>
                {
                    Ok(Self::Reject(Reject::AdminProhibited))
                }
                _ => Err(Malformed("a refusal of unknown kind")),
            },
            _ => Err(Malformed("an expression of unknown kind")),
        }
    }
}

fn write_load(field: Field, register: u32, writer: &mut Writer) {
    match field {
        Field::Payload(Payload { base, offset, length }) => {
            writer.u32(NFTA_PAYLOAD_DREG, register);
            writer.u32(NFTA_PAYLOAD_BASE, base.code());
            writer.u32(NFTA_PAYLOAD_OFFSET, offset);
            writer.u32(NFTA_PAYLOAD_LEN, length);
        }
        Field::Meta(meta) => {
            writer.u32(NFTA_META_KEY, meta.code());
            writer.u32(NFTA_META_DREG, register);
        }
        Field::Ct(ct) => {
            writer.u32(NFTA_CT_KEY, ct.code());
            writer.u32(NFTA_CT_DREG, register);
            if let Some(direction) = ct.direction() {
                writer.bytes(NFTA_CT_DIRECTION, &[direction]);
            }
        }
    }
}

fn read_meta(data: Attributes<'_>) -> Result<Expression, Malformed> {
    let key = Meta::from_code(data.get(NFTA_META_KEY)?.u32()?)?;
    match data.find(NFTA_META_SREG)? {
        Some(register) if key == Meta::Mark => Ok(Expression::SetMark { register: register.u32()? }),
        Some(_) => Err(Malformed("a change of the packet of unknown kind")),
        None => Ok(Expression::Load { field: Field::Meta(key), register: data.get(NFTA_META_DREG)?.u32()? }),
    }
}

fn read_ct(data: Attributes<'_>) -> Result<Expression, Malformed> {
    let key = Ct::from_code(data.get(NFTA_CT_KEY)?.u32()?)?;
    if data.find(NFTA_CT_DIRECTION)?.map(Attribute::u8).transpose()? != key.direction() {
        return Err(Malformed("a property of connections of unknown kind"));
    }
    match data.find(NFTA_CT_SREG)? {
        Some(register) if key == Ct::Mark => Ok(Expression::SetCtMark { register: register.u32()? }),
        Some(_) => Err(Malformed("a change of the connection of unknown kind")),
        None => Ok(Expression::Load { field: Field::Ct(key), register: data.get(NFTA_CT_DREG)?.u32()? }),
    }
}

fn read_mask(data: Attributes<'_>) -> Result<Expression, Malformed> {
    let operation = data.find(NFTA_BITWISE_OP)?.map_or(Ok(NFT_BITWISE_BOOL), Attribute::u32)?;
    let register = data.get(NFTA_BITWISE_SREG)?.u32()?;
    let value = |kind| Ok(data.get(kind)?.nested().get(NFTA_DATA_VALUE)?.value);
    let same = register == data.get(NFTA_BITWISE_DREG)?.u32()?;
    if operation != NFT_BITWISE_BOOL || !same || value(NFTA_BITWISE_XOR)?.iter().any(|&octet| octet != 0) {
        return Err(Malformed("an operation on a register of unknown kind"));
    }
    Ok(Expression::Mask { register, mask: value(NFTA_BITWISE_MASK)?.to_vec() })
}

fn read_immediate(data: Attributes<'_>) -> Result<Expression, Malformed> {
    let register = data.get(NFTA_IMMEDIATE_DREG)?.u32()?;
    let content = data.get(NFTA_IMMEDIATE_DATA)?.nested();
    if register == NFT_REG_VERDICT {
        return Ok(Expression::Verdict(Verdict::read(content.get(NFTA_DATA_VERDICT)?.nested())?));
    }
    Ok(Expression::Immediate { register, value: content.get(NFTA_DATA_VALUE)?.value.to_vec() })
}

impl Verdict {
    fn write(&self, writer: &mut Writer) {
        let (code, chain) = match self {
            Self::Accept => (NF_ACCEPT, None),
            Self::Drop => (NF_DROP, None),
            Self::Return => (NFT_RETURN, None),
            Self::Jump(chain) => (NFT_JUMP, Some(chain)),
            Self::Goto(chain) => (NFT_GOTO, Some(chain)),
        };
        writer.u32(NFTA_VERDICT_CODE, code);
        if let Some(chain) = chain {
            writer.text(NFTA_VERDICT_CHAIN, chain);
        }
    }

    fn read(verdict: Attributes<'_>) -> Result<Self, Malformed> {
        let chain = || Ok(verdict.get(NFTA_VERDICT_CHAIN)?.text()?.to_owned());
        match verdict.get(NFTA_VERDICT_CODE)?.u32()? {
            NF_ACCEPT => Ok(Self::Accept),
            NF_DROP => Ok(Self::Drop),
            NFT_RETURN => Ok(Self::Return),
            NFT_JUMP => Ok(Self::Jump(chain()?)),
            NFT_GOTO => Ok(Self::Goto(chain()?)),
            _ => Err(Malformed("a verdict of unknown kind")),
        }
    }
}

/// A kind and its number, both ways.
macro_rules! codes {
    ($kind:ty, $unknown:literal: $($variant:ident = $code:literal),+) => {
        impl $kind {
            pub(super) const fn code(self) -> u32 {
                match self { $(Self::$variant => $code),+ }
            }

            pub(super) const fn from_code(code: u32) -> Result<Self, Malformed> {
                match code {
                    $($code => Ok(Self::$variant),)+
                    _ => Err(Malformed($unknown)),
                }
            }
        }
    };
}

codes!(Base, "a header of unknown kind": Link = 0, Network = 1, Transport = 2);
codes!(Meta, "a property of packets of unknown kind":
    Protocol = 1, Mark = 3, InputName = 6, OutputName = 7, NetworkProtocol = 15, TransportProtocol = 16);
codes!(Ct, "a property of connections of unknown kind":
    State = 0, Direction = 1, Status = 2, Mark = 3, OriginalIpv4Destination = 20, OriginalIpv6Destination = 22);
