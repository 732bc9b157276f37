use std::fs::File;
use std::io::{Read, Seek, Write};

use super::*;

fn is_would_block<T: std::fmt::Debug>(result: io::Result<T>) -> bool {
    result.unwrap_err().kind() == io::ErrorKind::WouldBlock
}

#[test]
fn descriptors_arrive_as_the_same_open_file() {
    let (a, b) = Connection::pair().unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"through the socket").unwrap();
    a.send_request(&Request::Status, &[file.as_fd()]).unwrap();
    let packet = b.recv().unwrap();
    assert_eq!(packet.request().unwrap(), Request::Status);
    let mut received = File::from(packet.fds.into_iter().next().unwrap());
    received.rewind().unwrap();
    let mut text = String::new();
    received.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through the socket");
}

#[test]
fn received_descriptors_are_close_on_exec() {
    let (a, b) = Connection::pair().unwrap();
    a.send(b"x", &[a.as_fd()]).unwrap();
    let packet = b.recv().unwrap();
    let flags = rustix::io::fcntl_getfd(&packet.fds[0]).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn the_greatest_number_of_descriptors_passes_and_one_more_does_not() {
    let (a, b) = Connection::pair().unwrap();
    let fds = vec![a.as_fd(); MAX_FDS];
    a.send(b"x", &fds).unwrap();
    assert_eq!(b.recv().unwrap().fds.len(), MAX_FDS);
    let fds = vec![a.as_fd(); MAX_FDS + 1];
    assert_eq!(a.send(b"x", &fds).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn an_oversized_datagram_is_an_error_not_a_prefix() {
    let (a, b) = Connection::pair().unwrap();
    a.send(&vec![b'x'; MAX_FRAME + 1], &[]).unwrap();
    assert_eq!(b.recv().unwrap_err().kind(), io::ErrorKind::InvalidData);
    a.send(b"next", &[]).unwrap();
    assert_eq!(b.recv().unwrap().bytes, b"next");
}

#[test]
fn the_end_is_an_empty_packet() {
    let (a, b) = Connection::pair().unwrap();
    drop(a);
    assert!(b.recv().unwrap().is_end());
}

#[test]
fn a_listener_accepts_and_names_its_peer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cni.sock");
    let listener = Listener::bind(&path).unwrap();
    assert!(is_would_block(listener.accept()));
    let fd = net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    net::connect(&fd, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    let (connection, peer) = listener.accept().unwrap();
    assert_eq!(peer.pid, std::process::id() as i32);
    assert!(peer.is_trusted());
    assert!(is_would_block(connection.recv()));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_stale_socket_is_replaced_and_a_successor_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cni.sock");
    let first = Listener::bind(&path).unwrap();
    let second = Listener::bind(&path).unwrap();
    drop(first);
    assert!(path.exists(), "the first listener removed its successor's socket");
    drop(second);
    assert!(!path.exists());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_path_that_is_too_long_is_named() {
    let path = PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
    let error = Listener::bind(&path).unwrap_err();
    assert!(matches!(error, SocketError::PathTooLong { .. }), "{error:?}");
}

#[test]
fn strangers_are_not_trusted() {
    let own = rustix::process::geteuid().as_raw();
    assert!(Peer { uid: own, gid: 0, pid: 1 }.is_trusted());
    assert!(!Peer { uid: own + 4711, gid: 0, pid: 1 }.is_trusted());
}
