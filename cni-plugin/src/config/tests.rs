use proptest::prelude::*;

use super::*;

fn parse(extra: &str) -> Result<Config, PluginError> {
    Config::parse(
        format!(r#"{{"cniVersion": "1.0.0", "name": "net", "type": "tunproxy"{extra}}}"#).as_bytes(),
    )
}

/// The key a configuration is refused for.
fn bad_key(extra: &str) -> String {
    match parse(extra) {
        Err(PluginError::Config { key, .. }) => key,
        other => panic!("{extra}: {other:?}"),
    }
}

#[test]
fn everything_has_a_default() {
    let config = parse("").unwrap();
    assert_eq!(config.socket, PathBuf::from("/run/tunproxy/cni.sock"));
    assert_eq!(config.state_dir, PathBuf::from("/var/lib/tunproxy/cni"));
    assert_eq!(config.timeout, Duration::from_secs(5));
    assert_eq!((config.mode, config.valid_attachments), (ConfigMode::Chained, None));
}

#[test]
fn unknown_keys_are_tolerated() {
    parse(r#", "runtimeConfig": {"portMappings": []}, "cni.dev/new": 1, "capabilities": {}, "x": null"#)
        .unwrap();
}

#[test]
fn every_bad_value_is_refused_by_its_key() {
    for (extra, key) in [
        (r#", "agentSocket": 7"#, "agentSocket"),
        (r#", "agentSocket": "run/x.sock""#, "agentSocket"),
        (r#", "stateDir": "relative""#, "stateDir"),
        (r#", "logFile": []"#, "logFile"),
        (r#", "timeout": "5""#, "timeout"),
        (r#", "timeout": "5h""#, "timeout"),
        (r#", "timeout": "1ms""#, "timeout"),
        (r#", "timeout": "999999999999999999m""#, "timeout"),
        (r#", "timeout": 5"#, "timeout"),
        (r#", "excludeNamespaces": "kube-system""#, "excludeNamespaces"),
        (r#", "excludeNamespaces": ["a", 1]"#, "excludeNamespaces[1]"),
        (r#", "excludeNamespaces": ["a"], "ipam": {"type": "host-local"}"#, "excludeNamespaces"),
        (r#", "unsafeNoGate": "yes""#, "unsafeNoGate"),
        (r#", "ipam": "host-local""#, "ipam"),
        (r#", "ipam": {"subnet": "10.0.0.0/8"}"#, "ipam.type"),
        (r#", "ipam": {"type": "../host-local"}"#, "ipam.type"),
        (r#", "args": {"cni": {"labels": [{"key": "a"}]}}"#, "args.cni.labels[0]"),
        (r#", "args": {"cni": {"labels": {"a": 1}}}"#, "args.cni.labels.a"),
        (r#", "args": {"cni": {"labels": 1}}"#, "args.cni.labels"),
        (r#", "cni.dev/valid-attachments": {}"#, "cni.dev/valid-attachments"),
        (r#", "cni.dev/valid-attachments": [{"containerID": "x"}]"#, "cni.dev/valid-attachments[0]"),
        (r#", "cni.dev/attachments": 1"#, "cni.dev/attachments"),
    ] {
        assert_eq!(bad_key(extra), key, "{extra}");
    }
}

#[test]
fn a_name_is_demanded_and_checked() {
    for document in [r#"{"cniVersion": "1.0.0"}"#, r#"{"cniVersion": "1.0.0", "name": "-x"}"#] {
        let error = Config::parse(document.as_bytes()).unwrap_err();
        assert!(matches!(error, PluginError::Config { ref key, .. } if key == "name"), "{error:?}");
    }
}

#[test]
fn an_absent_version_is_the_first_one_which_is_not_spoken() {
    let error = Config::parse(br#"{"name": "net"}"#).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"cniVersion "0.1.0" is not supported (supported: 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0)"#
    );
}

#[test]
fn labels_come_in_both_forms() {
    let wanted = BTreeMap::from([("app".to_owned(), "shop".to_owned())]);
    for labels in [r#"[{"key": "app", "value": "shop"}]"#, r#"{"app": "shop"}"#] {
        let config = parse(&format!(r#", "args": {{"cni": {{"labels": {labels}}}}}"#)).unwrap();
        assert_eq!(config.labels, wanted);
    }
}

#[test]
fn the_older_key_of_gc_is_understood_and_null_is_absent() {
    let list = r#"[{"containerID": "c1", "ifname": "eth0"}]"#;
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let config = parse(&format!(r#", "{key}": {list}"#)).unwrap();
        assert_eq!(config.valid_attachments.unwrap().len(), 1);
        assert_eq!(parse(&format!(r#", "{key}": null"#)).unwrap().valid_attachments, None);
    }
}

proptest! {
    #[test]
    fn no_input_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Config::parse(&bytes);
    }

    #[test]
    fn times_are_read_exactly(ms in 100u64..300_000) {
        let config = parse(&format!(r#", "timeout": "{ms}ms""#)).unwrap();
        prop_assert_eq!(config.timeout, Duration::from_millis(ms));
    }
}
