//! The simulator against itself: a second smoltcp stack as the peer.

use super::*;

const SERVER: &str = "192.0.2.1:80";

/// Echoes what it receives, and closes when the pod has closed.
struct EchoPeer {
    stack: SimPod,
    listener: SimTcp,
    pending: Vec<u8>,
    now: Instant,
}

impl EchoPeer {
    fn new(epoch: Instant) -> Self {
        let config = SimPodConfig { address_v4: [192, 0, 2, 1].into(), ..SimPodConfig::default() };
        let mut stack = SimPod::new(config, epoch, 99);
        let listener = stack.listen(80);
        Self { stack, listener, pending: Vec::new(), now: epoch }
    }

    fn echo(&mut self) {
        if self.pending.is_empty() {
            let mut buffer = [0; 2048];
            let count = self.stack.recv(self.listener, &mut buffer);
            self.pending.extend_from_slice(&buffer[..count]);
        }
        let sent = self.stack.send(self.listener, &self.pending);
        self.pending.drain(..sent);
        if self.pending.is_empty() && self.stack.state(self.listener) == TcpState::CloseWait {
            self.stack.close(self.listener);
        }
    }
}

impl PacketPeer for EchoPeer {
    fn handle(&mut self, now: Instant, packet: &[u8]) {
        self.now = now;
        self.stack.handle(now, packet.to_vec());
    }

    fn poll(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.now = now;
        self.echo();
        self.stack.poll(now)
    }

    fn poll_at(&mut self) -> Option<Instant> {
        self.stack.poll_at(self.now)
    }
}

/// Sends `payload`, half-closes, reads everything back.
fn echo_through(config: SimConfig, payload: &[u8]) -> (Result<(), Stalled>, Vec<u8>, Sim<EchoPeer>) {
    let epoch = Instant::now();
    let mut sim = Sim::starting_at(config, EchoPeer::new(epoch), epoch);
    let tcp = sim.pod.connect(SERVER.parse().unwrap());
    let (mut sent, mut closed, mut received) = (0, false, Vec::new());
    let result = sim.run_until(Duration::from_hours(1), |sim| {
        sent += sim.pod.send(tcp, &payload[sent..]);
        if sent == payload.len() && !closed {
            sim.pod.close(tcp);
            closed = true;
        }
        let mut buffer = [0; 4096];
        let count = sim.pod.recv(tcp, &mut buffer);
        received.extend_from_slice(&buffer[..count]);
        closed && received.len() == payload.len()
    });
    (result, received, sim)
}

#[test]
fn bytes_come_back_over_a_lossy_path() {
    let payload: Vec<u8> = (0..40_000u32).map(|index| (index * 7 % 251) as u8).collect();
    let mut dropped = 0;
    for seed in 0..20 {
        let (result, received, sim) = echo_through(SimConfig::seeded(seed), &payload);
        result.unwrap();
        assert_eq!(received, payload, "seed {seed}");
        dropped += sim.to_peer.stats().dropped + sim.to_pod.stats().dropped;
    }
    assert!(dropped > 20, "the paths must really lose packets, lost {dropped}");
}

#[test]
fn one_seed_is_one_history() {
    let payload = vec![5; 20_000];
    let history = |seed| {
        let (result, _, sim) = echo_through(SimConfig::seeded(seed), &payload);
        result.unwrap();
        (sim.elapsed(), sim.to_peer.stats(), sim.to_pod.stats())
    };
    assert_eq!(history(3), history(3));
    assert_ne!(history(3), history(4));
}

#[test]
fn an_unread_socket_closes_its_window_and_a_dead_path_stalls() {
    let epoch = Instant::now();
    let mut config = SimConfig::clean(1);
    config.pod.receive_buffer = 4_000;
    let mut sim = Sim::starting_at(config, EchoPeer::new(epoch), epoch);
    let tcp = sim.pod.connect(SERVER.parse().unwrap());
    let mut sent = 0;
    let stalled = sim
        .run_until(Duration::from_secs(20), |sim| {
            sent += sim.pod.send(tcp, &[1; 1000]);
            sent > 1_000_000
        })
        .unwrap_err();
    assert!(!stalled.idle, "the peer probes the closed window: {stalled}");
    assert_eq!(sim.pod.unread(tcp), 4_000);
    sim.to_peer.set_impairment(Impairment { drop: 1.0, ..Impairment::delay(Duration::ZERO) });
    let unread = sim.pod.unread(tcp);
    sim.run_for(Duration::from_secs(5));
    assert_eq!(sim.pod.unread(tcp), unread);
}
