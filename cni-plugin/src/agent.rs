//! The questions to the agent, each with the answer it must have.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use ipnet::IpNet;
use tunproxy_ipc::{
    AttachRequest, Attachment, AttachmentKey, Checked, Client, ClientError, GcRequest, InterfaceAddress,
    Mode, NamespaceId, PodIdentity, PrepareRequest, Request, Response, Settings, Status,
};
use tunproxy_linux_net::NetNs;
use tunproxy_linux_net::steering::Plumbed;

use crate::config::{Config, ConfigMode};
use crate::error::PluginError;
use crate::invocation::Invocation;

/// A connection to the agent for one verb.
#[derive(Debug)]
pub struct Agent {
    client: Client,
}

impl Agent {
    pub fn connect(config: &Config, deadline: Instant) -> Result<Self, ClientError> {
        Client::connect(&config.socket, deadline).map(|client| Self { client })
    }

    pub fn prepare(&mut self, config: &Config, invocation: &Invocation) -> Result<Settings, PluginError> {
        let request = Request::Prepare(PrepareRequest {
            key: invocation.key.clone(),
            netns_path: invocation.netns.clone().unwrap_or_default(),
            pod: identity(config, invocation),
            mode: mode(config),
            network: config.network.clone(),
        });
        match self.client.call(&request, &[])? {
            Response::Settings(settings) => Ok(settings),
            other => Err(unexpected("prepare", &other)),
        }
    }

    /// Hands over the pod; returns when its policy is resident and its packets are served.
    pub fn attach(
        &mut self,
        config: &Config,
        invocation: &Invocation,
        netns: &NetNs,
        plumbed: &Plumbed,
    ) -> Result<(), PluginError> {
        let attachment = Attachment {
            key: invocation.key.clone(),
            network: config.network.clone(),
            mode: mode(config),
            tun_name: plumbed.tun.name.clone(),
            queues: u16::try_from(plumbed.tun.queues.len()).unwrap_or(u16::MAX),
            mtu: plumbed.mtu,
            netns_path: netns.path().to_owned(),
            netns: NamespaceId { device: netns.id().device, inode: netns.id().inode },
            addresses: plumbed.addresses.iter().map(|network: &IpNet| InterfaceAddress(*network)).collect(),
            pod: identity(config, invocation),
        };
        let mut fds: Vec<BorrowedFd<'_>> = vec![netns.as_fd()];
        fds.extend(plumbed.tun.queues.iter().map(AsFd::as_fd));
        match self.client.call(&Request::Attach(AttachRequest { attachment }), &fds)? {
            Response::Attached => Ok(()),
            other => Err(unexpected("attach", &other)),
        }
    }

    pub fn detach(&mut self, key: &AttachmentKey) -> Result<(), PluginError> {
        match self.client.call(&Request::Detach(key.clone()), &[])? {
            Response::Detached => Ok(()),
            other => Err(unexpected("detach", &other)),
        }
    }

    /// Returns what the agent finds wrong.
    pub fn check(&mut self, key: &AttachmentKey) -> Result<Vec<String>, PluginError> {
        match self.client.call(&Request::Check(key.clone()), &[])? {
            Response::Checked(Checked { ok: false, problems }) if problems.is_empty() => {
                Ok(vec![format!("the agent does not serve {key}")])
            }
            Response::Checked(checked) => Ok(checked.problems),
            other => Err(unexpected("check", &other)),
        }
    }

    /// Returns what was dropped.
    pub fn gc(&mut self, network: &str, valid: &[AttachmentKey]) -> Result<Vec<AttachmentKey>, PluginError> {
        let request = Request::Gc(GcRequest { network: network.to_owned(), valid: valid.to_vec() });
        match self.client.call(&request, &[])? {
            Response::Collected { removed } => Ok(removed),
            other => Err(unexpected("gc", &other)),
        }
    }

    pub fn status(&mut self) -> Result<Status, PluginError> {
        match self.client.call(&Request::Status, &[])? {
            Response::Status(status) => Ok(status),
            other => Err(unexpected("status", &other)),
        }
    }
}

fn identity(config: &Config, invocation: &Invocation) -> PodIdentity {
    PodIdentity {
        namespace: invocation.pod.namespace.clone(),
        name: invocation.pod.name.clone(),
        uid: invocation.pod.uid.clone(),
        labels: config.labels.clone(),
    }
}

fn mode(config: &Config) -> Mode {
    match config.mode {
        ConfigMode::Chained => Mode::Chained,
        ConfigMode::Standalone { .. } => Mode::Standalone,
    }
}

fn unexpected(request: &'static str, answer: &Response) -> PluginError {
    PluginError::Answer { request, answer: format!("{answer:?}") }
}
