use super::*;
use crate::testing::is_root;

#[test]
fn the_callers_thread_stays_where_it_is() {
    if !is_root() {
        return;
    }
    let before = NetNs::current().unwrap().id();
    let other = NetNs::create().unwrap();
    let inside = other.run(|| NetNs::current().unwrap().id()).unwrap();
    assert_eq!(inside, other.id());
    assert_ne!(inside, before);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| other.run(|| panic!("inside"))));
    assert!(panicked.is_err());
    assert_eq!(NetNs::current().unwrap().id(), before);
}

#[test]
fn the_host_is_recognised_and_a_new_namespace_is_not_it() {
    if !is_root() {
        return;
    }
    assert!(NetNs::current().unwrap().is_host());
    assert!(!NetNs::create().unwrap().is_host());
}

#[test]
fn what_is_no_network_namespace_is_named() {
    let absent = NetNs::open(Path::new("/run/netns/absent-for-sure")).unwrap_err();
    assert!(absent.is_gone(), "{absent}");
    let file = NetNs::open(Path::new("/etc/passwd")).unwrap_err();
    assert_eq!(file.to_string(), "/etc/passwd is not a network namespace");
    let other_kind = NetNs::open(Path::new("/proc/self/ns/mnt")).unwrap_err();
    assert_eq!(other_kind.to_string(), "/proc/self/ns/mnt is not a network namespace");
    let fifo = std::env::temp_dir().join(format!("tunproxy-fifo-{}", std::process::id()));
    rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
    let result = NetNs::open(&fifo);
    std::fs::remove_file(&fifo).unwrap();
    assert!(matches!(result.unwrap_err(), NetNsError::NotANamespace { .. }));
}
