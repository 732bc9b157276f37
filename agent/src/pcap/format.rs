//! The pcapng file format (draft-ietf-opsawg-pcapng), as much of it as a capture needs. No IO: blocks are appended to a
//! buffer, in little-endian order, and [`Blocks`] finds them again in a stream.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;

const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
/// The section's length is not known when it begins.
const UNKNOWN_LENGTH: u64 = u64::MAX;
/// Packets begin with an IPv4 or IPv6 header (<https://www.tcpdump.org/linktypes.html>).
const LINKTYPE_RAW: u16 = 101;
/// Time stamps count nanoseconds: ten to the power of minus nine.
const NANOSECONDS: u8 = 9;

/// A block that is longer is no block of ours: a packet has at most 64 KiB, and an option as much.
const LONGEST_BLOCK: usize = 1 << 20;
/// Type, length, and the length again behind the body.
const FRAME: usize = 12;

/// Which way a packet went, seen from the pod, as a capture inside it would tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the pod.
    Inbound,
    /// From the pod.
    Outbound,
}

/// Where packets were captured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub description: String,
    /// Octets that are kept of a packet.
    pub snaplen: u32,
    /// In words; empty: everything.
    pub filter: String,
}

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured<'a> {
    /// The interface's place among those described before.
    pub interface: u32,
    pub time: SystemTime,
    pub direction: Direction,
    /// What was kept of the packet.
    pub octets: &'a [u8],
    /// Octets that the packet had.
    pub length: u32,
    pub comment: Option<&'a str>,
    /// Packets that were lost since the one before.
    pub lost: u64,
}

/// What became of an interface's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    pub start: SystemTime,
    pub end: SystemTime,
    /// Packets that passed the filter, those that were lost included.
    pub accepted: u64,
    /// Packets that found no room on their way to the file.
    pub lost: u64,
    /// Packets that were written.
    pub delivered: u64,
}

/// Begins the file: everything after it is this section's.
pub fn section_header(out: &mut Vec<u8>, application: &str) {
    block(out, SECTION_HEADER, |out| {
        put32(out, BYTE_ORDER_MAGIC);
        // Version 1.0.
        put16(out, 1);
        put16(out, 0);
        out.extend(UNKNOWN_LENGTH.to_le_bytes());
        option(out, 3, b"Linux");
        option(out, 4, application.as_bytes());
        end_of_options(out);
    });
}

/// Describes an interface; the first is number 0.
pub fn interface(out: &mut Vec<u8>, interface: &Interface) {
    block(out, INTERFACE_DESCRIPTION, |out| {
        put16(out, LINKTYPE_RAW);
        put16(out, 0);
        put32(out, interface.snaplen);
        option(out, 2, interface.name.as_bytes());
        option(out, 3, interface.description.as_bytes());
        option(out, 9, &[NANOSECONDS]);
        if !interface.filter.is_empty() {
            // The first octet says what kind of filter: 0 is one in words.
            option(out, 11, &[&[0], interface.filter.as_bytes()].concat());
        }
        end_of_options(out);
    });
}

pub fn packet(out: &mut Vec<u8>, packet: &Captured<'_>) {
    block(out, ENHANCED_PACKET, |out| {
        put32(out, packet.interface);
        put_time(out, packet.time);
        put32(out, packet.octets.len() as u32);
        put32(out, packet.length);
        padded(out, packet.octets);
        if let Some(comment) = packet.comment {
            option(out, 1, comment.as_bytes());
        }
        let direction: u32 = match packet.direction {
            Direction::Inbound => 1,
            Direction::Outbound => 2,
        };
        option(out, 2, &direction.to_le_bytes());
        if packet.lost > 0 {
            option(out, 4, &packet.lost.to_le_bytes());
        }
        end_of_options(out);
    });
}

/// Ends an interface's part of the section.
pub fn statistics(out: &mut Vec<u8>, interface: u32, statistics: &Statistics, comment: &str) {
    block(out, INTERFACE_STATISTICS, |out| {
        put32(out, interface);
        put_time(out, statistics.end);
        option(out, 1, comment.as_bytes());
        for (code, time) in [(2, statistics.start), (3, statistics.end)] {
            let mut value = Vec::with_capacity(8);
            put_time(&mut value, time);
            option(out, code, &value);
        }
        let lost_and_delivered = [(5, statistics.lost), (8, statistics.delivered)];
        for (code, count) in
            [(4, statistics.accepted), (6, statistics.accepted)].into_iter().chain(lost_and_delivered)
        {
            option(out, code, &count.to_le_bytes());
        }
        end_of_options(out);
    });
}

fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    put32(out, kind);
    put32(out, 0);
    body(out);
    let length = (out.len() - start + 4) as u32;
    out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
    put32(out, length);
}

/// What does not fit into an option is cut, a text at a whole character.
fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = match value.get(..usize::from(u16::MAX)) {
        Some(cut) => {
            let text = std::str::from_utf8(cut);
            &cut[..text
                .err()
                .filter(|error| error.error_len().is_none())
                .map_or(cut.len(), |error| error.valid_up_to())]
        }
        None => value,
    };
    put16(out, code);
    put16(out, value.len() as u16);
    padded(out, value);
}

fn end_of_options(out: &mut Vec<u8>) {
    put32(out, 0);
}

fn padded(out: &mut Vec<u8>, octets: &[u8]) {
    out.extend_from_slice(octets);
    out.resize(out.len() + octets.len().next_multiple_of(4) - octets.len(), 0);
}

fn put16(out: &mut Vec<u8>, value: u16) {
    out.extend(value.to_le_bytes());
}

fn put32(out: &mut Vec<u8>, value: u32) {
    out.extend(value.to_le_bytes());
}

/// 64 bits in the order of the format: the high half first.
fn put_time(out: &mut Vec<u8>, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let nanoseconds = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
    put32(out, (nanoseconds >> 32) as u32);
    put32(out, nanoseconds as u32);
}

/// What a block of a stream is, as far as a reader of ours cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// A packet, with its own length.
    Packet(u32),
    /// The end of an interface's part: packets lost, and the comment.
    Statistics {
        lost: u64,
        comment: String,
    },
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no pcapng stream of the agent's")]
pub struct Malformed;

/// Finds the blocks in a stream that comes in pieces.
#[derive(Debug, Default)]
pub struct Blocks {
    pending: Vec<u8>,
}

impl Blocks {
    pub fn push(&mut self, octets: &[u8]) {
        self.pending.extend_from_slice(octets);
    }

    /// The next whole block and its octets; `None`: more must come first.
    pub fn next_block(&mut self) -> Result<Option<(Block, Vec<u8>)>, Malformed> {
        let Some(length) = get32(&self.pending, 4).map(|length| length as usize) else { return Ok(None) };
        if length < FRAME || !length.is_multiple_of(4) || length > LONGEST_BLOCK {
            return Err(Malformed);
        }
        if self.pending.len() < length {
            return Ok(None);
        }
        let octets: Vec<u8> = self.pending.drain(..length).collect();
        if get32(&octets, length - 4) != Some(length as u32) {
            return Err(Malformed);
        }
        let body = &octets[8..length - 4];
        let block = match get32(&octets, 0) {
            Some(ENHANCED_PACKET) => Block::Packet(get32(body, 16).ok_or(Malformed)?),
            Some(INTERFACE_STATISTICS) => read_statistics(body.get(12..).ok_or(Malformed)?)?,
            _ => Block::Other,
        };
        Ok(Some((block, octets)))
    }
}

fn read_statistics(mut options: &[u8]) -> Result<Block, Malformed> {
    let (mut lost, mut comment) = (0, String::new());
    while let Some((header, rest)) = options.split_first_chunk::<4>() {
        let code = u16::from_le_bytes([header[0], header[1]]);
        let length = usize::from(u16::from_le_bytes([header[2], header[3]]));
        let value = rest.get(..length).ok_or(Malformed)?;
        match (code, value) {
            (0, _) => break,
            (1, text) => comment = String::from_utf8_lossy(text).into_owned(),
            (5, count) => lost = u64::from_le_bytes(count.try_into().map_err(|_| Malformed)?),
            _ => {}
        }
        options = rest.get(length.next_multiple_of(4)..).ok_or(Malformed)?;
    }
    Ok(Block::Statistics { lost, comment })
}

fn get32(octets: &[u8], at: usize) -> Option<u32> {
    octets.get(at..at + 4).and_then(|field| field.try_into().ok()).map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests;
