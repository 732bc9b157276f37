//! A quiet pod beside one that floods: what its round trips take.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use tunproxy_testkit::packet::{self, Checksum, Tcp};
use tunproxy_testkit::raw::RawLink;
use tunproxy_testkit::topology::BLACK_HOLE_V4;
use tunproxy_testkit::{Host, Interrupt};

use crate::client::Measured;
use crate::compare::Plan;
use crate::lab::{Lab, Pod, Start};
use crate::report::{Report, Row, Side, Unit};

/// What the other pod does meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flood {
    Nothing,
    Syns,
    Bulk,
    Malformed,
}

const ROWS: [(Flood, &str); 4] = [
    (Flood::Nothing, "quiet pod: round trip, alone"),
    (Flood::Syns, "quiet pod: round trip, beside SYNs"),
    (Flood::Bulk, "quiet pod: round trip, beside bulk"),
    (Flood::Malformed, "quiet pod: round trip, beside malformed"),
];

/// Ports that SYNs come from: more than may be pending, so that bounds are part of what is measured.
const SYN_PORTS: std::ops::Range<u16> = 20_000..50_000;

/// A quiet pod and those that flood.
struct Pods {
    quiet: Pod,
    /// Its own: one that has flooded with SYNs finds no room for connections for half a minute.
    bulk: Pod,
    packets: Pod,
}

pub fn measure(interrupt: &Interrupt, plan: &Plan, report: &mut Report) -> Result<()> {
    let rows: Vec<_> = ROWS.into_iter().filter(|(_, row)| plan.wants(&format!("{row}, p99"))).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let lab = Lab::new(true)?;
    let pods = |side, index| -> Result<Pods> {
        Ok(Pods {
            quiet: lab.pod_of(side, "quiet", index)?,
            bulk: lab.pod_of(side, "bulk", index + 1)?,
            packets: lab.pod_of(side, "packets", index + 2)?,
        })
    };
    let (routed, ours) = (pods(Side::Routed, 10)?, pods(Side::Ours, 13)?);
    for round in 1..=plan.rounds {
        for (index, &(flood, name)) in rows.iter().enumerate() {
            eprintln!("round {round}/{}: {name}", plan.rounds);
            for side in plan.sides(round + index) {
                interrupt.check()?;
                let pods = if side == Side::Ours { &ours } else { &routed };
                // Packets by hand go into a TUN; the routed pod's interface wants neighbours' addresses too.
                if side == Side::Routed && matches!(flood, Flood::Syns | Flood::Malformed) {
                    continue;
                }
                let measured = beside(&lab, pods, flood, plan.seconds)?;
                report.add(&Row::new(name, Unit::Micros), side, measured.value);
                let p99 = measured.p99.context("no p99")?;
                report.add(&Row::new(format!("{name}, p99"), Unit::Micros), side, p99);
            }
        }
    }
    Ok(())
}

fn beside(lab: &Lab, pods: &Pods, flood: Flood, seconds: f64) -> Result<Measured> {
    let from = |pod: &Pod| Start { namespace: pod.namespace.clone(), via: None };
    let quiet = || lab.load(&from(&pods.quiet), &[], &format!("round-trip {seconds}"));
    let up = format!("bulk up 8 {}", seconds + 0.5);
    match flood {
        Flood::Nothing => quiet(),
        // A little longer than the quiet pod is measured; there is nothing that an end could be told by.
        Flood::Bulk => thread::scope(|scope| {
            let bulk = scope.spawn(|| lab.load(&from(&pods.bulk), &[], &up));
            let measured = quiet();
            bulk.join().expect("the flooding thread").context("the flood")?;
            measured
        }),
        Flood::Syns => beside_packets(&pods.packets, &syns(lab, &pods.packets)?, quiet),
        Flood::Malformed => beside_packets(&pods.packets, &malformed(lab, &pods.packets)?, quiet),
    }
}

fn beside_packets(
    pod: &Pod,
    packets: &[Vec<u8>],
    quiet: impl FnOnce() -> Result<Measured>,
) -> Result<Measured> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let flood = scope.spawn(|| {
            RawLink::with(&pod.namespace, "eth0", |link| {
                let endless = packets.iter().cycle().take_while(|_| !over.load(Ordering::Relaxed));
                endless.inspect(|packet| link.send(packet)).count()
            })
        });
        let measured = quiet();
        over.store(true, Ordering::Relaxed);
        let sent = flood.join().expect("the flooding thread")?;
        ensure!(sent > 0, "nothing was sent");
        measured
    })
}

fn own(pod: &Pod) -> Result<IpAddr> {
    pod.attachment.addresses().into_iter().find(IpAddr::is_ipv4).context("no IPv4 address")
}

/// Some are answered, and some never.
fn syns(lab: &Lab, pod: &Pod) -> Result<Vec<Vec<u8>>> {
    let own = own(pod)?;
    let to = [lab.address, (BLACK_HOLE_V4, 80).into()];
    let syn = |port: u16| {
        Tcp::syn(SocketAddr::new(own, port), to[usize::from(port % 2)], u32::from(port) << 8, 1460).build()
    };
    Ok(SYN_PORTS.map(syn).collect())
}

fn malformed(lab: &Lab, pod: &Pod) -> Result<Vec<Vec<u8>>> {
    let (from, to) = (SocketAddr::new(own(pod)?, 20_000), lab.address);
    let syn = Tcp::syn(from, to, 1, 1460);
    let whole = syn.clone().build();
    let foreign = SocketAddr::new(Host::Web.v4().into(), 1);
    let mut version = whole.clone();
    version[0] = 0x35;
    let mut packets = vec![
        Tcp { checksum: Checksum::Wrong, ..syn }.build(),
        packet::udp_with(from, to, b"x", Checksum::Wrong),
        Tcp::syn(foreign, to, 1, 1460).build(),
        version,
    ];
    packets.extend((1..whole.len()).map(|length| whole[..length].to_vec()));
    Ok(packets)
}
