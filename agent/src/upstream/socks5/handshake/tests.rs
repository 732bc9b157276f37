use proptest::prelude::*;

use super::*;

/// A server of RFC 1928 by the letter: parses what the client sends and answers as told.
struct Server {
    wants_password: Option<(Vec<u8>, Vec<u8>)>,
    reply: u8,
    bound: Vec<u8>,
}

/// What the server understood of the request.
#[derive(Debug, PartialEq, Eq)]
struct Understood {
    address_type: u8,
    address: Vec<u8>,
    port: u16,
}

impl Server {
    /// Runs the conversation, feeding the client exactly what it wants from a stream that goes on with the flow's data.
    fn run(&self, handshake: &mut Handshake) -> (Result<(), HandshakeError>, Option<Understood>) {
        let mut incoming: Vec<u8> = Vec::new();
        let mut understood = None;
        let mut stage = 0;
        loop {
            if let Some(message) = handshake.poll_transmit() {
                incoming.extend(self.answer(&mut stage, &message, &mut understood));
            }
            if handshake.is_connected() {
                assert_eq!(incoming, b"payload", "the flow's own bytes are left in the stream");
                return (Ok(()), understood);
            }
            let wanted = handshake.wanted();
            assert!(wanted > 0 && wanted <= incoming.len(), "the client waits for bytes that never come");
            let input: Vec<u8> = incoming.drain(..wanted).collect();
            if let Err(error) = handshake.handle_input(&input) {
                return (Err(error), understood);
            }
        }
    }

    fn answer(&self, stage: &mut u8, message: &[u8], understood: &mut Option<Understood>) -> Vec<u8> {
        *stage += 1;
        match (*stage, &self.wants_password) {
            (1, wants) => {
                assert_eq!(usize::from(message[1]), message.len() - 2);
                let method = if wants.is_some() { 2 } else { 0 };
                let chosen = if message[2..].contains(&method) { method } else { 0xff };
                if wants.is_none() {
                    *stage += 1;
                }
                vec![5, chosen]
            }
            (2, Some((username, password))) => {
                let split = 2 + usize::from(message[1]);
                let good =
                    message[0] == 1 && &message[2..split] == username && &message[split + 1..] == password;
                vec![1, u8::from(!good)]
            }
            _ => {
                *understood = Some(parse_request(message));
                let mut reply = vec![5, self.reply, 0];
                reply.extend_from_slice(&self.bound);
                reply.extend_from_slice(&[0x1f, 0x90]);
                reply.extend_from_slice(b"payload");
                reply
            }
        }
    }
}

fn parse_request(message: &[u8]) -> Understood {
    assert_eq!(&message[..3], [5, 1, 0]);
    let (port, address) = message[4..].split_last_chunk::<2>().map(|(head, tail)| (tail, head)).unwrap();
    let address = if message[3] == 3 {
        assert_eq!(usize::from(address[0]), address.len() - 1);
        &address[1..]
    } else {
        address
    };
    Understood { address_type: message[3], address: address.to_vec(), port: u16::from_be_bytes(*port) }
}

fn name(text: &str) -> Target {
    Target::Name(DomainName::parse(text).unwrap(), 443)
}

fn server() -> Server {
    Server { wants_password: None, reply: 0, bound: vec![1, 0, 0, 0, 0] }
}

#[test]
fn a_name_is_sent_as_a_name() {
    let (result, understood) = server().run(&mut Handshake::new(name("api.example.com"), None));
    assert_eq!(result, Ok(()));
    assert_eq!(
        understood,
        Some(Understood { address_type: 3, address: b"api.example.com".to_vec(), port: 443 })
    );
}

#[test]
fn the_longest_name_fits() {
    let text = format!("{}.{}.{}.{}", "a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61));
    let (result, understood) = server().run(&mut Handshake::new(name(&text), None));
    assert_eq!(result, Ok(()));
    assert_eq!(understood.unwrap().address.len(), 253);
}

#[test]
fn a_server_that_wants_a_password_gets_it() {
    let server = Server { wants_password: Some((b"me".to_vec(), b"p\xc3\xa4ss".to_vec())), ..server() };
    let good = Credentials::new("me", "päss").unwrap();
    assert_eq!(server.run(&mut Handshake::new(name("a.test"), Some(good))).0, Ok(()));

    let bad = Credentials::new("me", "guess").unwrap();
    let (result, understood) = server.run(&mut Handshake::new(name("a.test"), Some(bad)));
    assert_eq!(result, Err(HandshakeError::AuthenticationFailed(1)));
    assert_eq!(understood, None, "nothing is asked before the password is accepted");

    let (result, _) = server.run(&mut Handshake::new(name("a.test"), None));
    assert_eq!(result, Err(HandshakeError::NoAcceptableMethod { offered: "none" }));
}

#[test]
fn a_server_that_wants_no_password_does_not_see_it() {
    let credentials = Credentials::new("me", "secret").unwrap();
    let (result, _) = server().run(&mut Handshake::new(name("a.test"), Some(credentials)));
    assert_eq!(result, Ok(()));
}

#[test]
fn every_reply_code_is_told_apart() {
    let expected = [
        (1, Reply::GeneralFailure),
        (2, Reply::NotAllowed),
        (3, Reply::NetworkUnreachable),
        (4, Reply::HostUnreachable),
        (5, Reply::ConnectionRefused),
        (6, Reply::TtlExpired),
        (7, Reply::CommandNotSupported),
        (8, Reply::AddressTypeNotSupported),
        (9, Reply::Unassigned(9)),
        (255, Reply::Unassigned(255)),
    ];
    for (code, reply) in expected {
        let (result, _) = Server { reply: code, ..server() }.run(&mut Handshake::new(name("a.test"), None));
        assert_eq!(result, Err(HandshakeError::Refused(reply)));
    }
}

#[test]
fn a_server_of_another_protocol_is_named_as_such() {
    let mut handshake = Handshake::new(name("a.test"), None);
    assert_eq!(handshake.handle_input(b"HT"), Err(HandshakeError::NotSocks5(b'H')));
}

#[test]
fn a_method_that_was_not_offered_is_refused() {
    for method in [1, 2, 3, 0x80] {
        let mut handshake = Handshake::new(name("a.test"), None);
        assert_eq!(handshake.handle_input(&[5, method]), Err(HandshakeError::UnofferedMethod(method)));
        assert_eq!(handshake.poll_transmit(), Some(vec![5, 1, 0]), "nothing but the greeting was ready");
    }
}

#[test]
fn credentials_have_bounds_and_stay_out_of_debug_output() {
    assert!(Credentials::new("", "x").is_err());
    assert!(Credentials::new("x", "").is_err());
    assert!(Credentials::new("x", &"y".repeat(256)).is_err());
    let credentials = Credentials::new(&"x".repeat(255), "hunter2").unwrap();
    assert!(!format!("{credentials:?}").contains("hunter2"));
}

fn targets() -> impl Strategy<Value = Target> {
    prop_oneof![
        any::<SocketAddr>().prop_map(Target::Address),
        ("[a-z0-9]{1,20}(\\.[a-z0-9]{1,20}){0,5}", any::<u16>())
            .prop_map(|(text, port)| Target::Name(DomainName::parse(&text).unwrap(), port)),
    ]
}

fn bound_addresses() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(|address| [&[1][..], &address].concat()),
        any::<[u8; 16]>().prop_map(|address| [&[4][..], &address].concat()),
        proptest::collection::vec(any::<u8>(), 0..=255).prop_map(|name| [
            &[3, u8::try_from(name.len()).unwrap()][..],
            &name
        ]
        .concat()),
    ]
}

proptest! {
    #[test]
    fn the_server_understands_every_target_and_no_payload_is_eaten(
        target in targets(),
        bound in bound_addresses(),
        password in proptest::option::of("[a-z]{1,255}"),
    ) {
        let credentials = password.as_ref().map(|password| Credentials::new("user", password).unwrap());
        let wants_password = password.map(|password| (b"user".to_vec(), password.into_bytes()));
        let server = Server { wants_password, reply: 0, bound };
        let (result, understood) = server.run(&mut Handshake::new(target.clone(), credentials));
        prop_assert_eq!(result, Ok(()));
        let (address_type, address, port) = match target {
            Target::Name(name, port) => (3, name.as_str().as_bytes().to_vec(), port),
            Target::Address(SocketAddr::V4(address)) => (1, address.ip().octets().to_vec(), address.port()),
            Target::Address(SocketAddr::V6(address)) => (4, address.ip().octets().to_vec(), address.port()),
        };
        prop_assert_eq!(understood, Some(Understood { address_type, address, port }));
    }

    #[test]
    fn garbage_ends_the_conversation_without_a_panic(garbage in proptest::collection::vec(any::<u8>(), 0..600)) {
        let credentials = Credentials::new("user", "password").unwrap();
        let mut handshake = Handshake::new(name("a.test"), Some(credentials));
        let mut rest = &garbage[..];
        while !handshake.is_connected() && handshake.wanted() <= rest.len() {
            let (input, tail) = rest.split_at(handshake.wanted());
            rest = tail;
            if handshake.handle_input(input).is_err() {
                break;
            }
        }
        if handshake.is_connected() {
            prop_assert_eq!(&garbage[..2], &[5, if garbage[1] == 2 { 2 } else { 0 }]);
        }
    }
}
