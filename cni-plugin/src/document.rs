//! The results this plugin prints.

use std::path::Path;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use crate::version::CniVersion;

/// The version that an answer to this input names: the input's own, or the latest when it has none.
pub fn version_of(input: &[u8]) -> String {
    let document: Value = serde_json::from_slice(input).unwrap_or_default();
    let version = document.get("cniVersion").and_then(Value::as_str).filter(|text| !text.is_empty());
    version.unwrap_or(CniVersion::LATEST.as_str()).to_owned()
}

/// The previous result in the shape of `version`. Nothing but that shape changes: every key stays where it was.
pub fn pass_through(previous: &Map<String, Value>, version: CniVersion) -> Value {
    let mut result = previous.clone();
    result.insert("cniVersion".into(), Value::String(version.to_string()));
    if let Some(Value::Array(addresses)) = result.get_mut("ips") {
        for address in addresses.iter_mut().filter_map(Value::as_object_mut) {
            shape_address(address, version);
        }
    }
    Value::Object(result)
}

/// Before 1.0.0 every address had to say `"version": "4"` or `"6"`; since then it must not.
fn shape_address(address: &mut Map<String, Value>, version: CniVersion) {
    if !version.addresses_name_their_family() {
        address.shift_remove("version");
    } else if !address.contains_key("version") {
        let text = address.get("address").and_then(Value::as_str).unwrap_or_default();
        let family = if text.contains(':') { "6" } else { "4" };
        address.insert("version".into(), Value::String(family.into()));
    }
}

/// The result of a pod whose interface is the TUN.
pub fn standalone(
    version: CniVersion,
    ifname: &str,
    netns: &Path,
    addresses: &[IpNet],
    dns: Option<&Value>,
) -> Value {
    let ip = |address: &IpNet| {
        let mut ip = Map::new();
        ip.insert("address".into(), Value::String(address.to_string()));
        ip.insert("interface".into(), json!(0));
        shape_address(&mut ip, version);
        Value::Object(ip)
    };
    let mut routes = Vec::new();
    for (default, present) in [
        ("0.0.0.0/0", addresses.iter().any(|a| a.addr().is_ipv4())),
        ("::/0", addresses.iter().any(|a| a.addr().is_ipv6())),
    ] {
        if present {
            routes.push(json!({ "dst": default }));
        }
    }
    let mut result = json!({
        "cniVersion": version.as_str(),
        "interfaces": [{ "name": ifname, "sandbox": netns.to_string_lossy() }],
        "ips": addresses.iter().map(ip).collect::<Vec<_>>(),
        "routes": routes,
    });
    if let Some(dns) = dns {
        result["dns"] = dns.clone();
    }
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{json, object};

    fn passed(previous: &str, version: CniVersion) -> String {
        let Value::Object(previous) = serde_json::from_str(previous).unwrap() else { panic!() };
        pass_through(&previous, version).to_string()
    }

    #[test]
    fn a_result_of_the_same_version_comes_out_byte_for_byte() {
        let previous = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","mac":"aa:bb","sandbox":"/n","x":1}],"ips":[{"address":"10.1.0.2/24","gateway":"10.1.0.1","interface":0}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{"nameservers":["10.0.0.1"]},"zz":[1.50,null]}"#;
        let expected = previous.replace("1.50", "1.5");
        assert_eq!(passed(previous, CniVersion::V1_0_0), expected);
    }

    #[test]
    fn addresses_get_and_lose_their_version() {
        let new = r#"{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.2/24"},{"address":"fd00::2/64","interface":0}]}"#;
        let old = r#"{"cniVersion":"0.4.0","ips":[{"address":"10.1.0.2/24","version":"4"},{"address":"fd00::2/64","interface":0,"version":"6"}]}"#;
        assert_eq!(passed(new, CniVersion::V0_4_0), old);
        assert_eq!(passed(old, CniVersion::V1_0_0), new);
    }

    #[test]
    fn the_version_of_an_answer_is_that_of_the_question() {
        assert_eq!(version_of(br#"{"cniVersion": "0.4.0"}"#), "0.4.0");
        for input in ["", "{", "[]", r#"{"cniVersion": 4}"#, r#"{"cniVersion": ""}"#] {
            assert_eq!(version_of(input.as_bytes()), "1.1.0", "{input}");
        }
    }

    /// A result as a main plugin could have made it, or nearly so.
    fn results() -> impl Strategy<Value = Map<String, Value>> {
        let address = prop_oneof![
            "10\\.[0-9]\\.0\\.[0-9]/24".prop_map(Value::from),
            "fd00::[0-9a-f]/64".prop_map(Value::from),
            json(),
        ];
        let version = prop_oneof![Just("4"), Just("6")].prop_map(Value::from);
        let entry = (object("[a-z]{1,8}", json()), address, prop::option::of(version)).prop_map(
            |(mut entry, address, version)| {
                entry.insert("address".into(), address);
                entry.extend(version.map(|version| ("version".into(), version)));
                Value::Object(entry)
            },
        );
        let addresses = prop_oneof![prop::collection::vec(entry, 0..4).prop_map(Value::from), json()];
        (object("[a-zA-Z.]{1,8}", json()), prop::option::of(addresses)).prop_map(|(mut result, addresses)| {
            result.extend(addresses.map(|addresses| ("ips".into(), addresses)));
            result
        })
    }

    /// The document without what a version may change.
    fn essence(document: &Value) -> Value {
        let mut document = document.clone();
        let entries = document.as_object_mut().unwrap();
        entries.shift_remove("cniVersion");
        if let Some(Value::Array(addresses)) = entries.get_mut("ips") {
            for address in addresses.iter_mut().filter_map(Value::as_object_mut) {
                address.shift_remove("version");
            }
        }
        document
    }

    proptest! {
        #[test]
        fn nothing_but_the_shape_of_the_version_changes(
            previous in results(),
            version in prop::sample::select(&CniVersion::ALL[..]),
        ) {
            let passed = pass_through(&previous, version);
            prop_assert_eq!(&passed["cniVersion"], version.as_str());
            // As text, so that the order of the keys counts.
            let before = essence(&Value::Object(previous)).to_string();
            prop_assert_eq!(essence(&passed).to_string(), before);
            for address in passed["ips"].as_array().into_iter().flatten().filter_map(Value::as_object) {
                prop_assert_eq!(address.contains_key("version"), version.addresses_name_their_family());
            }
        }

        #[test]
        fn a_second_pass_changes_nothing(
            previous in results(),
            version in prop::sample::select(&CniVersion::ALL[..]),
        ) {
            let once = pass_through(&previous, version);
            let twice = pass_through(once.as_object().unwrap(), version);
            prop_assert_eq!(once.to_string(), twice.to_string());
        }

        #[test]
        fn the_version_of_any_input_is_found(input in prop::collection::vec(any::<u8>(), 0..60), document in json()) {
            prop_assert!(!version_of(&input).is_empty());
            prop_assert!(!version_of(document.to_string().as_bytes()).is_empty());
        }
    }
}
