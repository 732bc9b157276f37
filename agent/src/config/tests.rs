use std::collections::{HashMap, HashSet};
use std::fs;

use clap::{Args, FromArgMatches};

use super::*;

fn flags(arguments: &[&str]) -> ConfigFlags {
    let command = ConfigFlags::augment_args(clap::Command::new("test").no_binary_name(true));
    ConfigFlags::from_arg_matches(&command.get_matches_from(arguments)).unwrap()
}

/// Loads a file with `text`, the given variables and flags; mistakes name the file `agent.yaml`.
fn load(text: &str, variables: &[(&str, &str)], arguments: &[&str]) -> Result<Loaded, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.yaml");
    fs::write(&path, text).unwrap();
    let variables: HashMap<_, _> = variables.iter().copied().collect();
    let environment = |name: &str| variables.get(name).map(|&value| value.to_owned());
    Config::load(Some(&path), environment, &flags(arguments))
        .map_err(|mistakes| mistakes.to_string().replace(&format!("{}/", folder.path().display()), ""))
}

fn origin_of(loaded: &Loaded, path: &str) -> String {
    let key = KEYS.iter().position(|key| key.path == path).unwrap();
    let origin = loaded.origins[key].to_string();
    origin.rsplit('/').next().unwrap().to_owned()
}

#[test]
fn nothing_given_is_the_default() {
    let loaded = Config::load(None, |_| None, &ConfigFlags::default()).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert!(loaded.origins.iter().all(|origin| *origin == Origin::Default));
    assert_eq!(load("", &[], &[]).unwrap().config, Config::default(), "an empty file says nothing");
}

#[test]
fn the_example_of_the_documentation_is_read() {
    let text = r#"
node: {name: worker-1}
cniSocket: /run/tunproxy/cni.sock
stateDir: /var/lib/tunproxy
workers: 2
networks: {pods: [10.244.0.0/16], services: [10.96.0.0/12], nodes: []}
default: Deny
upstream: socks5://127.0.0.1:1080
resolvers: [/etc/resolv.conf, 10.96.0.10]
limits: {flowsPerPod: 10000, pendingPerPod: 512, udpMappingsPerPod: 4096, memory: 128Mi}
tcp: {keepalive: 60, keepaliveInterval: 5, keepaliveProbes: 3, userTimeout: 30}
flowLog: {path: /var/log/tunproxy/flows.jsonl, rotate: 64Mi, keep: 4}
admin: {socket: /run/tunproxy/admin.sock, metrics: "127.0.0.1:9965"}
"#;
    let config = load(text, &[], &[]).unwrap().config;
    assert_eq!(config.node.name, "worker-1");
    assert_eq!(config.workers.get(), 2);
    assert_eq!(config.networks.services, ["10.96.0.0/12".parse::<IpNet>().unwrap()]);
    assert_eq!(config.networks.nodes, []);
    assert_eq!(config.policy.default, DefaultAction::Deny);
    assert_eq!(config.policy.resolvers.len(), 2);
    assert_eq!(config.limits.memory, ByteSize::mebibytes(128));
    let tcp = Tcp { keepalive: 60, keepalive_interval: 5, keepalive_probes: 3, user_timeout: 30 };
    assert_eq!(config.tcp, tcp);
    assert_eq!(config.tcp.keepalive(), Some(Keepalive { idle: 60, interval: 5, probes: 3 }));
    assert_eq!(config.tcp.user_timeout(), Some(tunproxy_datapath::Duration::from_secs(30)));
    let off = Tcp { keepalive: 0, user_timeout: 0, ..tcp };
    assert_eq!((off.keepalive(), off.user_timeout()), (None, None));
}

#[test]
fn without_settings_tcp_is_as_patient_as_the_datapath_is() {
    let (ours, theirs) = (Config::default().tcp, tunproxy_datapath::Limits::default());
    assert_eq!((ours.keepalive(), ours.user_timeout()), (theirs.keepalive, theirs.user_timeout));
}

#[test]
fn flag_beats_variable_beats_file_beats_default() {
    let text = "limits:\n  flowsPerPod: 1\n  pendingPerPod: 1\n  udpMappingsPerPod: 1\n";
    let variables = [("TUNPROXY_LIMITS_FLOWS_PER_POD", "2"), ("TUNPROXY_LIMITS_PENDING_PER_POD", "2")];
    let loaded = load(text, &variables, &["--limits-flows-per-pod", "3"]).unwrap();
    assert_eq!(loaded.config.limits.flows_per_pod, 3);
    assert_eq!(loaded.config.limits.pending_per_pod, 2);
    assert_eq!(loaded.config.limits.udp_mappings_per_pod, 1);
    assert_eq!(origin_of(&loaded, "limits.flowsPerPod"), "--limits-flows-per-pod");
    assert_eq!(origin_of(&loaded, "limits.pendingPerPod"), "TUNPROXY_LIMITS_PENDING_PER_POD");
    assert_eq!(origin_of(&loaded, "limits.udpMappingsPerPod"), "agent.yaml:4");
    assert_eq!(origin_of(&loaded, "limits.pods"), "default");
}

#[test]
fn lists_are_replaced_not_joined() {
    let loaded = load(
        "policy: [/a, /b]\nresolvers: [10.0.0.1]\n",
        &[("TUNPROXY_RESOLVERS", "10.0.0.2, fd00::1")],
        &["--policy", "c", "--policy", "d,e"],
    );
    let policy = loaded.unwrap().config.policy;
    assert_eq!(policy.paths, ["c", "d", "e"].map(PathBuf::from));
    assert_eq!(
        policy.resolvers,
        ["10.0.0.2", "fd00::1"].map(|text| Resolver::Address(text.parse().unwrap()))
    );
}

#[test]
fn an_empty_variable_is_not_set() {
    let loaded = load("", &[("TUNPROXY_WORKERS", "")], &[]).unwrap();
    assert_eq!(loaded.config, Config::default());
}

#[test]
fn the_flow_log_can_be_named_in_one_word() {
    let destination = |text: &str| load(text, &[], &[]).unwrap().config.flow_log.destination;
    assert_eq!(destination("flowLog: stdout"), LogDestination::Stdout);
    assert_eq!(destination("flowLog: none"), LogDestination::None);
    assert_eq!(destination("flowLog: {path: /x}"), LogDestination::File("/x".into()));
}

#[test]
fn every_key_has_a_distinct_variable_and_flag_and_shows_its_default_readably() {
    let mut names = HashSet::new();
    let mut reread = Config::default();
    for (key, spec) in KEYS.iter().enumerate() {
        assert!(names.insert(spec.variable()) && names.insert(spec.flag()), "{}", spec.path);
        let values = (spec.show)(&Config::default());
        let raw = Raw { key, values, origin: Origin::Default };
        (spec.set)(&mut reread, &raw).unwrap_or_else(|wrong| panic!("{}: {wrong}", spec.path));
    }
    assert_eq!(reread, Config::default());
}

#[test]
fn what_is_printed_is_a_file_with_the_same_meaning() {
    let text = "networks: {pods: [10.244.0.0/16, 'fd00::/48']}\nadmin: {socket: none}\nlog: {level: 'info,h2=warn'}\n";
    let loaded = load(text, &[("TUNPROXY_WORKERS", "7")], &["--default", "Deny"]).unwrap();
    let printed = loaded.to_string();
    assert!(printed.contains("workers: 7") && printed.contains("# TUNPROXY_WORKERS"), "{printed}");
    assert!(printed.contains("# --default"), "{printed}");
    assert_eq!(load(&printed, &[], &[]).unwrap().config, loaded.config, "{printed}");
}

#[test]
fn a_setting_without_effect_says_so() {
    let loaded = load("networks: {nodes: [192.0.2.0/24]}", &[], &[]).unwrap();
    assert_eq!(loaded.idle().collect::<Vec<_>>(), [("networks.nodes", "without effect in this version")]);
    let printed = loaded.to_string();
    let line = printed.lines().find(|line| line.contains("nodes: ")).unwrap();
    assert!(line.ends_with("agent.yaml:1; without effect in this version"), "{line}");
    assert_eq!(load("", &[], &[]).unwrap().idle().count(), 0, "nobody is bothered who did not set it");
}

#[test]
fn a_password_is_not_printed() {
    let loaded = load("", &[], &["--upstream", "socks5://me:hunter2@proxy:1080"]).unwrap();
    assert!(!loaded.to_string().contains("hunter2"), "{loaded}");
    assert!(loaded.to_string().contains("proxy:1080"), "{loaded}");
}

/// What is wrong, and every line that is said about it.
const MISTAKES: &[(&str, &[&str])] = &[
    ("worker: 2", &["agent.yaml:1: unknown key `worker`; did you mean `workers`?"]),
    (
        "limits: {flowPerPod: 2}",
        &["agent.yaml:1: limits: unknown key `flowPerPod`; did you mean `flowsPerPod`?"],
    ),
    ("workers: 0", &["agent.yaml:1: workers: \"0\" is not a whole number from 1 to 1024"]),
    (
        "tcp: {userTimeout: 1m}",
        &["agent.yaml:1: tcp.userTimeout: \"1m\" is not a whole number from 0 to 32767"],
    ),
    ("workers: two", &["agent.yaml:1: workers: \"two\" is not a whole number from 1 to 1024"]),
    ("resolvers: 10.0.0.1", &["agent.yaml:1: resolvers: expected a list, found a text"]),
    (
        "a: 1\n---\nb: 2",
        &[
            "agent.yaml:1: unknown key `a` (known are admin, cniSocket, default, flowLog, limits, log, networks, node, \
         pluginStateDir, policy, resolvers, stateDir, tcp, upstream, workers)",
            "agent.yaml:3: a second document; policy documents go into files of their own (key `policy`)",
        ],
    ),
    ("workers: [2]", &["agent.yaml:1: workers: expected a text, found a list"]),
    ("workers: {a: 1}", &["agent.yaml:1: workers: expected a text, found a mapping"]),
    ("workers:", &["agent.yaml:1: workers: has no value; give it one or remove the key"]),
    ("limits: 3", &["agent.yaml:1: limits: expected a mapping, found a number"]),
    ("- workers", &["agent.yaml:1: expected a mapping, found a list"]),
    ("default: Maybe", &["agent.yaml:1: default: \"Maybe\" is not one of Allow, Deny"]),
    ("cniSocket: run/x", &["agent.yaml:1: cniSocket: \"run/x\" is not an absolute path (/...)"]),
    (
        "networks:\n  pods:\n  - 10.0.0.0/33\n  - 10.0.0.1/8",
        &["agent.yaml:2: networks.pods: \"10.0.0.0/33\" is not a network (address/prefix, prefix 0-32); \
           \"10.0.0.1/8\" has bits beyond its prefix; write 10.0.0.0/8"],
    ),
    (
        "resolvers: [dns.example]",
        &[
            "agent.yaml:1: resolvers: \"dns.example\" is neither an IP address nor the absolute path of a file like \
           /etc/resolv.conf",
        ],
    ),
    (
        "limits: {memory: 1M}",
        &[
            "agent.yaml:1: limits.memory: \"1M\" is not a size (a whole number of bytes, or with Ki, Mi, Gi: 64Mi)",
        ],
    ),
    ("limits: {memory: 1Ki}", &["agent.yaml:1: limits.memory: \"1Ki\" is out of range (16Mi to 1024Gi)"]),
    ("flowLog: {begin: yes}", &["agent.yaml:1: flowLog.begin: \"yes\" is neither true nor false"]),
    (
        "flowLog: {path: flows}",
        &["agent.yaml:1: flowLog.path: \"flows\" is not an absolute path, stdout or none"],
    ),
    (
        "admin: {metrics: localhost}",
        &[
            "agent.yaml:1: admin.metrics: \"localhost\" is not an address with port (127.0.0.1:9965, [::1]:9965) or none",
        ],
    ),
    (
        "workers: 1\nworkers: 2",
        &["agent.yaml:2: the key `workers` is there twice (first on line 1); remove one"],
    ),
    (
        "worker: 1\ndefault: x\n",
        &[
            "agent.yaml:1: unknown key `worker`; did you mean `workers`?",
            "agent.yaml:2: default: \"x\" is not one of Allow, Deny",
        ],
    ),
];

#[test]
fn every_mistake_is_said_with_its_place_and_remedy() {
    for (text, expected) in MISTAKES {
        let said = load(text, &[], &[]).expect_err(text);
        assert_eq!(said.lines().collect::<Vec<_>>(), *expected, "{text}");
    }
}

#[test]
fn variables_and_flags_are_named_as_the_person_wrote_them() {
    let said = load("", &[("TUNPROXY_WORKERS", "x")], &["--limits-memory", "y"]).unwrap_err();
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        [
            "TUNPROXY_WORKERS: \"x\" is not a whole number from 1 to 1024",
            "--limits-memory: \"y\" is not a size (a whole number of bytes, or with Ki, Mi, Gi: 64Mi)",
        ]
    );
}

#[test]
fn a_file_that_is_not_there_is_said() {
    let error = Config::load(Some(Path::new("/nonexistent/agent.yaml")), |_| None, &ConfigFlags::default());
    let said = error.unwrap_err().to_string();
    assert!(said.starts_with("/nonexistent/agent.yaml: ") && said.contains("No such file"), "{said}");
}
