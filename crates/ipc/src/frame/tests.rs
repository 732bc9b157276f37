use proptest::prelude::*;

use super::*;
use crate::message::{AttachmentKey, ErrorCode, Failure, GcRequest, Status};

fn key() -> impl Strategy<Value = AttachmentKey> {
    ("[a-z0-9]{1,64}", "[a-z]{3}[0-9]")
        .prop_map(|(container_id, ifname)| AttachmentKey { container_id, ifname })
}

fn requests() -> impl Strategy<Value = Request> {
    prop_oneof![
        key().prop_map(Request::Detach),
        key().prop_map(Request::Check),
        ("\\PC{0,20}", prop::collection::vec(key(), 0..20))
            .prop_map(|(network, valid)| Request::Gc(GcRequest { network, valid })),
        Just(Request::Status),
    ]
}

fn responses() -> impl Strategy<Value = Response> {
    prop_oneof![
        Just(Response::Attached),
        prop::collection::vec(key(), 0..20).prop_map(|removed| Response::Collected { removed }),
        (any::<bool>(), any::<bool>(), "\\PC{0,40}")
            .prop_map(|(ready, degraded, message)| Response::Status(Status { ready, degraded, message })),
        "\\PC{0,40}".prop_map(|message| Response::Error(Failure { code: ErrorCode::NotReady, message })),
    ]
}

proptest! {
    #[test]
    fn requests_round_trip(request in requests()) {
        prop_assert_eq!(decode_request(&encode_request(&request).unwrap()).unwrap(), request);
    }

    #[test]
    fn responses_round_trip(response in responses()) {
        prop_assert_eq!(decode_response(&encode_response(&response).unwrap()).unwrap(), response);
    }

    #[test]
    fn any_bytes_are_an_error_or_a_request(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(decode_request(&bytes).is_err());
    }

    /// Every prefix of a valid frame is refused: nothing half-read is ever acted on.
    #[test]
    fn a_torn_frame_is_refused(request in requests(), cut in any::<prop::sample::Index>()) {
        let frame = encode_request(&request).unwrap();
        prop_assert!(decode_request(&frame[..cut.index(frame.len())]).is_err());
    }

    #[test]
    fn a_damaged_frame_never_panics(request in requests(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut frame = encode_request(&request).unwrap();
        let at = at.index(frame.len());
        frame[at] = byte;
        let _ = decode_request(&frame);
    }
}

#[test]
fn another_version_names_both() {
    let error = decode_request(br#"{"protocol": 7, "body": {"type": "levitate"}}"#).unwrap_err();
    assert!(matches!(error, FrameError::Version { theirs: 7 }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "the peer speaks protocol 7, this program speaks 1: install the plugin and the agent of the same release"
    );
}

#[test]
fn unknown_fields_are_tolerated_within_a_version() {
    let frame = br#"{"protocol": 1, "trace": "x", "body": {"type": "status", "verbose": true}}"#;
    assert_eq!(decode_request(frame).unwrap(), Request::Status);
}

#[test]
fn an_unknown_request_is_named() {
    let error = decode_request(br#"{"protocol": 1, "body": {"type": "levitate"}}"#).unwrap_err();
    assert!(error.to_string().contains("levitate"), "{error}");
}

#[test]
fn an_oversized_frame_is_refused_on_both_sides() {
    let valid = vec![AttachmentKey { container_id: "c".repeat(64), ifname: "eth0".into() }; 1000];
    let error = encode_request(&Request::Gc(GcRequest { network: "n".into(), valid })).unwrap_err();
    assert!(matches!(error, FrameError::TooLarge { .. }), "{error:?}");
    assert!(matches!(decode_request(&vec![b' '; MAX_FRAME + 1]), Err(FrameError::TooLarge { .. })));
}

/// The wire format is a contract between two binaries: this pins it.
#[test]
fn the_bytes_of_a_detach() {
    let request = Request::Detach(AttachmentKey { container_id: "c1".into(), ifname: "eth0".into() });
    assert_eq!(
        String::from_utf8(encode_request(&request).unwrap()).unwrap(),
        r#"{"protocol":1,"body":{"type":"detach","containerId":"c1","ifname":"eth0"}}"#
    );
}
