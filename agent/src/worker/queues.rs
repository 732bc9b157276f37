//! A TUN's queues and the workers that read them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tunproxy_datapath::shard;
use tunproxy_linux_net::tun::{Mix, QueueProgram};

/// How packets are spread over queues. The kernel does it by the stacks' own rule where that can be had; else packets
/// come anywhere and are handed over.
#[derive(Debug)]
pub(super) struct Spreading(Option<QueueProgram>);

/// What a shard has of the TUN.
pub(super) struct Hand {
    pub(super) queues: Vec<OwnedFd>,
    pub(super) reads: bool,
}

impl Spreading {
    pub(super) fn start(workers: usize) -> Self {
        if workers < 2 {
            return Self(None);
        }
        let loaded = load();
        if let Err(error) = &loaded {
            tracing::warn!(%error, "the kernel does not take the program that spreads packets over the workers (it needs \
                CAP_BPF); they hand packets to each other, which is slower");
        }
        Self(loaded.ok())
    }

    /// Gives every one of `shards` a way to the TUN: queues of its own, or else another's to write to.
    pub(super) fn deal(&self, queues: Vec<OwnedFd>, shards: usize) -> io::Result<Vec<Hand>> {
        if let (Some(program), [first, _, ..]) = (&self.0, &queues[..])
            && let Err(error) = program.attach(first)
        {
            tracing::debug!(%error, "the TUN spreads packets by the kernel's own rule");
        }
        let mut hands: Vec<Hand> = Vec::new();
        hands.resize_with(shards, || Hand { queues: Vec::new(), reads: true });
        for (number, queue) in queues.into_iter().enumerate() {
            hands[number % shards].queues.push(queue);
        }
        for number in 1..shards {
            if hands[number].queues.is_empty()
                && let Some(shared) = hands[0].queues.first()
            {
                // Two that read one queue would put its packets out of order.
                hands[number] = Hand { queues: vec![shared.try_clone()?], reads: false };
            }
        }
        Ok(hands)
    }
}

fn load() -> io::Result<QueueProgram> {
    QueueProgram::load(Mix { first: shard::FIRST, second: shard::SECOND })
}

/// Has the TUN of this queue spread its packets as the workers of a pod want them.
pub fn attach_queue_program(queue: impl AsFd) -> io::Result<()> {
    load()?.attach(queue)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{IpAddr, UdpSocket};
    use std::os::fd::AsRawFd;

    use rustix::io::read;
    use socket2::{Domain, Socket, Type};
    use tunproxy_datapath::vnet;
    use tunproxy_linux_net::tun::{TunSpec, create};
    use tunproxy_linux_net::{NetNs, Netlink};
    use tunproxy_testkit::packet;

    use super::*;

    /// How many queues each shard has, and how many of them to read from.
    fn dealt(queues: usize, shards: usize) -> Vec<(usize, usize)> {
        let queues = (0..queues).map(|_| File::open("/dev/null").unwrap().into()).collect();
        let hands = Spreading(None).deal(queues, shards).unwrap();
        let mut all: Vec<_> = hands.iter().flat_map(|hand| &hand.queues).map(AsRawFd::as_raw_fd).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), hands.iter().map(|hand| hand.queues.len()).sum::<usize>());
        let count = |hand: &Hand| (hand.queues.len(), if hand.reads { hand.queues.len() } else { 0 });
        hands.iter().map(count).collect()
    }

    #[test]
    fn every_shard_has_a_queue() {
        assert_eq!(dealt(2, 2), [(1, 1), (1, 1)]);
        assert_eq!(dealt(4, 2), [(2, 2), (2, 2)]);
        assert_eq!(dealt(3, 2), [(2, 2), (1, 1)]);
        assert_eq!(dealt(1, 3), [(1, 1), (1, 0), (1, 0)]);
    }

    /// Sends through the TUN's routes: connects to many ports, and datagrams small and large.
    fn send(to: [IpAddr; 2]) {
        for to in to {
            for port in 1_000..1_060 {
                let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
                let socket = Socket::new(domain, Type::STREAM, None).unwrap();
                socket.set_nonblocking(true).unwrap();
                assert!(
                    socket.connect(&std::net::SocketAddr::new(to, port).into()).is_err(),
                    "nobody answers"
                );
            }
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).unwrap();
            for size in [100, 9_000] {
                socket.send_to(&vec![7; size], (to, 53)).unwrap();
            }
        }
    }

    /// Where the rule wants a packet.
    fn expected(ip: &[u8], queues: usize) -> usize {
        let (_, destination, header) = packet::addresses(ip);
        let whole = ip[0] >> 4 == 6 || u16::from_be_bytes([ip[6] & 0x3f, ip[7]]) == 0;
        if packet::next_header(ip) != 6 || !whole {
            return 0;
        }
        let ports = u32::from_be_bytes(ip[header..header + 4].try_into().unwrap());
        usize::from(shard::spread(destination, ports)) % queues
    }

    #[test]
    fn the_kernel_puts_packets_where_the_stacks_want_them() {
        if !tunproxy_testkit::root_or_skip() {
            return;
        }
        let namespace = NetNs::create().unwrap();
        let spec = TunSpec { name: "spread0", queues: 3, mtu: 1_500, persistent: None };
        let tun = namespace
            .run(|| {
                let mut netlink = Netlink::open().unwrap();
                let tun = create(&mut netlink, &spec).unwrap();
                for network in ["10.9.0.1/24", "fd09::1/64"] {
                    netlink.add_address(&tun.link, network.parse().unwrap()).unwrap();
                }
                netlink.set_link_up(&tun.link).unwrap();
                tun
            })
            .unwrap();
        let spreading = Spreading::start(3);
        spreading.0.as_ref().unwrap().attach(&tun.queues[0]).unwrap();
        let hands = spreading.deal(tun.queues, 3).unwrap();
        let to = ["10.9.0.77", "fd09::77"].map(|text| text.parse().unwrap());
        namespace.run(|| send(to)).unwrap();
        let mut seen = [(0, 0); 3];
        for (number, queue) in hands.iter().map(|hand| &hand.queues[0]).enumerate() {
            let mut buffer = vec![0; 70_000];
            while let Ok(len) = read(queue, &mut buffer) {
                let ip = &buffer[vnet::LEN..len];
                assert_eq!(expected(ip, 3), number, "{ip:?}");
                let connects = usize::from(packet::next_header(ip) == 6);
                seen[number].0 += connects;
                seen[number].1 += 1 - connects;
            }
        }
        assert_eq!(seen.iter().map(|(connects, _)| connects).sum::<usize>(), 120);
        assert!(seen.iter().all(|&(connects, _)| connects > 15), "{seen:?}");
        assert!(seen[0].1 >= 4 && seen[1].1 == 0 && seen[2].1 == 0, "{seen:?}");
    }
}
