//! Codecs without a kernel.

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::attribute::{Attributes, Writer};
use super::super::expression::SetIds;
use super::super::table::Step;
use super::super::wire::{Header, message};
use super::*;

struct NoIds;

impl SetIds for NoIds {
    fn id(&self, _: &str) -> Option<u32> {
        None
    }
}

fn field() -> impl Strategy<Value = Field> {
    let base = select(vec![Base::Link, Base::Network, Base::Transport]);
    prop_oneof![
        (base, 0_u32..64, 1_u32..=16).prop_map(|(base, offset, length)| Field::payload(base, offset, length)),
        select(vec![
            Field::PROTOCOL,
            Field::MARK,
            Field::INPUT_NAME,
            Field::OUTPUT_NAME,
            Field::NETWORK_PROTOCOL,
            Field::TRANSPORT_PROTOCOL,
            Field::CT_STATE,
            Field::CT_DIRECTION,
            Field::CT_MARK,
        ]),
    ]
}

fn expression() -> impl Strategy<Value = Expression> {
    let register = || prop_oneof![1_u32..=4, 8_u32..=23];
    let value = || vec(any::<u8>(), 1..=16);
    let name = || "[a-z][a-z0-9_-]{0,30}";
    let time = (0_u64..1 << 40).prop_map(Duration::from_millis);
    prop_oneof![
        (field(), register()).prop_map(|(field, register)| Expression::Load { field, register }),
        (register(), value()).prop_map(|(register, mask)| Expression::Mask { register, mask }),
        (register(), any::<bool>(), value()).prop_map(|(register, equal, value)| Expression::Compare {
            register,
            equal,
            value
        }),
        (name(), register(), any::<bool>()).prop_map(|(set, register, present)| Expression::Lookup {
            set,
            register,
            present
        }),
        (name(), register(), time, any::<bool>()).prop_map(|(set, register, timeout, renew)| {
            Expression::Put { set, register, timeout, renew }
        }),
        register().prop_map(|register| Expression::SetMark { register }),
        register().prop_map(|register| Expression::SetCtMark { register }),
        (register(), value()).prop_map(|(register, value)| Expression::Immediate { register, value }),
        name().prop_map(|chain| Expression::Verdict(Verdict::Jump(chain))),
        name().prop_map(|chain| Expression::Verdict(Verdict::Goto(chain))),
        select(vec![
            Expression::Counter,
            Expression::Verdict(Verdict::Accept),
            Expression::Verdict(Verdict::Drop),
            Expression::Verdict(Verdict::Return),
            Expression::Reject(Reject::TcpReset),
            Expression::Reject(Reject::AdminProhibited),
        ]),
    ]
}

/// Networks near each other, so that they touch, overlap and reach the ends of the space.
fn network(v6: bool) -> impl Strategy<Value = IpNet> {
    let bits: u8 = if v6 { 128 } else { 32 };
    let edge = prop_oneof![Just(0_u128), Just(u128::MAX), Just(0x0a << 120)];
    (edge, 0_u128..=0xff, 0..=8_u8, 0..=bits).prop_map(move |(edge, low, shift, prefix)| {
        let address = edge ^ (low << (128 - bits) << shift);
        let address = if v6 {
            std::net::Ipv6Addr::from(address).into()
        } else {
            std::net::Ipv4Addr::from((address >> 96) as u32).into()
        };
        IpNet::new(address, prefix).unwrap().trunc()
    })
}

proptest! {
    #[test]
    fn an_expression_reads_as_it_was_written(expression in expression()) {
        let mut writer = Writer::default();
        expression.write(&mut writer, &NoIds);
        let octets = writer.into_octets().unwrap();
        prop_assert_eq!(Expression::read(Attributes(&octets)), Ok(expression));
    }

    #[test]
    fn any_octets_are_read_or_refused(octets in vec(any::<u8>(), 0..200)) {
        let mut bounded = 0;
        for received in Messages(&octets) {
            bounded += 1;
            if received.is_err() {
                break;
            }
        }
        prop_assert!(bounded <= octets.len());
        let _ = Expression::read(Attributes(&octets));
        let attributes = Attributes(&octets).into_iter().take_while(Result::is_ok).count();
        prop_assert!(attributes <= octets.len() / 4 + 1);
    }

    #[test]
    fn networks_are_the_same_in_steps(v6 in any::<bool>(), mixed in vec(prop_oneof![network(false), network(true)], 0..8)) {
        let networks = Networks::new(v6, &mixed);
        let steps = networks.steps();
        // In ascending order, each address but once where nothing is adjacent.
        prop_assert!(steps.is_sorted_by(|a, b| a.address <= b.address), "{:?}", steps);
        let shuffled: Vec<Step> = steps.iter().rev().copied().collect();
        prop_assert_eq!(Networks::from_steps(v6, shuffled), networks);
    }

    /// What a set holds is what its networks hold, address by address.
    #[test]
    fn steps_hold_what_the_networks_hold(mixed in vec(network(false), 0..8), probe in any::<u32>(), near in any::<prop::sample::Index>()) {
        let networks = Networks::new(false, &mixed);
        let probes = mixed.get(near.index(mixed.len().max(1))).into_iter().flat_map(|network| {
            let ends = [network.network(), network.broadcast()];
            ends.map(|end| match end { std::net::IpAddr::V4(v4) => v4.to_bits(), std::net::IpAddr::V6(_) => 0 })
        });
        for bits in probes.flat_map(|bits| [bits.wrapping_sub(1), bits, bits.wrapping_add(1)]).chain([probe]) {
            let address = std::net::IpAddr::from(std::net::Ipv4Addr::from(bits));
            let expected = mixed.iter().any(|network| network.contains(&address));
            let steps = networks.steps();
            let last = steps.iter().rfind(|step| step.address <= address);
            prop_assert_eq!(last.is_some_and(|step| step.side != super::super::table::Side::Out), expected);
        }
    }
}

#[test]
fn a_name_of_any_length_makes_no_wrong_message() {
    let header = Header { kind: NFT_MSG_NEWTABLE, flags: 0, sequence: 1, family: 1 };
    let whole = message(header, |writer| writer.text(NFTA_TABLE_NAME, &"x".repeat(60_000))).unwrap();
    assert_eq!(whole.len() % 4, 0);
    assert_eq!(u32::from_ne_bytes(whole[..4].try_into().unwrap()) as usize, whole.len());
    assert!(message(header, |writer| writer.text(NFTA_TABLE_NAME, &"x".repeat(70_000))).is_none());
}

#[test]
fn a_comment_is_cut_where_a_character_ends() {
    let rule = Rule::new().comment(&"ü".repeat(100));
    assert_eq!(rule.comment.unwrap().len(), 126);
}
