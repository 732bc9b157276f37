//! What the documents say is what the program does.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use clap::CommandFactory;
use serde_json::Value;
use tunproxy_agent::cli::Cli;
use tunproxy_agent::config::KEYS;
use tunproxy_agent::flowlog::FlowLine;
use tunproxy_datapath::record::Outcome;
use tunproxy_datapath::{CloseReason, FlowRecord, Instant, NameSource};
use tunproxy_policy::{DenyReason, DomainName, Protocol, RuleId, UpstreamRef, Workload};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_owned()
}

fn documents() -> Vec<(PathBuf, String)> {
    let mut files =
        vec![root().join("README.md"), root().join("CONTRIBUTING.md"), root().join("CHANGELOG.md")];
    let docs = std::fs::read_dir(root().join("docs")).unwrap();
    files.extend(
        docs.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "md")),
    );
    files.into_iter().map(|path| (path.clone(), std::fs::read_to_string(&path).unwrap())).collect()
}

/// As forges make anchors of headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let slug = |heading: &str| -> String {
        let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
    };
    text.lines().filter(|line| line.starts_with('#')).map(|line| slug(line.trim_start_matches('#'))).collect()
}

#[test]
fn links_lead_somewhere() {
    for (file, text) in documents() {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.starts_with("http") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if path.is_empty() { file.clone() } else { file.parent().unwrap().join(path) };
            assert!(path.exists(), "{}: {target} does not exist", file.display());
            if !anchor.is_empty() {
                let there = anchors(&std::fs::read_to_string(&path).unwrap());
                assert!(there.contains(anchor), "{}: {target} is no heading: {there:?}", file.display());
            }
        }
    }
}

#[test]
fn commands_in_the_documents_parse() {
    let mut seen = 0;
    for (file, text) in documents() {
        let scripts = blocks(&text, "sh").into_iter().flat_map(str::lines);
        let sessions = blocks(&text, "console").into_iter().flat_map(str::lines);
        let typed = scripts.chain(sessions.filter_map(|line| line.strip_prefix("$ ")));
        for line in typed.filter(|line| line.starts_with("tunproxy-agent ")) {
            let words = line.split_whitespace().take_while(|word| *word != "|");
            let parsed = Cli::command().try_get_matches_from(words);
            assert!(parsed.is_ok(), "{}: {line}: {}", file.display(), parsed.unwrap_err());
            seen += 1;
        }
    }
    assert!(seen >= 10, "only {seen} commands were found");
}

fn document(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

/// The cells of every table row that begins with a key in backticks.
fn rows(text: &str) -> Vec<Vec<&str>> {
    text.lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .filter(|line| line.starts_with('`'))
        .map(|line| line.split(" | ").collect())
        .collect()
}

/// The text of every fenced block of a kind.
fn blocks<'a>(text: &'a str, kind: &str) -> Vec<&'a str> {
    let fence = format!("```{kind}\n");
    text.match_indices(&fence).filter_map(|(at, _)| text[at + fence.len()..].split("```").next()).collect()
}

/// What is in backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn every_setting_is_documented_with_its_flag_variable_and_default() {
    let text = document("docs/agent.md");
    let documented: Vec<_> = rows(&text).into_iter().filter(|cells| cells.len() == 5).collect();
    let help = Cli::command().find_subcommand("serve").expect("serve").clone();
    for (cells, key) in documented.iter().zip(KEYS) {
        let expected = [key.path.to_owned(), format!("--{}", key.flag()), key.variable()];
        let found: Vec<_> = cells[..3].iter().map(|cell| cell.trim_matches('`').to_owned()).collect();
        assert_eq!(found, expected);
        let flag = help.get_arguments().find(|flag| flag.get_id() == key.path).expect("a flag for each key");
        let said = flag.get_help().expect("help for each flag").to_string();
        let default = said.split_once("[default: ").and_then(|(_, rest)| Some(rest.split_once(']')?.0));
        assert_eq!(cells[3].trim_matches('`'), default.unwrap_or("none"), "{}", key.path);
    }
    assert_eq!(documented.len(), KEYS.len(), "docs/agent.md has not one row for each setting");
}

/// A flow that has every field.
fn whole_record() -> FlowRecord {
    FlowRecord {
        start: Instant::from_secs(1),
        end: Instant::from_secs(2),
        protocol: Protocol::Tcp,
        source: "10.244.0.2:40000".parse().unwrap(),
        destination: "198.51.100.10:443".parse().unwrap(),
        name: Some(DomainName::parse("refused.test").unwrap()),
        name_source: Some(NameSource::Sni),
        outcome: Outcome::Denied(DenyReason::Rule),
        rule: RuleId { policy: "EgressPolicy/shop/web".into(), rule: "site".into() },
        upstream: Some(UpstreamRef::direct()),
        dialed: Some("198.51.100.10:443".parse().unwrap()),
        bytes_sent: 0,
        bytes_received: 0,
        packets_sent: 3,
        packets_received: 0,
        connect_micros: Some(113),
        close: CloseReason::Denied,
        detail: None,
    }
}

/// The record's line, as the serializer writes it.
fn whole_line() -> Value {
    let (namespace, name, uid) = ("shop".into(), "web".into(), "uid-web".into());
    let workload = Workload { namespace, name, uid, ..Workload::default() };
    serde_json::to_value(FlowLine::new(SystemTime::now(), &workload, &whole_record())).unwrap()
}

fn fields(line: &Value) -> BTreeSet<&str> {
    line.as_object().unwrap().keys().map(String::as_str).collect()
}

/// What docs/flow-log.md says of a field.
fn words<'a>(rows: &[Vec<&'a str>], field: &str) -> BTreeSet<&'a str> {
    let row = rows.iter().find(|cells| quoted(cells[0]).eq([field])).expect("a row for each field");
    quoted(row[1]).collect()
}

#[test]
fn the_fields_of_the_flow_log_are_documented() {
    let (text, line) = (document("docs/flow-log.md"), whole_line());
    let rows = rows(&text);
    let documented: BTreeSet<&str> = rows.iter().flat_map(|cells| quoted(cells[0])).collect();
    assert_eq!(documented, fields(&line));
    assert!(words(&rows, "pod").is_superset(&fields(&line["pod"])));
    assert_eq!(words(&rows, "close"), CloseReason::ALL.map(CloseReason::label).into());
    let reasons = [
        DenyReason::Rule,
        DenyReason::NoRuleMatched,
        DenyReason::NodeDefault,
        DenyReason::ReservedDestination,
        DenyReason::BrokenRule,
        DenyReason::NoPolicy,
    ];
    assert!(words(&rows, "reason").is_superset(&reasons.map(DenyReason::label).into()));
}

#[test]
fn the_flow_log_has_an_example_for_each_verdict() {
    let (text, line) = (document("docs/flow-log.md"), whole_line());
    let examples: Vec<Value> =
        blocks(&text, "json").iter().map(|block| serde_json::from_str(block).expect(block)).collect();
    for example in &examples {
        assert!(fields(&line).is_superset(&fields(example)), "{example}");
    }
    let shown: BTreeSet<&str> = examples.iter().filter_map(|example| example["verdict"].as_str()).collect();
    assert_eq!(shown, words(&rows(&text), "verdict"));
}

fn agent(arguments: &[&str], file: &Path) -> (bool, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_tunproxy-agent")).args(arguments).arg(file).output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (output.status.success(), said.concat())
}

/// Documents are validated, settings are loaded.
#[test]
fn the_yaml_in_the_documents_is_valid() {
    let mut seen = 0;
    for (file, text) in documents() {
        for block in blocks(&text, "yaml") {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("example.yaml");
            std::fs::write(&path, with_upstream(block)).unwrap();
            let arguments: &[&str] = if block.contains("apiVersion:") {
                &["validate"]
            } else {
                &["serve", "--print-config", "--config"]
            };
            let (good, said) = agent(arguments, &path);
            assert!(good, "{}: {said}", file.display());
            seen += 1;
        }
    }
    assert!(seen >= 6, "only {seen} blocks were found");
}

#[test]
fn the_json_in_the_documents_is_json() {
    let known = document("docs/plugin.md");
    let known: BTreeSet<&str> = rows(&known).iter().flat_map(|cells| quoted(cells[0])).collect();
    let mut plugins = 0;
    for (file, text) in documents() {
        for block in blocks(&text, "json") {
            let parsed: Value =
                serde_json::from_str(block).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            let list = parsed["plugins"].as_array().cloned().unwrap_or_default();
            for plugin in list.iter().filter(|plugin| plugin["type"] == "tunproxy") {
                let keys = plugin.as_object().unwrap().keys().map(String::as_str);
                let unknown: Vec<_> = keys.filter(|key| *key != "type" && !known.contains(key)).collect();
                assert!(unknown.is_empty(), "{}: docs/plugin.md lacks {unknown:?}", file.display());
                plugins += 1;
            }
        }
    }
    assert!(plugins >= 4, "only {plugins} configurations of the plugin were found");
}

/// A block that names the upstream which another block of the page shows gets one to name.
fn with_upstream(block: &str) -> String {
    if !block.contains("via: {upstream: corp-proxy}") {
        return block.to_owned();
    }
    format!(
        "{block}---\napiVersion: tunproxy.io/v1alpha1\nkind: ClusterUpstream\nmetadata: {{name: corp-proxy}}\n\
         spec: {{type: SOCKS5, address: \"proxy.example.com:1080\"}}\n"
    )
}
