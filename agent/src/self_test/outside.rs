//! The other end: a host that is a network stack of its own, so that what arrives there was judged by neither the kernel
//! nor the datapath under test.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use ipnet::IpNet;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Runtime;
use tunproxy_linux_net::sysctl;
use tunproxy_tun_stack::{Listener, Stack, StackConfig, Stream, TunDevice, UdpSocket};

use super::dns;

const DEVICE: &str = "outside0";
const MTU: u16 = 1_500;

/// The node's side of the link, and the host: of the range for benchmarks (RFC 2544) and of this program's ULA prefix.
const NODE: [&str; 2] = ["198.19.252.1/24", "fdb4:7c1e:52a9:252::1/64"];
pub const HOST_V4: Ipv4Addr = Ipv4Addr::new(198, 19, 252, 2);
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0xfdb4, 0x7c1e, 0x52a9, 0x252, 0, 0, 0, 2);
/// Known to the pod by their names alone.
const ALLOWED: Ipv4Addr = Ipv4Addr::new(198, 19, 252, 3);
const DENIED: Ipv4Addr = Ipv4Addr::new(198, 19, 252, 4);
pub const ALLOWED_NAME: &str = "allowed.test";
pub const DENIED_NAME: &str = "denied.test";

/// The echo service (RFC 862) over TCP and UDP.
pub const ECHO: u16 = 7;
/// Allowed by policy, and nobody listens.
pub const CLOSED: u16 = 9;
/// Somebody listens, and policy does not allow it.
pub const FORBIDDEN: u16 = 11;
pub const DNS: u16 = 53;

/// The running host; gone when it is dropped.
#[derive(Debug)]
pub struct Outside {
    /// What policy should have kept away.
    uninvited: Arc<AtomicUsize>,
    stack: Stack,
    runtime: Runtime,
}

impl Outside {
    /// Starts the host on a TUN of this network namespace.
    pub fn start() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("outside")
            .enable_all()
            .build()
            .context("the outside host's thread cannot be started")?;
        let stack = {
            let _inside = runtime.enter();
            let families = if sysctl::has_ipv6() { 2 } else { 1 };
            let node = NODE.into_iter().take(families).map(|text| text.parse().expect("a constant"));
            let device = TunDevice::create(DEVICE, MTU, &node.collect::<Vec<_>>())?;
            Stack::new(device, StackConfig::new(addresses()))?
        };
        let outside = Self { uninvited: Arc::default(), stack, runtime };
        outside.serve().context("the outside host's services cannot be started")?;
        Ok(outside)
    }

    /// Connections that arrived although policy refuses them.
    pub fn uninvited(&self) -> usize {
        self.uninvited.load(Ordering::SeqCst)
    }

    fn serve(&self) -> io::Result<()> {
        for address in addresses().iter().map(IpNet::addr) {
            if address == DENIED {
                self.count_uninvited(self.stack.listen(SocketAddr::new(address, ECHO))?);
                continue;
            }
            self.count_uninvited(self.stack.listen(SocketAddr::new(address, FORBIDDEN))?);
            self.runtime.spawn(echo_all(self.stack.listen(SocketAddr::new(address, ECHO))?));
            self.runtime.spawn(echo_datagrams(self.stack.bind_udp(SocketAddr::new(address, ECHO))?));
        }
        self.runtime.spawn(resolve(self.stack.bind_udp((HOST_V4, DNS).into())?));
        Ok(())
    }

    fn count_uninvited(&self, listener: Listener) {
        let uninvited = self.uninvited.clone();
        self.runtime.spawn(async move {
            while listener.accept().await.is_ok() {
                uninvited.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
}

fn addresses() -> Vec<IpNet> {
    let v4 = [HOST_V4, ALLOWED, DENIED].map(|address| format!("{address}/24"));
    let v6 = sysctl::has_ipv6().then(|| format!("{HOST_V6}/64"));
    v4.into_iter().chain(v6).map(|text| text.parse().expect("an address and a length")).collect()
}

async fn echo_all(listener: Listener) {
    while let Ok((stream, _)) = listener.accept().await {
        // Whoever asked sees what is missing.
        tokio::spawn(echo(stream));
    }
}

async fn echo(stream: Stream) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    tokio::io::copy(&mut reader, &mut writer).await?;
    writer.shutdown().await
}

async fn echo_datagrams(socket: UdpSocket) -> io::Result<()> {
    let mut buffer = vec![0; usize::from(MTU)];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer).await?;
        socket.send_to(&buffer[..length], peer).await?;
    }
}

async fn resolve(socket: UdpSocket) -> io::Result<()> {
    let mut buffer = vec![0; usize::from(MTU)];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer).await?;
        let known = |name: &str| match name {
            ALLOWED_NAME => Some(ALLOWED),
            DENIED_NAME => Some(DENIED),
            _ => None,
        };
        if let Some(answer) = dns::answer(&buffer[..length], known) {
            socket.send_to(&answer, peer).await?;
        }
    }
}
