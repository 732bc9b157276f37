//! What the kernel makes of it, with `nft` as the witness.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ipnet::IpNet;
use serde_json::Value;

use super::*;

/// What `nft -j` lists, without the numbers that the kernel gives.
fn listed(namespace: &NetNs) -> Value {
    let mut document: Value = serde_json::from_str(&nft(namespace, &["-j", "list", "ruleset"], "")).unwrap();
    for object in document["nftables"].as_array_mut().unwrap() {
        for (_, inside) in object.as_object_mut().unwrap() {
            inside.as_object_mut().unwrap().remove("handle");
        }
    }
    document
}

fn is_there(namespace: &NetNs, family: Family, name: &str) -> bool {
    let list = nft(namespace, &["list", "tables"], "");
    list.contains(&format!("table {} {name}\n", family.name()))
}

#[test]
fn a_table_is_what_nft_would_have_made_and_reads_back() {
    if !is_root() {
        return;
    }
    for (table, script) in everything() {
        let (theirs, _) = fresh();
        nft(&theirs, &["-f", "-"], script);
        let (ours, mut handle) = fresh();
        // A second time it takes the first one's place.
        for _ in 0..2 {
            handle.apply(&[Change::Replace(&table)]).unwrap();
            assert_eq!(listed(&ours), listed(&theirs));
            assert_eq!(handle.table(table.family, "t").unwrap(), Found::Table(table.clone()));
        }
        assert_eq!(handle.tables(table.family).unwrap(), ["t"]);
        // Another of the same name in the other family is another.
        let other = if table.family == Family::Inet { Family::Netdev } else { Family::Inet };
        assert_eq!(handle.table(other, "t").unwrap(), Found::Absent);
        handle.apply(&[Change::Remove { family: other, table: "t" }]).unwrap();
        handle.apply(&[Change::Remove { family: table.family, table: "t" }]).unwrap();
        assert_eq!(handle.table(table.family, "t").unwrap(), Found::Absent);
        assert!(!is_there(&ours, table.family, "t"));
    }
}

/// nft itself always names a size.
#[test]
fn a_set_without_a_size_has_the_kernels_bound_and_a_table_that_grows() {
    if !is_root() {
        return;
    }
    let (namespace, mut handle) = fresh();
    let open = SetContent::OPEN_SIZE;
    let sets = vec![Set::flows("flows", &[KeyType::Ipv4Address], open, Duration::from_mins(1))];
    let put = Rule::new().is(Field::PROTOCOL, libc::ETH_P_IP as u64);
    let put = put.update(&[Field::IPV4_SOURCE], "flows", Duration::from_secs(9));
    let chains = vec![chain("c", HookPoint::Egress("lo".into()), 0, false, vec![put])];
    let wanted = table(Family::Netdev, sets, chains);
    handle.apply(&[Change::Replace(&wanted)]).unwrap();
    assert_eq!(handle.table(Family::Netdev, "t").unwrap(), Found::Table(wanted));
    let document = listed(&namespace);
    let sets: Vec<_> = document["nftables"].as_array().unwrap().iter().filter_map(|o| o.get("set")).collect();
    assert_eq!((sets[0]["size"].as_u64(), sets[0]["gc-interval"].as_u64()), (Some(65_535), Some(10)));
    // What a rule puts in is there.
    ip(&namespace, "addr add 192.0.2.1/32 dev lo");
    let sent = namespace.run(|| {
        let socket = std::net::UdpSocket::bind("192.0.2.1:0")?;
        socket.send_to(b"?", "192.0.2.1:9")
    });
    assert_eq!(sent.unwrap().unwrap(), 1);
    let elements = nft(&namespace, &["list", "set", "netdev", "t", "flows"], "");
    assert!(elements.contains("192.0.2.1 timeout 9s"), "{elements}");
}

#[test]
fn a_refusal_names_rule_and_expression_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let (namespace, mut handle) = fresh();
    let rules = vec![
        Rule::new().accept(),
        Rule::new().in_set(&[Field::IPV4_SOURCE], "nowhere").drop().comment("from nowhere"),
    ];
    let wanted = table(Family::Inet, Vec::new(), vec![chain("c", HookPoint::Input, 0, false, rules)]);
    let error = handle.apply(&[Change::Replace(&wanted)]).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ENOENT));
    let text = error.to_string();
    for part in ["rule 2 (\"from nowhere\") of chain c in table inet t", "expression lookup", "No such file"]
    {
        assert!(text.contains(part), "{text}");
    }
    assert!(!is_there(&namespace, Family::Inet, "t"));
    assert_eq!(handle.table(Family::Inet, "t").unwrap(), Found::Absent);
}

#[test]
fn a_refused_replacement_leaves_what_was_there() {
    if !is_root() {
        return;
    }
    let (_namespace, mut handle) = fresh();
    let [(before, _), _] = everything();
    handle.apply(&[Change::Replace(&before)]).unwrap();
    let to_c = || vec![Rule::new().verdict(Verdict::Jump("c".into()))];
    let endless = Chain { name: "c".into(), hook: None, rules: to_c() };
    let chains = vec![chain("b", HookPoint::Input, 0, false, to_c()), endless];
    let error = handle.apply(&[Change::Replace(&table(Family::Inet, Vec::new(), chains))]).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EMLINK), "{error}");
    assert_eq!(handle.table(Family::Inet, "t").unwrap(), Found::Table(before));
}

#[test]
fn without_the_right_it_says_so() {
    if !is_root() {
        return;
    }
    let (_namespace, mut handle) = fresh();
    let wanted = table(Family::Inet, Vec::new(), Vec::new());
    // The right is asked for where the request is made.
    let error = thread::scope(|scope| {
        let unprivileged = scope.spawn(|| {
            let set = rustix::thread::CapabilitySet::empty();
            let none = rustix::thread::CapabilitySets { effective: set, permitted: set, inheritable: set };
            rustix::thread::set_capabilities(None, none).unwrap();
            handle.apply(&[Change::Replace(&wanted)]).unwrap_err()
        });
        unprivileged.join().unwrap()
    });
    assert!(error.is_forbidden(), "{error}");
    assert!(error.to_string().contains("Operation not permitted"), "{error}");
}

#[test]
fn an_owned_table_survives_a_flush_and_outlives_its_owner() {
    if !is_root() {
        return;
    }
    let (namespace, mut owner) = fresh();
    let [_, (netdev, _)] = everything();
    let owned = Table { owned: true, ..netdev };
    let (family, name) = (owned.family, owned.name.as_str());
    owner.apply(&[Change::Replace(&owned)]).unwrap();
    let mut other = Nft::open_in(&namespace).unwrap().unwrap();
    let survives = |other: &mut Nft| {
        nft(&namespace, &["flush", "ruleset"], "");
        assert_eq!(other.table(family, name).unwrap(), Found::Table(owned.clone()));
        assert!(!nft_output(&namespace, &["delete", "table", "netdev", "t"], "").status.success());
    };
    survives(&mut other);
    // Nobody else may change it, remove it, or take it over.
    for change in [
        Change::Replace(&owned),
        Change::Remove { family, table: name },
        Change::Adopt { family, table: name },
    ] {
        let error = other.apply(&[change]).unwrap_err();
        assert!(error.is_forbidden(), "{error}");
        assert!(error.to_string().contains("table netdev t"), "{error}");
    }
    // Its owner may do so, any number of times.
    owner.apply(&[Change::Replace(&owned)]).unwrap();
    owner.apply(&[Change::Adopt { family, table: name }]).unwrap();
    // It stays when its owner goes, and is anybody's until somebody adopts it.
    drop(owner);
    assert_eq!(other.table(family, name).unwrap(), Found::Table(Table { owned: false, ..owned.clone() }));
    other.apply(&[Change::Adopt { family, table: name }]).unwrap();
    survives(&mut other);
    let mut third = Nft::open_in(&namespace).unwrap().unwrap();
    assert!(third.apply(&[Change::Remove { family, table: name }]).unwrap_err().is_forbidden());
    drop(other);
    third.apply(&[Change::Remove { family, table: name }]).unwrap();
    assert!(!is_there(&namespace, family, name));
}

#[test]
fn a_table_changes_hands_between_free_and_owned() {
    if !is_root() {
        return;
    }
    let (namespace, mut handle) = fresh();
    let [(free, _), _] = everything();
    let owned = Table { owned: true, ..free.clone() };
    for wanted in [&free, &owned, &free, &owned] {
        handle.apply(&[Change::Replace(wanted)]).unwrap();
        assert_eq!(handle.table(Family::Inet, "t").unwrap(), Found::Table(wanted.clone()));
    }
    drop(handle);
    let mut heir = Nft::open_in(&namespace).unwrap().unwrap();
    heir.apply(&[Change::Replace(&owned)]).unwrap();
    assert_eq!(heir.table(Family::Inet, "t").unwrap(), Found::Table(owned));
}

#[test]
fn addresses_come_and_go_without_touching_the_rest() {
    if !is_root() {
        return;
    }
    let (namespace, mut handle) = fresh();
    let [(mut wanted, script), _] = everything();
    nft(&namespace, &["-f", "-"], script);
    let (family, table) = (Family::Inet, "t");
    let [a, b] = ["10.9.9.9", "10.9.9.10"].map(|text| text.parse::<std::net::IpAddr>().unwrap());
    let set = "pods4";
    let (both, first, second) = ([a, b], [a], [b]);
    let add = |addresses| Change::AddAddresses { family, table, set, addresses };
    let remove = |addresses| Change::RemoveAddresses { family, table, set, addresses };
    handle.apply(&[add(&both)]).unwrap();
    handle.apply(&[add(&first)]).unwrap();
    wanted.sets[2] =
        Set::addresses("pods4", false, &["10.1.2.3".parse().unwrap(), "10.1.2.4".parse().unwrap(), a, b]);
    assert_eq!(handle.table(family, table).unwrap(), Found::Table(wanted.clone()));
    handle.apply(&[remove(&first), remove(&second)]).unwrap();
    wanted.sets[2] = everything()[0].0.sets[2].clone();
    assert_eq!(handle.table(family, table).unwrap(), Found::Table(wanted.clone()));
    // All or nothing.
    let error = handle.apply(&[add(&second), remove(&first)]).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ENOENT));
    assert!(error.to_string().contains("elements of set pods4 in table inet t"), "{error}");
    assert_eq!(handle.table(family, table).unwrap(), Found::Table(wanted));
    handle.apply(&[]).unwrap();
}

#[test]
fn large_sets_go_in_and_come_out_whole() {
    if !is_root() {
        return;
    }
    let (_namespace, mut handle) = fresh();
    let v4: Vec<IpNet> =
        (0..5_000).map(|n| IpNet::new(Ipv4Addr::from(0x0a00_0000 + n * 512).into(), 24).unwrap()).collect();
    let v6: Vec<_> = (0..5_000).map(|n| Ipv6Addr::from((0xfd << 120) + n).into()).collect();
    let sets = vec![Set::networks("v4", false, &v4), Set::addresses("v6", true, &v6)];
    let wanted = table(Family::Inet, sets, Vec::new());
    handle.apply(&[Change::Replace(&wanted)]).unwrap();
    assert_eq!(handle.table(Family::Inet, "t").unwrap(), Found::Table(wanted));
}

#[test]
fn what_somebody_added_is_seen() {
    if !is_root() {
        return;
    }
    for (addition, understood) in [
        ("add rule inet t at_fwd accept", true),
        ("add element inet t nets4 { 172.16.0.0/12 }", true),
        ("add chain inet t another", true),
        ("add rule inet t at_fwd meta skuid 0 accept", false),
        ("add rule inet t at_fwd log", false),
        ("add set inet t ports { type inet_service; }", false),
        ("add chain inet t nat { type nat hook output priority 0; }", false),
        ("add table inet t { flags dormant; }", false),
    ] {
        let (namespace, mut handle) = fresh();
        let [(wanted, script), _] = everything();
        nft(&namespace, &["-f", "-"], script);
        nft(&namespace, &[addition], "");
        match handle.table(Family::Inet, "t").unwrap() {
            Found::Table(found) => assert!(understood && found != wanted, "{addition}"),
            Found::Strange(what) => assert!(!understood, "{addition}: {what:?}"),
            Found::Absent => panic!("{addition}: absent"),
        }
        handle.apply(&[Change::Replace(&wanted)]).unwrap();
        assert_eq!(handle.table(Family::Inet, "t").unwrap(), Found::Table(wanted));
    }
}

/// While one replaces, another never reads half of it, and never finds nothing.
#[test]
fn a_replacement_is_seen_whole_or_not_at_all() {
    if !is_root() {
        return;
    }
    let (namespace, mut writer) = fresh();
    let [(first, _), _] = everything();
    let second = Table { chains: vec![first.chains[0].clone()], sets: Vec::new(), ..first.clone() };
    writer.apply(&[Change::Replace(&first)]).unwrap();
    let mut reader = Nft::open_in(&namespace).unwrap().unwrap();
    let done = AtomicBool::new(false);
    let whole = thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut whole = 0;
            while !done.load(Ordering::Relaxed) {
                match reader.table(Family::Inet, "t") {
                    Ok(Found::Table(found)) => {
                        assert!(found == first || found == second, "{found:?}");
                        whole += 1;
                    }
                    Ok(other) => panic!("{other:?}"),
                    // Changed at each attempt.
                    Err(error) => assert!(error.to_string().contains("interrupted"), "{error}"),
                }
            }
            whole
        });
        for _ in 0..200 {
            writer.apply(&[Change::Replace(&second)]).unwrap();
            writer.apply(&[Change::Replace(&first)]).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        reading.join().unwrap()
    });
    // How many depends on the machine.
    eprintln!("{whole} whole readings");
    assert_eq!(reader.table(Family::Inet, "t").unwrap(), Found::Table(first));
}
