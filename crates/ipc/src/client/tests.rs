use std::thread;

use super::*;
use crate::message::ErrorCode;
use crate::socket::Listener;

/// Answers one connection with the given bytes, or closes it.
fn serve_once(listener: Listener, answer: Option<Vec<u8>>) -> thread::JoinHandle<Listener> {
    thread::spawn(move || {
        rustix::io::ioctl_fionbio(&listener, false).unwrap();
        let (connection, _) = listener.accept().unwrap();
        connection.set_nonblocking(false).unwrap();
        connection.recv().unwrap();
        if let Some(bytes) = answer {
            connection.send(&bytes, &[]).unwrap();
        }
        drop(connection);
        listener
    })
}

fn ask(answer: Option<Vec<u8>>) -> Result<Response, ClientError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cni.sock");
    let server = serve_once(Listener::bind(&path).unwrap(), answer);
    let mut client = Client::connect(&path, Instant::now() + Duration::from_secs(5)).unwrap();
    let result = client.call(&Request::Status, &[]);
    server.join().unwrap();
    result
}

#[test]
fn an_answer_comes_back() {
    let answer = crate::encode_response(&Response::Attached).unwrap();
    assert_eq!(ask(Some(answer)).unwrap(), Response::Attached);
}

#[test]
fn a_refusal_is_an_error_with_its_code() {
    let failure = Failure { code: ErrorCode::NotReady, message: "policy is still loading".into() };
    let error = ask(Some(crate::encode_response(&Response::Error(failure)).unwrap())).unwrap_err();
    assert_eq!(error.to_string(), "the agent refused: policy is still loading (not ready)");
}

#[test]
fn an_agent_of_another_release_is_named() {
    let error = ask(Some(br#"{"protocol":2,"body":{"type":"attached"}}"#.to_vec())).unwrap_err();
    assert!(error.to_string().contains("speaks protocol 2, this program speaks 1"), "{error}");
}

#[test]
fn a_closed_connection_is_said_to_be_closed() {
    let error = ask(None).unwrap_err();
    assert!(matches!(error, ClientError::Closed { .. }), "{error:?}");
}

#[test]
fn a_missing_socket_says_what_to_look_at() {
    let error = Client::connect(Path::new("/nonexistent/cni.sock"), Instant::now() + Duration::from_secs(1))
        .unwrap_err();
    assert!(error.to_string().contains("is tunproxy-agent running"), "{error}");
}

#[test]
fn a_silent_agent_times_out_at_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cni.sock");
    let _listener = Listener::bind(&path).unwrap();
    let start = Instant::now();
    let mut client = Client::connect(&path, start + Duration::from_millis(100)).unwrap();
    let error = client.call(&Request::Status, &[]).unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_deadline_in_the_past_does_not_block() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cni.sock");
    let _listener = Listener::bind(&path).unwrap();
    let error = Client::connect(&path, Instant::now()).unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error:?}");
}
