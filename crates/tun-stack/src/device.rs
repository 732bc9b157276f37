//! The TUN: made here, or handed over.

use std::os::fd::OwnedFd;

use ipnet::IpNet;
use tunproxy_linux_net::tun::{self, TunSpec};
use tunproxy_linux_net::{Netlink, Tun};

use crate::error::StackError;

/// An open TUN, for one stack.
#[derive(Debug)]
pub struct TunDevice {
    pub(crate) name: String,
    pub(crate) fd: OwnedFd,
    pub(crate) mtu: u16,
    /// Every packet has a virtio-net header before it.
    pub(crate) vnet_header: bool,
}

impl TunDevice {
    /// Makes a TUN in the calling thread's network namespace, gives the kernel's side of it these addresses and sets it
    /// up. The device ends with the stack. Needs CAP_NET_ADMIN.
    ///
    /// The stack's own addresses ([`crate::StackConfig`]) are others, best of the same networks: then the kernel has a
    /// route to them.
    pub fn create(name: &str, mtu: u16, host_addresses: &[IpNet]) -> Result<Self, StackError> {
        let mut netlink = Netlink::open()?;
        let spec = TunSpec { name, queues: 1, mtu: u32::from(mtu), persistent: None };
        let tun = tun::create(&mut netlink, &spec)?;
        for address in host_addresses {
            netlink.add_address(&tun.link, *address)?;
        }
        netlink.set_link_up(&tun.link)?;
        Self::try_from(tun)
    }

    /// Takes an open descriptor over; `mtu` is the device's. The descriptor was opened with `IFF_TUN` and `IFF_NO_PI`.
    pub fn adopt(queue: OwnedFd, mtu: u16) -> Result<Self, StackError> {
        let adopted = tun::adopt(queue)?;
        Ok(Self { name: adopted.name, fd: adopted.queue, mtu, vnet_header: adopted.vnet_header })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of the largest packet.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }
}

/// A TUN of `linux-net`; a stack serves one queue, so it must have no more.
impl TryFrom<Tun> for TunDevice {
    type Error = StackError;

    fn try_from(tun: Tun) -> Result<Self, StackError> {
        let mtu = u16::try_from(tun.link.mtu).unwrap_or(u16::MAX);
        let queues = tun.queues.len();
        let Ok([fd]) = <[OwnedFd; 1]>::try_from(tun.queues) else {
            return Err(StackError::Queues { device: tun.name, queues });
        };
        Ok(Self { name: tun.name, fd, mtu, vnet_header: true })
    }
}
