//! The Internet checksum (RFC 1071).

use std::net::IpAddr;

/// The Internet checksum of `bytes`, as it stands in a header.
pub fn internet(bytes: &[u8]) -> u16 {
    !sum(bytes)
}

/// The one's complement sum of `bytes`, not inverted, folded to 16 bits.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let mut total = 0u64;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        total += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    }
    let rest = words.remainder();
    let mut last = [0u8; 4];
    last[..rest.len()].copy_from_slice(rest);
    total += u64::from(u32::from_be_bytes(last));
    fold(total)
}

/// The sum of the pseudo-header of TCP, UDP and ICMPv6 (RFC 9293 3.1, RFC 8200 8.1). Both addresses are of one family.
pub(crate) fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, length: u32) -> u16 {
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => u64::from(sum(&address.octets())),
        IpAddr::V6(address) => u64::from(sum(&address.octets())),
    };
    fold(address(source) + address(destination) + u64::from(protocol) + u64::from(length))
}

/// One's complement sum of two partial sums.
pub(crate) fn combine(a: u16, b: u16) -> u16 {
    fold(u64::from(a) + u64::from(b))
}

fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }

    #[test]
    fn an_odd_octet_is_padded_with_zero() {
        assert_eq!(sum(&[1, 2, 3]), sum(&[1, 2, 3, 0]));
    }
}
