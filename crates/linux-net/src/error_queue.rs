//! The error queue of a datagram socket: which datagram the outside answered with an ICMP error (ip(7), `IP_RECVERR`).

use std::io;
use std::mem::{MaybeUninit, size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// An error that came back, and the destination of the datagram it is about.
#[derive(Debug)]
pub struct QueuedError {
    /// Port 0 where the socket's protocol has none.
    pub destination: SocketAddr,
    pub error: io::Error,
    pub origin: Origin,
    /// With EMSGSIZE the path's MTU, octets.
    pub info: u32,
    /// Who sent the ICMP error.
    pub reporter: Option<IpAddr>,
    /// The first octets of the datagram's transport header (UDP: of its payload), as far as the error quotes them.
    pub quoted: Quoted,
}

/// Where an error was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Here: the datagram was not sent.
    Local,
    /// An ICMP message came, of this type and code.
    Icmp {
        kind: u8,
        code: u8,
    },
    Icmp6 {
        kind: u8,
        code: u8,
    },
    /// Something that only the kernel's other queues have (time stamps, say).
    Other,
}

impl Origin {
    /// Time exceeded in transit (RFC 792, RFC 4443 3.3). The errno is that of an unreachable host.
    pub fn is_hop_limit(self) -> bool {
        matches!(self, Self::Icmp { kind: 11, code: 0 } | Self::Icmp6 { kind: 3, code: 0 })
    }
}

/// At most eight octets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quoted {
    octets: [u8; 8],
    length: usize,
}

impl Quoted {
    pub fn octets(&self) -> &[u8] {
        &self.octets[..self.length]
    }
}

/// Asks the kernel to keep the errors of this socket's datagrams, each with its destination.
pub fn enable(socket: impl AsFd, v6: bool) -> io::Result<()> {
    let (level, option) =
        if v6 { (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) } else { (libc::IPPROTO_IP, libc::IP_RECVERR) };
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for the call, and the option's value is an int of the size given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes the oldest error off the queue; `None`: it is empty.
pub fn take(socket: impl AsFd) -> Option<QueuedError> {
    loop {
        match receive(socket.as_fd()) {
            Entry::Error(error) => return Some(error),
            Entry::Nameless => {}
            Entry::Absent => return None,
        }
    }
}

/// What a look at the queue gave.
enum Entry {
    Error(QueuedError),
    /// It names no destination, or no error: of no use here.
    Nameless,
    /// The queue is empty.
    Absent,
}

fn receive(socket: BorrowedFd<'_>) -> Entry {
    let mut quoted = Quoted::default();
    let mut data =
        libc::iovec { iov_base: quoted.octets.as_mut_ptr().cast(), iov_len: size_of_val(&quoted.octets) };
    let mut control = [MaybeUninit::<u64>::uninit(); 32];
    let mut name = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_name = name.as_mut_ptr().cast();
    message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: `message` points to buffers that outlive the call, with their sizes.
    let received = unsafe {
        libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT)
    };
    if received < 0 {
        return Entry::Absent;
    }
    // SAFETY: it was zeroed, which is a valid value, and the kernel wrote at most its size.
    let name = unsafe { name.assume_init() };
    let destination = socket_address(&name, message.msg_namelen);
    quoted.length = usize::try_from(received).unwrap_or(0).min(quoted.octets.len());
    match destination.zip(extended_error(&message)) {
        Some((destination, extended)) => Entry::Error(QueuedError {
            destination,
            error: io::Error::from_raw_os_error(extended.errno as i32),
            origin: extended.origin,
            info: extended.info,
            reporter: extended.offender,
            quoted,
        }),
        None => Entry::Nameless,
    }
}

/// What counts of a `sock_extended_err` (linux/errqueue.h) and of the address behind it.
#[derive(Debug, PartialEq, Eq)]
struct Extended {
    errno: u32,
    origin: Origin,
    info: u32,
    offender: Option<IpAddr>,
}

/// The first `sock_extended_err` among the control messages.
fn extended_error(message: &libc::msghdr) -> Option<Extended> {
    // SAFETY: the kernel filled in the control buffer and its length; the macros stay within them.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: not null, so it points to a whole header within the control buffer.
        let (level, kind, length) =
            unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len) };
        let is_error = (level == libc::IPPROTO_IP && kind == libc::IP_RECVERR)
            || (level == libc::IPPROTO_IPV6 && kind == libc::IPV6_RECVERR);
        if is_error {
            // SAFETY: it only computes.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            // SAFETY: a message of the length that the kernel gave it lies within the control buffer, behind its header.
            let octets =
                unsafe { std::slice::from_raw_parts(libc::CMSG_DATA(header), length.saturating_sub(head)) };
            return read_extended(octets);
        }
        // SAFETY: `header` came from this message.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}

fn read_extended(octets: &[u8]) -> Option<Extended> {
    let (error, offender) = octets.split_first_chunk::<16>()?;
    let word = |at: usize| u32::from_ne_bytes([error[at], error[at + 1], error[at + 2], error[at + 3]]);
    let (kind, code) = (error[5], error[6]);
    let origin = match error[4] {
        libc::SO_EE_ORIGIN_LOCAL => Origin::Local,
        libc::SO_EE_ORIGIN_ICMP => Origin::Icmp { kind, code },
        libc::SO_EE_ORIGIN_ICMP6 => Origin::Icmp6 { kind, code },
        _ => Origin::Other,
    };
    Some(Extended { errno: word(0), origin, info: word(8), offender: read_address(offender) })
}

/// The address of a `sockaddr_in` or `sockaddr_in6`.
fn read_address(octets: &[u8]) -> Option<IpAddr> {
    match i32::from(u16::from_ne_bytes(*octets.first_chunk()?)) {
        libc::AF_INET => Some(IpAddr::from(*octets.get(4..)?.first_chunk::<4>()?)),
        libc::AF_INET6 => Some(IpAddr::from(*octets.get(8..)?.first_chunk::<16>()?)),
        _ => None,
    }
}

fn socket_address(storage: &libc::sockaddr_storage, length: libc::socklen_t) -> Option<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET if length as usize >= size_of::<libc::sockaddr_in>() => {
            // SAFETY: the family says that it is one, and storage is large and aligned enough for it.
            let address = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
            Some(SocketAddr::from((ip, u16::from_be(address.sin_port))))
        }
        libc::AF_INET6 if length as usize >= size_of::<libc::sockaddr_in6>() => {
            // SAFETY: as above.
            let address = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            Some(SocketAddr::from((ip, u16::from_be(address.sin6_port))))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    fn closed_port(host: &str) -> SocketAddr {
        UdpSocket::bind((host, 0)).unwrap().local_addr().unwrap()
    }

    #[test]
    fn a_closed_port_is_named_among_several_destinations() {
        for (host, v6) in [("127.0.0.1", false), ("::1", true)] {
            let open = UdpSocket::bind((host, 0)).unwrap();
            let closed = closed_port(host);
            let socket = UdpSocket::bind((host, 0)).unwrap();
            enable(&socket, v6).unwrap();
            assert!(take(&socket).is_none());
            socket.send_to(b"to the open port", open.local_addr().unwrap()).unwrap();
            socket.send_to(b"to the closed port", closed).unwrap();
            // The pending error ends the wait.
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let pending = socket.recv_from(&mut [0; 32]).unwrap_err();
            assert_eq!(pending.kind(), io::ErrorKind::ConnectionRefused);
            let queued = take(&socket).expect("an error");
            assert_eq!(queued.destination, closed);
            assert_eq!(queued.error.kind(), io::ErrorKind::ConnectionRefused);
            let origin =
                if v6 { Origin::Icmp6 { kind: 1, code: 4 } } else { Origin::Icmp { kind: 3, code: 3 } };
            assert_eq!((queued.origin, queued.reporter), (origin, Some(closed.ip())));
            assert_eq!(queued.quoted.octets(), b"to the c");
            assert!(take(&socket).is_none());
        }
    }
}
