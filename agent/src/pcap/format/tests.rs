use proptest::prelude::*;

use super::*;

fn at(nanoseconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanoseconds)
}

#[test]
fn a_packet_is_laid_out_as_the_format_says() {
    let mut out = Vec::new();
    packet(
        &mut out,
        &Captured {
            interface: 1,
            time: at(0x0102_0304_0506_0708),
            direction: Direction::Outbound,
            octets: b"\x45ab\x01\x02",
            length: 9,
            comment: Some("why"),
            lost: 3,
        },
    );
    let words = [
        &[6, 0, 0, 0, 72, 0, 0, 0][..],
        &[1, 0, 0, 0],
        // The high half of the time first, each half in the section's order.
        &[4, 3, 2, 1, 8, 7, 6, 5],
        &[5, 0, 0, 0, 9, 0, 0, 0],
        b"\x45ab\x01\x02\0\0\0",
        b"\x01\0\x03\0why\0",
        &[2, 0, 4, 0, 2, 0, 0, 0],
        &[4, 0, 8, 0, 3, 0, 0, 0, 0, 0, 0, 0],
        &[0, 0, 0, 0],
        &[72, 0, 0, 0],
    ];
    assert_eq!(out, words.concat());
}

#[test]
fn a_file_begins_with_its_byte_order_and_its_interface() {
    let mut out = Vec::new();
    section_header(&mut out, "x");
    let begin = [0x0a, 0x0d, 0x0d, 0x0a, 52, 0, 0, 0, 0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0];
    assert_eq!(out[..16], begin);
    assert_eq!(out[16..24], [0xff; 8]);
    out.clear();
    interface(&mut out, &Interface { name: "tun0".into(), snaplen: 0x4_0000, ..Interface::default() });
    assert_eq!(out[8..16], [101, 0, 0, 0, 0, 0, 4, 0]);
    assert_eq!(out[16..24], *b"\x02\0\x04\0tun0");
    assert_eq!(out[28..36], [9, 0, 1, 0, NANOSECONDS, 0, 0, 0]);
}

#[test]
fn a_long_comment_is_cut_at_a_character() {
    let mut out = Vec::new();
    let comment = "x".to_owned() + &"é".repeat(40_000);
    option(&mut out, 1, comment.as_bytes());
    let length = usize::from(u16::from_le_bytes([out[2], out[3]]));
    assert_eq!((length, out.len()), (65_535, 65_540));
    out.clear();
    option(&mut out, 1, "é".repeat(40_000).as_bytes());
    let length = usize::from(u16::from_le_bytes([out[2], out[3]]));
    assert!(length == 65_534 && std::str::from_utf8(&out[4..4 + length]).is_ok());
}

#[test]
fn what_is_no_block_is_told() {
    for header in [[0, 0, 0, 0, 8, 0, 0, 0], [6, 0, 0, 0, 13, 0, 0, 0], [6, 0, 0, 0, 0, 0, 32, 0]] {
        let mut blocks = Blocks::default();
        blocks.push(&header);
        assert_eq!(blocks.next_block(), Err(Malformed), "{header:?}");
    }
    let mut blocks = Blocks::default();
    blocks.push(&[0, 0, 0, 0, 12, 0, 0, 0, 16, 0, 0, 0]);
    assert_eq!(blocks.next_block(), Err(Malformed), "the lengths differ");
}

proptest! {
    /// Whatever is written is found again, in whatever pieces it comes.
    #[test]
    fn blocks_come_back(
        packets in prop::collection::vec((any::<Vec<u8>>(), 0u32..9, ".{0,40}", any::<u64>()), 0..8),
        lost in any::<u64>(),
        piece in 1usize..200,
    ) {
        let mut out = Vec::new();
        section_header(&mut out, "test");
        interface(&mut out, &Interface { name: "a".into(), filter: "tcp".into(), ..Interface::default() });
        let mut expected = vec![Block::Other, Block::Other];
        for (octets, more, comment, time) in &packets {
            let length = octets.len() as u32 + more;
            packet(&mut out, &Captured {
                interface: 0,
                time: at(*time),
                direction: Direction::Inbound,
                octets,
                length,
                comment: (!comment.is_empty()).then_some(comment),
                lost: u64::from(*more),
            });
            expected.push(Block::Packet(length));
        }
        let ended = Statistics { start: at(1), end: at(2), accepted: 9, lost, delivered: 8 };
        statistics(&mut out, 0, &ended, "ended");
        expected.push(Block::Statistics { lost, comment: "ended".into() });

        let (mut blocks, mut found, mut octets) = (Blocks::default(), Vec::new(), Vec::new());
        for part in out.chunks(piece) {
            blocks.push(part);
            while let Some((block, whole)) = blocks.next_block().unwrap() {
                found.push(block);
                octets.extend(whole);
            }
        }
        prop_assert_eq!(found, expected);
        prop_assert_eq!(octets, out);
    }

    #[test]
    fn any_octets_are_blocks_or_malformed(octets in any::<Vec<u8>>()) {
        let mut blocks = Blocks::default();
        blocks.push(&octets);
        while let Ok(Some(_)) = blocks.next_block() {}
    }
}
