//! `tunproxy-agent pcap`: what tshark reads in the file is what passed, with the decisions.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tunproxy_e2e::{Path, Pod, Report, World, WorldOptions};
use tunproxy_testkit::process::{Background, run};
use tunproxy_testkit::servers::random_file;
use tunproxy_testkit::{Host, Program, root_or_skip};

const LIMIT: Duration = Duration::from_mins(1);
const LARGE: u64 = 3_000_000;

const POLICY: &str = "\
apiVersion: tunproxy.io/v1alpha1
kind: EgressPolicy
metadata: {name: p, namespace: default}
spec:
  rules:
  - {name: web, action: Allow, to: [{domains: [allowed.test]}]}
";

/// A pod under a policy, and captures of it.
struct Lab {
    pod: Pod,
    world: World,
}

impl Lab {
    fn new() -> Self {
        let world = World::new(&WorldOptions::for_path(Path::Standalone).with_policy(POLICY)).unwrap();
        let pod = world.pod(Path::Standalone, "client").unwrap();
        random_file(&world.nginx.files().join("large"), LARGE, 3).unwrap();
        Self { pod, world }
    }

    fn pcap(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(Program::Agent.path().unwrap());
        command.args(["pcap", "--pod", "default/client", "--socket"]).arg(self.world.agent().admin_socket());
        command.args(arguments);
        command
    }

    /// Begins a capture to a file, and returns when packets are captured.
    fn begin(&self, name: &str, arguments: &[&str]) -> Result<Capture> {
        let file = self.world.scratch.path().join(name);
        let log = file.with_extension("log");
        let mut process = Background::spawn(self.pcap(arguments).arg("-w").arg(&file), name, &log)?;
        process
            .wait_ready(LIMIT, || fs::read_to_string(&log).is_ok_and(|said| said.contains("capturing")))?;
        Ok(Capture { process, file })
    }

    fn passed(&self) -> Result<[u64; 2]> {
        let counts = self.world.agent().counts("client")?;
        Ok([counts.total("packetsIn")?, counts.total("packetsOut")?])
    }

    /// Downloads a file over an allowed name.
    fn download(&self) -> Result<()> {
        let url = "https://allowed.test/files/large";
        let curl = self.world.curl(&format!("-4 -o /dev/null -w %{{size_download}} {url}"));
        let text = self.pod.run(&curl)?;
        ensure!(text == LARGE.to_string(), "{text}");
        Ok(())
    }
}

struct Capture {
    process: Background,
    file: PathBuf,
}

impl Capture {
    /// Ctrl-C, and what the command says at the end.
    fn interrupt(mut self) -> Result<(PathBuf, String)> {
        self.process.signal(Signal::INT)?;
        self.wait()
    }

    fn wait(&mut self) -> Result<(PathBuf, String)> {
        let status = self.process.wait(LIMIT)?;
        let said = self.process.log();
        ensure!(status.success(), "{status}: {said}");
        Ok((self.file.clone(), said.lines().last().unwrap_or_default().to_owned()))
    }
}

/// Some fields of each packet, as tshark reads them; a field that is not there is empty.
fn read(file: &std::path::Path, fields: &[&str]) -> Result<Vec<Vec<String>>> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-T", "fields", "-E", "separator=|", "-E", "occurrence=f", "-r"]).arg(file);
    for field in fields {
        command.args(["-e", field]);
    }
    let text = run(&mut command)?;
    Ok(text.lines().map(|line| line.split('|').map(ToOwned::to_owned).collect()).collect())
}

const FIELDS: [&str; 9] = [
    "frame.packet_flags_direction",
    "frame.comment",
    "ip.proto",
    "tcp.srcport",
    "tcp.dstport",
    "tcp.flags",
    "tcp.len",
    "frame.len",
    "ip.len",
];
const OUTBOUND: &str = "0x00000002";
const INBOUND: &str = "0x00000001";

#[test]
fn tshark_reads_what_passed_and_why() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let mut report = Report::default();
    let mut packets = Vec::new();
    report.row("a capture of real traffic", || {
        let before = lab.passed()?;
        let capture = lab.begin("all.pcapng", &[])?;
        let begun = lab.passed()?;
        lab.download()?;
        let refused = lab.world.curl("-4 http://other.test/");
        ensure!(lab.pod.run(&refused).is_err(), "other.test is refused");
        let text = lab.pod.run(&format!("ping -c 2 -i 0.05 -W 5 {}", Host::Web.v4()))?;
        ensure!(text.contains(" 2 received"), "{text}");
        ensure!(lab.pod.run(&format!("ping -c 1 -W 1 {}", Host::OtherWeb.v4())).is_err());
        let ended = lab.passed()?;
        let (file, said) = capture.interrupt()?;
        let after = lab.passed()?;
        packets = read(&file, &FIELDS)?;
        ensure!(said.starts_with(&format!("{} packets (", packets.len())), "{said}");
        ensure!(said.contains(" 0 lost") && said.ends_with("it was asked to end"), "{said}");
        for (way, direction) in [OUTBOUND, INBOUND].into_iter().enumerate() {
            let captured = packets.iter().filter(|packet| packet[0] == direction).count() as u64;
            ensure!(captured >= ended[way] - begun[way], "{direction}: {captured}, {begun:?} to {ended:?}");
            ensure!(captured <= after[way] - before[way], "{direction}: {captured}, {before:?} to {after:?}");
        }
        Ok(())
    });
    report.row("nothing is malformed, super-segments included", || {
        let file = lab.world.scratch.path().join("all.pcapng");
        let malformed =
            run(Command::new("tshark").args(["-n", "-Y", "_ws.malformed || _ws.short", "-r"]).arg(&file))?;
        ensure!(malformed.is_empty(), "{malformed}");
        let lengths: Vec<[u64; 2]> = packets
            .iter()
            .filter(|packet| packet[2] == "6")
            .map(|packet| Ok([packet[7].parse()?, packet[8].parse()?]))
            .collect::<Result<_>>()?;
        ensure!(lengths.iter().all(|[frame, ip]| frame == ip), "{lengths:?}");
        ensure!(lengths.iter().any(|[frame, _]| *frame > 9_000), "no super-segment: {lengths:?}");
        Ok(())
    });
    report.row("every octet of the download is there", || {
        let sums = read(
            &lab.world.scratch.path().join("all.pcapng"),
            &["tcp.srcport", "tcp.len", "tcp.analysis.retransmission"],
        )?;
        let octets: u64 = sums
            .iter()
            .filter(|packet| packet[0] == "443" && packet[2].is_empty())
            .map(|packet| packet[1].parse::<u64>())
            .sum::<Result<_, _>>()?;
        ensure!(octets > LARGE && octets < LARGE + 100_000, "{octets}");
        Ok(())
    });
    report.row("the first packet of a flow has its decision", || {
        let syn = packets.iter().find(|p| p[0] == OUTBOUND && p[4] == "443").context("no SYN")?;
        ensure!(syn[5] == "0x0002", "the first packet is no SYN: {syn:?}");
        let expected = "verdict=allowed policy=EgressPolicy/default/p rule=web upstream=direct name=allowed.test nameSource=dns";
        ensure!(syn[1] == expected, "{}", syn[1]);
        let port = &syn[3];
        let flow = packets.iter().filter(|p| p[3] == *port || p[4] == *port);
        let others: Vec<_> = flow.filter(|p| p[1].contains("verdict") && p[5] != "0x0002").collect();
        ensure!(others.is_empty(), "other packets of the flow have it too: {others:?}");
        Ok(())
    });
    report.row("what was refused says why, and so does the answer", || {
        let refusal = "policy=EgressPolicy/default/p rule=default reason=no-rule-matched name=other.test";
        let syn = packets.iter().find(|p| p[0] == OUTBOUND && p[4] == "80").context("no SYN to port 80")?;
        ensure!(syn[1] == format!("verdict=denied {refusal} drop=policy"), "{}", syn[1]);
        let reset = packets.iter().find(|p| p[0] == INBOUND && p[3] == "80").context("no reset")?;
        ensure!(reset[5] == "0x0014", "{reset:?}");
        ensure!(reset[1] == format!("verdict=denied {refusal} nameSource=dns close=denied"), "{}", reset[1]);
        Ok(())
    });
    report.row("pings too", || {
        let echoes: Vec<_> = packets.iter().filter(|p| p[2] == "1").collect();
        let comments: Vec<_> = echoes.iter().map(|p| p[1].split(" upstream").next().unwrap_or("")).collect();
        let allowed = "verdict=allowed policy=EgressPolicy/default/p rule=web";
        ensure!(comments.len() == 6 && comments[..4] == [allowed, "", "", ""], "{comments:?}");
        ensure!(
            comments[4].starts_with("verdict=denied") && comments[5].ends_with("close=denied"),
            "{comments:?}"
        );
        Ok(())
    });
    report.finish();
}

#[test]
fn a_capture_keeps_to_its_filter_and_its_bounds() {
    if !root_or_skip() {
        return;
    }
    let mut lab = Lab::new();
    let mut report = Report::default();
    report.row("a filter", || {
        let capture = lab.begin("filter.pcapng", &["--flow", "tcp and host 198.51.100.10"])?;
        lab.download()?;
        lab.pod.run(&format!("ping -c 1 -W 5 {}", Host::Web.v4()))?;
        let (file, _) = capture.interrupt()?;
        let packets = read(&file, &["ip.proto", "frame.comment"])?;
        ensure!(packets.len() > 10 && packets.iter().all(|packet| packet[0] == "6"), "{packets:?}");
        Ok(())
    });
    report.row("a snaplen", || {
        let capture = lab.begin("short.pcapng", &["--snaplen", "64"])?;
        lab.download()?;
        let (file, _) = capture.interrupt()?;
        let packets = read(&file, &["frame.cap_len", "frame.len"])?;
        let longest = |field: usize| packets.iter().map(|packet| packet[field].parse().unwrap_or(0)).max();
        ensure!(longest(0) == Some(64) && longest(1) > Some(9_000), "{packets:?}");
        Ok(())
    });
    report.row("packets", || {
        let mut capture = lab.begin("packets.pcapng", &["-c", "5"])?;
        lab.download()?;
        let (file, said) = capture.wait()?;
        ensure!(said.ends_with("the file has its packets"), "{said}");
        ensure!(read(&file, &["frame.len"])?.len() == 5);
        Ok(())
    });
    report.row("bytes", || {
        let mut capture = lab.begin("bytes.pcapng", &["--bytes", "100Ki"])?;
        lab.download()?;
        let (file, said) = capture.wait()?;
        ensure!(said.ends_with("the file has its size"), "{said}");
        let length = fs::metadata(&file)?.len();
        ensure!(length <= 102_400 && length > 20_000, "{length} bytes");
        ensure!(!read(&file, &["frame.len"])?.is_empty());
        Ok(())
    });
    report.row("seconds", || {
        let mut capture = lab.begin("seconds.pcapng", &["--seconds", "1"])?;
        let (_, said) = capture.wait()?;
        ensure!(said.ends_with("its time is over"), "{said}");
        Ok(())
    });
    report.row("a reader who has seen enough", || {
        let mut child = lab.pcap(&["-w", "-"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut header = [0; 4];
        let mut stdout = child.stdout.take().context("no output")?;
        stdout.read_exact(&mut header)?;
        ensure!(header == [0x0a, 0x0d, 0x0d, 0x0a]);
        drop(stdout);
        lab.download()?;
        ensure!(child.wait()?.success());
        Ok(())
    });
    report.row("mistakes", || {
        for (arguments, expected) in [
            ("-w x.pcapng --pod default/nobody", "no served pod is \"default/nobody\""),
            ("-w x.pcapng --flow tpc", "\"tpc\" is no term of a filter"),
            ("-w /nonexistent/x.pcapng", "it cannot be opened for writing"),
        ] {
            let mut command = Command::new(Program::Agent.path()?);
            command.args(["pcap", "--socket"]).arg(lab.world.agent().admin_socket());
            let pod = if arguments.contains("--pod") { "" } else { "--pod default/client" };
            let output = command.args(arguments.split_whitespace()).args(pod.split_whitespace()).output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(!output.status.success() && said.contains(expected), "{arguments}: {said}");
        }
        Ok(())
    });
    report.row("an agent that stops", || {
        let mut capture = lab.begin("stop.pcapng", &[])?;
        ensure!(lab.world.agent.as_mut().context("no agent")?.terminate()?.success());
        let (file, said) = capture.wait()?;
        ensure!(said.ends_with("the agent stops"), "{said}");
        read(&file, &["frame.len"]).map(drop)
    });
    report.finish();
}

/// Nobody reads the capture: the pod's traffic goes on all the same, and what was lost is told.
#[test]
fn a_slow_reader_holds_nobody() {
    if !root_or_skip() {
        return;
    }
    let lab = Lab::new();
    let log = lab.world.scratch.path().join("said");
    let mut child = lab
        .pcap(&["-w", "-"])
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    // The first block, so that the capture runs.
    output.read_exact(&mut [0; 4]).unwrap();
    // More than can wait: 16 MiB in the agent, and what sockets and the pipe take.
    for _ in 0..12 {
        lab.download().unwrap();
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let mut rest = Vec::new();
    while let Err(error) = output.read_to_end(&mut rest) {
        assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
    }
    assert!(child.wait().unwrap().success());
    let file = lab.world.scratch.path().join("slow.pcapng");
    fs::write(&file, [&[0x0a, 0x0d, 0x0d, 0x0a], &rest[..]].concat()).unwrap();
    let packets = read(&file, &["frame.drop_count"]).unwrap();
    let said = fs::read_to_string(&log).unwrap();
    let lost: u64 =
        said.split(", ").find_map(|part| part.strip_suffix(" lost")).expect("a summary").parse().unwrap();
    assert!(lost > 0, "{said}");
    assert!(said.lines().last().unwrap().starts_with(&format!("{} packets", packets.len())), "{said}");
}
