//! `nft` is the reference: the same table as a script gives the same messages, octet for octet.

use super::*;
use crate::nft::change::Parts;

/// A message as `nft --debug=mnl` shows it: kind, family, attributes.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    kind: u16,
    family: u8,
    attributes: Vec<u8>,
}

/// One attribute with its octets, or those in it.
#[derive(Debug, PartialEq, Eq)]
enum Node {
    Value(u16, Vec<u8>),
    Nest(u16, Vec<Node>),
}

#[test]
fn messages_are_those_of_nft() {
    if !is_root() {
        return;
    }
    for (table, script) in everything() {
        let (namespace, _) = fresh();
        let theirs = sent_by_nft(&namespace, script);
        let mut parts = Parts::new(0);
        parts.change(Change::Replace(&table), false);
        let ours: Vec<_> = parts.parts.iter().map(|part| shown(part.message.as_ref().unwrap())).collect();
        let kinds = |messages: &[Shown]| messages.iter().map(|message| message.kind).collect::<Vec<_>>();
        assert_eq!(kinds(&theirs), kinds(&ours));
        for ((theirs, ours), part) in theirs.iter().zip(&ours).zip(&parts.parts) {
            assert_eq!(theirs.family, ours.family);
            assert_eq!(theirs.tree(), ours.tree(), "{}", part.subject);
        }
    }
}

fn shown(message: &[u8]) -> Shown {
    let kind = u16::from_ne_bytes([message[4], message[5]]) & 0xff;
    Shown { kind, family: message[16], attributes: message[20..].to_vec() }
}

impl Shown {
    /// All attributes in their order, but for what nft writes now so, now otherwise.
    fn tree(&self) -> Vec<Node> {
        let mut nodes = nodes(&self.attributes);
        if self.kind == NFT_MSG_NEWRULE {
            without_default_operation(&mut nodes);
        }
        if self.kind == NFT_MSG_NEWSET {
            without_type_of(&mut nodes);
        }
        nodes
    }
}

fn nodes(mut attributes: &[u8]) -> Vec<Node> {
    let mut nodes = Vec::new();
    while let [len0, len1, kind0, kind1, ..] = *attributes {
        let len = usize::from(u16::from_ne_bytes([len0, len1]));
        let kind = u16::from_ne_bytes([kind0, kind1]);
        let value = &attributes[4..len];
        nodes.push(if kind & 1 << 15 == 0 {
            Node::Value(kind, value.to_vec())
        } else {
            Node::Nest(kind, self::nodes(value))
        });
        attributes = &attributes[len.next_multiple_of(4)..];
    }
    nodes
}

/// nft says of some masks that they are masks, and leaves that to the default of others.
fn without_default_operation(nodes: &mut Vec<Node>) {
    let bitwise = nodes.contains(&Node::Value(NFTA_EXPR_NAME, b"bitwise\0".to_vec()));
    for node in nodes {
        let Node::Nest(_, inside) = node else { continue };
        if bitwise {
            inside.retain(|node| *node != Node::Value(NFTA_BITWISE_OP, vec![0; 4]));
        } else {
            without_default_operation(inside);
        }
    }
}

/// What nft keeps about the spelling of a key's type, for itself, differs from version to version.
fn without_type_of(nodes: &mut [Node]) {
    const NFTNL_UDATA_SET_KEY_TYPEOF: u8 = 3;
    for node in nodes {
        if let Node::Value(NFTA_SET_USERDATA, data) = node {
            let mut kept = Vec::new();
            let mut rest = data.as_slice();
            while let [tag, len, tail @ ..] = rest {
                let (value, behind) = tail.split_at((*len).into());
                if *tag != NFTNL_UDATA_SET_KEY_TYPEOF {
                    kept.extend([&[*tag, *len], value].concat());
                }
                rest = behind;
            }
            *data = kept;
        }
    }
}

/// The messages of nf_tables between a batch's begin and end.
fn sent_by_nft(namespace: &NetNs, script: &str) -> Vec<Shown> {
    let output = nft_output(namespace, &["--debug=mnl", "-f", "-"], script);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = [output.stdout, output.stderr].concat();
    let text = without_colors(&String::from_utf8_lossy(&text));
    let all = parse(&text);
    let begin = all.iter().position(|message| message.kind == NFNL_MSG_BATCH_BEGIN).unwrap();
    let end = all.iter().rposition(|message| message.kind == NFNL_MSG_BATCH_END).unwrap();
    let batch = all.into_iter().take(end).skip(begin + 1);
    batch
        .map(|mut message| {
            message.kind &= 0xff;
            message
        })
        .collect()
}

/// Lines are `| 02566 | R--- |` (kind), `| 01 00 00 00  | | extra header |` (family first), `|00008|N-|00004|` (an
/// attribute's length, nesting and kind) and `| 67 00 00 00  | | data |`.
fn parse(text: &str) -> Vec<Shown> {
    let mut messages: Vec<Shown> = Vec::new();
    for line in text.lines() {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let octets = || cells[1].split(' ').map(|octet| u8::from_str_radix(octet, 16).unwrap());
        if line.contains("|  type | flags") {
            messages.push(Shown { kind: cells[1].parse().unwrap(), family: 0, attributes: Vec::new() });
        } else if line.contains("extra header") {
            messages.last_mut().unwrap().family = octets().next().unwrap();
        } else if line.contains("|len |flags| type|") {
            let [len, kind]: [u16; 2] = [cells[1].parse().unwrap(), cells[3].parse().unwrap()];
            let kind = kind | if cells[2].starts_with('N') { 1 << 15 } else { 0 };
            let attributes = &mut messages.last_mut().unwrap().attributes;
            attributes.extend(len.to_ne_bytes());
            attributes.extend(kind.to_ne_bytes());
        } else if line.contains("|      data      |") {
            messages.last_mut().unwrap().attributes.extend(octets());
        }
    }
    messages
}

fn without_colors(text: &str) -> String {
    let mut plain = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character == '\x1b' {
            characters.by_ref().take_while(|&next| next != 'm').for_each(drop);
        } else {
            plain.push(character);
        }
    }
    plain
}
