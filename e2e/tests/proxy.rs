//! What a proxy says of a destination, and what the pod's program sees of it.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tunproxy_e2e::{Path, Pod, Report, World, WorldOptions, rows};
use tunproxy_testkit::{Host, root_or_skip};

const LIMIT: Duration = Duration::from_mins(1);
const PROXY_PORT: u16 = 1090;
/// The destination's port tells the proxy what to do: a reply of `FIRST_PORT` + code, or one of those below.
const FIRST_PORT: u16 = 9000;
const CLOSES: u16 = 8001;
const TALKS_HTTP: u16 = 8002;
const HALF_A_REPLY: u16 = 8003;
const STRANGE_ADDRESS: u16 = 8004;

/// RFC 1928 section 6, and what connect(2) must say.
const REPLIES: [(u8, ErrorKind); 9] = [
    (0x01, ErrorKind::ConnectionRefused),
    (0x02, ErrorKind::ConnectionRefused),
    (0x03, ErrorKind::NetworkUnreachable),
    (0x04, ErrorKind::HostUnreachable),
    (0x05, ErrorKind::ConnectionRefused),
    // TTL expired: somewhere behind the proxy, so not the network's fault.
    (0x06, ErrorKind::HostUnreachable),
    (0x07, ErrorKind::ConnectionRefused),
    (0x08, ErrorKind::ConnectionRefused),
    (0x77, ErrorKind::ConnectionRefused),
];

/// Proxies that break the protocol say nothing of the destination: the connection is refused, at once.
const BROKEN: [(&str, u16); 4] = [
    ("closes instead of a reply", CLOSES),
    ("talks HTTP", TALKS_HTTP),
    ("closes within a reply", HALF_A_REPLY),
    ("gives an address of no known type", STRANGE_ADDRESS),
];

fn serve(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || answer(stream));
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = [0; 2];
    stream.read_exact(&mut head)?;
    stream.read_exact(&mut vec![0; usize::from(head[1])])?;
    stream.write_all(&[5, 0])?;
    let mut request = [0; 4];
    stream.read_exact(&mut request)?;
    let mut rest = vec![0; if request[3] == 4 { 18 } else { 6 }];
    stream.read_exact(&mut rest)?;
    let port = u16::from_be_bytes([rest[rest.len() - 2], rest[rest.len() - 1]]);
    match port {
        CLOSES => Ok(()),
        TALKS_HTTP => stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        HALF_A_REPLY => stream.write_all(&[5, 0, 0, 1, 192]),
        STRANGE_ADDRESS => stream.write_all(&[5, 0, 0, 9, 0, 0, 0, 0, 0, 0]),
        FIRST_PORT => {
            stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
            stream.write_all(b"carried")
        }
        other => stream.write_all(&[5, (other - FIRST_PORT) as u8, 0, 1, 0, 0, 0, 0, 0, 0]),
    }
}

fn seen(pod: &Pod, to: SocketAddr) -> Result<ErrorKind> {
    let error = pod.tcp_connect(to, LIMIT).err().context("connected")?;
    Ok(error.kind())
}

#[test]
fn each_answer_of_a_socks5_proxy_is_the_right_error() {
    if !root_or_skip() {
        return;
    }
    let proxy = SocketAddr::new(Host::Socks.v4().into(), PROXY_PORT);
    let options = WorldOptions::for_path(Path::AfterPtp).with_upstream(format!("socks5://{proxy}"));
    let world = World::new(&options).unwrap();
    let listener = world.topology.outside.tcp_listen(proxy).unwrap();
    thread::spawn(move || serve(&listener));
    let pod = world.pod(Path::AfterPtp, "client").unwrap();
    let mut report = Report::default();
    for ip in Host::Web.both() {
        let at = |port: u16| SocketAddr::new(ip, port);
        report.row(format!("success to {ip}"), || {
            let mut stream = pod.tcp_connect(at(FIRST_PORT), LIMIT)?;
            stream.set_read_timeout(Some(LIMIT))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            ensure!(text == "carried", "{text:?}");
            Ok(())
        });
        for (code, wanted) in REPLIES {
            report.row(format!("reply {code:#04x} for {ip}"), || {
                let kind = seen(&pod, at(FIRST_PORT + u16::from(code)))?;
                ensure!(kind == wanted, "{kind} instead of {wanted}");
                Ok(())
            });
        }
        for (what, port) in BROKEN {
            report.row(format!("a proxy that {what} for {ip}"), || {
                let kind = seen(&pod, at(port))?;
                ensure!(kind == ErrorKind::ConnectionRefused, "{kind}");
                Ok(())
            });
        }
    }
    report.row("no leak", || rows::no_leak(&world, Path::AfterPtp));
    report.finish();
}

#[test]
fn a_proxy_that_is_not_there_makes_the_destination_unreachable() {
    if !root_or_skip() {
        return;
    }
    let upstream = format!("socks5://{}:{PROXY_PORT}", Host::Socks.v4());
    let world = World::new(&WorldOptions::for_path(Path::AfterPtp).with_upstream(upstream)).unwrap();
    let pod = world.pod(Path::AfterPtp, "client").unwrap();
    for ip in Host::Web.both() {
        assert_eq!(seen(&pod, SocketAddr::new(ip, 80)).unwrap(), ErrorKind::HostUnreachable, "{ip}");
    }
}
