use std::fs;
use std::path::Path;

use tunproxy_policy::{Decision, FlowQuery, Protocol};

use super::*;
use crate::config::Resolver;

const DENY_SMTP: &str = "\
apiVersion: tunproxy.io/v1alpha1
kind: ClusterEgressPolicy
metadata: {name: no-mail}
spec:
  subject: {namespaces: {}}
  tier: Admin
  rules:
  - {name: smtp, action: Deny, ports: [{protocol: TCP, port: 25}]}
";

fn policies(path: &Path, upstream: &str) -> Policies {
    Policies::new(config::Policy {
        paths: vec![path.to_owned()],
        default: DefaultAction::Allow,
        upstream: upstream.to_owned(),
        resolvers: vec![Resolver::Address("192.0.2.53".parse().unwrap())],
    })
}

fn decide(policies: &Policies, port: u16) -> Decision {
    let query =
        FlowQuery { protocol: Protocol::Tcp, destination: "192.0.2.1".parse().unwrap(), port, names: &[] };
    let workload = Workload { namespace: "shop".into(), ..Workload::default() };
    policies.rules_for(&workload).policy.decide(&query)
}

fn denied(policies: &Policies, port: u16) -> Option<DenyReason> {
    match decide(policies, port) {
        Decision::Deny(refusal) => Some(refusal.reason),
        Decision::Allow(_) | Decision::ByName { .. } => None,
    }
}

#[test]
fn nothing_is_allowed_before_a_first_good_reading() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.yaml"), "kind: Nonsense\n").unwrap();
    let policies = policies(folder.path(), "direct");
    assert_eq!(denied(&policies, 443), Some(DenyReason::NoPolicy));
    assert!(matches!(policies.reload(), Outcome::Broken(_)));
    assert_eq!(denied(&policies, 443), Some(DenyReason::NoPolicy));
    assert!(!policies.mistakes().is_empty());
}

#[test]
fn a_broken_edit_keeps_the_last_good_policies_and_a_mended_one_replaces_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.yaml");
    fs::write(&file, DENY_SMTP).unwrap();
    let policies = policies(folder.path(), "direct");
    let Outcome::New(first) = policies.reload() else { panic!("{:?}", policies.mistakes()) };
    assert_eq!((first.number, first.files), (1, 1));
    assert_eq!(denied(&policies, 25), Some(DenyReason::Rule));
    assert_eq!(denied(&policies, 443), None);

    fs::write(&file, DENY_SMTP.replace("action: Deny", "action: Denny")).unwrap();
    let Outcome::Broken(mistakes) = policies.reload_if_changed() else { panic!("the edit was not seen") };
    assert!(mistakes[0].contains("a.yaml:8: ") && mistakes[0].contains("Denny"), "{mistakes:?}");
    assert_eq!(denied(&policies, 25), Some(DenyReason::Rule));
    assert!(matches!(policies.reload_if_changed(), Outcome::Same));

    fs::write(&file, DENY_SMTP.replace("port: 25", "port: 443")).unwrap();
    let Outcome::New(second) = policies.reload_if_changed() else { panic!("{:?}", policies.mistakes()) };
    assert_eq!(second.number, 2);
    assert_eq!((denied(&policies, 25), denied(&policies, 443)), (None, Some(DenyReason::Rule)));
    assert!(policies.mistakes().is_empty());
}

#[test]
fn the_default_upstream_is_a_url_or_a_document() {
    let folder = tempfile::tempdir().unwrap();
    let document = "\
apiVersion: tunproxy.io/v1alpha1
kind: ClusterUpstream
metadata: {name: corp}
spec: {type: SOCKS5, address: 'proxy.example.com:1080'}
";
    fs::write(folder.path().join("a.yaml"), document).unwrap();
    for (text, reference) in [
        ("direct", "direct"),
        ("direct://", "direct"),
        ("corp", "corp"),
        ("socks5://me:secret@192.0.2.9:1080", "socks5://me@192.0.2.9:1080"),
    ] {
        let policies = policies(folder.path(), text);
        let Outcome::New(generation) = policies.reload() else { panic!("{:?}", policies.mistakes()) };
        let Decision::Allow(permit) = decide(&policies, 80) else { panic!("{text}") };
        assert_eq!(&*permit.upstream().0, reference);
        assert!(generation.upstreams.iter().any(|spec| spec.reference == *permit.upstream()), "{text}");
    }
    for (text, expected) in [
        ("corpp", "upstream: \"corpp\" is neither a URL nor an Upstream document (corp)"),
        ("ftp://x", "upstream: the upstream's scheme \"ftp\" is unknown"),
    ] {
        let Outcome::Broken(mistakes) = policies(folder.path(), text).reload() else { panic!("{text}") };
        assert!(mistakes[0].starts_with(expected), "{mistakes:?}");
    }
}

#[test]
fn documents_of_type_direct_carry_datagrams_whatever_their_name() {
    let folder = tempfile::tempdir().unwrap();
    let nested = folder.path().join("team");
    fs::create_dir(&nested).unwrap();
    let document = |kind: &str| {
        format!(
            "apiVersion: tunproxy.io/v1alpha1\nkind: ClusterUpstream\nmetadata: {{name: office}}\nspec: {kind}\n"
        )
    };
    fs::write(nested.join("a.yaml"), document("{type: Direct}")).unwrap();
    let policies = policies(folder.path(), "office");
    let Outcome::New(_) = policies.reload() else { panic!("{:?}", policies.mistakes()) };
    let direct = |policies: &Policies| policies.rules_for(&Workload::default()).direct;
    assert!(direct(&policies).contains(&UpstreamRef("office".into())));

    fs::write(nested.join("a.yaml"), document("{type: SOCKS5, address: 'proxy:1080'}")).unwrap();
    let Outcome::New(_) = policies.reload_if_changed() else { panic!("the nested edit was not seen") };
    assert!(!direct(&policies).contains(&UpstreamRef("office".into())));
}
