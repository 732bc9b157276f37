//! Captures of pods' packets, as they pass between TUN and stack, with the decision of each flow as a comment.
//!
//! The workers copy what a capture keeps into a bounded channel (`channel`) and go on. At its far end a task makes pcapng
//! of it (`writer`) and sends it to whoever asked on the admin socket.

mod channel;
mod comment;
mod filter;
mod format;
mod packet;
mod writer;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use channel::{Inlet, Packet};
pub use comment::Comment;
pub use filter::{Filter, FilterError};
pub use format::{Block, Blocks, Direction, Malformed};
pub use packet::{Ends, FlowKey};
pub use writer::Writer;

use crate::serve::pods::Pods;
use crate::worker::Probe;
use format::Interface;
use writer::End;

/// Captures at a time.
const LIMIT: usize = 8;
/// Octets of a file, where nothing else is asked for.
pub const DEFAULT_BYTES: u64 = 256 << 20;
/// Octets kept of a packet, where nothing else is asked for: all, as tcpdump has it.
pub const DEFAULT_SNAPLEN: u32 = 262_144;
/// The header that says the capture's number, by which it is ended: `DELETE /captures/NUMBER`.
pub const NUMBER_HEADER: &str = "tunproxy-capture";

/// What is asked for: the body of `POST /captures`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Request {
    /// `NAMESPACE/NAME`, or a container's id.
    pub pod: String,
    /// See [`Filter`]; empty: every packet.
    #[serde(default)]
    pub flow: String,
    /// The file's size at which it ends.
    #[serde(default = "default_bytes")]
    pub bytes: u64,
    /// Packets after which it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// Seconds after which it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
    /// Octets kept of each packet.
    #[serde(default = "default_snaplen")]
    pub snaplen: u32,
}

fn default_bytes() -> u64 {
    DEFAULT_BYTES
}

fn default_snaplen() -> u32 {
    DEFAULT_SNAPLEN
}

#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("flow: {0}")]
    Filter(#[from] FilterError),
    #[error("snaplen: at least 1 octet of a packet must be kept")]
    Snaplen,
    #[error("no served pod is {0:?}; a pod is NAMESPACE/NAME or its container's id, and /status lists them")]
    NoPod(String),
    #[error("{LIMIT} captures run already; end one of them")]
    TooMany,
}

type Live = BTreeMap<u64, watch::Sender<Option<End>>>;

/// The captures under way.
#[derive(Debug, Default)]
pub struct Captures {
    /// By number, with the way to ask one to end.
    live: Mutex<Live>,
    last: AtomicU64,
}

/// A capture's place among the others, until it is dropped.
#[derive(Debug)]
struct Place {
    captures: Arc<Captures>,
    number: u64,
}

impl Captures {
    /// Begins to capture a pod; the writer gives the file. Waits for the table of pods.
    pub fn start(self: &Arc<Self>, pods: &Pods, request: &Request) -> Result<(u64, Writer), Refused> {
        let filter: Arc<Filter> = Arc::new(request.flow.parse()?);
        if request.snaplen == 0 {
            return Err(Refused::Snaplen);
        }
        let found = pods.find(&request.pod);
        if found.is_empty() {
            return Err(Refused::NoPod(request.pod.clone()));
        }
        let (place, asked) = self.enter().ok_or(Refused::TooMany)?;
        let number = place.number;
        let (inlets, outlet) = channel::channel(found.len() as u32);
        let interfaces = found.iter().map(|(_, attachment)| Interface {
            name: attachment.tun_name.clone(),
            description: format!("{} of {}", attachment.key, request.pod),
            snaplen: request.snaplen,
            filter: filter.to_string(),
        });
        let counts = inlets.iter().map(|inlet| inlet.counts.clone());
        let writer = Writer::new(request, interfaces.zip(counts).collect(), outlet, asked, place);
        for ((id, _), inlet) in found.iter().zip(inlets) {
            let snaplen = request.snaplen as usize;
            pods.workers().capture(*id, &Probe { inlet, filter: filter.clone(), snaplen });
        }
        tracing::info!(pod = request.pod, flow = %filter, number, "a capture begins");
        Ok((number, writer))
    }

    /// Asks a capture to end; `false`: there is none of this number.
    pub fn end(&self, number: u64) -> bool {
        self.lock().get(&number).is_some_and(|asked| asked.send(Some(End::Asked)).is_ok())
    }

    /// Ends all, because the agent ends.
    pub fn end_all(&self) {
        for asked in self.lock().values() {
            asked.send_replace(Some(End::AgentStops));
        }
    }

    fn enter(self: &Arc<Self>) -> Option<(Place, watch::Receiver<Option<End>>)> {
        let mut live = self.lock();
        if live.len() >= LIMIT {
            return None;
        }
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (asked, receiver) = watch::channel(None);
        live.insert(number, asked);
        Some((Place { captures: self.clone(), number }, receiver))
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.captures.lock().remove(&self.number);
        tracing::info!(number = self.number, "a capture is over");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_given_back() {
        let captures = Arc::new(Captures::default());
        let mut places: Vec<_> = (0..LIMIT).map(|_| captures.enter().unwrap()).collect();
        assert!(captures.enter().is_none());
        let (place, asked) = places.remove(0);
        assert!(captures.end(place.number) && *asked.borrow() == Some(End::Asked));
        let number = place.number;
        drop(place);
        assert!(!captures.end(number));
        assert!(captures.enter().is_some());
    }

    #[test]
    fn a_request_needs_a_pod_only_and_knows_its_words() {
        let request: Request = serde_json::from_str(r#"{"pod": "shop/web"}"#).unwrap();
        assert_eq!((request.bytes, request.snaplen), (DEFAULT_BYTES, DEFAULT_SNAPLEN));
        assert!(serde_json::from_str::<Request>(r#"{"pod": "shop/web", "second": 5}"#).is_err());
    }
}
