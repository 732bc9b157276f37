//! The error queue of a datagram socket: which datagram the outside answered with an ICMP error (ip(7), `IP_RECVERR`).

use std::io;
use std::mem::{MaybeUninit, size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// An error that came back, and the destination of the datagram it is about.
#[derive(Debug)]
pub struct QueuedError {
    pub destination: SocketAddr,
    pub error: io::Error,
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
    // The payload of the datagram is of no interest; the kernel cuts it.
    let mut control = [MaybeUninit::<u64>::uninit(); 32];
    let mut name = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_name = name.as_mut_ptr().cast();
    message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
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
    match destination.zip(extended_error(&message)) {
        Some((destination, errno)) => {
            Entry::Error(QueuedError { destination, error: io::Error::from_raw_os_error(errno) })
        }
        None => Entry::Nameless,
    }
}

/// The errno of the first `sock_extended_err` among the control messages.
fn extended_error(message: &libc::msghdr) -> Option<i32> {
    // SAFETY: the kernel filled in the control buffer and its length; the macros stay within them.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: not null, so it points to a whole header within the control buffer.
        let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
        let is_error = (level == libc::IPPROTO_IP && kind == libc::IP_RECVERR)
            || (level == libc::IPPROTO_IPV6 && kind == libc::IPV6_RECVERR);
        if is_error {
            // SAFETY: the kernel puts a sock_extended_err into messages of this kind; it may be unaligned.
            let error: libc::sock_extended_err =
                unsafe { libc::CMSG_DATA(header).cast::<libc::sock_extended_err>().read_unaligned() };
            return Some(error.ee_errno as i32);
        }
        // SAFETY: `header` came from this message.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
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
            assert!(take(&socket).is_none());
        }
    }
}
