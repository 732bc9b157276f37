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
    COLLECTION, Chain, FLOWS, Family, Hook, HookPoint, Networks, OWNED, Set, SetContent, Side, Step, Table,
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

/// Why there is no reading.
#[derive(Debug)]
enum Unread {
    Failed(NftError),
    /// The kernel answered, with something that was not made here.
    Strange(Malformed),
}

impl From<NftError> for Unread {
    fn from(error: NftError) -> Self {
        Self::Failed(error)
    }
}

impl From<Malformed> for Unread {
    fn from(strange: Malformed) -> Self {
        Self::Strange(strange)
    }
}

impl Unread {
    /// Where nothing strange can be, it is a failure too.
    fn into_error(self, subject: &str) -> NftError {
        match self {
            Self::Failed(error) => error,
            Self::Strange(strange) => NftError::malformed(subject, strange),
        }
    }
}

/// How often a reading is taken again that a change interrupted.
const ATTEMPTS: usize = 5;

impl Nft {
    /// Reads a table.
    pub fn table(&mut self, family: Family, name: &str) -> Result<Found, NftError> {
        for _ in 0..ATTEMPTS {
            let before = self.generation()?;
            // The number changes before the objects do.
            self.barrier()?;
            // What fails while there are changes fails because of them: a set that is listed is gone when it is asked for.
            let found = match self.read_table(family, name) {
                Ok(found) => Ok(found.map_or(Found::Absent, Found::Table)),
                Err(Unread::Strange(strange)) => Ok(Found::Strange(strange)),
                Err(Unread::Failed(error)) => Err(error),
            };
            if self.generation()? == before {
                return found;
            }
        }
        Err(NftError::new(&family.table(name), io::ErrorKind::Interrupted.into()))
    }

    /// Names of the tables of a family.
    pub fn tables(&mut self, family: Family) -> Result<Vec<String>, NftError> {
        const SUBJECT: &str = "tables";
        let name = |table: Attributes<'_>| Ok(table.get(NFTA_TABLE_NAME)?.text()?.to_owned());
        let names = self.dump(NFT_MSG_GETTABLE, family, SUBJECT, |_| (), name);
        names.map_err(|error| error.into_error(SUBJECT))
    }

    /// Changes with each transaction of anybody in this namespace.
    pub fn generation(&mut self) -> Result<u32, NftError> {
        const SUBJECT: &str = "read the generation";
        let read = |attributes: Attributes<'_>| attributes.get(NFTA_GEN_ID)?.u32();
        let found = self.request(NFT_MSG_GETGEN, 0, 0, SUBJECT, |_| (), read);
        let found = found.map_err(|error| error.into_error(SUBJECT))?;
        found.first().copied().ok_or_else(|| NftError::new(SUBJECT, io::ErrorKind::UnexpectedEof.into()))
    }

    /// `None`: there is no such table.
    pub(super) fn table_flags(&mut self, family: Family, name: &str) -> Result<Option<u32>, NftError> {
        let subject = family.table(name);
        let read = |table: Attributes<'_>| table.find(NFTA_TABLE_FLAGS)?.map_or(Ok(0), Attribute::u32);
        let named = |writer: &mut Writer| writer.text(NFTA_TABLE_NAME, name);
        match self.request(NFT_MSG_GETTABLE, 0, family.code(), &subject, named, read) {
            Ok(found) => Ok(found.first().copied()),
            Err(Unread::Failed(error)) if error.errno() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error.into_error(&subject)),
        }
    }

    fn read_table(&mut self, family: Family, name: &str) -> Result<Option<Table>, Unread> {
        let Some(flags) = self.table_flags(family, name)? else { return Ok(None) };
        let owned = match flags {
            // The kernel takes the flag of an owner away with the owner.
            0 | NFT_TABLE_F_PERSIST => false,
            OWNED => true,
            _ => return Err(Malformed("flags of the table").into()),
        };
        let subject = family.table(name);
        let in_table = |kind: u16| move |writer: &mut Writer| writer.text(kind, name);
        let mut sets = self.dump(NFT_MSG_GETSET, family, &subject, in_table(NFTA_SET_TABLE), read_set)?;
        for set in &mut sets {
            self.read_elements(family, name, set)?;
        }
        // The kernel has no filter for these; those of other tables are passed by.
        let chain_of_table = |chain: Attributes<'_>| {
            let ours = chain.get(NFTA_CHAIN_TABLE)?.text()? == name;
            ours.then(|| read_chain(family, chain)).transpose()
        };
        let chains = self.dump(NFT_MSG_GETCHAIN, family, &subject, |_| (), chain_of_table)?;
        let mut chains: Vec<_> = chains.into_iter().flatten().collect();
        let rule_of_chain =
            |rule: Attributes<'_>| Ok((rule.get(NFTA_RULE_CHAIN)?.text()?.to_owned(), read_rule(rule)?));
        let rules = self.dump(NFT_MSG_GETRULE, family, &subject, in_table(NFTA_RULE_TABLE), rule_of_chain)?;
        for (chain, rule) in rules {
            if let Some(chain) = chains.iter_mut().find(|found| found.name == chain) {
                chain.rules.push(rule);
            }
        }
        Ok(Some(Table { family, name: name.to_owned(), owned, sets, chains }))
    }

    fn read_elements(&mut self, family: Family, table: &str, set: &mut Set) -> Result<(), Unread> {
        if matches!(set.content, SetContent::Flows { .. }) {
            return Ok(());
        }
        let name = &set.name;
        let subject = format!("elements of set {name} in {}", family.table(table));
        let which = |writer: &mut Writer| {
            writer.text(NFTA_SET_ELEM_LIST_TABLE, table);
            writer.text(NFTA_SET_ELEM_LIST_SET, name);
        };
        let steps = self.dump(NFT_MSG_GETSETELEM, family, &subject, which, read_steps)?.concat();
        match &mut set.content {
            SetContent::Networks(networks) => *networks = Networks::from_steps(networks.is_v6(), steps),
            SetContent::Addresses { addresses, .. } => {
                *addresses = steps.into_iter().map(|step| step.address).collect();
                addresses.sort_unstable();
            }
            SetContent::Flows { .. } => {}
        }
        Ok(())
    }

    /// All objects of a kind; taken again when a change interrupts.
    fn dump<T>(
        &mut self,
        kind: u16,
        family: Family,
        subject: &str,
        which: impl Fn(&mut Writer),
        read: impl Fn(Attributes<'_>) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Unread> {
        let mut attempt =
            || self.request(kind, libc::NLM_F_DUMP as u16, family.code(), subject, &which, &read);
        for _ in 1..ATTEMPTS {
            match attempt() {
                Err(Unread::Failed(error)) if error.errno() == Some(libc::EINTR) => {}
                result => return result,
            }
        }
        attempt()
    }

    /// One request, and every object of its answer. A dump is taken to its end also where something in it is strange:
    /// the kernel takes no other before.
    fn request<T>(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        subject: &str,
        which: impl Fn(&mut Writer),
        read: impl Fn(Attributes<'_>) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Unread> {
        let failed = |error: io::Error| NftError::new(subject, error);
        let errno = |errno: i32| failed(io::Error::from_raw_os_error(errno));
        let sequence = self.take_sequence();
        let request = message(Header { kind, flags, sequence, family }, which)
            .ok_or_else(|| NftError::overlong(subject))?;
        self.send(&request).map_err(failed)?;
        let dumps = flags & libc::NLM_F_DUMP as u16 != 0;
        let (mut found, mut interrupted) = (Vec::new(), false);
        loop {
            let datagram = self.receive().map_err(failed)?;
            let datagram = datagram.ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))?;
            for received in Messages(datagram) {
                let received = received.map_err(|error| NftError::malformed(subject, error))?;
                // What is left of an earlier request that ended early.
                if received.sequence != sequence {
                    continue;
                }
                interrupted |= received.interrupted;
                match received.answer {
                    Answer::Outcome(outcome) => return Err(NftError::refused(subject, None, outcome).into()),
                    Answer::Done(0) if interrupted => return Err(errno(libc::EINTR).into()),
                    Answer::Done(0) => return Ok(found.into_iter().collect::<Result<_, _>>()?),
                    Answer::Done(number) => return Err(errno(number).into()),
                    Answer::Object(attributes) if dumps => found.push(read(attributes)),
                    Answer::Object(attributes) => return Ok(vec![read(attributes)?]),
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
        (FLOWS, _) if collects(set)? => SetContent::Flows {
            size: set.get(NFTA_SET_DESC)?.nested().get(NFTA_SET_DESC_SIZE)?.u32()?,
            timeout: Duration::from_millis(set.get(NFTA_SET_TIMEOUT)?.u64()?),
            key,
        },
        _ => return Err(STRANGE),
    };
    Ok(Set { name, content })
}

/// Its expired elements are looked for as often as those of the sets that are made here.
fn collects(set: Attributes<'_>) -> Result<bool, Malformed> {
    let interval = set.find(NFTA_SET_GC_INTERVAL)?.map_or(Ok(0), Attribute::u32)?;
    Ok(u128::from(interval) == COLLECTION.as_millis())
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
