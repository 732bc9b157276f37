//! The pod's side of the wire: smoltcp's own stack, with an in-memory device and virtual time.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};

/// How the simulated pod is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimPodConfig {
    pub address_v4: Ipv4Addr,
    pub address_v6: Ipv6Addr,
    pub mtu: usize,
    /// Receive buffer of each TCP socket; what it advertises at most.
    pub receive_buffer: usize,
    pub send_buffer: usize,
    pub nagle: bool,
    /// RFC 7323 timestamps.
    pub timestamps: bool,
}

impl Default for SimPodConfig {
    fn default() -> Self {
        Self {
            address_v4: Ipv4Addr::new(10, 244, 0, 2),
            address_v6: Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 2),
            mtu: 1500,
            receive_buffer: 65_535,
            send_buffer: 65_535,
            nagle: false,
            timestamps: false,
        }
    }
}

/// A TCP socket of the simulated pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SimTcp(SocketHandle);

/// A UDP socket of the simulated pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SimUdp(SocketHandle);

/// smoltcp's names for the states of RFC 9293.
pub use smoltcp::socket::tcp::State as TcpState;

pub struct SimPod {
    config: SimPodConfig,
    epoch: Instant,
    device: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    next_port: u16,
}

impl SimPod {
    /// `epoch` is the instant that is the stack's time zero.
    pub fn new(config: SimPodConfig, epoch: Instant, seed: u64) -> Self {
        let mut device = Wire { mtu: config.mtu, ..Wire::default() };
        let mut settings = Config::new(HardwareAddress::Ip);
        settings.random_seed = seed;
        let mut interface = Interface::new(settings, &mut device, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|list| {
            list.push(IpCidr::new(config.address_v4.into(), 24)).expect("two addresses fit");
            list.push(IpCidr::new(config.address_v6.into(), 64)).expect("two addresses fit");
        });
        // The gateways are never resolved on an IP medium; the routes only say "everything goes out here".
        interface.routes_mut().add_default_ipv4_route(Ipv4Addr::new(169, 254, 1, 1)).expect("a free slot");
        interface
            .routes_mut()
            .add_default_ipv6_route(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1))
            .expect("a free slot");
        Self { config, epoch, device, interface, sockets: SocketSet::new(Vec::new()), next_port: 40_000 }
    }

    pub fn config(&self) -> &SimPodConfig {
        &self.config
    }

    /// Opens a connection; the SYN leaves with the next poll. Ports count up from 40000.
    pub fn connect(&mut self, remote: SocketAddr) -> SimTcp {
        let port = self.take_port();
        self.connect_from(remote, port)
    }

    pub fn connect_from(&mut self, remote: SocketAddr, local_port: u16) -> SimTcp {
        let handle = self.sockets.add(self.new_tcp());
        let local = IpEndpoint::new(self.address_for(remote), local_port);
        self.sockets
            .get_mut::<tcp::Socket<'_>>(handle)
            .connect(self.interface.context(), IpEndpoint::from(remote), local)
            .expect("a fresh socket and a valid remote connect");
        SimTcp(handle)
    }

    /// A socket that takes one connection on `port`, for a stack that plays the server.
    pub fn listen(&mut self, port: u16) -> SimTcp {
        let mut socket = self.new_tcp();
        socket.listen(port).expect("a fresh socket listens on a non-zero port");
        SimTcp(self.sockets.add(socket))
    }

    /// Takes bytes for sending; returns how many fitted.
    pub fn send(&mut self, tcp: SimTcp, bytes: &[u8]) -> usize {
        let socket = self.tcp_mut(tcp);
        if socket.can_send() { socket.send_slice(bytes).unwrap_or(0) } else { 0 }
    }

    /// Hands over received bytes. Not calling it closes the window by and by.
    pub fn recv(&mut self, tcp: SimTcp, bytes: &mut [u8]) -> usize {
        let socket = self.tcp_mut(tcp);
        if socket.can_recv() { socket.recv_slice(bytes).unwrap_or(0) } else { 0 }
    }

    /// Sends FIN after what is queued; receiving goes on.
    pub fn close(&mut self, tcp: SimTcp) {
        self.tcp_mut(tcp).close();
    }

    /// Sends RST.
    pub fn abort(&mut self, tcp: SimTcp) {
        self.tcp_mut(tcp).abort();
    }

    pub fn state(&self, tcp: SimTcp) -> TcpState {
        self.tcp(tcp).state()
    }

    /// False once the peer's FIN has arrived and everything before it was read, or after a reset.
    pub fn may_recv(&self, tcp: SimTcp) -> bool {
        self.tcp(tcp).may_recv() || self.tcp(tcp).can_recv()
    }

    pub fn may_send(&self, tcp: SimTcp) -> bool {
        self.tcp(tcp).may_send()
    }

    /// Bytes queued and not yet acknowledged.
    pub fn unacknowledged(&self, tcp: SimTcp) -> usize {
        self.tcp(tcp).send_queue()
    }

    /// Bytes received and not yet read.
    pub fn unread(&self, tcp: SimTcp) -> usize {
        self.tcp(tcp).recv_queue()
    }

    /// Takes the socket away, whatever its state.
    pub fn remove(&mut self, tcp: SimTcp) {
        self.sockets.remove(tcp.0);
    }

    pub fn bind_udp(&mut self, local_port: u16) -> SimUdp {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 256 * 1024]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(local_port).expect("a fresh socket binds to a non-zero port");
        SimUdp(self.sockets.add(socket))
    }

    /// False when the socket's buffer is full.
    pub fn send_udp(&mut self, udp: SimUdp, remote: SocketAddr, payload: &[u8]) -> bool {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(udp.0);
        socket.send_slice(payload, IpEndpoint::from(remote)).is_ok()
    }

    pub fn recv_udp(&mut self, udp: SimUdp) -> Option<(SocketAddr, Vec<u8>)> {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(udp.0);
        let (payload, metadata) = socket.recv().ok()?;
        let from = SocketAddr::new(metadata.endpoint.addr.into(), metadata.endpoint.port);
        Some((from, payload.to_vec()))
    }

    /// A packet arrives.
    pub fn handle(&mut self, now: Instant, packet: Vec<u8>) {
        self.device.inbound.push_back(packet);
        self.run(now);
    }

    /// The next packet to leave.
    pub fn poll(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.device.outbound.is_empty() {
            self.run(now);
        }
        self.device.outbound.pop_front()
    }

    /// When the stack next has something to do by itself.
    pub fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        let at = self.interface.poll_at(self.stack_time(now), &self.sockets)?;
        Some(self.epoch + std::time::Duration::from_micros(at.total_micros().max(0) as u64))
    }

    fn run(&mut self, now: Instant) {
        let now = self.stack_time(now);
        self.interface.poll(now, &mut self.device, &mut self.sockets);
    }

    fn stack_time(&self, now: Instant) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros(now.duration_since(self.epoch).as_micros() as i64)
    }

    fn new_tcp(&self) -> tcp::Socket<'static> {
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; self.config.receive_buffer]),
            tcp::SocketBuffer::new(vec![0; self.config.send_buffer]),
        );
        socket.set_nagle_enabled(self.config.nagle);
        if self.config.timestamps {
            // A constant clock is a valid one: it only may not run backwards.
            socket.set_tsval_generator(Some(|| 1));
        }
        socket
    }

    fn tcp(&self, tcp: SimTcp) -> &tcp::Socket<'static> {
        self.sockets.get(tcp.0)
    }

    fn tcp_mut(&mut self, tcp: SimTcp) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(tcp.0)
    }

    fn address_for(&self, remote: SocketAddr) -> IpAddress {
        match remote.ip() {
            IpAddr::V4(_) => self.config.address_v4.into(),
            IpAddr::V6(_) => self.config.address_v6.into(),
        }
    }

    fn take_port(&mut self) -> u16 {
        let port = self.next_port;
        self.next_port = if port == u16::MAX { 40_000 } else { port + 1 };
        port
    }
}

#[derive(Default)]
struct Wire {
    mtu: usize,
    inbound: VecDeque<Vec<u8>>,
    outbound: VecDeque<Vec<u8>>,
}

impl Device for Wire {
    type RxToken<'a> = Inbound;
    type TxToken<'a> = Outbound<'a>;

    fn receive(&mut self, _now: smoltcp::time::Instant) -> Option<(Inbound, Outbound<'_>)> {
        let packet = self.inbound.pop_front()?;
        Some((Inbound(packet), Outbound(&mut self.outbound)))
    }

    fn transmit(&mut self, _now: smoltcp::time::Instant) -> Option<Outbound<'_>> {
        Some(Outbound(&mut self.outbound))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.max_transmission_unit = self.mtu;
        capabilities.medium = Medium::Ip;
        capabilities
    }
}

struct Inbound(Vec<u8>);

impl RxToken for Inbound {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

struct Outbound<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Outbound<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut packet = vec![0; length];
        let result = write(&mut packet);
        self.0.push_back(packet);
        result
    }
}
