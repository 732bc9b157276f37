//! The SOCKS5 client against real servers: dante and microsocks, outside a node's namespace.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use tunproxy_agent::documents::Endpoint;
use tunproxy_agent::upstream::socks5::{
    ConnectError, Credentials, HandshakeError, Lookups, Proxy, Reply, Target,
};
use tunproxy_policy::DomainName;
use tunproxy_testkit::servers::{Danted, DnsServer, Microsocks};
use tunproxy_testkit::topology::{UNREACHABLE_V4, UNREACHABLE_V6};
use tunproxy_testkit::{Host, Namespace, Topology, Wire, root_or_skip, wait};

const LIMIT: Duration = Duration::from_mins(1);

fn connect(node: &Namespace, proxy: &Proxy, target: Target) -> Result<OwnedFd, ConnectError> {
    node.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(proxy.connect(target, Some(0x7470)))
    })
}

fn proxy(address: SocketAddr, credentials: Option<Credentials>) -> Proxy {
    let address = Endpoint::Tcp { host: address.ip().to_string(), port: address.port() };
    Proxy { address, credentials, timeout: LIMIT, lookups: Lookups::default() }
}

fn name(text: &str, port: u16) -> Target {
    Target::Name(DomainName::parse(text).unwrap(), port)
}

/// An answer that is there before the client said a word, and an echo after.
fn greet_once(topology: &Topology, address: SocketAddr) -> std::thread::JoinHandle<()> {
    let listener = topology.outside.tcp_listen(address).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"hello").unwrap();
        let mut request = [0; 4];
        stream.read_exact(&mut request).unwrap();
        stream.write_all(&request).unwrap();
    })
}

fn converse(fd: OwnedFd) {
    let mut stream = TcpStream::from(fd);
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut greeting = [0; 5];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"hello");
    stream.write_all(b"ping").unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"ping");
}

#[test]
fn dante_connects_by_name_and_by_address_and_its_refusals_keep_their_reason() {
    if !root_or_skip() {
        return;
    }
    let topology = Topology::new(Wire::Veth).unwrap();
    let records = [("web.test", Host::Web.v4().into())];
    let _dns = DnsServer::start(&topology.outside, &[Host::Dns.v4().into()], &records).unwrap();
    let danted = Danted::start(&topology.outside, SocketAddr::new(Host::Socks.v4().into(), 1080)).unwrap();
    let proxy = proxy(danted.address(), None);

    let v4 = SocketAddr::new(Host::Web.v4().into(), 7000);
    let v6 = SocketAddr::new(Host::Web.v6().into(), 7000);
    for (target, server) in
        [(name("web.test", 7000), v4), (Target::Address(v4), v4), (Target::Address(v6), v6)]
    {
        let server = greet_once(&topology, server);
        converse(connect(&topology.node, &proxy, target).unwrap());
        server.join().unwrap();
    }
    wait::until_true("three sessions in dante's log", LIMIT, || {
        danted.log().matches("tcp/connect [: ").count() >= 3
    })
    .unwrap();

    for ip in Host::Web.both() {
        let error = connect(&topology.node, &proxy, Target::Address(SocketAddr::new(ip, 1))).unwrap_err();
        assert_eq!(reply(&error), Reply::ConnectionRefused, "{error}");
    }
    for ip in [UNREACHABLE_V4.into(), UNREACHABLE_V6.into()] {
        let error = connect(&topology.node, &proxy, Target::Address(SocketAddr::new(ip, 1))).unwrap_err();
        let expected = [Reply::HostUnreachable, Reply::NetworkUnreachable];
        assert!(expected.contains(&reply(&error)), "{ip}: {error}");
    }
    let error = connect(&topology.node, &proxy, name("no-such-name.test", 80)).unwrap_err();
    assert!(matches!(error, ConnectError::Handshake { .. }), "{error}");
}

#[test]
fn microsocks_wants_its_password() {
    if !root_or_skip() {
        return;
    }
    let topology = Topology::new(Wire::Veth).unwrap();
    let records = [("web.test", Host::Web.v4().into())];
    let _dns = DnsServer::start(&topology.outside, &[Host::Dns.v4().into()], &records).unwrap();
    let server = Microsocks::start(&topology.outside, Host::Socks.v4().into(), 1081, "me", "secret").unwrap();

    let good = proxy(server.address(), Some(Credentials::new("me", "secret").unwrap()));
    let web = greet_once(&topology, SocketAddr::new(Host::Web.v4().into(), 7001));
    converse(connect(&topology.node, &good, name("web.test", 7001)).unwrap());
    web.join().unwrap();
    assert!(server.log().contains("connected to web.test:7001"), "{}", server.log());

    let bad = proxy(server.address(), Some(Credentials::new("me", "guess").unwrap()));
    let error = connect(&topology.node, &bad, name("web.test", 7001)).unwrap_err();
    assert!(
        matches!(&error, ConnectError::Handshake { source: HandshakeError::AuthenticationFailed(_), .. }),
        "{error}"
    );
    let none = proxy(server.address(), None);
    let error = connect(&topology.node, &none, name("web.test", 7001)).unwrap_err();
    assert!(
        matches!(&error, ConnectError::Handshake { source: HandshakeError::NoAcceptableMethod { .. }, .. }),
        "{error}"
    );
}

fn reply(error: &ConnectError) -> Reply {
    match error {
        ConnectError::Handshake { source: HandshakeError::Refused(reply), .. } => *reply,
        other => panic!("{other}"),
    }
}
