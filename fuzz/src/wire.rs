//! Packets, made and read by hand.

use tunproxy_datapath::{Input, internet_checksum, vnet};

use crate::World;

pub(crate) const POD: [u8; 4] = [10, 244, 0, 5];
pub(crate) const REMOTE: [u8; 4] = [192, 0, 2, 1];

/// The kernel has seen to the checksum.
const TRUSTED: u8 = 1;

pub(crate) mod flag {
    pub(crate) const FIN: u8 = 1;
    pub(crate) const SYN: u8 = 2;
    pub(crate) const RST: u8 = 4;
    pub(crate) const ACK: u8 = 16;
}

/// A segment of ours.
#[derive(Debug)]
pub(crate) struct Segment<'a> {
    pub(crate) pod_port: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) options: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl<'a> Segment<'a> {
    pub(crate) fn parse(ip: &'a [u8], payload: &'a [u8]) -> Option<Self> {
        let tcp = ip.get(20..).filter(|tcp| ip[0] == 0x45 && ip[9] == 6 && tcp.len() >= 20)?;
        let word = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
        let pod_port = u16::from_be_bytes([tcp[2], tcp[3]]);
        let window = u16::from_be_bytes([tcp[14], tcp[15]]);
        let options = &tcp[20..usize::from(tcp[12] >> 4) * 4];
        Some(Self { pod_port, seq: word(4), ack: word(8), flags: tcp[13], window, options, payload })
    }
}

/// A packet of the pod in front of which stands a virtio header.
pub(crate) fn tcp(
    port: u16,
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let mut options = options[..options.len().min(40)].to_vec();
    options.resize(options.len().next_multiple_of(4), 0);
    let length = 20 + options.len() + payload.len();
    let mut packet = header(6, 0, 0, length);
    packet.extend(port.to_be_bytes());
    packet.extend(80u16.to_be_bytes());
    packet.extend(seq.to_be_bytes());
    packet.extend(ack.to_be_bytes());
    packet.extend([((20 + options.len()) as u8 / 4) << 4, flags]);
    packet.extend(window.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend(options);
    packet.extend(payload);
    packet
}

/// "Fragmentation needed" of the pod about our segment from `seq` on.
pub(crate) fn too_big(port: u16, seq: u32, mtu: u16) -> Vec<u8> {
    let mut message = vec![3, 4, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend([0x45, 0, 0x05, 0xdc, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    message.extend(REMOTE);
    message.extend(POD);
    message.extend(80u16.to_be_bytes());
    message.extend(port.to_be_bytes());
    message.extend(seq.to_be_bytes());
    let mut packet = header(1, 0, 0, message.len());
    packet.extend(message);
    packet
}

/// virtio and IPv4 headers for `length` octets of `protocol`; `fragment` is flags and offset.
fn header(protocol: u8, identification: u16, fragment: u16, length: usize) -> Vec<u8> {
    let mut packet = vec![0; vnet::LEN];
    packet[0] = TRUSTED;
    packet.extend([0x45, 0]);
    packet.extend(((20 + length) as u16).to_be_bytes());
    packet.extend(identification.to_be_bytes());
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(POD);
    packet.extend(REMOTE);
    let sum = internet_checksum(&packet[vnet::LEN..]);
    packet[vnet::LEN + 10..vnet::LEN + 12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Gives a packet that claims to be IPv4 the header checksum it needs to get any further.
pub fn fix_header(packet: &mut [u8]) {
    if packet.len() < vnet::LEN + 20 {
        return;
    }
    packet[1] = 0;
    let ip = &mut packet[vnet::LEN..];
    if ip[0] == 0x45 {
        let total = ip.len() as u16;
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        ip[10..12].fill(0);
        let sum = internet_checksum(&ip[..20]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
    } else if ip.len() >= 40 {
        let payload = (ip.len() - 40) as u16;
        ip[4..6].copy_from_slice(&payload.to_be_bytes());
    }
}

impl World {
    /// A fragment of a UDP datagram to the remote host.
    pub fn fragment(
        &mut self,
        v6: bool,
        identification: u8,
        offset: usize,
        more: bool,
        octets: &[u8],
    ) -> (Input, Vec<u8>) {
        let packet = if v6 {
            fragment_v6(identification, offset, more, octets)
        } else {
            let field = (offset / 8) as u16 & 0x1fff | if more { 0x2000 } else { 0 };
            let mut packet = header(17, u16::from(identification), field, octets.len());
            packet.extend(octets);
            packet
        };
        self.raw(&packet)
    }
}

fn fragment_v6(identification: u8, offset: usize, more: bool, octets: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; vnet::LEN];
    packet[0] = TRUSTED;
    packet.extend([0x60, 0, 0, 0]);
    packet.extend(((8 + octets.len()) as u16).to_be_bytes());
    packet.extend([44, 64]);
    packet.extend([0xfd; 16]);
    packet.extend([0x20; 16]);
    packet.extend([17, 0]);
    packet.extend(((offset as u16) & !7 | u16::from(more)).to_be_bytes());
    packet.extend([0, 0, 0, identification]);
    packet.extend(octets);
    packet
}
