//! How long a download takes over paths that lose and reorder, in virtual time: the mean over many seeds has a bound
//! which only a repair that is quick and seldom mistaken can keep.

#![expect(
    clippy::disallowed_methods,
    reason = "the ban is the crate's own: a test has a clock and an environment"
)]

mod common;

use std::time::{Duration, Instant};

use common::{Engine, Upstream, allow_all, config, pattern};
use tunproxy_testkit::sim::{Impairment, Sim, SimConfig};

const OCTETS: usize = 2_000_000;
const SEEDS: u64 = 40;

#[derive(Clone, Copy, Debug)]
struct Link {
    loss: f64,
    /// How many packets are late, by a tenth of the round trip.
    reorder: f64,
    round_trip: Duration,
}

/// Returns how long it took, and how many packets went again and were lost.
fn download(seed: u64, link: Link) -> (Duration, u64, u64) {
    let epoch = Instant::now();
    let mut engine = Engine::new(config(allow_all()), epoch);
    let down = pattern(seed, OCTETS);
    engine.script =
        Box::new(move || Upstream { to_send: down.clone().into(), close: true, ..Upstream::default() });
    let mut sim_config = SimConfig::clean(seed);
    sim_config.pod.receive_buffer = 1 << 20;
    let wire = Impairment::delay(link.round_trip / 2);
    sim_config.to_peer = wire;
    sim_config.to_pod =
        Impairment { drop: link.loss, reorder: link.reorder, reorder_by: link.round_trip / 10, ..wire };
    let mut sim = Sim::starting_at(sim_config, engine, epoch);
    let tcp = sim.pod.connect("192.0.2.1:80".parse().unwrap());
    let mut received = 0;
    let mut bytes = vec![0; 65_536];
    sim.run_until(Duration::from_hours(1), |sim| {
        loop {
            let len = sim.pod.recv(tcp, &mut bytes);
            received += len;
            if len == 0 {
                return received == OCTETS;
            }
        }
    })
    .unwrap();
    (sim.elapsed(), sim.peer.stack.counters().tcp_retransmits, sim.to_pod.stats().dropped)
}

/// The mean time of all seeds is at most this.
fn at_most(most: Duration, loss: f64, reorder: f64, round_trip: Duration) {
    let link = Link { loss, reorder, round_trip };
    let (mut total, mut again, mut lost) = (Duration::ZERO, 0, 0);
    for seed in 0..SEEDS {
        let one = download(seed, link);
        total += one.0;
        again += one.1;
        lost += one.2;
    }
    let mean = total / SEEDS as u32;
    println!("{link:?}: {mean:?}, {again} packets went again and {lost} were lost");
    assert!(mean <= most, "{link:?}: {mean:?}, {again} packets went again and {lost} were lost");
}

const FAR: Duration = Duration::from_millis(20);
const NEAR: Duration = Duration::from_micros(200);

#[test]
fn a_path_that_loses_nothing() {
    at_most(Duration::from_millis(60), 0.0, 0.0, FAR);
}

#[test]
fn a_packet_in_a_thousand_is_lost() {
    at_most(Duration::from_millis(130), 0.001, 0.0, FAR);
    at_most(Duration::from_micros(1_300), 0.001, 0.0, NEAR);
}

#[test]
fn a_packet_in_a_hundred_is_lost() {
    at_most(Duration::from_millis(200), 0.01, 0.0, FAR);
    at_most(Duration::from_millis(33), 0.01, 0.0, NEAR);
}

#[test]
fn a_packet_in_twenty_is_lost() {
    at_most(Duration::from_millis(700), 0.05, 0.0, FAR);
}

#[test]
fn a_packet_in_a_hundred_is_late() {
    at_most(Duration::from_millis(160), 0.0, 0.02, FAR);
    at_most(Duration::from_millis(260), 0.01, 0.01, FAR);
}
