//! Attachments from ADD to DEL, and every other way they come and go.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tunproxy_ipc::{AttachRequest, Client, ClientError, ErrorCode, GcRequest, Request, Response, Tombstones};
use tunproxy_testkit::{root_or_skip, wait};

use crate::lab::{AGENT, LIMIT, Lab, Pod, ask_for_greeting, web};

#[test]
fn a_pod_is_served_over_restarts_until_it_is_detached() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let mut agent = lab.agent();
    let pod = Pod::create(&lab, "c1");
    assert_eq!(pod.add(&lab).unwrap(), Response::Attached);
    assert_eq!(pod.fetch().unwrap(), "hello");
    assert_eq!(lab.kept(), 1);
    assert_eq!(pod.add(&lab).unwrap(), Response::Attached, "the same ADD again converges");
    assert_eq!(pod.fetch().unwrap(), "hello");

    agent.kill().unwrap();
    assert!(
        pod.namespace.tcp_connect(web(), Duration::from_millis(300)).is_err(),
        "nothing passes without an agent"
    );
    agent = lab.agent();
    assert_eq!(pod.fetch().unwrap(), "hello", "served again without the plugin");
    let check = lab.ask(&Request::Check(pod.key())).unwrap();
    assert!(matches!(check, Response::Checked(checked) if checked.ok));

    for _ in 0..2 {
        assert_eq!(lab.ask(&Request::Detach(pod.key())).unwrap(), Response::Detached);
    }
    assert_eq!(lab.kept(), 0);
    assert!(lab.status()["pods"].as_array().unwrap().is_empty());
    let check = lab.ask(&Request::Check(pod.key())).unwrap();
    assert!(matches!(check, Response::Checked(checked) if !checked.ok));

    agent.signal(Signal::TERM).unwrap();
    assert!(agent.wait(LIMIT).unwrap().success());
    assert!(!lab.path("cni.sock").exists() && !lab.path("admin.sock").exists());
    let flows = fs::read_to_string(lab.path("flows.jsonl")).unwrap();
    let flow: Value = serde_json::from_str(flows.lines().next().unwrap()).unwrap();
    assert_eq!((&flow["pod"]["name"], &flow["verdict"]), (&"c1".into(), &"allowed".into()));
}

#[test]
fn the_last_place_is_given_once_whatever_was_prepared() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let _agent = lab.agent_with(&[("TUNPROXY_LIMITS_PODS", "1")]);
    let (first, second) = (Pod::create(&lab, "c1"), Pod::create(&lab, "c2"));
    assert_eq!(first.add(&lab).unwrap(), Response::Attached);
    let error = second.attach_unasked(&lab).unwrap_err();
    let ClientError::Refused(failure) = &error else { panic!("{error}") };
    assert_eq!(failure.code, ErrorCode::LimitReached, "{failure:?}");
    assert_eq!(lab.kept(), 1);
    assert_eq!(first.add(&lab).unwrap(), Response::Attached, "who has a place keeps it");
    assert_eq!(lab.ask(&Request::Detach(first.key())).unwrap(), Response::Detached);
    assert_eq!(second.add(&lab).unwrap(), Response::Attached);
}

#[test]
fn a_repeated_attach_takes_over_the_queues_and_leaves_the_flows() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let agent = lab.agent();
    let pod = Pod::create(&lab, "c1");
    pod.add(&lab).unwrap();
    let stream = pod.connect().unwrap();
    // More often than the kernel has queues for: the old ones are really closed.
    for _ in 0..200 {
        assert_eq!(pod.add(&lab).unwrap(), Response::Attached);
    }
    assert_eq!(ask_for_greeting(stream).unwrap(), "hello", "the flow of before goes on");
    assert_eq!(pod.fetch().unwrap(), "hello");
    assert_eq!(lab.status()["pods"].as_array().unwrap().len(), 1);

    pod.add_and_die(&lab, &agent);
    wait::until_true("the repeated attach", LIMIT, || agent.log().matches("attached again").count() == 201)
        .unwrap();
    assert_eq!(pod.fetch().unwrap(), "hello", "a repeated ADD that is killed leaves the pod as it was");

    // What the pod is has changed: its flows belong to another pod now, and end.
    let stream = pod.connect().unwrap();
    let mut renamed = pod;
    renamed.attachment.pod.name = "c1b".into();
    renamed.add(&lab).unwrap();
    assert!(ask_for_greeting(stream).is_err(), "the flow of another identity ends");
    assert_eq!(renamed.fetch().unwrap(), "hello");
}

#[test]
fn an_attach_whose_plugin_was_killed_does_not_stay_behind_its_del() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let agent = lab.agent();
    let pod = Pod::create(&lab, "c1");
    // The DEL was faster: its connection was served before that of the ADD.
    assert_eq!(lab.ask(&Request::Detach(pod.key())).unwrap(), Response::Detached);
    pod.add_and_die(&lab, &agent);
    wait::until_true("the late attach to be taken back", LIMIT, || agent.log().contains("taken back"))
        .unwrap();
    let check = lab.ask(&Request::Check(pod.key())).unwrap();
    assert!(matches!(check, Response::Checked(checked) if !checked.ok));
    assert_eq!(lab.kept(), 0, "nor does it stay on disk");
    assert_eq!(pod.add(&lab).unwrap(), Response::Attached, "the next ADD is like any other");
    assert_eq!(pod.fetch().unwrap(), "hello");
}

#[test]
fn a_collected_pod_that_lives_on_loses_its_plumbing() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let _agent = lab.agent();
    let [stale, valid] = ["c1", "c2"].map(|id| Pod::create(&lab, id));
    for pod in [&stale, &valid] {
        pod.add(&lab).unwrap();
    }
    let request = Request::Gc(GcRequest { network: "net".into(), valid: vec![valid.key()] });
    assert_eq!(lab.ask(&request).unwrap(), Response::Collected { removed: vec![stale.key()] });
    assert!(!stale.namespace.ip("-o link").unwrap().contains("eth0"), "the TUN is gone with the attachment");
    assert!(valid.namespace.ip("-o link").unwrap().contains("eth0"));
    assert_eq!(valid.fetch().unwrap(), "hello");
}

#[test]
fn what_went_away_is_forgotten_however_it_went() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let mut agent = lab.agent();
    let [buried, vanished, collected] = ["c1", "c2", "c3"].map(|id| Pod::create(&lab, id));
    for pod in [&buried, &vanished, &collected] {
        pod.add(&lab).unwrap();
    }
    let valid = vec![buried.key(), vanished.key()];
    let other = GcRequest { network: "other".into(), valid: Vec::new() };
    assert_eq!(lab.ask(&Request::Gc(other)).unwrap(), Response::Collected { removed: Vec::new() });
    let removed = vec![collected.key()];
    let request = Request::Gc(GcRequest { network: "net".into(), valid });
    assert_eq!(lab.ask(&request).unwrap(), Response::Collected { removed });

    agent.kill().unwrap();
    Tombstones::new(&lab.path("plugin")).write(&buried.key()).unwrap();
    drop(vanished);
    let _agent = lab.agent();
    assert_eq!(lab.kept(), 0);
    assert_eq!(Tombstones::new(&lab.path("plugin")).read().unwrap(), []);
}

#[test]
fn another_pod_under_a_living_key_and_foreign_descriptors_are_refused() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let _agent = lab.agent();
    let pod = Pod::create(&lab, "c1");
    pod.add(&lab).unwrap();
    let mut other = Pod::create(&lab, "c2");
    other.attachment.key = pod.key();
    let ClientError::Refused(failure) = other.add(&lab).unwrap_err() else { panic!() };
    assert_eq!(failure.code, ErrorCode::Conflict);
    assert_eq!(pod.fetch().unwrap(), "hello", "the first is not disturbed");

    let mut client = Client::connect(&lab.path("cni.sock"), Instant::now() + LIMIT).unwrap();
    let file = fs::File::open("/dev/null").unwrap();
    let request = Request::Attach(AttachRequest { attachment: other.attachment.clone() });
    for fds in [&[][..], &[file.as_fd()], &[file.as_fd(), file.as_fd(), file.as_fd()]] {
        let Err(ClientError::Refused(failure)) = client.call(&request, fds) else { panic!("{fds:?}") };
        assert_eq!(failure.code, ErrorCode::BadRequest, "{}", failure.message);
    }
}

#[test]
fn a_second_agent_is_refused_and_the_first_goes_on() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let _agent = lab.agent();
    let mut second = lab.topology.node.command_with_resolver(AGENT);
    let output = second.args(["serve", "--config"]).arg(lab.path("agent.yaml")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("is in use by another agent"), "{said}");
    assert!(Path::exists(&lab.path("cni.sock")));
    assert_eq!(lab.get("/readyz").unwrap().0, 200);
}
