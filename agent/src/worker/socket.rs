//! Upstream sockets: opening them, and what their errors mean.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, socket_with, sockopt};
use socket2::SockRef;
use tunproxy_datapath::DialFailure;
use tunproxy_linux_net::error_queue;

const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

fn family(v6: bool) -> AddressFamily {
    if v6 { AddressFamily::INET6 } else { AddressFamily::INET }
}

/// Starts a connect. The socket is returned while it is under way.
pub(super) fn connect_tcp(to: SocketAddr, mark: Option<u32>) -> io::Result<OwnedFd> {
    let socket = socket_with(family(to.is_ipv6()), SocketType::STREAM, FLAGS, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    set_mark(&socket, mark)?;
    match connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn open_udp(v6: bool, mark: Option<u32>) -> io::Result<OwnedFd> {
    let socket = socket_with(family(v6), SocketType::DGRAM, FLAGS, None)?;
    set_mark(&socket, mark)?;
    error_queue::enable(&socket, v6)?;
    let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    bind(&socket, &SocketAddr::new(any, 0))?;
    Ok(socket)
}

/// An ICMP socket towards one destination, and whether it is a raw one.
pub(super) fn open_echo(to: IpAddr, mark: Option<u32>) -> io::Result<(OwnedFd, bool)> {
    let protocol = if to.is_ipv6() { ipproto::ICMPV6 } else { ipproto::ICMP };
    // The kernel's ping sockets need no privilege where net.ipv4.ping_group_range allows them.
    let (socket, raw) = match socket_with(family(to.is_ipv6()), SocketType::DGRAM, FLAGS, Some(protocol)) {
        Ok(socket) => (socket, false),
        Err(_) => (socket_with(family(to.is_ipv6()), SocketType::RAW, FLAGS, Some(protocol))?, true),
    };
    set_mark(&socket, mark)?;
    connect(&socket, &SocketAddr::new(to, 0))?;
    Ok((socket, raw))
}

fn set_mark(socket: &OwnedFd, mark: Option<u32>) -> io::Result<()> {
    match mark {
        Some(mark) => SockRef::from(socket).set_mark(mark),
        None => Ok(()),
    }
}

/// Makes the close that follows a reset instead of an orderly end.
pub(super) fn reset_on_close(socket: impl AsFd) {
    // On a socket that was never connected this fails, and there is nobody to reset.
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

/// What the pod is told of an error of a connect.
pub(super) fn failure_of(error: &io::Error) -> DialFailure {
    match Errno::from_io_error(error) {
        Some(Errno::CONNREFUSED | Errno::CONNRESET) => DialFailure::Refused,
        Some(Errno::NETUNREACH | Errno::NETDOWN | Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT) => {
            DialFailure::NetworkUnreachable
        }
        Some(Errno::HOSTUNREACH | Errno::HOSTDOWN) => DialFailure::HostUnreachable,
        Some(Errno::TIMEDOUT) => DialFailure::TimedOut,
        Some(_) | None => DialFailure::Failed,
    }
}
