//! The library on a real TUN, with the kernel's TCP and UDP as the other side.

mod support;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;
use support::{LIMIT, bytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tunproxy_testkit::packet::Tcp;
use tunproxy_testkit::raw::{Pace, send_all};
use tunproxy_testkit::{Namespace, root_or_skip, wait};
use tunproxy_tun_stack::{SocketError, Stack, StackConfig, TunDevice};

const DEVICE: &str = "tun0";
const HOST: [&str; 2] = ["198.19.77.1", "fdb4:7c1e:52a9:77::1"];
const STACK: [&str; 2] = ["198.19.77.2", "fdb4:7c1e:52a9:77::2"];

struct Net {
    namespace: Namespace,
    stack: Stack,
}

fn networks(addresses: [&str; 2]) -> Vec<ipnet::IpNet> {
    let [v4, v6] = addresses;
    vec![format!("{v4}/24").parse().unwrap(), format!("{v6}/64").parse().unwrap()]
}

fn config() -> StackConfig {
    StackConfig::new(networks(STACK))
}

fn device(namespace: &Namespace) -> TunDevice {
    namespace.enter(|| TunDevice::create(DEVICE, 1_500, &networks(HOST))).unwrap()
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

impl Net {
    fn new(label: &str, config: StackConfig) -> Self {
        let namespace = Namespace::new(label).unwrap();
        let stack = Stack::new(device(&namespace), config).unwrap();
        Self { namespace, stack }
    }

    fn listener(&self, address: SocketAddr) -> TcpListener {
        let listener = self.namespace.tcp_listen(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        TcpListener::from_std(listener).unwrap()
    }

    fn udp(&self, address: SocketAddr) -> UdpSocket {
        let socket = self.namespace.udp_bind(address).unwrap();
        socket.set_nonblocking(true).unwrap();
        UdpSocket::from_std(socket).unwrap()
    }

    /// A connection of the kernel to the stack, which runs meanwhile. A socket stays where it was made.
    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.namespace.enter(|| match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        })?;
        socket.connect(address).await
    }

    fn has_device(&self) -> bool {
        self.namespace.links().unwrap().contains(DEVICE)
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("{what}: not within {LIMIT:?}"))
}

fn reason(error: &io::Error) -> &SocketError {
    error.get_ref().and_then(|inner| inner.downcast_ref()).expect("an error of the stack")
}

#[tokio::test]
async fn a_dial_reaches_the_host_and_data_of_any_size_crosses() {
    if !root_or_skip() {
        return;
    }
    let net = Net::new("dial", config());
    for host in HOST {
        let listener = net.listener(at(host, 7_000));
        // Around the MTU's payload, and far beyond it.
        for size in [1, 1_439, 1_440, 1_460, 1_461, 65_535, 65_536, 3_000_000] {
            let (stream, accepted) = within("connecting", async {
                tokio::join!(net.stack.dial(at(host, 7_000)), listener.accept())
            })
            .await;
            let (mut stream, (mut host_stream, peer)) = (stream.unwrap(), accepted.unwrap());
            assert_eq!((stream.local_addr(), stream.peer_addr()), (peer, at(host, 7_000)));
            let data = bytes(size);
            let send = async {
                stream.write_all(&data).await.unwrap();
                stream.shutdown().await.unwrap();
                let mut back = Vec::new();
                stream.read_to_end(&mut back).await.unwrap();
                back
            };
            let receive = async {
                let mut got = Vec::new();
                host_stream.read_to_end(&mut got).await.unwrap();
                // The stack's half is closed; this one is not.
                host_stream.write_all(&got).await.unwrap();
                drop(host_stream);
                got
            };
            let (back, got) = within("the transfer", async { tokio::join!(send, receive) }).await;
            assert!(got == data && back == data, "{size} bytes over {host}");
        }
    }
}

#[tokio::test]
async fn the_host_may_close_its_half_first() {
    if !root_or_skip() {
        return;
    }
    let net = Net::new("half", config());
    for address in STACK {
        let listener = net.stack.listen(at(address, 80)).unwrap();
        let (host, accepted) =
            within("connecting", async { tokio::join!(net.connect(at(address, 80)), listener.accept()) })
                .await;
        let (mut host, (mut stream, _)) = (host.unwrap(), accepted.unwrap());
        host.shutdown().await.unwrap();
        assert_eq!(within("the end", stream.read(&mut [0; 9])).await.unwrap(), 0);
        let data = bytes(1_000_000);
        let mut got = Vec::new();
        let send = async {
            stream.write_all(&data).await.unwrap();
            // Not shut down: to drop it does that too, behind the data.
            drop(stream);
        };
        let (received, ()) =
            within("the transfer", async { tokio::join!(host.read_to_end(&mut got), send) }).await;
        received.unwrap();
        assert!(got == data);
        assert_eq!(within("a second end", host.read(&mut [0])).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn resets_are_errors_on_both_sides() {
    if !root_or_skip() {
        return;
    }
    let net = Net::new("reset", config());
    let listener = net.stack.listen(at(STACK[0], 80)).unwrap();
    let (host, accepted) =
        within("connecting", async { tokio::join!(net.connect(at(STACK[0], 80)), listener.accept()) }).await;
    let (host, (mut stream, peer)) = (host.unwrap(), accepted.unwrap());
    host.set_zero_linger().unwrap();
    drop(host);
    let error = within("the reset", stream.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(error.to_string(), format!("connection 198.19.77.2:80 to {peer}: reset by the peer"));

    // Dropped with something unread: the kernel's program is told.
    let (host, accepted) =
        within("connecting", async { tokio::join!(net.connect(at(STACK[0], 80)), listener.accept()) }).await;
    let (mut host, (mut stream, _)) = (host.unwrap(), accepted.unwrap());
    host.write_all(b"anybody there?").await.unwrap();
    assert_eq!(within("a word", stream.read(&mut [0])).await.unwrap(), 1);
    drop(stream);
    let error = within("the reset", host.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_refused_dial_is_refused() {
    if !root_or_skip() {
        return;
    }
    let net = Net::new("refused", config());
    for host in HOST {
        let error = within("the refusal", net.stack.dial(at(host, 7_001))).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(reason(&error), &SocketError::Refused { peer: at(host, 7_001) });
    }
    let error = within("the other way", net.connect(at(STACK[0], 81))).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    wait::until_true("the sockets to go", LIMIT, || net.stack.sockets() == 0).unwrap();
}

/// Half a minute of virtual time.
#[tokio::test(start_paused = true)]
async fn a_dial_into_a_black_hole_times_out() {
    if !root_or_skip() {
        return;
    }
    let net = Net::new("hole", config());
    let before = tokio::time::Instant::now();
    let error = net.stack.dial(at("198.19.77.9", 7_000)).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert_eq!(error.to_string(), "connect to 198.19.77.9:7000: no answer within 30s");
    assert!(before.elapsed() >= Duration::from_secs(30));
}

#[tokio::test]
async fn datagrams_of_every_size_come_back_and_a_closed_port_says_so() {
    if !root_or_skip() {
        return;
    }
    let net = Net::new("udp", config());
    for (index, most) in [(0, 1_472), (1, 1_452)] {
        let inside = net.stack.bind_udp(at(STACK[index], 53)).unwrap();
        let outside = net.udp(at(HOST[index], 5_353));
        for size in [0, 1, 512, most - 1, most] {
            let data = bytes(size);
            outside.send_to(&data, inside.local_addr()).await.unwrap();
            let mut buffer = vec![0; 2_000];
            let (length, peer) = within("a datagram", inside.recv_from(&mut buffer)).await.unwrap();
            assert!(peer == at(HOST[index], 5_353) && buffer[..length] == data);
            within("room", inside.send_to(&data, peer)).await.unwrap();
            let (length, peer) = within("its answer", outside.recv_from(&mut buffer)).await.unwrap();
            assert!(peer == inside.local_addr() && buffer[..length] == data);
        }
        let error = inside.send_to(&bytes(most + 1), at(HOST[index], 5_353)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        // The kernel would send it in fragments, which this stack does not put together: lost, and nothing breaks.
        outside.send_to(&bytes(most + 1), inside.local_addr()).await.unwrap();
        outside.send_to(b"after", inside.local_addr()).await.unwrap();
        let mut buffer = [0; 9];
        assert_eq!(within("the next", inside.recv_from(&mut buffer)).await.unwrap().0, 5);

        outside.connect(at(STACK[index], 54)).await.unwrap();
        outside.send(b"nobody").await.unwrap();
        let error = within("port unreachable", outside.recv(&mut buffer)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}

/// The kernel hands a super-datagram over in one read.
#[tokio::test]
async fn segmented_datagrams_arrive_one_by_one() {
    if !root_or_skip() {
        return;
    }
    let net = Net::new("uso", config());
    for index in [0, 1] {
        let inside = net.stack.bind_udp(at(STACK[index], 53)).unwrap();
        let outside = net.udp(at(HOST[index], 0));
        setsockopt(&outside, UdpGsoSegment, &1_000).unwrap();
        let data = bytes(10_500);
        assert_eq!(outside.send_to(&data, inside.local_addr()).await.unwrap(), data.len());
        let mut got: Vec<u8> = Vec::new();
        let mut buffer = [0; 2_000];
        while got.len() < data.len() {
            let (length, _) = within("a datagram", inside.recv_from(&mut buffer)).await.unwrap();
            assert_eq!(length, 1_000.min(data.len() - got.len()));
            got.extend(&buffer[..length]);
        }
        assert!(got == data);
    }
}

#[tokio::test]
async fn the_stack_lives_as_long_as_a_handle_and_no_longer() {
    if !root_or_skip() {
        return;
    }
    let Net { namespace, stack } = Net::new("drop", config());
    let net_listener = namespace.tcp_listen(at(HOST[0], 7_000)).unwrap();
    let dialer = stack.dialer();
    drop(stack);
    let mut stream = within("a dial", dialer.dial(at(HOST[0], 7_000))).await.unwrap();
    drop(dialer);
    let (mut host, _) = net_listener.accept().unwrap();
    // As much as the socket holds: nobody reads yet.
    within("room", stream.write_all(&bytes(60_000))).await.unwrap();
    // The last handle; what was written has still to arrive.
    drop(stream);
    let got = tokio::task::spawn_blocking(move || {
        let mut got = Vec::new();
        host.set_read_timeout(Some(LIMIT)).unwrap();
        std::io::Read::read_to_end(&mut host, &mut got).map(|_| got)
    });
    assert!(within("the rest", got).await.unwrap().unwrap() == bytes(60_000));
    let gone = move || !namespace.links().unwrap().contains(DEVICE);
    let gone = tokio::task::spawn_blocking(move || wait::until_true("the TUN to go", LIMIT, gone));
    gone.await.unwrap().unwrap();
}

#[tokio::test]
async fn close_reaches_everybody_and_takes_the_device_away() {
    if !root_or_skip() {
        return;
    }
    let net = Net::new("close", config());
    let everybody = Everybody::of(&net).await;
    assert!(net.has_device() && net.stack.is_running());
    within("the close", net.stack.close()).await;
    assert!(!net.has_device());
    everybody.are_told("the stack on TUN tun0 has ended: it was closed").await;
    let error = net.stack.dial(at(HOST[0], 7_000)).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NetworkDown);
    within("a second close", net.stack.close()).await;
}

#[tokio::test]
async fn a_device_that_goes_away_ends_everything() {
    if !root_or_skip() {
        return;
    }
    let net = Net::new("gone", config());
    let everybody = Everybody::of(&net).await;
    net.namespace.ip("link del tun0").unwrap();
    within("the end", net.stack.ended()).await;
    everybody.are_told("the stack on TUN tun0 has ended: the TUN is gone").await;
}

/// One of each that waits.
struct Everybody(Vec<(&'static str, tokio::task::JoinHandle<io::Error>)>);

impl Everybody {
    async fn of(net: &Net) -> Self {
        let listener = net.stack.listen(at(STACK[0], 80)).unwrap();
        let (host, accepted) =
            within("connecting", async { tokio::join!(net.connect(at(STACK[0], 80)), listener.accept()) })
                .await;
        let (host, (stream, _)) = (host.unwrap(), accepted.unwrap());
        let (mut reader, mut writer) = tokio::io::split(stream);
        let datagrams = net.stack.bind_udp(at(STACK[0], 53)).unwrap();
        let dialer = net.stack.dialer();
        let writing = async move {
            // Nobody reads on the other side: it comes to wait for room.
            let _host = host;
            loop {
                if let Err(error) = writer.write_all(&[0; 10_000]).await {
                    return error;
                }
            }
        };
        Self(vec![
            ("accept", waiting(async move { listener.accept().await.unwrap_err() }).await),
            ("read", waiting(async move { reader.read(&mut [0]).await.unwrap_err() }).await),
            ("write", waiting(writing).await),
            ("recv_from", waiting(async move { datagrams.recv_from(&mut [0]).await.unwrap_err() }).await),
            ("dial", waiting(async move { dialer.dial(at("198.19.77.9", 1)).await.unwrap_err() }).await),
        ])
    }

    async fn are_told(self, beginning: &str) {
        for (who, waiting) in self.0 {
            let error = within(who, waiting).await.unwrap();
            assert_eq!(error.kind(), io::ErrorKind::NetworkDown, "{who}");
            assert!(error.to_string().starts_with(beginning), "{who}: {error}");
        }
    }
}

/// A task of `future` once it waits: one that had not begun to would see what comes by itself, without being woken.
async fn waiting(
    future: impl Future<Output = io::Error> + Send + 'static,
) -> tokio::task::JoinHandle<io::Error> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let task = tokio::spawn(async move {
        let (mut future, mut tell) = (std::pin::pin!(future), Some(tell));
        std::future::poll_fn(|context| {
            let outcome = future.as_mut().poll(context);
            if let (true, Some(tell)) = (outcome.is_pending(), tell.take()) {
                let _ = tell.send(());
            }
            outcome
        })
        .await
    });
    within("a task to wait", told).await.unwrap();
    task
}

/// Forged SYNs take no more than the backlog, and a real client gets through while they come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backlog_holds_under_a_flood_of_syns() {
    const BACKLOG: usize = 64;
    if !root_or_skip() {
        return;
    }
    let net = Net::new("flood", StackConfig { backlog: BACKLOG, ..config() });
    let listener = net.stack.listen(at(STACK[0], 80)).unwrap();
    let (done, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let watcher = tokio::spawn({
        let (stack, done, most) = (net.stack.clone(), Arc::clone(&done), Arc::clone(&most));
        async move {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(stack.sockets(), Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        }
    });
    let sent =
        tokio::task::block_in_place(|| send_all(&net.namespace, DEVICE, Pace::AsTaken, forged(20_000)))
            .unwrap();
    assert_eq!(sent.carried, 20_000);
    let (host, accepted) =
        within("a real client", async { tokio::join!(net.connect(at(STACK[0], 80)), listener.accept()) })
            .await;
    let (mut host, (mut stream, _)) = (host.unwrap(), accepted.unwrap());
    host.write_all(b"real").await.unwrap();
    let mut got = [0; 4];
    within("its words", stream.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"real");
    done.store(true, Ordering::Relaxed);
    watcher.await.unwrap();
    let most = most.load(Ordering::Relaxed);
    // The accepted one is outside the backlog.
    assert!((BACKLOG..=BACKLOG + 1).contains(&most), "{most} sockets");
}

fn forged(count: u32) -> impl Iterator<Item = Vec<u8>> + Send {
    (0..count).map(|number| {
        let source =
            SocketAddr::new([203, 0, 113, (number % 250) as u8 + 1].into(), 1_024 + (number / 250) as u16);
        Tcp::syn(source, at(STACK[0], 80), number, 1_460).build()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_can_ping_it() {
    if !root_or_skip() {
        return;
    }
    let net = Net::new("ping", config());
    for address in STACK {
        let ping = format!("ping -c 1 -W 10 -s 1000 {address}");
        // The stack's task runs on another thread meanwhile; ping itself keeps the time.
        let said = net.namespace.run(&ping).unwrap();
        assert!(said.contains("1 received"), "{said}");
    }
}
