//! What a stack is allowed to be and to use.

use std::time::Duration;

use ipnet::IpNet;

use crate::error::StackError;

/// The largest receive buffer. smoltcp 0.14 stores the unscaled window of its SYN|ACK and shifts it later, which a peer
/// can turn into a panic; below 64 KiB there is no window scale and nothing to shift (socket/tcp.rs:2604, :1707).
const MAX_RECEIVE_BUFFER: usize = 65_535;
/// More than that is of no use against a window of at most 64 KiB times the peer's scale on a local link.
const MAX_SEND_BUFFER: usize = 1 << 20;
const MIN_BUFFER: usize = 2_048;
/// RFC 791: what every host must take.
const MIN_MTU_V4: u16 = 576;
/// RFC 8200 section 5.
const MIN_MTU_V6: u16 = 1_280;

/// Addresses and limits of a stack. [`StackConfig::new`] fills in the limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackConfig {
    /// The stack's own addresses with their prefix lengths; one to eight.
    pub addresses: Vec<IpNet>,
    /// TCP and UDP sockets together, with those that are being closed and those not accepted yet. Default 1,024: each
    /// packet is matched against all of them.
    pub sockets: usize,
    /// Connections of one listener that nobody has accepted yet, half open or open. Default 128. Beyond it a SYN is
    /// dropped, as by the kernel: the peer sends it again.
    pub backlog: usize,
    /// Bytes of each TCP socket's receive buffer, 2,048 to 65,535 (default).
    pub receive_buffer: usize,
    /// Bytes of each TCP socket's send buffer, 2,048 to 1 MiB. Default 65,535.
    pub send_buffer: usize,
    /// Datagrams that a UDP socket holds, each way. Default 64. Received ones beyond it are dropped.
    pub datagrams: usize,
    /// How long a dial may take. Default 30 s.
    pub dial_timeout: Duration,
    /// How long a connection may be half open. Default 10 s.
    pub handshake_timeout: Duration,
    /// An idle peer is asked for a sign of life this often. Default 30 s.
    pub keep_alive: Duration,
    /// A peer silent for this long is given up; more than `keep_alive`. Default 120 s.
    pub peer_timeout: Duration,
    /// How long a dropped stream may take to deliver what was written. Default 30 s, then it is reset.
    pub linger: Duration,
}

impl StackConfig {
    /// The default limits for these addresses.
    pub fn new(addresses: impl IntoIterator<Item = IpNet>) -> Self {
        Self {
            addresses: addresses.into_iter().collect(),
            sockets: 1_024,
            backlog: 128,
            receive_buffer: MAX_RECEIVE_BUFFER,
            send_buffer: 65_535,
            datagrams: 64,
            dial_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(30),
            peer_timeout: Duration::from_mins(2),
            linger: Duration::from_secs(30),
        }
    }

    pub(crate) fn check(&self, mtu: u16) -> Result<(), StackError> {
        if self.addresses.is_empty() {
            return Err(StackError::NoAddress);
        }
        for address in &self.addresses {
            check_address(*address, mtu)?;
        }
        within("sockets", self.sockets, 1, 65_536)?;
        within("backlog", self.backlog, 1, self.sockets)?;
        within("receive_buffer", self.receive_buffer, MIN_BUFFER, MAX_RECEIVE_BUFFER)?;
        within("send_buffer", self.send_buffer, MIN_BUFFER, MAX_SEND_BUFFER)?;
        within("datagrams", self.datagrams, 1, 65_536)?;
        for (field, time) in [
            ("dial_timeout", self.dial_timeout),
            ("handshake_timeout", self.handshake_timeout),
            ("keep_alive", self.keep_alive),
            ("linger", self.linger),
        ] {
            if time.is_zero() {
                return Err(StackError::ZeroTime { field });
            }
        }
        if self.peer_timeout <= self.keep_alive {
            return Err(StackError::KeepAlive {
                keep_alive: self.keep_alive,
                peer_timeout: self.peer_timeout,
            });
        }
        Ok(())
    }
}

fn check_address(network: IpNet, mtu: u16) -> Result<(), StackError> {
    let address = network.addr();
    let broadcast = match network {
        IpNet::V4(v4) => v4.addr().is_broadcast() || (v4.prefix_len() < 31 && v4.addr() == v4.broadcast()),
        IpNet::V6(_) => false,
    };
    if address.is_unspecified() || address.is_multicast() || broadcast {
        return Err(StackError::NotUnicast { address });
    }
    let least = if address.is_ipv4() { MIN_MTU_V4 } else { MIN_MTU_V6 };
    if mtu < least {
        return Err(StackError::Mtu { mtu, address, least });
    }
    Ok(())
}

fn within(field: &'static str, value: usize, least: usize, most: usize) -> Result<(), StackError> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(StackError::Limit { field, value, least, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> StackConfig {
        StackConfig::new(["192.0.2.1/24".parse().unwrap(), "2001:db8::1/64".parse().unwrap()])
    }

    fn complaint(change: impl FnOnce(&mut StackConfig)) -> String {
        let mut config = config();
        change(&mut config);
        config.check(1_500).unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_good() {
        config().check(1_500).unwrap();
        config().check(1_280).unwrap();
    }

    #[test]
    fn each_mistake_is_named() {
        assert_eq!(
            complaint(|config| config.addresses.clear()),
            "the stack has no address: give it at least one"
        );
        assert_eq!(
            complaint(|config| config.receive_buffer = 65_536),
            "receive_buffer is 65536: 2048 to 65535 are possible"
        );
        assert_eq!(complaint(|config| config.backlog = 2_000), "backlog is 2000: 1 to 1024 are possible");
        assert_eq!(complaint(|config| config.linger = Duration::ZERO), "linger is zero: give it a time");
        assert!(complaint(|config| config.peer_timeout = config.keep_alive).contains("must be longer"));
        let bad = |text: &str| complaint(|config| config.addresses.push(text.parse().unwrap()));
        assert!(bad("192.0.2.255/24").contains("192.0.2.255"));
        assert!(bad("224.0.0.1/4").contains("no unicast address"));
        assert!(bad("::/0").contains("no unicast address"));
    }

    #[test]
    fn ipv6_wants_its_least_mtu() {
        let message = config().check(1_279).unwrap_err().to_string();
        assert_eq!(message, "MTU 1279 is too small for 2001:db8::1: 1280 at least");
    }
}
