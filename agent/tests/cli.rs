//! What the program prints about itself: completions, manual pages, settings in force.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const AGENT: &str = env!("CARGO_BIN_EXE_tunproxy-agent");
const COMMANDS: [&str; 9] =
    ["serve", "exec", "tun", "explain", "validate", "pcap", "self-test", "completions", "man"];

/// Runs the agent with nothing of the caller's in its environment.
fn agent(arguments: &[&str]) -> Output {
    clean().args(arguments).output().unwrap()
}

fn clean() -> Command {
    let mut command = Command::new(AGENT);
    command.env_clear();
    command
}

fn printed(arguments: &[&str]) -> String {
    let output = agent(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn completions_name_each_command_and_nothing_hidden() {
    for shell in ["bash", "zsh", "fish"] {
        let script = printed(&["completions", shell]);
        for command in COMMANDS {
            assert!(script.contains(command), "{shell} lacks {command}");
        }
        for flag in ["print-config", "limits-flows-per-pod", "log-begin"] {
            assert!(script.contains(flag), "{shell} lacks --{flag}");
        }
        assert!(!script.contains("exec-init"), "{shell} offers what is not for people");
    }
    let output = agent(&["completions", "tcsh"]);
    assert_eq!(output.status.code(), Some(2));
}

/// The script to load, then the words typed so far, the last one unfinished.
const PRESS_TAB: &str = r#"
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
[[ $(complete -p "$1") =~ -F\ ([^ ]+) ]]
"${BASH_REMATCH[1]}" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
"#;

/// bash itself completes, as after a press of the tab key.
#[test]
fn bash_completes_commands_and_flags() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("agent.bash");
    fs::write(&script, printed(&["completions", "bash"])).unwrap();
    let complete = |words: &[&str]| {
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", PRESS_TAB, "bash"]).arg(&script).args(words);
        let output = bash.output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(complete(&["tunproxy-agent", "va"]), ["validate"]);
    assert_eq!(complete(&["tunproxy-agent", "serve", "--flow-log-b"]), ["--flow-log-begin"]);
    assert_eq!(complete(&["tunproxy-agent", "explain", "--default", "D"]), ["Deny"]);
}

#[test]
fn the_manual_has_a_page_for_each_command() {
    let page = printed(&["man"]);
    assert!(page.contains(".TH tunproxy-agent 1") && page.contains("Examples:"), "{page}");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("new/man1");
    assert_eq!(printed(&["man", "--out", out.to_str().unwrap()]), "");
    let pages: Vec<String> =
        fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    for command in COMMANDS {
        let name = format!("tunproxy-agent-{command}.1");
        assert!(pages.contains(&name), "{name} is not in {pages:?}");
        let text = fs::read_to_string(out.join(&name)).unwrap();
        assert!(text.contains(".SH SYNOPSIS") && text.contains("Example"), "{name}: {text}");
    }
    assert_eq!(pages.len(), COMMANDS.len() + 1, "nothing hidden has a page: {pages:?}");
}

#[test]
fn the_manual_is_readable_for_man() {
    let folder = tempfile::tempdir().unwrap();
    printed(&["man", "--out", folder.path().to_str().unwrap()]);
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let output = Command::new("man").args(["--warnings", "-E", "UTF-8", "-l"]).arg(&path).output();
        let output = match output {
            Ok(output) => output,
            Err(error) if tunproxy_testkit::may_skip() => return eprintln!("skipped: no man: {error}"),
            Err(error) => panic!("man: {error}; scripts/setup.sh installs it"),
        };
        assert!(output.status.success(), "{}", path.display());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said, "", "{}", path.display());
        assert!(String::from_utf8_lossy(&output.stdout).contains("tunproxy-agent"));
    }
}

/// `workers: 7  # agent.yaml:1` as (`7`, `agent.yaml:1`).
fn setting(printed: &str, key: &str) -> (String, String) {
    let line = printed
        .lines()
        .find(|line| line.trim_start().starts_with(&format!("{key}: ")))
        .unwrap_or_else(|| panic!("no {key} in\n{printed}"));
    let (text, origin) = line.split_once("  # ").unwrap_or_else(|| panic!("{line} does not say whence"));
    let value = text.trim().strip_prefix(&format!("{key}: ")).unwrap();
    (value.trim().to_owned(), origin.rsplit('/').next().unwrap().to_owned())
}

/// A scalar and a list, from each set of the places where they can be given.
#[test]
fn the_settings_in_force_say_where_each_comes_from() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.yaml");
    fs::write(&file, "limits:\n  flowsPerPod: 10\nresolvers: [10.0.0.1]\n").unwrap();
    for sources in 0..8 {
        let (by_file, by_variable, by_flag) = (sources & 1 != 0, sources & 2 != 0, sources & 4 != 0);
        let mut command = clean();
        command.args(["serve", "--print-config"]);
        if by_file {
            command.arg("--config").arg(&file);
        }
        if by_variable {
            command.env("TUNPROXY_LIMITS_FLOWS_PER_POD", "20").env("TUNPROXY_RESOLVERS", "10.0.0.2,fd00::2");
        }
        if by_flag {
            command.args([
                "--limits-flows-per-pod",
                "30",
                "--resolvers",
                "10.0.0.3",
                "--resolvers",
                "10.0.0.4",
            ]);
        }
        let output = command.output().unwrap();
        assert!(output.status.success());
        let printed = String::from_utf8(output.stdout).unwrap();
        let (flows, resolvers) = match (by_flag, by_variable, by_file) {
            (true, _, _) => (("30", "--limits-flows-per-pod"), ("[10.0.0.3, 10.0.0.4]", "--resolvers")),
            (false, true, _) => {
                (("20", "TUNPROXY_LIMITS_FLOWS_PER_POD"), ("[10.0.0.2, fd00::2]", "TUNPROXY_RESOLVERS"))
            }
            (false, false, true) => (("10", "agent.yaml:2"), ("[10.0.0.1]", "agent.yaml:3")),
            (false, false, false) => (("10000", "default"), ("[/etc/resolv.conf]", "default")),
        };
        let owned = |(value, origin): (&str, &str)| (value.to_owned(), origin.to_owned());
        assert_eq!(setting(&printed, "flowsPerPod"), owned(flows), "{sources}");
        assert_eq!(setting(&printed, "resolvers"), owned(resolvers), "{sources}");
    }
}

#[test]
fn the_file_of_settings_can_be_named_by_a_variable() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.yaml");
    fs::write(&file, "workers: 3\n").unwrap();
    let output = clean().args(["serve", "--print-config"]).env("TUNPROXY_CONFIG", &file).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(setting(&printed, "workers"), ("3".into(), "agent.yaml:1".into()));
}

#[test]
fn what_is_printed_can_be_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.yaml");
    let first = printed(&["serve", "--print-config", "--default", "Deny", "--networks-pods", "10.1.0.0/16"]);
    fs::write(&file, &first).unwrap();
    let second = printed(&["serve", "--print-config", "--config", file.to_str().unwrap()]);
    let values = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split("  # ").next().unwrap().trim_end().to_owned()).collect()
    };
    assert_eq!(values(&first), values(&second));
}

#[test]
fn mistakes_in_settings_are_one_a_line_and_fail() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.yaml");
    fs::write(&file, "worker: 3\nlimits: {memory: 1}\n").unwrap();
    let output = clean()
        .args(["serve", "--print-config", "--config"])
        .arg(&file)
        .args(["--workers", "x"])
        .env("TUNPROXY_DEFAULT", "Perhaps")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let said = String::from_utf8(output.stderr).unwrap();
    let said: Vec<&str> = said.lines().map(|line| line.trim_start_matches(&shown(folder.path()))).collect();
    assert_eq!(
        said,
        [
            "agent.yaml:1: unknown key `worker`; did you mean `workers`?",
            "agent.yaml:2: limits.memory: \"1\" is out of range (16Mi to 1024Gi)",
            "TUNPROXY_DEFAULT: \"Perhaps\" is not one of Allow, Deny",
            "--workers: \"x\" is not a whole number from 1 to 1024",
        ]
    );
}

fn shown(folder: &Path) -> String {
    format!("{}/", folder.display())
}
