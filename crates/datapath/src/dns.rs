//! What a trusted resolver's answer teaches: which name the pod was given which addresses for.

use std::collections::HashSet;
use std::net::IpAddr;

use smoltcp::wire::{DnsPacket, DnsQuestion, DnsRecord, DnsRecordData};
use tunproxy_policy::DomainName;

/// Records read of one answer; resolvers send far fewer.
const MAX_RECORDS: u16 = 256;

/// The fixed header; smoltcp's view wants it whole.
const HEADER: usize = 12;

/// The addresses one name was answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What the pod asked for; CNAMEs on the way are followed, not named.
    pub name: DomainName,
    pub addresses: Vec<IpAddr>,
    /// Seconds, the smallest of the address records.
    pub ttl: u32,
}

/// Reads a response. `None`: not a response, an error, no question, no address, or malformed.
pub fn read_answer(message: &[u8]) -> Option<Answer> {
    if message.len() < HEADER || message[2] & 0x80 == 0 || message[3] & 0x0f != 0 {
        return None;
    }
    let packet = DnsPacket::new_checked(message).ok()?;
    if packet.question_count() != 1 {
        return None;
    }
    let (mut rest, question) = DnsQuestion::parse(packet.payload()).ok()?;
    let asked = name(&packet, question.name)?;
    let mut chain: HashSet<Vec<u8>> = HashSet::from([asked.as_str().as_bytes().to_vec()]);
    let mut addresses = Vec::new();
    let mut ttl = u32::MAX;
    for _ in 0..packet.answer_record_count().min(MAX_RECORDS) {
        let Ok((after, record)) = DnsRecord::parse(rest) else { break };
        rest = after;
        let Some(owner) = name(&packet, record.name) else { continue };
        if !chain.contains(owner.as_str().as_bytes()) {
            continue;
        }
        let address = match record.data {
            DnsRecordData::A(address) => IpAddr::V4(address),
            DnsRecordData::Aaaa(address) => IpAddr::V6(address),
            DnsRecordData::Cname(target) => {
                chain.extend(name(&packet, target).map(|target| target.as_str().as_bytes().to_vec()));
                continue;
            }
            DnsRecordData::Other(..) => continue,
        };
        addresses.push(address);
        ttl = ttl.min(record.ttl);
    }
    (!addresses.is_empty()).then_some(Answer { name: asked, addresses, ttl })
}

fn name(packet: &DnsPacket<&[u8]>, bytes: &[u8]) -> Option<DomainName> {
    let mut text = String::new();
    for label in packet.parse_name(bytes) {
        let label = label.ok()?;
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(std::str::from_utf8(label).ok()?);
        if text.len() > 255 {
            return None;
        }
    }
    DomainName::parse(&text).ok()
}

/// Octets of the longest answer over TCP that is read, 250 addresses: a pod decides how long the beginning of one is
/// kept, by how slowly it takes the rest, and what is kept is not charged to it.
const LONGEST_ANSWER: usize = 4 * 1024;

/// Octets of a message's length before it.
const PREFIX: usize = 2;

/// Cuts a DNS-over-TCP stream into messages (RFC 1035 4.2.2) as it passes.
#[derive(Debug, Default)]
pub(crate) struct StreamTap {
    /// The beginning of a message with its length, as far as it has come.
    pending: Vec<u8>,
    /// Octets still to come of a message that is too long.
    skip: usize,
}

impl StreamTap {
    /// Takes the next octets of the resolver's stream; calls `answer` for each that teaches something.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], mut answer: impl FnMut(Answer)) {
        while !bytes.is_empty() {
            let needed = self.needed();
            let (next, rest) = bytes.split_at(needed.min(bytes.len()));
            bytes = rest;
            if self.skip > 0 {
                self.skip -= next.len();
                continue;
            }
            self.pending.reserve_exact(needed);
            self.pending.extend_from_slice(next);
            match self.length() {
                Some(length) if length > LONGEST_ANSWER => self.skip = length,
                Some(length) if self.pending.len() == PREFIX + length => {
                    if let Some(found) = read_answer(&self.pending[PREFIX..]) {
                        answer(found);
                    }
                }
                Some(_) | None => continue,
            }
            self.pending = Vec::new();
        }
    }

    /// Octets that are missing until the next step: of the length, then of the message.
    fn needed(&self) -> usize {
        if self.skip > 0 {
            return self.skip;
        }
        self.length().map_or(PREFIX, |length| PREFIX + length) - self.pending.len()
    }

    fn length(&self) -> Option<usize> {
        let prefix = self.pending.first_chunk::<PREFIX>()?;
        Some(u16::from_be_bytes(*prefix).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A response: question, then records of (owner pointer or labels, type, rdata).
    fn response(question: &[u8], records: &[(&[u8], u16, Vec<u8>)]) -> Vec<u8> {
        let mut message = vec![0, 1, 0x81, 0x80, 0, 1, 0, records.len() as u8, 0, 0, 0, 0];
        message.extend(question);
        message.extend([0, 1, 0, 1]);
        for (owner, kind, data) in records {
            message.extend(*owner);
            message.extend(kind.to_be_bytes());
            message.extend([0, 1, 0, 0, 0, 60]);
            message.extend((data.len() as u16).to_be_bytes());
            message.extend(data);
        }
        message
    }

    #[test]
    fn a_cname_leads_from_the_question_to_the_address() {
        let question = b"\x03Www\x07example\x03com\x00";
        let target = b"\x03cdn\x03net\x00";
        let message = response(
            question,
            &[
                (&[0xc0, 12], 5, target.to_vec()),
                (target, 1, vec![192, 0, 2, 7]),
                (b"\x05other\x00", 1, vec![192, 0, 2, 8]),
            ],
        );
        let answer = read_answer(&message).unwrap();
        assert_eq!(answer.name.as_str(), "www.example.com");
        assert_eq!(answer.addresses, [IpAddr::from([192, 0, 2, 7])]);
        assert_eq!(answer.ttl, 60);
    }

    #[test]
    fn queries_and_errors_teach_nothing() {
        let mut message = response(b"\x01a\x00", &[(&[0xc0, 12], 1, vec![192, 0, 2, 7])]);
        assert!(read_answer(&message).is_some());
        message[3] = 0x83;
        assert!(read_answer(&message).is_none());
        message[3] = 0x80;
        message[2] = 1;
        assert!(read_answer(&message).is_none());
    }

    #[test]
    fn a_stream_is_cut_wherever_it_was_split() {
        let message = response(b"\x01a\x00", &[(&[0xc0, 12], 1, vec![192, 0, 2, 7])]);
        let mut stream = (message.len() as u16).to_be_bytes().to_vec();
        stream.extend(&message);
        let stream = stream.repeat(3);
        for split in 0..stream.len() {
            let mut tap = StreamTap::default();
            let mut found = 0;
            tap.feed(&stream[..split], |_| found += 1);
            tap.feed(&stream[split..], |_| found += 1);
            assert_eq!(found, 3, "{split}");
            assert!(tap.pending.is_empty());
        }
    }

    #[test]
    fn a_message_that_is_too_long_is_passed_over_and_not_kept() {
        let message = response(b"\x01a\x00", &[(&[0xc0, 12], 1, vec![192, 0, 2, 7])]);
        let framed = |message: &[u8]| [&(message.len() as u16).to_be_bytes()[..], message].concat();
        let longest = [&message[..], &vec![0; LONGEST_ANSWER - message.len()]].concat();
        let too_long = [&longest[..], &[0]].concat();
        let stream = [framed(&longest), framed(&too_long), framed(&[]), framed(&message)].concat();
        for piece in [1, 7, 1_460, stream.len()] {
            let mut tap = StreamTap::default();
            let mut found = 0;
            for bytes in stream.chunks(piece) {
                tap.feed(bytes, |_| found += 1);
                assert!(tap.pending.capacity() <= PREFIX + LONGEST_ANSWER);
            }
            assert_eq!(found, 2, "{piece}");
            assert!(tap.pending.is_empty());
        }
    }

    proptest::proptest! {
        #[test]
        fn any_octets_end(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            if bytes.len() > 12 {
                bytes[2] |= 0x80;
                bytes[3] &= 0xf0;
                bytes[4..6].copy_from_slice(&[0, 1]);
            }
            let _ = read_answer(&bytes);
        }
    }
}
