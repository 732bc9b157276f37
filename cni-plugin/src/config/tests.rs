use proptest::prelude::*;

use super::*;
use crate::testing::json;

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

    /// Any value under any key that is read: refused by that key's name, or understood as something usable.
    #[test]
    fn a_value_is_refused_by_its_key_or_usable(
        key in prop::sample::select(KEYS),
        value in prop_oneof![json(), near_misses()],
    ) {
        let mut document = serde_json::json!({ "cniVersion": "1.0.0", "name": "net", "type": "tunproxy" });
        document[key] = value;
        match Config::parse(document.to_string().as_bytes()) {
            Ok(config) => {
                prop_assert!(config.socket.is_absolute() && config.state_dir.is_absolute());
                prop_assert!((SHORTEST_TIMEOUT..=LONGEST_TIMEOUT).contains(&config.timeout));
                prop_assert!(config.network.starts_with(|c: char| c.is_ascii_alphanumeric()));
                prop_assert!(!config.network.contains(['/', ' ']));
                prop_assert!(config.exclude.iter().all(|namespace| !namespace.is_empty()));
                if let ConfigMode::Standalone { ipam } = config.mode {
                    prop_assert!(!ipam.is_empty() && !ipam.contains('/') && !ipam.starts_with('.'));
                }
            }
            Err(PluginError::Config { key: named, .. }) => {
                prop_assert!(named.starts_with(key), "{named} for {key}");
            }
            Err(PluginError::Version { .. }) => prop_assert_eq!(key, "cniVersion"),
            Err(error) => prop_assert!(false, "{error}"),
        }
    }

    #[test]
    fn every_attachment_of_gc_is_kept(keys in prop::collection::vec(("[a-z0-9]{1,9}", "[a-z0-9]{1,9}"), 0..6)) {
        let attachment = |(id, ifname): &(String, String)| serde_json::json!({ "containerID": id, "ifname": ifname });
        let list = Value::Array(keys.iter().map(attachment).collect());
        let found = parse(&format!(r#", "cni.dev/valid-attachments": {list}"#)).unwrap().valid_attachments.unwrap();
        let found: Vec<_> = found.into_iter().map(|key| (key.container_id, key.ifname)).collect();
        prop_assert_eq!(found, keys);
    }

    #[test]
    fn times_are_read_exactly(ms in 100u64..300_000) {
        let config = parse(&format!(r#", "timeout": "{ms}ms""#)).unwrap();
        prop_assert_eq!(config.timeout, Duration::from_millis(ms));
    }
}

const KEYS: &[&str] = &[
    "cniVersion",
    "name",
    "agentSocket",
    "stateDir",
    "logFile",
    "timeout",
    "excludeNamespaces",
    "unsafeNoGate",
    "ipam",
    "args",
    "prevResult",
    "cni.dev/valid-attachments",
    "cni.dev/attachments",
];

/// Values that some key takes, so that other keys and near misses get beyond the first check.
fn near_misses() -> impl Strategy<Value = Value> {
    prop_oneof![
        "/?[a-z./]{0,12}".prop_map(Value::from),
        "[0-9]{0,20}(ms|s|m|h)?".prop_map(Value::from),
        "[01]\\.[0-9]\\.[0-9]".prop_map(Value::from),
        prop::collection::vec("[a-z/.]{0,9}", 0..4).prop_map(Value::from),
        "[a-z/.]{0,9}".prop_map(|kind| serde_json::json!({ "type": kind })),
        json().prop_map(|labels| serde_json::json!({ "cni": { "labels": labels } })),
        ("[a-z]{0,5}", json())
            .prop_map(|(id, ifname)| serde_json::json!([{ "containerID": id, "ifname": ifname }])),
    ]
}
