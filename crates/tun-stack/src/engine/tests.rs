//! Two engines and a wire between them, in virtual time.

use std::task::{Context, Poll, Waker};

use proptest::prelude::*;
use smoltcp::time::Duration as Span;
use tunproxy_testkit::packet::{Tcp, flags};

use super::*;

const A: [&str; 2] = ["192.0.2.1/24", "2001:db8::1/64"];
const B: [&str; 2] = ["192.0.2.2/24", "2001:db8::2/64"];
const MTU: u16 = 1_500;
const WITHIN: Duration = Duration::from_secs(5);

struct Pair {
    a: Engine,
    b: Engine,
    now: Instant,
    /// Every n-th packet is lost, in both directions.
    lose: Option<usize>,
    passed: usize,
    /// Nothing passes at all.
    cut: bool,
}

fn config(addresses: [&str; 2]) -> StackConfig {
    StackConfig { linger: WITHIN, ..StackConfig::new(addresses.map(|text| text.parse().unwrap())) }
}

fn engine(config: StackConfig) -> Engine {
    Engine::new("test0", MTU, config, 7).unwrap()
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

impl Pair {
    fn new() -> Self {
        Self::with(config(A), config(B))
    }

    fn with(a: StackConfig, b: StackConfig) -> Self {
        Self { a: engine(a), b: engine(b), now: Instant::from_secs(1), lose: None, passed: 0, cut: false }
    }

    /// Carries packets until nobody has any.
    fn exchange(&mut self) {
        loop {
            self.a.poll(self.now);
            self.b.poll(self.now);
            let quiet = self.a.outbox.is_empty() && self.b.outbox.is_empty();
            let (to_b, to_a) = (drain(&mut self.a), drain(&mut self.b));
            for (packets, engine) in [(to_b, &mut self.b), (to_a, &mut self.a)] {
                for packet in packets {
                    assert!(packet.len() <= usize::from(MTU));
                    self.passed += 1;
                    if !self.cut && self.lose.is_none_or(|nth| !self.passed.is_multiple_of(nth)) {
                        engine.handle_packet(self.now, &packet);
                    }
                }
            }
            if quiet {
                return;
            }
        }
    }

    /// When the next timer fires. A deadline that has passed although everything was exchanged would keep the driver busy
    /// for nothing.
    fn due(&mut self) -> Option<Instant> {
        let due = [self.a.poll_at(self.now), self.b.poll_at(self.now)].into_iter().flatten().min();
        assert!(due.is_none_or(|due| due > self.now), "a stack that is never idle");
        due
    }

    /// Lets the next timer fire; false when there is none.
    fn advance(&mut self) -> bool {
        let Some(due) = self.due() else { return false };
        self.now = due;
        self.exchange();
        true
    }

    fn advance_for(&mut self, span: Span) {
        let end = self.now + span;
        self.exchange();
        while self.due().is_some_and(|due| due <= end) {
            self.advance();
        }
        self.now = end;
        self.exchange();
    }

    /// A connection from A to a listener of B.
    fn connected(&mut self, address: SocketAddr) -> (SocketHandle, SocketHandle) {
        if !self.b.listeners.contains_key(&address) {
            self.b.listen(address).unwrap();
        }
        let a = self.a.connect(address, WITHIN).unwrap();
        self.exchange();
        assert!(matches!(self.a.poll_connected(a, WITHIN, &context()), Poll::Ready(Ok(()))));
        let b = self.b.accept(address).unwrap().expect("a connection to accept");
        (a, b)
    }
}

fn drain(engine: &mut Engine) -> Vec<Vec<u8>> {
    let packets = engine.outbox.packets().map(<[u8]>::to_vec).collect();
    engine.outbox.clear();
    packets
}

fn port(port: u16) -> SocketAddr {
    SocketAddr::new("192.0.2.2".parse().unwrap(), port)
}

fn read(engine: &mut Engine, handle: SocketHandle) -> Poll<Result<Vec<u8>, SocketError>> {
    let mut buffer = vec![0; 100_000];
    engine.poll_read(handle, &mut buffer, &context()).map_ok(|length| buffer[..length].to_vec())
}

fn write(engine: &mut Engine, handle: SocketHandle, bytes: &[u8]) -> Poll<Result<usize, SocketError>> {
    engine.poll_write(handle, bytes, &context())
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|index| (index * 7 + index / 251) as u8).collect()
}

/// Sends everything from A to B and the end behind it.
fn transfer(pair: &mut Pair, a: SocketHandle, b: SocketHandle, data: &[u8]) -> Vec<u8> {
    let (mut sent, mut got, mut shut) = (0, Vec::new(), false);
    for _ in 0..100_000 {
        if let Poll::Ready(count) = write(&mut pair.a, a, &data[sent..])
            && !shut
        {
            sent += count.unwrap();
        }
        if sent == data.len() && !std::mem::replace(&mut shut, true) {
            pair.a.shut_down(a);
        }
        pair.exchange();
        match read(&mut pair.b, b) {
            Poll::Ready(part) if part.as_ref().is_ok_and(Vec::is_empty) => return got,
            Poll::Ready(part) => got.extend(part.unwrap()),
            Poll::Pending => assert!(pair.advance(), "the transfer is stuck after {} bytes", got.len()),
        }
    }
    panic!("no end after {} bytes", got.len());
}

#[test]
fn both_families_carry_data_and_both_ends() {
    for address in ["192.0.2.2:80", "[2001:db8::2]:80"] {
        let mut pair = Pair::new();
        let (a, b) = pair.connected(address.parse().unwrap());
        assert_eq!(pair.a.endpoints(a).0, pair.b.endpoints(b).1);
        let data = bytes(300_000);
        assert!(transfer(&mut pair, a, b, &data) == data);
        // A has said that it has nothing more; B may still speak.
        assert_eq!(write(&mut pair.b, b, b"answer"), Poll::Ready(Ok(6)));
        pair.exchange();
        assert_eq!(read(&mut pair.a, a), Poll::Ready(Ok(b"answer".to_vec())));
        pair.b.shut_down(b);
        pair.exchange();
        assert_eq!(read(&mut pair.a, a), Poll::Ready(Ok(Vec::new())));
        let Poll::Ready(Err(error)) = write(&mut pair.a, a, b"more") else {
            panic!("written after shutdown")
        };
        assert!(matches!(error, SocketError::WriteAfterShutdown { .. }));
    }
}

#[test]
fn dropped_streams_deliver_and_go() {
    let mut pair = Pair::new();
    let (a, b) = pair.connected(port(80));
    assert_eq!(write(&mut pair.a, a, b"last words"), Poll::Ready(Ok(10)));
    pair.a.abandon(pair.now, a);
    pair.exchange();
    assert_eq!(read(&mut pair.b, b), Poll::Ready(Ok(b"last words".to_vec())));
    assert_eq!(read(&mut pair.b, b), Poll::Ready(Ok(Vec::new())));
    pair.b.abandon(pair.now, b);
    pair.exchange();
    assert!(pair.a.is_drained() && pair.b.is_drained());
    // TIME-WAIT is over.
    pair.advance_for(Span::from_secs(20));
    assert_eq!((pair.a.open, pair.b.open), (0, 0));
}

#[test]
fn a_dropped_stream_whose_peer_keeps_silent_is_reset_in_the_end() {
    let mut pair = Pair::new();
    let (a, b) = pair.connected(port(80));
    pair.a.abandon(pair.now, a);
    pair.advance_for(Span::from_secs(4));
    assert_eq!(pair.a.open, 1);
    assert_eq!(write(&mut pair.b, b, b""), Poll::Ready(Ok(0)));
    pair.advance_for(Span::from_secs(2));
    assert_eq!(pair.a.open, 0);
    let Poll::Ready(Err(error)) = write(&mut pair.b, b, b"x") else { panic!("no reset came") };
    assert!(matches!(error, SocketError::Reset { .. }));
}

#[test]
fn data_for_a_dropped_stream_is_answered_with_a_reset() {
    let mut pair = Pair::new();
    let (a, b) = pair.connected(port(80));
    pair.a.abandon(pair.now, a);
    pair.exchange();
    assert_eq!(write(&mut pair.b, b, b"anybody there?"), Poll::Ready(Ok(14)));
    pair.exchange();
    let Poll::Ready(Err(error)) = write(&mut pair.b, b, b"x") else { panic!("no reset came") };
    assert!(matches!(error, SocketError::Reset { .. }));
    assert_eq!(pair.a.open, 0);
}

#[test]
fn unread_data_outlives_time_wait() {
    let mut pair = Pair::new();
    let (a, b) = pair.connected(port(80));
    pair.a.shut_down(a);
    pair.exchange();
    let data = bytes(50_000);
    assert_eq!(write(&mut pair.b, b, &data), Poll::Ready(Ok(50_000)));
    pair.b.shut_down(b);
    pair.exchange();
    pair.advance_for(Span::from_secs(60));
    assert_eq!(pair.a.tcp(a).state(), tcp_socket::State::Closed);
    let mut got = Vec::new();
    loop {
        match read(&mut pair.a, a) {
            Poll::Ready(Ok(part)) if part.is_empty() => break,
            Poll::Ready(Ok(part)) => got.extend(part),
            other => panic!("{other:?}"),
        }
    }
    assert!(got == data);
}

#[test]
fn a_dial_is_refused_or_times_out() {
    let mut pair = Pair::new();
    let refused = pair.a.connect(port(81), WITHIN).unwrap();
    pair.exchange();
    let Poll::Ready(Err(error)) = pair.a.poll_connected(refused, WITHIN, &context()) else { panic!() };
    assert_eq!(error.to_string(), "connect to 192.0.2.2:81: refused");

    pair.cut = true;
    let silent = pair.a.connect(port(81), WITHIN).unwrap();
    pair.advance_for(Span::from_millis(4_900));
    assert!(pair.a.poll_connected(silent, WITHIN, &context()).is_pending());
    pair.advance_for(Span::from_millis(200));
    let Poll::Ready(Err(error)) = pair.a.poll_connected(silent, WITHIN, &context()) else { panic!() };
    assert_eq!(error.to_string(), "connect to 192.0.2.2:81: no answer within 5s");
    for handle in [refused, silent] {
        pair.a.abandon(pair.now, handle);
    }
    pair.exchange();
    assert_eq!(pair.a.open, 0);
}

#[test]
fn idle_peers_stay_and_silent_ones_are_given_up() {
    let mut pair = Pair::new();
    let (a, b) = pair.connected(port(80));
    pair.advance_for(Span::from_secs(3_600));
    assert!(read(&mut pair.a, a).is_pending() && read(&mut pair.b, b).is_pending());
    pair.cut = true;
    pair.advance_for(Span::from_secs(200));
    for (engine, handle) in [(&mut pair.a, a), (&mut pair.b, b)] {
        let Poll::Ready(Err(error)) = read(engine, handle) else { panic!("still waiting") };
        assert!(matches!(error, SocketError::Silent { .. }), "{error}");
    }
}

#[test]
fn what_is_not_read_stops_the_writer() {
    let mut pair = Pair::new();
    let (a, b) = pair.connected(port(80));
    let data = bytes(200_000);
    let mut sent = 0;
    while let Poll::Ready(count) = write(&mut pair.a, a, &data[sent..]) {
        sent += count.unwrap();
        pair.exchange();
    }
    assert_eq!(sent, 2 * 65_535);
    let Poll::Ready(Ok(got)) = read(&mut pair.b, b) else { panic!("nothing to read") };
    pair.exchange();
    assert!(write(&mut pair.a, a, &data[sent..]).is_ready());
    assert!(data.starts_with(&got));
}

#[test]
fn the_backlog_is_bounded_and_old_half_open_connections_give_way() {
    let mut pair = Pair::with(config(A), StackConfig { backlog: 8, ..config(B) });
    pair.b.listen(port(80)).unwrap();
    let syn = |number: u16| {
        let forged = SocketAddr::new("198.51.100.1".parse().unwrap(), 1_000 + number);
        Tcp::syn(forged, port(80), 1, 1_460).build()
    };
    for number in 0..1_000 {
        pair.b.handle_packet(pair.now, &syn(number));
        assert!(pair.b.open <= 8);
    }
    pair.b.poll(pair.now);
    let answers = drain(&mut pair.b);
    // Those beyond the bound are not even refused.
    assert_eq!(answers.len(), 8);
    // A real client comes, is not heard at first, and gets through with its second SYN.
    let client = pair.a.connect(port(80), WITHIN).unwrap();
    pair.exchange();
    assert!(pair.a.poll_connected(client, WITHIN, &context()).is_pending());
    pair.advance_for(Span::from_secs(3));
    assert_eq!(pair.a.poll_connected(client, WITHIN, &context()), Poll::Ready(Ok(())));
    assert!(pair.b.accept(port(80)).unwrap().is_some());
    pair.advance_for(Span::from_secs(60));
    assert_eq!(pair.b.open, 1, "half-open connections time out");
}

#[test]
fn a_syn_that_is_wrong_leaves_nothing() {
    let mut pair = Pair::new();
    pair.b.listen(port(80)).unwrap();
    let source: SocketAddr = "192.0.2.1:1000".parse().unwrap();
    let good = Tcp::syn(source, port(80), 1, 1_460);
    let wrong = Tcp { checksum: tunproxy_testkit::packet::Checksum::Wrong, ..good.clone() };
    pair.b.handle_packet(pair.now, &wrong.build());
    assert_eq!(pair.b.open, 0);
    pair.b.handle_packet(pair.now, &good.build());
    pair.b.handle_packet(pair.now, &good.build());
    assert_eq!(pair.b.open, 1, "a repetition is the same connection");
    let reset = Tcp { seq: 2, flags: flags::RST, ..Tcp::new(source, port(80)) };
    pair.b.handle_packet(pair.now, &reset.build());
    pair.b.poll(pair.now);
    assert_eq!(pair.b.open, 0);
}

#[test]
fn sockets_are_bounded_and_a_time_wait_makes_room() {
    let mut pair = Pair::with(StackConfig { sockets: 2, backlog: 1, ..config(A) }, config(B));
    let (first, first_peer) = pair.connected(port(80));
    let (second, _) = pair.connected(port(80));
    let full = pair.a.connect(port(80), WITHIN).unwrap_err();
    assert!(matches!(full, SocketError::TooManySockets { most: 2, .. }));
    assert!(pair.a.bind("192.0.2.1:0".parse().unwrap()).is_err());
    pair.a.abandon(pair.now, first);
    pair.exchange();
    pair.b.abandon(pair.now, first_peer);
    pair.exchange();
    assert_eq!(pair.a.tcp(first).state(), tcp_socket::State::TimeWait);
    pair.a.connect(port(80), WITHIN).unwrap();
    assert!(read(&mut pair.a, second).is_pending());
}

#[test]
fn eight_addresses_are_possible_and_no_more() {
    let with = |count: u8| {
        let addresses = (1..=count).map(|host| format!("192.0.2.{host}/24").parse().unwrap());
        Engine::new("test0", MTU, StackConfig::new(addresses), 7)
    };
    let mut engine = with(8).unwrap();
    engine.listen("192.0.2.8:80".parse().unwrap()).unwrap();
    assert_eq!(with(9).unwrap_err().to_string(), "9 addresses, but a stack has at most 8");
}

#[test]
fn addresses_are_checked_and_never_taken_twice() {
    let mut engine = engine(config(A));
    let mut listen =
        |text: &str| engine.listen(text.parse().unwrap()).map(drop).map_err(|error| error.to_string());
    assert_eq!(listen("0.0.0.0:80"), Ok(()));
    assert_eq!(listen("[::]:80"), Ok(()));
    assert_eq!(listen("192.0.2.1:81"), Ok(()));
    assert_eq!(listen("192.0.2.1:80").unwrap_err(), "192.0.2.1:80 is in use on TUN test0");
    assert_eq!(listen("0.0.0.0:81").unwrap_err(), "0.0.0.0:81 is in use on TUN test0");
    assert_eq!(
        listen("192.0.2.9:82").unwrap_err(),
        "192.0.2.9:82 is not an address of the stack on TUN test0"
    );
    assert_eq!(listen("192.0.2.1:0").unwrap_err(), "port 0 of 192.0.2.1:0: a listener needs a port");
    let error = engine.connect("192.0.2.2:0".parse().unwrap(), WITHIN).unwrap_err();
    assert!(matches!(error, SocketError::NoDestination { .. }));

    let config = StackConfig::new([A[0].parse().unwrap()]);
    let mut v4_only = super::Engine::new("test0", MTU, config, 7).unwrap();
    let error = v4_only.connect("[2001:db8::2]:80".parse().unwrap(), WITHIN).unwrap_err();
    assert_eq!(error.to_string(), "the stack on TUN test0 has no address of the family of [2001:db8::2]:80");
}

#[test]
fn datagrams_go_both_ways_and_too_long_ones_are_named() {
    for (from, to, most) in
        [("0.0.0.0:0", "192.0.2.2:53", 1_472), ("[2001:db8::1]:0", "[2001:db8::2]:53", 1_452)]
    {
        let mut pair = Pair::new();
        let to: SocketAddr = to.parse().unwrap();
        let (b, _) = pair.b.bind(to).unwrap();
        let (a, local) = pair.a.bind(from.parse().unwrap()).unwrap();
        assert!(local.port() >= 49_152);
        let data = bytes(most);
        assert_eq!(pair.a.poll_send(a, &data, to, &context()), Poll::Ready(Ok(most)));
        pair.exchange();
        let mut buffer = [0; 2_000];
        let Poll::Ready(Ok((length, peer))) = pair.b.poll_recv(b, &mut buffer, &context()) else {
            panic!("lost")
        };
        assert!(buffer[..length] == data);
        assert_eq!(peer.port(), local.port());
        let Poll::Ready(Err(error)) = pair.a.poll_send(a, &bytes(most + 1), to, &context()) else { panic!() };
        assert!(error.to_string().contains(&format!("{most} fit the MTU")), "{error}");
        // Sent, and dropped before it could leave.
        assert_eq!(pair.b.poll_send(b, b"bye", peer, &context()), Poll::Ready(Ok(3)));
        pair.b.unbind(b);
        assert!(!pair.b.is_drained());
        pair.exchange();
        assert_eq!(
            pair.a.poll_recv(a, &mut buffer[..2], &context()).map(|got| got.unwrap().0),
            Poll::Ready(2)
        );
        assert!(pair.b.is_drained() && pair.b.open == 0);
    }
}

#[test]
fn an_unspecified_address_hears_its_own_family_only() {
    for (bound, right, wrong) in
        [("0.0.0.0:53", "192.0.2.2:53", "[2001:db8::2]:53"), ("[::]:53", "[2001:db8::2]:53", "192.0.2.2:53")]
    {
        let mut pair = Pair::new();
        let (b, _) = pair.b.bind(bound.parse().unwrap()).unwrap();
        for to in [wrong, right] {
            let to: SocketAddr = to.parse().unwrap();
            let any = SocketAddr::new(if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() }, 0);
            let (a, _) = pair.a.bind(any).unwrap();
            assert!(pair.a.poll_send(a, to.to_string().as_bytes(), to, &context()).is_ready());
            pair.exchange();
        }
        let mut buffer = [0; 100];
        let Poll::Ready(Ok((length, peer))) = pair.b.poll_recv(b, &mut buffer, &context()) else {
            panic!("{bound} heard nothing")
        };
        assert_eq!(&buffer[..length], right.as_bytes());
        assert_eq!(peer.is_ipv4(), bound.starts_with('0'));
        assert!(pair.b.poll_recv(b, &mut buffer, &context()).is_pending());
    }
}

#[test]
fn the_end_reaches_everybody() {
    let mut pair = Pair::new();
    let (a, b) = pair.connected(port(80));
    let waiting = pair.a.connect(port(80), WITHIN).unwrap();
    let (datagrams, _) = pair.a.bind("192.0.2.1:53".parse().unwrap()).unwrap();
    pair.a.end(pair.now, Ended::Closed);
    pair.exchange();
    let ended = |error: SocketError| error.to_string() == "the stack on TUN test0 has ended: it was closed";
    let Poll::Ready(Err(error)) = read(&mut pair.a, a) else { panic!() };
    assert!(ended(error));
    let Poll::Ready(Err(error)) = pair.a.poll_connected(waiting, WITHIN, &context()) else { panic!() };
    assert!(ended(error));
    let Poll::Ready(Err(error)) = pair.a.poll_recv(datagrams, &mut [0], &context()) else { panic!() };
    assert!(ended(error));
    assert!(ended(pair.a.listen("192.0.2.1:1".parse().unwrap()).unwrap_err()));
    let Poll::Ready(Err(error)) = read(&mut pair.b, b) else { panic!("the peer was not told") };
    assert!(matches!(error, SocketError::Reset { .. }));
    assert!(pair.a.is_drained());
    for handle in [a, waiting] {
        pair.a.abandon(pair.now, handle);
    }
    pair.a.unbind(datagrams);
    pair.exchange();
    assert_eq!(pair.a.open, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn data_arrives_whole_over_a_lossy_wire(
        length in 0_usize..200_000,
        lose in 5_usize..40,
        receive_buffer in 2_048_usize..=65_535,
        send_buffer in 2_048_usize..=100_000,
        v6: bool,
    ) {
        let small = |addresses| StackConfig { receive_buffer, send_buffer, ..config(addresses) };
        let mut pair = Pair::with(small(A), small(B));
        let address = if v6 { "[2001:db8::2]:80".parse().unwrap() } else { port(80) };
        let (a, b) = pair.connected(address);
        pair.lose = Some(lose);
        let data = bytes(length);
        prop_assert!(transfer(&mut pair, a, b, &data) == data);
    }

    #[test]
    fn anything_may_arrive(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 0..50)) {
        let mut pair = Pair::new();
        let (a, _) = pair.connected(port(80));
        for packet in packets {
            pair.a.handle_packet(pair.now, &packet);
        }
        pair.exchange();
        prop_assert!(read(&mut pair.a, a).is_pending());
    }
}
