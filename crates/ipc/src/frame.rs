//! Frames: one JSON document `{"protocol": N, "body": {...}}` per datagram.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::message::{Request, Response};

/// Version of the messages. Rises when a message changes its meaning or loses a field.
pub const PROTOCOL: u32 = 1;

/// Largest frame in bytes. A GC of a node with 250 pods needs about 25 KiB.
pub const MAX_FRAME: usize = 64 * 1024;

/// A frame that cannot be sent or understood.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("message of {size} bytes exceeds the limit of {MAX_FRAME} bytes")]
    TooLarge { size: usize },
    #[error(
        "the peer speaks protocol {theirs}, this program speaks {PROTOCOL}: install the plugin and the agent of the same release"
    )]
    Version { theirs: u32 },
    #[error("message is not understood: {source}")]
    Malformed { source: serde_json::Error },
}

#[derive(Serialize)]
struct Outgoing<'a, T> {
    protocol: u32,
    body: &'a T,
}

#[derive(Deserialize)]
struct Incoming<T> {
    body: T,
}

/// Read before the body: a body of another version need not parse.
#[derive(Deserialize)]
struct Version {
    protocol: u32,
}

pub fn encode_request(request: &Request) -> Result<Vec<u8>, FrameError> {
    encode(request)
}

pub fn encode_response(response: &Response) -> Result<Vec<u8>, FrameError> {
    encode(response)
}

pub fn decode_request(frame: &[u8]) -> Result<Request, FrameError> {
    decode(frame)
}

pub fn decode_response(frame: &[u8]) -> Result<Response, FrameError> {
    decode(frame)
}

fn encode<T: Serialize>(body: &T) -> Result<Vec<u8>, FrameError> {
    let bytes = serde_json::to_vec(&Outgoing { protocol: PROTOCOL, body })
        .map_err(|source| FrameError::Malformed { source })?;
    check_size(&bytes)?;
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, FrameError> {
    check_size(frame)?;
    let malformed = |source| FrameError::Malformed { source };
    let Version { protocol } = serde_json::from_slice(frame).map_err(malformed)?;
    if protocol != PROTOCOL {
        return Err(FrameError::Version { theirs: protocol });
    }
    let Incoming { body } = serde_json::from_slice(frame).map_err(malformed)?;
    Ok(body)
}

fn check_size(frame: &[u8]) -> Result<(), FrameError> {
    if frame.len() > MAX_FRAME {
        return Err(FrameError::TooLarge { size: frame.len() });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
