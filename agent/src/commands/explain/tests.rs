use std::fs;

use clap::Parser;
use tempfile::TempDir;

use super::*;

const POLICY: &str = "\
apiVersion: tunproxy.io/v1alpha1
kind: EgressPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  rules:
  - name: github
    action: Allow
    to: [{domains: [api.github.com]}]
    ports: [{protocol: TCP, port: 443}]
    via: {upstream: proxy}
  - name: inside
    action: Allow
    to: [{networks: [10.0.0.0/8]}]
---
apiVersion: tunproxy.io/v1alpha1
kind: EgressPolicy
metadata: {name: trial, namespace: lab}
spec: {enforcement: Audit, rules: []}
---
apiVersion: tunproxy.io/v1alpha1
kind: ClusterUpstream
metadata: {name: proxy}
spec: {type: SOCKS5, address: 'proxy.example:1080'}
";

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    explain: ExplainArgs,
}

struct Answer {
    status: u8,
    printed: String,
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("policy.yaml"), POLICY).expect("a file");
    folder
}

fn ask(arguments: &[&str]) -> anyhow::Result<Answer> {
    let folder = folder();
    let path = folder.path().to_str().expect("a path");
    let cli = Cli::try_parse_from([&["explain", "--policy", path], arguments].concat())?;
    let mut printed = Vec::new();
    let status = run(&cli.explain, &mut printed, Paint::PLAIN)?;
    Ok(Answer { status, printed: String::from_utf8(printed)? })
}

fn answer(arguments: &[&str]) -> Answer {
    ask(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
}

#[test]
fn the_answer_names_the_rule_and_the_way_to_it() {
    let Answer { status, printed } =
        answer(&["--namespace", "shop", "--labels", "app=web", "--to", "api.github.com:443"]);
    assert_eq!(status, 0);
    assert_eq!(
        printed,
        "\
tcp api.github.com:443 from a pod of shop with app=web
allowed by EgressPolicy/shop/web github via proxy

as api.github.com:
  admin: no rules for this pod
  egress: EgressPolicy/shop/web github decides
    * EgressPolicy/shop/web github (allow via proxy): matches by api.github.com

The name's address is not known here: rules about networks are judged for 192.0.2.1;
give --address to judge them for a real one.
"
    );
}

#[test]
fn the_status_tells_the_verdict() {
    let shop = ["--namespace", "shop", "--labels", "app=web", "--to"];
    for (target, status) in [
        ("api.github.com:443", 0),
        ("api.github.com:80", 1),
        ("api.github.com:443/udp", 1),
        ("10.1.2.3:22", 0),
        ("10.1.2.3/icmp", 0),
        ("[2001:db8::1]:443", 1),
        ("169.254.169.254:80", 1),
    ] {
        assert_eq!(answer(&[&shop[..], &[target]].concat()).status, status, "{target}");
    }
    for (arguments, status) in [
        (&["--to", "x.example:1"][..], 0),
        (&["--to", "x.example:1", "--default", "Deny"], 1),
        (&["--to", "10.96.0.10:53/udp", "--default", "Deny", "--resolver", "10.96.0.10"], 0),
        (&["--namespace", "shop", "--labels", "app=db", "--to", "x.example:1"], 0),
        (&["--namespace", "shop", "--labels", "app=web", "--to", "x.example:1", "--address", "10.9.9.9"], 0),
        (&["--namespace", "lab", "--to", "x.example:1"], 0),
    ] {
        assert_eq!(answer(arguments).status, status, "{arguments:?}");
    }
}

#[test]
fn an_audited_flow_says_so() {
    let Answer { printed, .. } = answer(&["--namespace", "lab", "--to", "x.example:1"]);
    let expected = "allowed via direct; EgressPolicy/lab/trial default would refuse it, and only audits";
    assert_eq!(printed.lines().nth(1), Some(expected));
}

#[test]
fn json_has_the_same_answer() {
    let arguments = ["--namespace", "shop", "--labels", "app=web", "--to", "api.github.com:80", "-o", "json"];
    let Answer { status, printed } = answer(&arguments);
    assert_eq!(status, 1);
    let json: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!(json["verdict"], "denied");
    assert_eq!(json["policy"], "EgressPolicy/shop/web");
    assert_eq!(json["rule"], "default");
    assert_eq!(json["reason"], "no-rule-matched");
    assert_eq!(json["destinationKnown"], false);
    let github = &json["walks"][0]["tiers"][1]["rules"][0];
    assert_eq!((&github["rule"], &github["matched"]), (&"github".into(), &false.into()));
    assert_eq!(github["why"], "this destination, but only 443/tcp");
}

#[test]
fn a_question_with_a_mistake_is_an_error() {
    for (arguments, expected) in [
        (&["--to", "x.example"][..], "a port is missing"),
        (&["--to", "10.0.0.1:1", "--address", "10.0.0.2"], "--to has an address already; remove --address"),
        (&["--to", "x.example:1", "--upstream", "gone"], "no upstream document is named \"gone\""),
        (&["--to", "x.example:1", "--policy", "/nowhere.yaml"], "/nowhere.yaml: cannot be read"),
    ] {
        let error = ask(arguments).err().map_or_else(String::new, |error| error.to_string());
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
}
