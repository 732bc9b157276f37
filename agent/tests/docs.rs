//! What the documents say is what the program does.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;
use tunproxy_agent::cli::Cli;

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

#[test]
fn links_lead_somewhere() {
    for (file, text) in documents() {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.starts_with("http") {
                continue;
            }
            let path = file.parent().unwrap().join(target.split('#').next().unwrap());
            assert!(path.exists(), "{}: {target} does not exist", file.display());
        }
    }
}

#[test]
fn commands_in_the_documents_parse() {
    let mut seen = 0;
    for (file, text) in documents() {
        for line in text.lines().map(|line| line.trim_start_matches("$ ")) {
            let Some(arguments) = line.strip_prefix("tunproxy-agent ") else { continue };
            if arguments.contains(": ") {
                continue;
            }
            let words = std::iter::once("tunproxy-agent").chain(arguments.split_whitespace());
            let parsed = Cli::command().try_get_matches_from(words);
            assert!(parsed.is_ok(), "{}: {line}: {}", file.display(), parsed.unwrap_err());
            seen += 1;
        }
    }
    assert!(seen >= 6, "only {seen} commands were found");
}

#[test]
fn every_setting_is_documented_with_its_flag() {
    let text = std::fs::read_to_string(root().join("docs/agent.md")).unwrap();
    let help = Command::new(env!("CARGO_BIN_EXE_tunproxy-agent")).args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    let keys: Vec<&str> =
        help.split("[key: ").skip(1).filter_map(|rest| rest.split(']').next()).map(str::trim).collect();
    assert!(keys.len() > 20, "{keys:?}");
    for key in &keys {
        assert!(text.contains(&format!("| `{key}` |")), "docs/agent.md lacks {key}");
    }
    let documented = text.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(documented, keys.len(), "docs/agent.md names settings that do not exist");
}

#[test]
fn the_policies_in_the_documents_are_valid() {
    for (file, text) in documents() {
        for block in text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("policy.yaml");
            std::fs::write(&path, with_upstream(block)).unwrap();
            let output = Command::new(env!("CARGO_BIN_EXE_tunproxy-agent"))
                .arg("validate")
                .arg(&path)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{}: {said}", file.display());
        }
    }
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
