//! As much of DNS as a question for one address and its answer take.

use std::net::Ipv4Addr;

use anyhow::{Context, ensure};
use smoltcp::wire::{
    DnsFlags, DnsOpcode, DnsPacket, DnsQueryType, DnsQuestion, DnsRecord, DnsRecordData, DnsRepr,
};

/// The fixed header of a message, RFC 1035 section 4.1.1.
const HEADER: usize = 12;
/// Seconds; longer than the self-test runs.
const TTL: u32 = 60;

/// Asks for the IPv4 addresses of `name`.
pub fn query(id: u16, name: &str) -> Vec<u8> {
    let name = wire_name(name);
    let question = DnsQuestion { name: &name, type_: DnsQueryType::A };
    let query = DnsRepr {
        transaction_id: id,
        opcode: DnsOpcode::Query,
        flags: DnsFlags::RECURSION_DESIRED,
        question,
    };
    let mut bytes = vec![0; query.buffer_len()];
    query.emit(&mut DnsPacket::new_unchecked(&mut bytes));
    bytes
}

/// The first IPv4 address of an answer to [`query`].
pub fn read_answer(id: u16, message: &[u8]) -> anyhow::Result<Ipv4Addr> {
    let packet = DnsPacket::new_checked(message).ok().context("the answer is cut off")?;
    ensure!(packet.transaction_id() == id, "the answer is to another question");
    let (rest, _) = DnsQuestion::parse(packet.payload()).ok().context("the answer has no question")?;
    let (_, record) = DnsRecord::parse(rest).ok().context("the answer has no record")?;
    match record.data {
        DnsRecordData::A(address) => Ok(address),
        DnsRecordData::Aaaa(_) | DnsRecordData::Cname(_) | DnsRecordData::Other(..) => {
            anyhow::bail!("the answer has no IPv4 address")
        }
    }
}

/// The answer to a query, from what `lookup` says of its name; `None` for what is no query of one known name.
pub fn answer(query: &[u8], lookup: impl Fn(&str) -> Option<Ipv4Addr>) -> Option<Vec<u8>> {
    let packet = DnsPacket::new_checked(query).ok()?;
    let (rest, question) = DnsQuestion::parse(packet.payload()).ok()?;
    let labels: Option<Vec<&str>> =
        packet.parse_name(question.name).map(|label| std::str::from_utf8(label.ok()?).ok()).collect();
    let address = lookup(&labels?.join("."))?;
    let mut bytes = query[..query.len() - rest.len()].to_vec();
    let mut packet = DnsPacket::new_unchecked(&mut bytes);
    packet.set_flags(DnsFlags::RESPONSE | DnsFlags::RECURSION_AVAILABLE);
    packet.set_answer_record_count(1);
    packet.set_authority_record_count(0);
    packet.set_additional_record_count(0);
    // The name as a pointer to the question's, then type A, class IN (RFC 1035 sections 4.1.3 and 4.1.4).
    bytes.extend_from_slice(&[0xc0, HEADER as u8, 0, 1, 0, 1]);
    bytes.extend_from_slice(&TTL.to_be_bytes());
    bytes.extend_from_slice(&[0, 4]);
    bytes.extend_from_slice(&address.octets());
    Some(bytes)
}

fn wire_name(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

    fn known(name: &str) -> Option<Ipv4Addr> {
        (name == "a.test").then_some(ADDRESS)
    }

    #[test]
    fn a_question_gets_its_answer() {
        let answer = answer(&query(7, "a.test"), known).unwrap();
        assert_eq!(read_answer(7, &answer).unwrap(), ADDRESS);
        assert!(read_answer(8, &answer).is_err());
        assert!(read_answer(7, &answer[..answer.len() - 1]).is_err());
    }

    #[test]
    fn the_datapath_learns_the_name_from_it() {
        let answer = answer(&query(7, "a.test"), known).unwrap();
        let learnt = tunproxy_datapath::dns::read_answer(&answer).unwrap();
        assert_eq!((learnt.name.as_str(), learnt.addresses), ("a.test", vec![ADDRESS.into()]));
    }

    #[test]
    fn what_is_no_question_or_unknown_gets_none() {
        assert_eq!(answer(&query(7, "b.test"), known), None);
        assert_eq!(answer(&[0; 5], known), None);
        assert_eq!(answer(&[], known), None);
    }
}
