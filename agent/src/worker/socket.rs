//! Upstream sockets: opening them, and what their errors mean.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{Ipv4RecvTtl, Ipv6RecvHopLimit};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, socket_with};
use socket2::SockRef;
use tunproxy_datapath::{DialFailure, IpFields, Keepalive, Limits, Report};
use tunproxy_linux_net::error_queue::{self, QueuedError};

const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

fn family(v6: bool) -> AddressFamily {
    if v6 { AddressFamily::INET6 } else { AddressFamily::INET }
}

/// Starts a connect. The socket is returned while it is under way.
pub(super) fn connect_tcp(to: SocketAddr, dscp: u8, mark: Option<u32>) -> io::Result<OwnedFd> {
    let socket = socket_with(family(to.is_ipv6()), SocketType::STREAM, FLAGS, None)?;
    set_mark(&socket, mark)?;
    if dscp != 0 {
        set_traffic_class(&socket, to.is_ipv6(), dscp)?;
    }
    match connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// Has octets that the peer marks urgent read in their place, not beside the stream, where they would be lost.
pub(super) fn keep_urgent_in_place(socket: &OwnedFd) -> Result<(), Errno> {
    sockopt::set_socket_oobinline(socket, true)
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
    error_queue::enable(&socket, to.is_ipv6())?;
    if to.is_ipv6() {
        setsockopt(&socket, Ipv6RecvHopLimit, &true)?;
    } else {
        setsockopt(&socket, Ipv4RecvTtl, &true)?;
    }
    connect(&socket, &SocketAddr::new(to, 0))?;
    Ok((socket, raw))
}

/// Whether pings towards that family take a raw socket; an error if there is neither kind. Nothing is sent.
pub fn probe_echo(to: IpAddr) -> io::Result<bool> {
    open_echo(to, None).map(|(_, raw)| raw)
}

fn set_mark(socket: &OwnedFd, mark: Option<u32>) -> io::Result<()> {
    match mark {
        Some(mark) => SockRef::from(socket).set_mark(mark),
        None => Ok(()),
    }
}

/// Has the kernel notice an upstream that is gone, as the stack notices a pod.
pub(super) fn keep_alive(socket: &OwnedFd, limits: &Limits) -> Result<(), Errno> {
    if let Some(Keepalive { idle, interval, probes }) = limits.keepalive {
        sockopt::set_tcp_keepidle(socket, Duration::from_secs(idle.into()))?;
        sockopt::set_tcp_keepintvl(socket, Duration::from_secs(interval.into()))?;
        sockopt::set_tcp_keepcnt(socket, probes.into())?;
        sockopt::set_socket_keepalive(socket, true)?;
    }
    if let Some(limit) = limits.user_timeout {
        sockopt::set_tcp_user_timeout(socket, u32::try_from(limit.total_millis()).unwrap_or(u32::MAX))?;
    }
    Ok(())
}

/// Of what leaves next. The kernel keeps ECN of TCP to itself, whatever is asked for here.
pub(crate) fn set_traffic_class(socket: impl AsFd, v6: bool, traffic_class: u8) -> Result<(), Errno> {
    if v6 {
        sockopt::set_ipv6_tclass(socket, u32::from(traffic_class))
    } else {
        sockopt::set_ip_tos(socket, traffic_class)
    }
}

/// What a datagram socket's next datagrams carry in their IP header, as far as it is set.
#[derive(Debug, Default)]
pub(super) struct Fields(Option<IpFields>);

impl Fields {
    /// Has the next datagrams go out as the pod's own did; most follow others of their kind.
    pub(super) fn set(&mut self, socket: &OwnedFd, v6: bool, wanted: IpFields) -> Result<(), Errno> {
        if self.0 == Some(wanted) {
            return Ok(());
        }
        let IpFields { hop_limit, traffic_class, dont_fragment } = wanted;
        let is_new = self.0.is_none();
        let is = |field: fn(&IpFields) -> bool| self.0.as_ref().is_some_and(field);
        if is_new || is(|set| set.dont_fragment) != dont_fragment {
            match (v6, dont_fragment) {
                (false, true) => sockopt::set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DO)?,
                (false, false) => sockopt::set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DONT)?,
                (true, true) => sockopt::set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::DO)?,
                // No router cuts for us: where the path is known to be narrow, the kernel does.
                (true, false) => sockopt::set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::WANT)?,
            }
        }
        if self.0.is_none_or(|set| set.hop_limit != hop_limit) {
            if v6 {
                sockopt::set_ipv6_unicast_hops(socket, Some(hop_limit))?;
            } else {
                sockopt::set_ip_ttl(socket, u32::from(hop_limit))?;
            }
        }
        if self.0.map_or(0, |set| set.traffic_class) != traffic_class {
            set_traffic_class(socket, v6, traffic_class)?;
        }
        self.0 = Some(wanted);
        Ok(())
    }
}

/// What the pod is told of an error that came back.
pub(super) fn report_of(queued: &QueuedError) -> Report {
    match Errno::from_io_error(&queued.error) {
        Some(Errno::MSGSIZE) => Report::TooBig { mtu: queued.info },
        _ if queued.origin.is_hop_limit() => Report::HopLimit,
        _ => Report::Failed(failure_of(&queued.error)),
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
