//! A gigabyte each way, byte for byte: direct, through SOCKS5, over a bad link, and with the TUN's ring overflowing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tunproxy_e2e::world::{SOCKS_AUTH_PORT, SOCKS_PASSWORD, SOCKS_PORT, SOCKS_USER};
use tunproxy_e2e::{Path, Report, World, WorldOptions, rows};
use tunproxy_testkit::link::{LinkConfig, LinkStats};
use tunproxy_testkit::{Host, Namespace, Wire, root_or_skip, wait};

const GIB: u64 = 1 << 30;

fn transfer(
    path: Path,
    options: &WorldOptions,
    length: u64,
    prepare: impl FnOnce(&World, &Namespace),
) -> World {
    let world = World::new(options).unwrap();
    let pod = world.pod(path, "client").unwrap();
    prepare(&world, &pod);
    let mut report = Report::default();
    for family in ["-4", "-6"] {
        let _ = std::fs::remove_file(world.nginx.files().join("large"));
        report.row(format!("{length} bytes each way {family}"), || {
            rows::transfer(&world, &pod, family, length)
        });
    }
    report.row("no leak", || rows::no_leak(&world, path));
    report.finish();
    world
}

#[test]
fn routed() {
    if root_or_skip() {
        transfer(Path::Routed, &WorldOptions::for_path(Path::Routed), GIB, |_, _| ());
    }
}

#[test]
fn chained() {
    if root_or_skip() {
        transfer(Path::AfterPtp, &WorldOptions::for_path(Path::AfterPtp), GIB, |_, _| ());
    }
}

#[test]
fn standalone() {
    if root_or_skip() {
        transfer(Path::Standalone, &WorldOptions::for_path(Path::Standalone), GIB, |_, _| ());
    }
}

#[test]
fn through_socks5() {
    if !root_or_skip() {
        return;
    }
    let upstream = format!("socks5://{}:{SOCKS_PORT}", Host::Socks.v4());
    let options = WorldOptions::for_path(Path::AfterPtp).with_upstream(upstream);
    let world = transfer(Path::AfterPtp, &options, GIB, |_, _| ());
    assert!(world.danted.log().contains("tcp/connect"), "the proxy's own log must show the sessions");
}

#[test]
fn through_socks5_with_a_password() {
    if !root_or_skip() {
        return;
    }
    // The password holds characters that a URL must escape.
    assert_eq!(SOCKS_PASSWORD, "p@ss:word");
    let upstream = format!("socks5://{SOCKS_USER}:p%40ss%3Aword@{}:{SOCKS_AUTH_PORT}", Host::Socks.v4());
    let options = WorldOptions::for_path(Path::AfterPtp).with_upstream(upstream);
    let world = transfer(Path::AfterPtp, &options, GIB / 16, |_, _| ());
    assert!(world.microsocks.log().contains("allowed.test"), "carried by name: {}", world.microsocks.log());
}

/// 1 % loss and reordering each way, and 10 ms of delay each way, which make a round trip of 20 ms. bbr at both ends of the kernel's own connections:
/// reno would stay below 10 Mbit/s here whatever we do.
fn bad_link(path: Path, length: u64, options: WorldOptions) {
    let bad = LinkConfig::lossy();
    assert_eq!(2 * bad.delay, Duration::from_millis(20));
    let options = options.with_wire(Wire::Emulated { up: bad, down: bad, seed: 11 });
    let world = transfer(path, &options, length, |world, pod| {
        round_trip(world).unwrap();
        for end in [&world.topology.node, &world.topology.outside, pod] {
            end.sysctl("net.ipv4.tcp_congestion_control", "bbr").unwrap();
        }
    });
    let link = world.topology.link.as_ref().unwrap();
    for direction in [link.forward(), link.back()] {
        was_bad(direction);
    }
}

/// The emulator's own counters: 1 % was lost, give or take a fifth, and frames came out of order.
fn was_bad(direction: &LinkStats) {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let lost = count(&direction.lost) as f64;
    // What was duplicated was carried twice; what overflowed was neither lost by the dice nor carried.
    let frames =
        (count(&direction.carried) + count(&direction.overflowed) - count(&direction.duplicated)) as f64;
    let ratio = lost / (frames + lost);
    assert!((0.008..=0.012).contains(&ratio), "{ratio} of the frames lost: {direction:?}");
    assert!(count(&direction.reordered) > 100, "{direction:?}");
    println!("{:.3} % lost: {direction:?}", ratio * 100.0);
}

#[test]
fn routed_over_a_bad_link() {
    if root_or_skip() {
        bad_link(Path::Routed, GIB / 16, WorldOptions::for_path(Path::Routed));
    }
}

#[test]
fn over_a_bad_link() {
    if root_or_skip() {
        bad_link(Path::AfterPtp, GIB, WorldOptions::for_path(Path::AfterPtp));
    }
}

#[test]
fn through_socks5_over_a_bad_link() {
    if root_or_skip() {
        let upstream = format!("socks5://{}:{SOCKS_PORT}", Host::Socks.v4());
        bad_link(Path::AfterPtp, GIB / 4, WorldOptions::for_path(Path::AfterPtp).with_upstream(upstream));
    }
}

/// The delay is there: no ping from the node comes back sooner.
fn round_trip(world: &World) -> Result<()> {
    let text = world.topology.node.run(&format!("ping -q -c 20 -i 0.05 {}", Host::Web.v4()))?;
    let least =
        text.split("= ").nth(1).and_then(|figures| figures.split('/').next()).context("no figures")?;
    let least: f64 = least.parse()?;
    ensure!(least >= 20.0, "{text}");
    Ok(())
}

/// The TUN's queue drops silently when it is full: the engine must repair what the ring lost, both ways at once.
#[test]
fn with_the_ring_overflowing() {
    if !root_or_skip() {
        return;
    }
    let path = Path::AfterPtp;
    let world = World::new(&WorldOptions::for_path(path)).unwrap();
    let pod = world.pod(path, "client").unwrap();
    let tun = tun_name(&pod).unwrap();
    pod.ip(&format!("link set {tun} txqueuelen 4")).unwrap();
    let mut report = Report::default();
    report.row("1 GiB each way beside 8 streams that end later", || {
        // Not all they could: with the ring full at all times, a flow whose ACKs find no room waits for minutes (RFC 6298 5.5).
        let mut pressure = rows::endless_iperf(&world, &pod, Host::Iperf.v4().into(), "-P 8 --bidir -b 50M")?;
        let octets = || -> Result<u64> {
            let counts = world.agent().counts("client")?;
            Ok(counts.total("bytesIn")? + counts.total("bytesOut")?)
        };
        let goes_on = |octets_before: u64| {
            let more = || octets().is_ok_and(|now| now > octets_before + (1 << 20));
            wait::until_true("the streams to move on", Duration::from_mins(1), more)
        };
        goes_on(octets()?)?;
        let before = dropped(&pod, &tun)?;
        rows::transfer(&world, &pod, "-4", GIB)?;
        // Nothing but the streams is left to move anything.
        goes_on(octets()?)?;
        ensure!(pressure.ended()?.is_none(), "they ended before the transfer: {}", pressure.log());
        pressure.kill()?;
        let lost = dropped(&pod, &tun)? - before;
        println!("{lost} packets dropped by the ring during the transfer");
        ensure!(lost > 1_000, "only {lost} packets dropped by the ring during the transfer");
        Ok(())
    });
    report.row("the ring did overflow", || {
        let dropped = dropped(&pod, &tun)?;
        ensure!(dropped > 0, "nothing was dropped");
        println!("{dropped} packets dropped by the ring");
        Ok(())
    });
    report.finish();
}

fn tun_name(pod: &Namespace) -> Result<String> {
    let links = pod.ip_json("link show type tun")?;
    links[0]["ifname"].as_str().map(ToOwned::to_owned).context("the pod has no TUN")
}

fn dropped(pod: &Namespace, tun: &str) -> Result<u64> {
    let links = pod.ip_json(&format!("-s link show {tun}"))?;
    links[0]["stats64"]["tx"]["dropped"].as_u64().context("no drop counter")
}
