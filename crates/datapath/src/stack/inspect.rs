//! What is known of a flow at this moment, for whoever looks on: a capture's comments. Changes nothing.

use std::net::SocketAddr;

use smoltcp::time::Instant;
use tunproxy_policy::{Decision, Permit, Protocol};

use super::Stack;
use crate::record::NameSource;

/// A live flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveFlow<'a> {
    pub permit: &'a Permit,
    /// `None` where the permit has no name.
    pub name_source: Option<NameSource>,
    /// Several names are leased for the address and none was shown yet: the permit is a provisional one.
    pub name_open: bool,
}

impl Stack {
    /// The flow between these ends as the pod names them; for ICMP echo, the identifier stands for the pod's port and 0 for
    /// the other. `None`: there is none, or its connection is over.
    pub fn live_flow(&self, protocol: Protocol, pod: SocketAddr, remote: SocketAddr) -> Option<LiveFlow<'_>> {
        match protocol {
            Protocol::Tcp => self.tcp.live(pod, remote),
            Protocol::Udp => {
                self.udp.permit(pod, self.shared.dial_address(remote)).map(LiveFlow::without_connection)
            }
            Protocol::Icmp => self.echo.permit(pod, remote.ip()).map(LiveFlow::without_connection),
        }
    }

    /// What policy says now of a flow to `remote`.
    pub fn decide(&self, now: Instant, protocol: Protocol, remote: SocketAddr) -> Decision {
        self.shared.decide(now, protocol, remote)
    }
}

impl<'a> LiveFlow<'a> {
    fn without_connection(permit: &'a Permit) -> Self {
        Self { permit, name_source: permit.name().map(|_| NameSource::Dns), name_open: false }
    }
}
