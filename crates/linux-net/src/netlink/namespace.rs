//! How one namespace refers to another.

use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};

use futures_util::StreamExt;

use super::error::Failure;
use super::{Netlink, NetlinkError};
use crate::netns::NetNs;

impl Netlink {
    /// This namespace's number for another one, which links name it by. `None`: it has none yet, so no link does.
    pub fn number_of(&mut self, namespace: &NetNs) -> Result<Option<i32>, NetlinkError> {
        let mut message = NsidMessage::default();
        message.attributes.push(NsidAttribute::Fd(namespace.as_fd().as_raw_fd().cast_unsigned()));
        let mut handle = self.handle.clone();
        let ask = async move {
            let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(message));
            request.header.flags = NLM_F_REQUEST;
            let mut answers = handle.request(request).map_err(Failure::from)?;
            match answers.next().await.map(|answer| answer.payload) {
                Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(found))) => Ok(found),
                Some(NetlinkPayload::Error(error)) => Err(error.into()),
                Some(_) => Err(Failure::malformed("an answer of unknown kind")),
                None => Err(Failure::broken()),
            }
        };
        let found = self.perform(ask, || format!("look up namespace {}", namespace.path().display()))?;
        let number = found.attributes.into_iter().find_map(|attribute| match attribute {
            NsidAttribute::Id(number) => Some(number),
            _ => None,
        });
        Ok(number.filter(|number| *number >= 0))
    }
}
