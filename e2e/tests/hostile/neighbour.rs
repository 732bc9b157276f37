//! A pod that does real work while another one floods the worker that serves both.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use tunproxy_e2e::{Path, Report, WorldOptions, rows};
use tunproxy_testkit::raw::{self, Pace, Sent};
use tunproxy_testkit::topology::BLACK_HOLE_V4;
use tunproxy_testkit::{Host, root_or_skip, wait};

use crate::lab::{LIMIT, Lab};
use crate::packets::{self, Packets};

/// Rounds of four downloads and one query: 200 and 50.
const ROUNDS: usize = 50;

#[test]
fn a_flooding_pod_starves_no_other() {
    if !root_or_skip() {
        return;
    }
    // One worker: whatever one pod takes of it is the other's.
    let mut options = WorldOptions::for_path(Path::AfterPtp);
    options.agent_options.workers = Some(1);
    let lab = Lab::new(&options).unwrap();
    let mut report = Report::default();
    for (name, bulk, host) in [
        ("bulk both ways over TCP", "-P 8 --bidir", Host::Iperf.v4().into()),
        ("datagrams", "-u -b 0 -l 1200 -P 4", Host::Iperf.v6().into()),
    ] {
        report.row(format!("work beside {name}"), || beside_iperf(&lab, host, bulk));
    }
    lab.silence().unwrap();
    for (to, reason) in
        [((BLACK_HOLE_V4, 80).into(), "pending-limit"), ((Host::Far.v4(), 80).into(), "half-open-limit")]
    {
        let syns = packets::syns(&lab, to, 30_000);
        report.row(format!("work beside SYNs to {to}"), || {
            beside_packets(&lab, &syns, &[reason])?;
            // Back to nothing: what waits now would be in the way of the next.
            lab.send(Pace::AsTaken, syns.iter().map(|syn| packets::reset_of(syn))).map(drop)
        });
    }
    let malformed = [
        packets::truncated(&lab),
        packets::wrong_checksums(&lab),
        packets::bad_headers(&lab),
        packets::fragments(&lab),
        packets::strays(&lab),
        packets::protocols(&lab),
    ];
    report.row("work beside malformed packets", || {
        let reasons = ["truncated", "bad-checksum", "bad-header", "fragment", "no-flow", "unknown-protocol"];
        beside_packets(&lab, &malformed.concat(), &reasons)
    });
    report.finish();
}

/// The work while iperf3 moves all it can, from before its beginning to after its end.
fn beside_iperf(lab: &Lab, server: IpAddr, arguments: &str) -> Result<()> {
    let (before, begin) = (lab.counts()?, octets(lab)?);
    let mut iperf = rows::endless_iperf(&lab.world, &lab.hostile, server, arguments)?;
    wait::until_true("iperf3 to move something", LIMIT, || {
        octets(lab).is_ok_and(|now| now > begin + (10 << 20))
    })?;
    let moved = work(lab, || octets(lab))?;
    ensure!(iperf.ended()?.is_none(), "iperf3 ended before the work did: {}", iperf.log());
    iperf.kill()?;
    println!("{moved} octets beside the work; dropped: {:?}", lab.counts()?.since(&before).drops);
    Ok(())
}

/// The work while `packets` are sent over and over, each of which is dropped for one of `reasons`, or joins a flow.
fn beside_packets(lab: &Lab, packets: &Packets, reasons: &[&str]) -> Result<()> {
    let before = lab.counts()?;
    let over = AtomicBool::new(false);
    let (outcome, sent) = thread::scope(|scope| -> Result<_> {
        let flood = scope.spawn(|| -> Result<Sent> {
            let endless = packets.iter().cycle().take_while(|_| !over.load(Ordering::Relaxed));
            raw::send_all(&lab.hostile, &lab.tun, Pace::Flood, endless.cloned())
        });
        let outcome = work(lab, || dropped(lab));
        over.store(true, Ordering::Relaxed);
        Ok((outcome, flood.join().expect("the flooding thread")?))
    })?;
    outcome?;
    let counts = lab.counts()?.since(&before);
    println!("{sent:?}, dropped: {:?}", counts.drops);
    // As many as there are at least once over: the agent has seen each of them.
    ensure!(sent.carried > packets.len() as u64, "{sent:?}: not even each of the {} once", packets.len());
    ensure!(counts.total("packetsIn")? >= sent.carried, "{sent:?}, counted {:?}", counts.totals);
    for reason in reasons {
        ensure!(counts.dropped(reason) > 0, "nothing dropped for {reason}: {:?}", counts.drops);
    }
    lab.survived()
}

fn octets(lab: &Lab) -> Result<u64> {
    let counts = lab.counts()?;
    Ok(counts.total("bytesIn")? + counts.total("bytesOut")?)
}

fn dropped(lab: &Lab) -> Result<u64> {
    Ok(lab.counts()?.drops.values().sum())
}

/// A fixed amount of work of the other pod; all of it must succeed. Before each round the flood must have gone on, by
/// what `flood` counts. Returns how far that went.
fn work(lab: &Lab, flood: impl Fn() -> Result<u64>) -> Result<u64> {
    let begin = flood()?;
    let last = Cell::new(begin);
    let goes_on = || flood().is_ok_and(|now| now > last.replace(now));
    for round in 0..ROUNDS {
        wait::until_true("the flood to go on", LIMIT, goes_on)?;
        for url in [
            "-4 http://allowed.test/",
            "-6 http://other.test/",
            "-4 https://other.test/",
            "-6 https://allowed.test/",
        ] {
            let text =
                lab.other.run(&lab.world.curl(url)).with_context(|| format!("round {round}: {url}"))?;
            let name = url.split('/').nth(2).context("no name")?;
            ensure!(text.starts_with(&format!("{name} over HTTP/")), "{text}");
        }
        query(lab, round).with_context(|| format!("round {round}"))?;
    }
    wait::until_true("the flood to go on to the end", LIMIT, goes_on)?;
    Ok(last.get() - begin)
}

fn query(lab: &Lab, round: usize) -> Result<()> {
    let transport = if round.is_multiple_of(2) { "+notcp" } else { "+tcp" };
    let server = Host::Dns.both()[round / 2 % 2];
    let line = format!("dig +short +time=15 +tries=4 {transport} @{server} other.test A");
    let text = lab.other.run(&line)?;
    ensure!(text.trim() == Host::OtherWeb.v4().to_string(), "{line}: {text:?}");
    Ok(())
}
