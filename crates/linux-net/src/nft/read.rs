//! What the kernel has.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use super::Nft;
use super::attribute::{Attribute, Attributes, Writer};
use super::error::NftError;
use super::expression::Expression;
use super::field::KeyType;
use super::rule::Rule;
use super::table::{
    Chain, FLOWS, Family, Hook, HookPoint, Networks, OWNED, Set, SetContent, Side, Step, Table,
};
use super::uapi::*;
use super::userdata::read_comment;
use super::wire::{Answer, Header, Malformed, Messages, message};

/// What was found of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Absent,
    Table(Table),
    /// There is one, with something in it that was not made here.
    Strange(Malformed),
}

/// How often a reading is taken again that a change interrupted.
const ATTEMPTS: usize = 5;

impl Nft {
    /// Reads a table.
    pub fn table(&mut self, family: Family, name: &str) -> Result<Found, NftError> {
        let subject = family.table(name);
        for _ in 0..ATTEMPTS {
            let before = self.generation()?;
            // The number changes before the objects do.
            self.barrier()?;
            // What fails while there are changes fails because of them: a set that is listed is gone when it is asked for.
            let found = self.read_table(family, name);
            if self.generation()? == before {
                return found;
            }
        }
        Err(NftError::new(&subject, io::ErrorKind::Interrupted.into()))
    }

    /// Names of the tables of a family.
    pub fn tables(&mut self, family: Family) -> Result<Vec<String>, NftError> {
        let names = self.dump(
            NFT_MSG_GETTABLE,
            family,
            "tables",
            |_| (),
            |table| Ok(table.get(NFTA_TABLE_NAME)?.text()?.to_owned()),
        )?;
        names.into_iter().collect::<Result<_, _>>().map_err(|error| NftError::malformed("tables", error))
    }

    /// Changes with each transaction of anybody in this namespace.
    pub fn generation(&mut self) -> Result<u32, NftError> {
        const SUBJECT: &str = "read the generation";
        let read = |attributes: Attributes<'_>| attributes.get(NFTA_GEN_ID)?.u32();
        let found = self.request(NFT_MSG_GETGEN, 0, 0, SUBJECT, |_| (), read)?;
        match found.into_iter().next() {
            Some(Ok(generation)) => Ok(generation),
            Some(Err(error)) => Err(NftError::malformed(SUBJECT, error)),
            None => Err(NftError::new(SUBJECT, io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// `None`: there is no such table.
    pub(super) fn table_flags(&mut self, family: Family, name: &str) -> Result<Option<u32>, NftError> {
        let subject = family.table(name);
        let read = |table: Attributes<'_>| table.find(NFTA_TABLE_FLAGS)?.map_or(Ok(0), Attribute::u32);
        let named = |writer: &mut Writer| writer.text(NFTA_TABLE_NAME, name);
        match self.request(NFT_MSG_GETTABLE, 0, family.code(), &subject, named, read) {
            Ok(found) => {
                let flags = found.into_iter().next().unwrap_or(Err(Malformed("nothing")));
                flags.map(Some).map_err(|error| NftError::malformed(&subject, error))
            }
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read_table(&mut self, family: Family, name: &str) -> Result<Found, NftError> {
        let Some(flags) = self.table_flags(family, name)? else { return Ok(Found::Absent) };
        let owned = match flags {
            // The kernel takes the flag of an owner away with the owner.
            0 | NFT_TABLE_F_PERSIST => false,
            OWNED => true,
            _ => return Ok(Found::Strange(Malformed("flags of the table"))),
        };
        let mut table = Table { family, name: name.to_owned(), owned, sets: Vec::new(), chains: Vec::new() };
        match self.fill(&mut table)? {
            Ok(()) => Ok(Found::Table(table)),
            Err(strange) => Ok(Found::Strange(strange)),
        }
    }

    fn fill(&mut self, table: &mut Table) -> Result<Result<(), Malformed>, NftError> {
        let (family, name) = (table.family, table.name.clone());
        let subject = family.table(&name);
        let in_table = |kind: u16| {
            let name = name.clone();
            move |writer: &mut Writer| writer.text(kind, &name)
        };
        let sets = self.dump(NFT_MSG_GETSET, family, &subject, in_table(NFTA_SET_TABLE), read_set)?;
        for set in sets {
            let mut set = match set {
                Ok(set) => set,
                Err(strange) => return Ok(Err(strange)),
            };
            if let Err(strange) = self.read_elements(family, &name, &mut set)? {
                return Ok(Err(strange));
            }
            table.sets.push(set);
        }
        // The kernel has no filter for these; those of other tables are passed by.
        let chains = self.dump(
            NFT_MSG_GETCHAIN,
            family,
            &subject,
            |_| (),
            |chain| {
                let ours = chain.get(NFTA_CHAIN_TABLE)?.text()? == name;
                ours.then(|| read_chain(family, chain)).transpose()
            },
        )?;
        for chain in chains {
            match chain {
                Ok(chain) => table.chains.extend(chain),
                Err(strange) => return Ok(Err(strange)),
            }
        }
        let rules = self.dump(NFT_MSG_GETRULE, family, &subject, in_table(NFTA_RULE_TABLE), |rule| {
            Ok((rule.get(NFTA_RULE_CHAIN)?.text()?.to_owned(), read_rule(rule)?))
        })?;
        for rule in rules {
            let (chain, rule) = match rule {
                Ok(found) => found,
                Err(strange) => return Ok(Err(strange)),
            };
            if let Some(chain) = table.chains.iter_mut().find(|found| found.name == chain) {
                chain.rules.push(rule);
            }
        }
        Ok(Ok(()))
    }

    fn read_elements(
        &mut self,
        family: Family,
        table: &str,
        set: &mut Set,
    ) -> Result<Result<(), Malformed>, NftError> {
        if matches!(set.content, SetContent::Flows { .. }) {
            return Ok(Ok(()));
        }
        let subject = format!("elements of set {} in {}", set.name, family.table(table));
        let name = set.name.clone();
        let which = |writer: &mut Writer| {
            writer.text(NFTA_SET_ELEM_LIST_TABLE, table);
            writer.text(NFTA_SET_ELEM_LIST_SET, &name);
        };
        let found = self.dump(NFT_MSG_GETSETELEM, family, &subject, which, read_steps)?;
        let steps = match found.into_iter().collect::<Result<Vec<_>, _>>() {
            Ok(steps) => steps.concat(),
            Err(strange) => return Ok(Err(strange)),
        };
        match &mut set.content {
            SetContent::Networks(networks) => *networks = Networks::from_steps(networks.is_v6(), steps),
            SetContent::Addresses { addresses, .. } => {
                *addresses = steps.into_iter().map(|step| step.address).collect();
                addresses.sort_unstable();
            }
            SetContent::Flows { .. } => {}
        }
        Ok(Ok(()))
    }

    /// All objects of a kind; taken again when a change interrupts.
    fn dump<T>(
        &mut self,
        kind: u16,
        family: Family,
        subject: &str,
        which: impl Fn(&mut Writer),
        read: impl Fn(Attributes<'_>) -> Result<T, Malformed>,
    ) -> Result<Vec<Result<T, Malformed>>, NftError> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            match self.request(kind, libc::NLM_F_DUMP as u16, family.code(), subject, &which, &read) {
                Err(error) if error.errno() == Some(libc::EINTR) => last = Some(error),
                result => return result,
            }
        }
        Err(last.unwrap_or_else(|| NftError::new(subject, io::ErrorKind::Interrupted.into())))
    }

    /// One request, and every object of its answer.
    fn request<T>(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        subject: &str,
        which: impl Fn(&mut Writer),
        read: impl Fn(Attributes<'_>) -> Result<T, Malformed>,
    ) -> Result<Vec<Result<T, Malformed>>, NftError> {
        let sequence = self.take_sequence();
        let request = message(Header { kind, flags, sequence, family }, which)
            .ok_or_else(|| NftError::overlong(subject))?;
        self.send(&request).map_err(|error| NftError::new(subject, error))?;
        let dumps = flags & libc::NLM_F_DUMP as u16 != 0;
        let (mut found, mut interrupted) = (Vec::new(), false);
        loop {
            let datagram = self.receive().map_err(|error| NftError::new(subject, error))?;
            let Some(datagram) = datagram else {
                return Err(NftError::new(subject, io::ErrorKind::UnexpectedEof.into()));
            };
            for received in Messages(datagram) {
                let received = received.map_err(|error| NftError::malformed(subject, error))?;
                // What is left of an earlier request that ended early.
                if received.sequence != sequence {
                    continue;
                }
                interrupted |= received.interrupted;
                match received.answer {
                    Answer::Outcome(outcome) => return Err(NftError::refused(subject, None, outcome)),
                    Answer::Done(0) if interrupted => {
                        return Err(NftError::new(subject, io::Error::from_raw_os_error(libc::EINTR)));
                    }
                    Answer::Done(0) => return Ok(found),
                    Answer::Done(errno) => {
                        return Err(NftError::new(subject, io::Error::from_raw_os_error(errno)));
                    }
                    Answer::Object(attributes) => {
                        found.push(read(attributes));
                        if !dumps {
                            return Ok(found);
                        }
                    }
                    Answer::Other => {}
                }
            }
        }
    }
}

/// A set without its elements.
fn read_set(set: Attributes<'_>) -> Result<Set, Malformed> {
    const STRANGE: Malformed = Malformed("a set of unknown kind");
    let name = set.get(NFTA_SET_NAME)?.text()?.to_owned();
    let flags = set.find(NFTA_SET_FLAGS)?.map_or(Ok(0), Attribute::u32)?;
    let key = read_key(set.get(NFTA_SET_KEY_TYPE)?.u32()?).ok_or(STRANGE)?;
    let v6 = match key[..] {
        [KeyType::Ipv4Address] => Some(false),
        [KeyType::Ipv6Address] => Some(true),
        _ => None,
    };
    let content = match (flags, v6) {
        (NFT_SET_INTERVAL, Some(v6)) => SetContent::Networks(Networks::new(v6, &[])),
        (0, Some(v6)) => SetContent::Addresses { v6, addresses: Vec::new() },
        (FLOWS, _) => SetContent::Flows {
            size: set.get(NFTA_SET_DESC)?.nested().get(NFTA_SET_DESC_SIZE)?.u32()?,
            timeout: Duration::from_millis(set.get(NFTA_SET_TIMEOUT)?.u64()?),
            key,
        },
        _ => return Err(STRANGE),
    };
    Ok(Set { name, content })
}

/// Six bits a part, the last one lowest.
fn read_key(mut code: u32) -> Option<Vec<KeyType>> {
    let mut key = Vec::new();
    while code != 0 {
        key.insert(0, KeyType::from_code(code & 0x3f)?);
        code >>= 6;
    }
    Some(key)
}

fn read_steps(list: Attributes<'_>) -> Result<Vec<Step>, Malformed> {
    let Some(elements) = list.find(NFTA_SET_ELEM_LIST_ELEMENTS)? else { return Ok(Vec::new()) };
    elements.nested().into_iter().map(|element| read_step(element?.nested())).collect()
}

fn read_step(element: Attributes<'_>) -> Result<Step, Malformed> {
    let value = element.get(NFTA_SET_ELEM_KEY)?.nested().get(NFTA_DATA_VALUE)?.value;
    let flags = element.find(NFTA_SET_ELEM_FLAGS)?.map_or(Ok(0), Attribute::u32)?;
    let address = if let Ok(v4) = <[u8; 4]>::try_from(value) {
        IpAddr::from(v4)
    } else if let Ok(v6) = <[u8; 16]>::try_from(value) {
        IpAddr::from(v6)
    } else {
        return Err(Malformed("an element of unknown kind"));
    };
    let side = if flags & NFT_SET_ELEM_INTERVAL_END == 0 { Side::In } else { Side::Out };
    Ok(Step { address, side })
}

fn read_chain(family: Family, chain: Attributes<'_>) -> Result<Chain, Malformed> {
    let name = chain.get(NFTA_CHAIN_NAME)?.text()?.to_owned();
    let Some(hook) = chain.find(NFTA_CHAIN_HOOK)? else {
        return Ok(Chain { name, hook: None, rules: Vec::new() });
    };
    let hook = hook.nested();
    let kind = chain.get(NFTA_CHAIN_TYPE)?.text()?;
    let device = hook.find(NFTA_HOOK_DEV)?.map_or(Ok(""), Attribute::text)?;
    let point = HookPoint::from_parts(family, hook.get(NFTA_HOOK_HOOKNUM)?.u32()?, kind, device)
        .ok_or(Malformed("a hook of unknown kind"))?;
    let priority = hook.get(NFTA_HOOK_PRIORITY)?.u32()? as i32;
    let drop = chain.get(NFTA_CHAIN_POLICY)?.u32()? == NF_DROP;
    Ok(Chain { name, hook: Some(Hook { point, priority, drop }), rules: Vec::new() })
}

fn read_rule(rule: Attributes<'_>) -> Result<Rule, Malformed> {
    let expressions = match rule.find(NFTA_RULE_EXPRESSIONS)? {
        Some(list) => list
            .nested()
            .into_iter()
            .map(|element| Expression::read(element?.nested()))
            .collect::<Result<_, _>>()?,
        None => Vec::new(),
    };
    let comment = rule.find(NFTA_RULE_USERDATA)?.map(|data| read_comment(data.value)).transpose()?;
    Ok(Rule { expressions, comment })
}
