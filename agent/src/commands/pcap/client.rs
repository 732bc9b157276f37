//! The agent's side of a capture, asked for in HTTP/1.0: the answer's body is the file as it is, up to the end of the
//! connection.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::pcap::{NUMBER_HEADER, Request};

/// Octets of an answer's head; the agent's have a few hundred.
const LONGEST_HEAD: usize = 16 << 10;
const PIECE: usize = 256 << 10;

/// A capture that an agent has begun.
#[derive(Debug)]
pub(super) struct Capture {
    stream: UnixStream,
    socket: PathBuf,
    number: u64,
    /// Octets of the body that came with the head.
    first: Vec<u8>,
}

impl Capture {
    pub(super) async fn begin(socket: &Path, request: &Request) -> anyhow::Result<Self> {
        let body = serde_json::to_string(request)?;
        let head = format!(
            "POST /captures HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = connect(socket).await?;
        stream.write_all((head + &body).as_bytes()).await?;
        let (head, mut first) = read_head(&mut stream).await.context("the agent's answer broke off")?;
        if head.status != 200 {
            stream.read_to_end(&mut first).await?;
            let said = String::from_utf8_lossy(&first).trim().to_owned();
            anyhow::bail!(if said.is_empty() { format!("the agent answers {}", head.status) } else { said });
        }
        let number = head.number.context("the agent did not number the capture; it is another version")?;
        Ok(Self { stream, socket: socket.to_owned(), number, first })
    }

    /// The next piece of the file; `None`: there is no more. Nothing is lost when the future is dropped.
    pub(super) async fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        if !self.first.is_empty() {
            return Ok(Some(std::mem::take(&mut self.first)));
        }
        let mut piece = Vec::with_capacity(PIECE);
        let read = self.stream.read_buf(&mut piece).await?;
        Ok((read > 0).then_some(piece))
    }

    /// Asks the agent to end the capture; what it has is still to be read. One that is over already does no harm.
    pub(super) async fn end(&self) -> anyhow::Result<()> {
        let mut stream = connect(&self.socket).await?;
        stream.write_all(format!("DELETE /captures/{} HTTP/1.0\r\n\r\n", self.number).as_bytes()).await?;
        read_head(&mut stream).await?;
        Ok(())
    }
}

async fn connect(socket: &Path) -> anyhow::Result<UnixStream> {
    UnixStream::connect(socket).await.with_context(|| {
        format!(
            "{}: no agent answers there; is it running, is admin.socket another path (--socket), are you root?",
            socket.display()
        )
    })
}

/// What counts of an answer's head.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    number: Option<u64>,
}

/// The head, and what of the body came with it.
async fn read_head(stream: &mut UnixStream) -> io::Result<(Head, Vec<u8>)> {
    let mut answer = Vec::new();
    loop {
        if let Some(at) = answer.windows(4).position(|end| end == b"\r\n\r\n") {
            let body = answer.split_off(at + 4);
            let head = parse_head(&answer).ok_or(io::ErrorKind::InvalidData)?;
            return Ok((head, body));
        }
        if answer.len() > LONGEST_HEAD || stream.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn parse_head(head: &[u8]) -> Option<Head> {
    let mut lines = std::str::from_utf8(head).ok()?.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.filter_map(|line| line.split_once(':'));
    let number = headers
        .filter(|(name, _)| name.eq_ignore_ascii_case(NUMBER_HEADER))
        .find_map(|(_, value)| value.trim().parse().ok());
    Some(Head { status, number })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_or_refused() {
        let head = b"HTTP/1.0 200 OK\r\nContent-Type: x\r\nTunproxy-Capture: 7\r\n\r\n";
        assert_eq!(parse_head(head), Some(Head { status: 200, number: Some(7) }));
        assert_eq!(parse_head(b"HTTP/1.1 404 Not Found\r\n\r\n"), Some(Head { status: 404, number: None }));
        for head in [&b"SSH-2.0-x\r\n\r\n"[..], b"HTTP/1.0\r\n\r\n", b"HTTP/1.0 x\r\n\r\n", b"\xff"] {
            assert_eq!(parse_head(head), None);
        }
    }
}
