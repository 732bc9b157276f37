//! Real programs in a pod, over each path.

use tunproxy_e2e::{Path, World, WorldOptions, rows};
use tunproxy_testkit::root_or_skip;

fn programs(path: Path) {
    if !root_or_skip() {
        return;
    }
    let world = World::new(&WorldOptions::for_path(path)).unwrap();
    let pod = world.pod(path, "client").unwrap();
    let mut report = rows::programs(&world, &pod);
    report.row("only our own path was used", || rows::no_leak(&world, path));
    report.finish();
}

#[test]
fn routed() {
    programs(Path::Routed);
}

#[test]
fn after_ptp() {
    programs(Path::AfterPtp);
}

#[test]
fn after_bridge() {
    programs(Path::AfterBridge);
}

#[test]
fn standalone() {
    programs(Path::Standalone);
}
