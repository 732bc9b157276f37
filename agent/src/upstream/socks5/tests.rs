use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use tokio::runtime::Builder;
use tunproxy_policy::DomainName;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(5);

fn run<T>(future: impl Future<Output = T>) -> T {
    Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn proxy(address: SocketAddr, timeout: Duration) -> Proxy {
    let address = Endpoint::Tcp { host: address.ip().to_string(), port: address.port() };
    Proxy { address, credentials: None, timeout, lookups: Lookups::default() }
}

fn target() -> Target {
    Target::Name(DomainName::parse("api.example.com").unwrap(), 443)
}

/// A server that plays `script`: what it expects to read, then what it writes.
fn serve(mut stream: impl Read + Write + Send + 'static, script: Vec<(Vec<u8>, Vec<u8>)>) {
    for (expected, answer) in script {
        let mut read = vec![0; expected.len()];
        stream.read_exact(&mut read).unwrap();
        assert_eq!(read, expected);
        stream.write_all(&answer).unwrap();
    }
}

fn connect_request() -> Vec<u8> {
    [&[5, 1, 0, 3, 15][..], b"api.example.com", &[0x01, 0xbb]].concat()
}

fn read_payload(fd: OwnedFd) -> Vec<u8> {
    let mut stream = std::net::TcpStream::from(fd);
    let nonblocking = stream.read(&mut [0; 1]).map_err(|error| error.kind());
    // Either the payload's first byte was there, or the socket says so without blocking.
    let mut payload = Vec::new();
    if nonblocking == Ok(1) {
        payload.push(b'h');
    } else {
        assert_eq!(nonblocking, Err(io::ErrorKind::WouldBlock));
    }
    stream.set_nonblocking(false).unwrap();
    stream.read_to_end(&mut payload).unwrap();
    payload
}

#[test]
fn data_right_behind_the_reply_is_not_lost() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let reply = [&[5, 0, 0, 3, 4][..], b"here", &[0, 80], b"hello"].concat();
        serve(listener.accept().unwrap().0, vec![(vec![5, 1, 0], vec![5, 0]), (connect_request(), reply)]);
    });
    let fd = run(proxy(address, TIMEOUT).connect(target(), None)).unwrap();
    server.join().unwrap();
    assert_eq!(read_payload(fd), b"hello");
}

#[test]
fn a_unix_socket_is_a_proxy_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("proxy.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let reply = vec![5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        serve(listener.accept().unwrap().0, vec![(vec![5, 1, 0], vec![5, 0]), (connect_request(), reply)]);
    });
    let proxy = Proxy {
        address: Endpoint::Unix(path),
        credentials: None,
        timeout: TIMEOUT,
        lookups: Lookups::default(),
    };
    run(proxy.connect(target(), None)).unwrap();
    server.join().unwrap();
}

#[test]
fn a_proxy_that_is_not_there_is_unreachable() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = run(proxy(address, TIMEOUT).connect(target(), None)).unwrap_err();
    let ConnectError::Unreachable { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.kind(), io::ErrorKind::ConnectionRefused);
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[test]
fn a_proxy_that_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let timeout = Duration::from_millis(50);
    let error = run(proxy(listener.local_addr().unwrap(), timeout).connect(target(), None)).unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut { after, .. } if after == timeout), "{error}");
}

#[test]
fn a_proxy_that_hangs_up_is_broken() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        serve(listener.accept().unwrap().0, vec![(vec![5, 1, 0], vec![5])]);
    });
    let error = run(proxy(address, TIMEOUT).connect(target(), None)).unwrap_err();
    server.join().unwrap();
    assert!(matches!(error, ConnectError::Broken { .. }), "{error}");
}

#[test]
fn a_name_without_address_is_said() {
    // A label of 64 octets is no name: the lookup fails without a question to any server.
    let address = Endpoint::Tcp { host: format!("{}.invalid", "x".repeat(64)), port: 1080 };
    let proxy = Proxy { address, credentials: None, timeout: TIMEOUT, lookups: Lookups::default() };
    let error = run(proxy.connect(target(), None)).unwrap_err();
    assert!(matches!(error, ConnectError::Resolve { .. } | ConnectError::TimedOut { .. }), "{error}");
}
