//! What a transaction is made of, as messages.

use std::net::IpAddr;

use super::attribute::Writer;
use super::expression::SetIds;
use super::field::address;
use super::rule::Rule;
use super::table::{COLLECTION, Chain, Family, Hook, OWNED, Set, SetContent, Side, Step, Table};
use super::uapi::*;
use super::userdata;
use super::wire::{ATTRIBUTES, Header, message};

const CREATE: u16 = libc::NLM_F_CREATE as u16;
const EXCLUSIVE: u16 = libc::NLM_F_EXCL as u16;
const APPEND: u16 = libc::NLM_F_APPEND as u16;

/// Elements in one message: those of IPv6 take 44 octets each, and their list's length is a 16-bit number.
const ELEMENTS: usize = 1_000;

/// One change of a ruleset.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// There is this table and none other of its name, from one moment to the next.
    Replace(&'a Table),
    /// There is no such table. It is no error when there was none.
    Remove { family: Family, table: &'a str },
    /// Nobody but this socket may change this table, whose owner is gone: see [`Table::owned`].
    Adopt { family: Family, table: &'a str },
    /// The set has these addresses too.
    AddAddresses { family: Family, table: &'a str, set: &'a str, addresses: &'a [IpAddr] },
    /// The set does not have these addresses, which it had.
    RemoveAddresses { family: Family, table: &'a str, set: &'a str, addresses: &'a [IpAddr] },
}

/// A message, and what to call it when it is refused.
#[derive(Debug)]
pub(super) struct Part {
    /// `None`: it is too long.
    pub message: Option<Vec<u8>>,
    pub subject: String,
    /// Where in the message each expression begins.
    pub expressions: Vec<(usize, &'static str)>,
}

/// Messages in the order in which they are sent.
#[derive(Debug)]
pub(super) struct Parts {
    pub parts: Vec<Part>,
    sequence: u32,
}

/// The sets of one table are numbered from 1 on, as they come.
struct Numbered<'a>(&'a [Set]);

impl SetIds for Numbered<'_> {
    fn id(&self, name: &str) -> Option<u32> {
        self.0.iter().position(|set| set.name == name).map(|index| index as u32 + 1)
    }
}

impl Parts {
    /// `sequence` is the first message's number.
    pub fn new(sequence: u32) -> Self {
        Self { parts: Vec::new(), sequence }
    }

    /// `exists`: there is a table of the name.
    pub fn change(&mut self, change: Change<'_>, exists: bool) {
        match change {
            Change::Replace(table) => {
                if exists {
                    self.remove(table.family, &table.name);
                }
                self.table(table);
            }
            Change::Remove { family, table } if exists => self.remove(family, table),
            Change::Remove { .. } => {}
            Change::Adopt { family, table } => self.table_message(family, table, 0, true),
            Change::AddAddresses { family, table, set, addresses } => {
                self.addresses(NFT_MSG_NEWSETELEM, CREATE, (family, table, set), addresses);
            }
            Change::RemoveAddresses { family, table, set, addresses } => {
                self.addresses(NFT_MSG_DELSETELEM, 0, (family, table, set), addresses);
            }
        }
    }

    fn remove(&mut self, family: Family, table: &str) {
        self.push(NFT_MSG_DELTABLE, 0, family, family.table(table), |writer| {
            writer.text(NFTA_TABLE_NAME, table);
        });
    }

    fn table(&mut self, table: &Table) {
        self.table_message(table.family, &table.name, CREATE | EXCLUSIVE, table.owned);
        for chain in &table.chains {
            self.chain(table, chain);
        }
        for (set, id) in table.sets.iter().zip(1..) {
            self.set(table, set, id);
            self.elements(table, set, id);
        }
        let sets = Numbered(&table.sets);
        for chain in &table.chains {
            for (rule, number) in chain.rules.iter().zip(1..) {
                self.rule(table, chain, rule, number, &sets);
            }
        }
    }

    fn table_message(&mut self, family: Family, table: &str, flags: u16, owned: bool) {
        let subject = family.table(table);
        self.push(NFT_MSG_NEWTABLE, flags, family, subject, |writer| {
            writer.text(NFTA_TABLE_NAME, table);
            writer.u32(NFTA_TABLE_FLAGS, if owned { OWNED } else { 0 });
        });
    }

    fn chain(&mut self, table: &Table, chain: &Chain) {
        let subject = in_table(table, &format!("chain {}", chain.name));
        self.push(NFT_MSG_NEWCHAIN, CREATE, table.family, subject, |writer| {
            writer.text(NFTA_CHAIN_TABLE, &table.name);
            writer.text(NFTA_CHAIN_NAME, &chain.name);
            if let Some(hook) = &chain.hook {
                write_hook(hook, writer);
            }
        });
    }

    fn set(&mut self, table: &Table, set: &Set, id: u32) {
        let subject = in_table(table, &format!("set {}", set.name));
        let key = set.key();
        self.push(NFT_MSG_NEWSET, CREATE, table.family, subject, |writer| {
            writer.text(NFTA_SET_TABLE, &table.name);
            writer.text(NFTA_SET_NAME, &set.name);
            writer.u32(NFTA_SET_FLAGS, set.flags());
            writer.u32(NFTA_SET_KEY_TYPE, key.iter().fold(0, |code, part| code << 6 | part.code()));
            let length = key.iter().map(|part| part.length().next_multiple_of(4)).sum();
            writer.u32(NFTA_SET_KEY_LEN, length);
            writer.u32(NFTA_SET_ID, id);
            if let SetContent::Flows { size, timeout, .. } = set.content {
                if size != SetContent::OPEN_SIZE {
                    writer.nest(NFTA_SET_DESC, |description| description.u32(NFTA_SET_DESC_SIZE, size));
                }
                writer.u64(NFTA_SET_TIMEOUT, timeout.as_millis() as u64);
                writer.u32(NFTA_SET_GC_INTERVAL, COLLECTION.as_millis() as u32);
            }
            writer.bytes(NFTA_SET_USERDATA, &userdata::byte_order(&key));
        });
    }

    fn elements(&mut self, table: &Table, set: &Set, id: u32) {
        let steps = match &set.content {
            SetContent::Networks(networks) => networks.steps(),
            SetContent::Addresses { addresses, .. } => single(addresses),
            SetContent::Flows { .. } => Vec::new(),
        };
        let place = (table.family, table.name.as_str(), set.name.as_str());
        self.element_messages(NFT_MSG_NEWSETELEM, CREATE, place, Some(id), &steps);
    }

    fn addresses(&mut self, kind: u16, flags: u16, place: (Family, &str, &str), addresses: &[IpAddr]) {
        self.element_messages(kind, flags, place, None, &single(addresses));
    }

    fn element_messages(
        &mut self,
        kind: u16,
        flags: u16,
        (family, table, set): (Family, &str, &str),
        id: Option<u32>,
        steps: &[Step],
    ) {
        for steps in steps.chunks(ELEMENTS) {
            let subject = format!("elements of set {set} in {}", family.table(table));
            self.push(kind, flags, family, subject, |writer| {
                writer.text(NFTA_SET_ELEM_LIST_TABLE, table);
                writer.text(NFTA_SET_ELEM_LIST_SET, set);
                if let Some(id) = id {
                    writer.u32(NFTA_SET_ELEM_LIST_SET_ID, id);
                }
                writer.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
                    for (step, index) in steps.iter().zip(1..) {
                        list.nest(index, |element| write_step(*step, element));
                    }
                });
            });
        }
    }

    fn rule(&mut self, table: &Table, chain: &Chain, rule: &Rule, number: usize, sets: &Numbered<'_>) {
        let comment = rule.comment.as_deref().map(|text| format!(" (\"{text}\")")).unwrap_or_default();
        let subject = in_table(table, &format!("rule {number}{comment} of chain {}", chain.name));
        let mut expressions = Vec::new();
        self.push(NFT_MSG_NEWRULE, CREATE | APPEND, table.family, subject, |writer| {
            writer.text(NFTA_RULE_TABLE, &table.name);
            writer.text(NFTA_RULE_CHAIN, &chain.name);
            writer.nest(NFTA_RULE_EXPRESSIONS, |list| {
                for expression in &rule.expressions {
                    expressions.push((ATTRIBUTES + list.len(), expression.name()));
                    list.nest(NFTA_LIST_ELEM, |element| expression.write(element, sets));
                }
            });
            if let Some(comment) = &rule.comment {
                writer.bytes(NFTA_RULE_USERDATA, &userdata::comment(comment));
            }
        });
        if let Some(part) = self.parts.last_mut() {
            part.expressions = expressions;
        }
    }

    fn push(
        &mut self,
        kind: u16,
        flags: u16,
        family: Family,
        subject: String,
        attributes: impl FnOnce(&mut Writer),
    ) {
        let sequence = self.sequence.wrapping_add(self.parts.len() as u32);
        let header = Header { kind, flags, sequence, family: family.code() };
        let message = message(header, attributes);
        self.parts.push(Part { message, subject, expressions: Vec::new() });
    }
}

impl Part {
    /// The expression that an offset lies in.
    pub fn expression_at(&self, offset: usize) -> Option<&'static str> {
        let before = self.expressions.iter().take_while(|(start, _)| *start <= offset);
        before.last().map(|(_, name)| *name)
    }
}

fn in_table(table: &Table, object: &str) -> String {
    format!("{object} in {}", table.family.table(&table.name))
}

fn single(addresses: &[IpAddr]) -> Vec<Step> {
    addresses.iter().map(|&address| Step { address, side: Side::In }).collect()
}

fn write_hook(hook: &Hook, writer: &mut Writer) {
    writer.text(NFTA_CHAIN_TYPE, hook.point.kind());
    writer.u32(NFTA_CHAIN_POLICY, if hook.drop { NF_DROP } else { NF_ACCEPT });
    writer.nest(NFTA_CHAIN_HOOK, |writer| {
        writer.u32(NFTA_HOOK_HOOKNUM, hook.point.code());
        writer.bytes(NFTA_HOOK_PRIORITY, &hook.priority.to_be_bytes());
        if let Some(device) = hook.point.device() {
            writer.text(NFTA_HOOK_DEV, device);
        }
    });
}

fn write_step(step: Step, writer: &mut Writer) {
    if step.side == Side::Out {
        writer.u32(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
    }
    writer.nest(NFTA_SET_ELEM_KEY, |data| data.bytes(NFTA_DATA_VALUE, &address(step.address)));
    if step.side == Side::InToTheEnd {
        writer.bytes(NFTA_SET_ELEM_USERDATA, &userdata::open_interval());
    }
}
