//! What the runtime says in the environment: read once, then validated per verb.

use std::collections::HashMap;
use std::path::PathBuf;

use tunproxy_ipc::AttachmentKey;
use tunproxy_linux_net::naming::{MAX_CONTAINER_ID, MAX_IFNAME, Owner};

use crate::error::PluginError;

/// A verb of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

/// The `CNI_*` variables as they are.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    variables: HashMap<&'static str, String>,
}

const COMMAND: &str = "CNI_COMMAND";
const CONTAINER_ID: &str = "CNI_CONTAINERID";
const NETNS: &str = "CNI_NETNS";
const IFNAME: &str = "CNI_IFNAME";
const ARGS: &str = "CNI_ARGS";
const PATH: &str = "CNI_PATH";
const NETNS_OVERRIDE: &str = "CNI_NETNS_OVERRIDE";

impl Environment {
    pub fn from_process() -> Self {
        let names = [COMMAND, CONTAINER_ID, NETNS, IFNAME, ARGS, PATH, NETNS_OVERRIDE];
        let read = |name| {
            let value = std::env::var_os(name)?;
            // What is not UTF-8 fails validation by the replacement character.
            Some((name, value.to_string_lossy().into_owned())).filter(|(_, value)| !value.is_empty())
        };
        Self { variables: names.into_iter().filter_map(read).collect() }
    }

    pub fn command(&self) -> Option<&str> {
        self.get(COMMAND)
    }

    pub fn parse_command(&self) -> Result<Command, PluginError> {
        let text = self.command().unwrap_or_default();
        match text {
            "ADD" => Ok(Command::Add),
            "DEL" => Ok(Command::Del),
            "CHECK" => Ok(Command::Check),
            "GC" => Ok(Command::Gc),
            "STATUS" => Ok(Command::Status),
            "VERSION" => Ok(Command::Version),
            _ => Err(PluginError::Environment {
                problems: vec![(
                    COMMAND,
                    format!("{text:?} is none of ADD, DEL, CHECK, GC, STATUS, VERSION"),
                )],
            }),
        }
    }

    /// Directories with plugins; empty when the runtime did not say.
    pub fn plugin_path(&self) -> &str {
        self.get(PATH).unwrap_or_default()
    }

    /// For logs: the verb and what it is about.
    pub fn subject(&self) -> String {
        let words = [COMMAND, CONTAINER_ID, IFNAME].map(|name| self.get(name).unwrap_or("-"));
        format!("{} {}/{}", words[0], words[1], words[2])
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }
}

/// One attachment, named by the runtime.
#[derive(Debug, Clone)]
pub struct Invocation {
    pub key: AttachmentKey,
    /// `None`: the runtime gave none, or says it is gone (DEL only).
    pub netns: Option<PathBuf>,
    /// Even the host's namespace may be steered: somebody asked for it by name.
    pub allow_host_namespace: bool,
    pub pod: PodArgs,
}

/// The pod as the kubelet's runtime names it in `CNI_ARGS`. All empty elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodArgs {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl Invocation {
    /// Validates for ADD and CHECK, which need a namespace, or for DEL, which does not.
    pub fn parse(environment: &Environment, command: Command) -> Result<Self, PluginError> {
        let mut problems = Vec::new();
        let mut required = |name, check: fn(&str) -> Result<(), String>| match environment.get(name) {
            None => {
                problems.push((name, "is not set".into()));
                String::new()
            }
            Some(value) => {
                if let Err(problem) = check(value) {
                    problems.push((name, problem));
                }
                value.to_owned()
            }
        };
        let container_id = required(CONTAINER_ID, check_container_id);
        let ifname = required(IFNAME, check_ifname);
        let netns = if command == Command::Del {
            environment.get(NETNS).map(PathBuf::from)
        } else {
            Some(PathBuf::from(required(NETNS, |_| Ok(()))))
        };
        let pod = parse_args(environment.get(ARGS).unwrap_or_default()).unwrap_or_else(|problem| {
            // A removal must not fail for what it does not need.
            if command != Command::Del {
                problems.push((ARGS, problem));
            }
            PodArgs::default()
        });
        if !problems.is_empty() {
            return Err(PluginError::Environment { problems });
        }
        Ok(Self {
            key: AttachmentKey { container_id, ifname },
            netns,
            allow_host_namespace: is_true(environment.get(NETNS_OVERRIDE)),
            pod,
        })
    }

    pub fn owner(&self) -> Owner {
        Owner { container_id: self.key.container_id.clone(), ifname: self.key.ifname.clone() }
    }
}

/// SPEC.md: starts with an alphanumeric character, then those, `_`, `.` and `-`.
fn check_container_id(id: &str) -> Result<(), String> {
    let rest = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    if !id.starts_with(|c: char| c.is_ascii_alphanumeric()) || !id.bytes().all(rest) {
        return Err(format!("{id:?} is not a container id (letters, digits, then also _ . -)"));
    }
    if id.len() > MAX_CONTAINER_ID {
        return Err(format!("has {} characters, at most {MAX_CONTAINER_ID} are possible", id.len()));
    }
    Ok(())
}

/// As the kernel's `dev_valid_name`.
fn check_ifname(name: &str) -> Result<(), String> {
    let bad = |b: u8| b == b'/' || b == b':' || b.is_ascii_whitespace() || b.is_ascii_control();
    if name.len() > MAX_IFNAME || name == "." || name == ".." || name.bytes().any(bad) {
        return Err(format!("{name:?} is not an interface name (1 to {MAX_IFNAME} bytes, no / : or space)"));
    }
    Ok(())
}

/// `KEY=VALUE;KEY=VALUE`; unknown keys are somebody else's.
fn parse_args(text: &str) -> Result<PodArgs, String> {
    let mut pod = PodArgs::default();
    for pair in text.split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(format!("{pair:?} is not KEY=VALUE"));
        };
        match key {
            "K8S_POD_NAMESPACE" => value.clone_into(&mut pod.namespace),
            "K8S_POD_NAME" => value.clone_into(&mut pod.name),
            "K8S_POD_UID" => value.clone_into(&mut pod.uid),
            _ => {}
        }
    }
    Ok(pod)
}

fn is_true(value: Option<&str>) -> bool {
    value.is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn environment(pairs: &[(&'static str, &str)]) -> Environment {
        Environment { variables: pairs.iter().map(|(name, value)| (*name, (*value).to_owned())).collect() }
    }

    fn problems(pairs: &[(&'static str, &str)], command: Command) -> Vec<&'static str> {
        match Invocation::parse(&environment(pairs), command) {
            Ok(_) => Vec::new(),
            Err(PluginError::Environment { problems }) => {
                problems.into_iter().map(|(name, _)| name).collect()
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn every_missing_variable_is_named() {
        assert_eq!(problems(&[], Command::Add), [CONTAINER_ID, IFNAME, NETNS]);
        assert_eq!(problems(&[], Command::Del), [CONTAINER_ID, IFNAME]);
    }

    #[test]
    fn bad_values_are_named() {
        let long = "c".repeat(MAX_CONTAINER_ID + 1);
        for (id, ifname, wanted) in [
            ("-c1", "eth0", CONTAINER_ID),
            ("../c1", "eth0", CONTAINER_ID),
            ("c 1", "eth0", CONTAINER_ID),
            (long.as_str(), "eth0", CONTAINER_ID),
            ("c1", "an-interface-name", IFNAME),
            ("c1", "..", IFNAME),
            ("c1", "eth/0", IFNAME),
            ("c1", "eth0:1", IFNAME),
        ] {
            let pairs = [(CONTAINER_ID, id), (IFNAME, ifname), (NETNS, "/run/netns/x")];
            assert_eq!(problems(&pairs, Command::Add), [wanted], "{id} {ifname}");
        }
    }

    #[test]
    fn garbage_arguments_do_not_stop_a_removal() {
        let pairs = [(CONTAINER_ID, "c1"), (IFNAME, "eth0"), (NETNS, "/run/netns/x"), (ARGS, "K8S")];
        assert_eq!(problems(&pairs, Command::Add), [ARGS]);
        assert_eq!(problems(&pairs, Command::Del), [""; 0]);
    }

    #[test]
    fn the_pod_is_read_from_the_arguments() {
        let text = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u=1;";
        let pod = parse_args(text).unwrap();
        assert_eq!((pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str()), ("shop", "web-0", "u=1"));
    }

    /// What a value may be: anything but the separator.
    const VALUE: &str = "[^;]{0,12}";

    proptest! {
        /// Whatever is accepted is safe in a file name and in a link's alias.
        #[test]
        fn an_accepted_container_id_has_nothing_to_escape(id in "\\PC{0,20}") {
            if check_container_id(&id).is_ok() {
                prop_assert!(!id.is_empty() && !id.starts_with('.') && !id.contains(['/', ':', '=', ' ']));
            }
        }

        /// Among whatever others, in any order.
        #[test]
        fn the_pods_arguments_are_read_exactly(
            namespace in VALUE, name in VALUE, uid in VALUE,
            others in prop::collection::vec(("[A-Z_]{0,12}", VALUE), 0..4),
            turn in 0usize..7,
        ) {
            let ours = [("K8S_POD_NAMESPACE", &namespace), ("K8S_POD_NAME", &name), ("K8S_POD_UID", &uid)];
            let mut pairs: Vec<String> = ours.iter().map(|(key, value)| format!("{key}={value}")).collect();
            pairs.extend(others.iter().map(|(key, value)| format!("{key}={value}")));
            let count = pairs.len();
            pairs.rotate_left(turn % count);
            prop_assert_eq!(parse_args(&pairs.join(";")), Ok(PodArgs { namespace, name, uid }));
        }

        #[test]
        fn a_pair_without_a_value_is_named(pair in "[A-Z0-9_]{1,20}", before in "(A=1;)?", after in "(;B=2)?") {
            let problem = parse_args(&format!("{before}{pair}{after}")).unwrap_err();
            prop_assert!(problem.contains(&pair), "{problem}");
        }

        /// Whatever is accepted, the kernel takes as an interface's name.
        #[test]
        fn an_accepted_interface_name_is_valid(name in "\\PC{1,20}") {
            if check_ifname(&name).is_ok() {
                prop_assert!(name.len() < 16 && !name.contains(['/', ':', ' ', '\0']));
            }
        }

        #[test]
        fn no_arguments_panic(text in "\\PC{0,60}") {
            let _ = parse_args(&text);
        }
    }
}
