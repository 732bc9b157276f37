//! Policy documents while pods are served.

use std::fs;

use tunproxy_ipc::{ClientError, ErrorCode, Request, Response};
use tunproxy_testkit::{root_or_skip, wait};

use crate::lab::{LIMIT, Lab, Pod};

const DENY_WEB: &str = "\
apiVersion: tunproxy.io/v1alpha1
kind: ClusterEgressPolicy
metadata: {name: no-web}
spec:
  subject: {namespaces: {}}
  tier: Admin
  rules:
  - {name: web, action: Deny, ports: [{protocol: TCP, port: 7000}]}
";

#[test]
fn an_edit_comes_into_force_and_a_broken_one_changes_nothing() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let _agent = lab.agent();
    let pod = Pod::create(&lab, "c1");
    pod.add(&lab).unwrap();
    assert_eq!(pod.fetch().unwrap(), "hello");

    lab.write_policy(DENY_WEB);
    wait::until_true("the refusal", LIMIT, || pod.is_refused()).unwrap();

    lab.write_policy(&DENY_WEB.replace("action: Deny", "action: Denny"));
    wait::until_true("the mistake on the status page", LIMIT, || {
        lab.status()["policies"]["mistakes"].to_string().contains("policy.yaml:8: ")
    })
    .unwrap();
    assert!(pod.is_refused(), "the last good policies stay");
    assert_eq!(lab.get("/readyz").unwrap().0, 200);

    fs::remove_file(lab.path("policies/policy.yaml")).unwrap();
    wait::until_true("the end of the refusal", LIMIT, || pod.fetch().is_ok()).unwrap();
    wait::until_true("the return of the packets' memory", LIMIT, || {
        lab.get("/metrics").unwrap().1.contains("tunproxy_packet_memory_bytes 0\n")
    })
    .unwrap();
    let metrics = lab.get("/metrics").unwrap().1;
    for line in [
        "tunproxy_ready 1",
        "tunproxy_pods 1",
        "tunproxy_policy_mistakes 0",
        "tunproxy_flows_total{verdict=\"denied\"",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[test]
fn without_a_good_policy_no_pod_starts_and_running_ones_are_refused() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let mut agent = lab.agent();
    let pod = Pod::create(&lab, "c1");
    pod.add(&lab).unwrap();
    agent.kill().unwrap();
    lab.write_policy("kind: Nonsense\n");
    let _agent = lab.agent();
    assert!(pod.is_refused(), "it fails closed");
    assert_eq!(lab.get("/readyz").unwrap().0, 503);
    let error = Pod::create(&lab, "c2").add(&lab).unwrap_err();
    let ClientError::Refused(failure) = error else { panic!("{error}") };
    assert_eq!(failure.code, ErrorCode::NotReady);
    assert!(failure.message.contains("policy.yaml:1: "), "{}", failure.message);
    let Response::Status(status) = lab.ask(&Request::Status).unwrap() else { panic!() };
    assert!(!status.ready && status.degraded);

    lab.write_policy("");
    fs::remove_file(lab.path("policies/policy.yaml")).unwrap();
    wait::until_true("service after the mending", LIMIT, || pod.fetch().is_ok()).unwrap();
}
