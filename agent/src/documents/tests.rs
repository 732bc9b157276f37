use std::fs;
use std::time::Duration;

use proptest::prelude::*;
use tunproxy_policy::model::{
    ClusterAction, ClusterTier, Destination, DnsMode, EgressAction, Enforcement, PortMatch, PortRange,
    Subject, UdpFiltering,
};
use tunproxy_policy::selector::{Operator, Requirement};
use tunproxy_policy::{
    Decision, DomainPattern, FlowQuery, NodeDefault, NodeSettings, PolicySet, Protocol, UpstreamRef, Workload,
};

use super::*;

/// Cases of `=== title`, the text of a file, and `>>>` before each line that it has to give.
const MISTAKES: &str = include_str!("tests/mistakes.txt");

const EVERYTHING: &str = include_str!("tests/everything.yaml");

fn lines(report: &LoadReport) -> Vec<String> {
    report.mistakes.iter().map(ToString::to_string).collect()
}

#[test]
fn each_mistake_of_the_table_gives_its_line() {
    let mut cases = 0;
    for case in MISTAKES.split("=== ").skip(1) {
        let (title, rest) = case.split_once('\n').expect("a title");
        let (text, expected) = rest.split_at(rest.find(">>> ").expect("an expected line"));
        let expected: Vec<_> = expected.lines().map(|line| line.trim_start_matches(">>> ")).collect();
        assert_eq!(lines(&load_text("p.yaml".as_ref(), text)), expected, "{title}");
        cases += 1;
    }
    assert!(cases >= 60, "{cases} cases");
}

#[test]
fn no_mistake_shows_a_secret() {
    for case in MISTAKES.split("=== ").filter(|case| case.contains("hunter2")) {
        let (text, _) = case.split_once(">>> ").expect("an expected line");
        let text = text.split_once('\n').expect("a title").1;
        let report = load_text("p.yaml".as_ref(), text);
        assert!(!format!("{report:?}").contains("hunter2"), "{text}");
    }
}

#[test]
fn every_key_reaches_the_model() {
    let report = load_text("everything.yaml".as_ref(), EVERYTHING);
    assert_eq!(lines(&report), [""; 0]);
    let (policies, upstreams) = report.documents.compile_inputs();
    let policy = &policies.egress[0];
    assert_eq!((&*policy.namespace, &*policy.name, policy.priority.get()), ("shop", "web", 7));
    assert_eq!((policy.enforcement, policy.dns), (Enforcement::Audit, DnsMode::Observe));
    assert_eq!(policy.udp_filtering, UdpFiltering::EndpointIndependent);
    assert_eq!(policy.pod_selector.match_labels["example.com/app"], "web");
    let tier = |operator| Requirement { key: "tier".to_owned(), operator };
    let expected = [
        tier(Operator::In(vec!["front".to_owned()])),
        tier(Operator::NotIn(vec!["back".to_owned()])),
        tier(Operator::Exists),
        Requirement { key: "off".to_owned(), operator: Operator::DoesNotExist },
    ];
    assert_eq!(policy.pod_selector.match_expressions, expected);
    let rule = &policy.rules[0];
    assert_eq!(
        (rule.name.as_deref(), rule.action, rule.via.as_deref()),
        (Some("github"), EgressAction::Allow, Some("proxy"))
    );
    let pattern = |text| DomainPattern::parse(text).expect("a pattern");
    assert_eq!(rule.to[0], Destination::Domains(vec![pattern("api.github.com"), pattern("*.example.com")]));
    let networks = |text: &str| vec![text.parse().expect("a network")];
    let expected =
        Destination::Networks { networks: networks("10.0.0.0/8"), except: networks("10.1.0.0/16") };
    assert_eq!(rule.to[1], expected);
    let tcp = |first, last| PortMatch { protocol: Protocol::Tcp, range: PortRange::new(first, last) };
    assert_eq!(rule.ports[..2], [tcp(443, 443), tcp(8000, 8100)]);
    assert_eq!(rule.ports[2], PortMatch { protocol: Protocol::Icmp, range: None });
    assert_eq!((policy.rules[1].name.as_deref(), policy.rules[1].action), (None, EgressAction::Deny));
    let cluster = &policies.cluster[0];
    assert_eq!((cluster.tier, cluster.priority.get()), (ClusterTier::Baseline, 100));
    assert!(
        matches!(&cluster.subject, Subject::Pods { pod_selector, .. } if pod_selector.match_labels["app"] == "web")
    );
    assert_eq!(cluster.rules[0].action, ClusterAction::Pass);
    let login = Login { username: "me".to_owned(), password: Secret::new("hunter2") };
    let expected = UpstreamSpec {
        reference: UpstreamRef("shop/proxy".into()),
        kind: UpstreamKind::Socks5 {
            address: Endpoint::Tcp { host: "2001:db8::1".to_owned(), port: 1080 },
            login: Some(login),
        },
        connect_timeout: Duration::from_secs(3),
    };
    assert_eq!(upstreams[0], expected);
    let others: Vec<_> = upstreams[1..].iter().map(|spec| (&*spec.reference.0, &spec.kind)).collect();
    assert_eq!(others, [("plain", &UpstreamKind::Direct), ("none", &UpstreamKind::Reject)]);
}

fn decide(documents: Documents) -> Decision {
    let settings =
        NodeSettings { default: NodeDefault::Allow, upstream: UpstreamRef::direct(), resolvers: Vec::new() };
    let (policies, _) = documents.compile_inputs();
    let pod = Workload { namespace: "shop".to_owned(), ..Workload::default() };
    let destination = "198.51.100.1".parse().expect("an address");
    let query = FlowQuery { protocol: Protocol::Tcp, destination, port: 80, names: &[] };
    PolicySet::compile(&policies, settings).for_workload(&pod).decide(&query)
}

#[test]
fn documents_with_mistakes_refuse_everything() {
    let sound = "apiVersion: tunproxy.io/v1alpha1\nkind: EgressPolicy\nmetadata: {name: p, namespace: shop}\n\
                 spec: {rules: [{action: Allow}]}\n";
    let decided = |text: &str| decide(load_text("p.yaml".as_ref(), text).documents);
    assert!(matches!(decided(sound), Decision::Allow(_)));
    // What is read in another version and would have no effect in this one must not open what it was to close.
    let without_effect = ["serviceAccounts: [web], rules:", "dns: {mode: FakeIP}, rules:"]
        .map(|keys| sound.replace("name: p", "name: q").replace("rules:", keys));
    let limited = sound.replace("name: p", "name: q").replace("Allow}", "Allow, limits: {connections: 1}}");
    let [accounts, fake_ip] = &without_effect;
    for broken in [
        "kind: [",
        "kind: Oops",
        "apiVersion: v1\nkind: Secret",
        &sound.replace("Allow", "Alow"),
        sound,
        accounts,
        fake_ip,
        &limited,
    ] {
        let decision = decided(&format!("{sound}---\n{broken}\n"));
        let Decision::Deny(refusal) = decision else { panic!("{broken}: {decision:?}") };
        assert_eq!(refusal.rule.to_string(), "ClusterEgressPolicy/documents-with-mistakes refuse-everything");
    }
}

#[test]
fn a_rule_whose_upstream_is_not_known_refuses_what_it_matches() {
    let text = "apiVersion: tunproxy.io/v1alpha1\nkind: EgressPolicy\nmetadata: {name: p, namespace: shop}\n\
                spec: {rules: [{action: Allow, via: {upstream: gone}}]}\n";
    let report = load_text("p.yaml".as_ref(), text);
    assert_eq!(report.mistakes.len(), 1);
    let Decision::Deny(refusal) = decide(report.documents) else { panic!("allowed") };
    assert_eq!(refusal.reason, tunproxy_policy::DenyReason::BrokenRule);
}

#[test]
fn an_upstream_without_its_secret_is_none() {
    let text = "apiVersion: tunproxy.io/v1alpha1\nkind: ClusterUpstream\nmetadata: {name: p}\n\
                spec: {type: SOCKS5, address: 'h:1', auth: {secretRef: {name: gone}}}\n---\n\
                apiVersion: tunproxy.io/v1alpha1\nkind: EgressPolicy\nmetadata: {name: p, namespace: shop}\n\
                spec: {rules: [{action: Allow, via: {upstream: p}}]}\n";
    let report = load_text("p.yaml".as_ref(), text);
    assert_eq!(
        lines(&report),
        ["p.yaml:4: auth.secretRef.name: there is no Secret \"gone\"; add the document to these files"]
    );
    assert!(report.documents.upstreams.is_empty());
    assert!(matches!(decide(report.documents), Decision::Deny(_)));
}

#[test]
fn folders_are_read_in_order_without_hidden_and_other_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path();
    let policy = |name: &str| {
        format!(
            "apiVersion: tunproxy.io/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: {name}}}\nspec: {{rules: []}}\n"
        )
    };
    fs::create_dir_all(root.join("..data")).expect("a hidden folder");
    fs::create_dir_all(root.join("more")).expect("a folder");
    for (file, name) in [
        ("b.yaml", "b"),
        ("a.yml", "a"),
        ("more/c.yaml", "c"),
        ("..data/b.yaml", "b"),
        (".x.yaml", "x"),
        ("n.txt", "n"),
    ] {
        fs::write(root.join(file), policy(name)).expect("a file");
    }
    let report = load(&[root.to_owned(), root.join("b.yaml")]);
    assert_eq!(lines(&report), [""; 0]);
    assert_eq!(report.files, ["a.yml", "b.yaml", "more/c.yaml"].map(|file| root.join(file)));
    let names: Vec<_> = report.documents.policies.egress.iter().map(|policy| &*policy.name).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(report.documents.policies.egress[0].namespace, "default");
}

#[test]
fn files_that_cannot_be_read_are_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |file: &str| folder.path().join(file);
    fs::write(at("huge.yaml"), vec![b'#'; (4 << 20) + 1]).expect("a file");
    fs::write(at("latin.yaml"), b"a: 1\nb: \xe4\n").expect("a file");
    std::os::unix::fs::symlink(folder.path(), at("circle")).expect("a link");
    let huge_and_latin: Vec<_> = ["huge.yaml", "latin.yaml", "none.yaml"].map(at).into();
    let told: Vec<_> = load(&huge_and_latin).mistakes.into_iter().map(|mistake| mistake.message).collect();
    assert_eq!(
        told,
        [
            "is larger than 4 MiB; split it",
            "is not UTF-8 text (line 2); save it as UTF-8",
            "cannot be read: No such file or directory (os error 2)",
        ]
    );
    let circle = load(&[folder.path().to_owned()]);
    let told = circle.mistakes.iter().filter(|mistake| mistake.message.contains("circle of links")).count();
    assert_eq!(told, 1, "{:?}", lines(&circle));
}

#[test]
fn a_default_upstream_is_a_url_or_a_document() {
    let documents = || load_text("everything.yaml".as_ref(), EVERYTHING).documents;
    let mut ours = documents();
    let count = ours.upstreams.len();
    for (setting, expected) in
        [("direct", "direct"), ("direct://", "direct"), ("plain", "plain"), ("shop/proxy", "shop/proxy")]
    {
        assert_eq!(ours.default_upstream(setting).map(|found| found.to_string()), Ok(expected.to_owned()));
    }
    assert_eq!(ours.upstreams.len(), count);
    assert_eq!(ours.default_upstream("socks5://me:pw@h:1"), Ok(UpstreamRef("socks5://me@h:1".into())));
    assert_eq!(ours.upstreams.len(), count + 1);
    let told = |setting| documents().default_upstream(setting).expect_err(setting).to_string();
    assert_eq!(
        told("proxy"),
        "no upstream document is named \"proxy\" (known: shop/proxy, plain, none); write a ClusterUpstream's name, an \
         Upstream's namespace/name, or a URL"
    );
    assert!(!told("me:hunter2@h:1").contains("hunter2"));
}

/// Changes that keep a text close to a document.
fn damaged() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just(String::new()),
        Just("\n".to_owned()),
        Just("  ".to_owned()),
        "[-:\\[\\]{}&*!#'\",~x0]",
    ];
    (0..EVERYTHING.len(), 0..12usize, piece).prop_map(|(at, length, piece)| {
        let end = (at + length).min(EVERYTHING.len());
        format!("{}{piece}{}", &EVERYTHING[..at], &EVERYTHING[end..])
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A damaged document is a sound one, or it refuses everything or says which rule is broken.
    #[test]
    fn damage_never_panics_and_mistakes_have_a_place(text in damaged()) {
        let report = load_text("p.yaml".as_ref(), &text);
        let count = text.lines().count() + 1;
        for mistake in &report.mistakes {
            prop_assert!(mistake.line <= count && !mistake.message.is_empty(), "{}", mistake);
        }
    }
}
