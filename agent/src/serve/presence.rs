//! An attachment against the kernel: is its namespace there, are the descriptors what they are said to be.

use std::os::fd::OwnedFd;
use std::path::Path;

use tunproxy_ipc::{Attachment, ErrorCode, Failure, NamespaceId};
use tunproxy_linux_net::{NetNs, NetNsId, TunError, tun};

/// Whether the pod's namespace is still the one it was attached in.
pub(super) enum Presence {
    There(NetNs),
    Gone,
    Unknown(String),
}

pub(super) fn namespace_of(attachment: &Attachment) -> Presence {
    match NetNs::open(&attachment.netns_path) {
        Ok(namespace) if same(namespace.id(), attachment.netns) => Presence::There(namespace),
        // The path was given to a successor: a namespace keeps its inode as long as it lives.
        Ok(_) => Presence::Gone,
        Err(error) if error.is_gone() => Presence::Gone,
        Err(error) => Presence::Unknown(error.to_string()),
    }
}

/// As many queues as the agent's settings of today ask for, not those of when the pod was attached.
pub(super) fn reopen(
    namespace: &NetNs,
    attachment: &Attachment,
    queues: u16,
) -> Result<Vec<OwnedFd>, TunError> {
    Ok(tun::reopen_in(namespace, &attachment.tun_name, queues)?.queues)
}

/// The descriptors of an Attach: the namespace it speaks of, then the queues, as many as it says.
pub(super) fn check_descriptors(
    attachment: &Attachment,
    fds: &mut Vec<OwnedFd>,
) -> Result<Vec<OwnedFd>, Failure> {
    let bad = |message: String| Failure { code: ErrorCode::BadRequest, message };
    let expected = usize::from(attachment.queues) + 1;
    if attachment.queues == 0 || fds.len() != expected {
        return Err(bad(format!(
            "{} descriptors came for {} queues; a network namespace and the queues are expected",
            fds.len(),
            attachment.queues
        )));
    }
    let queues = fds.split_off(1);
    let namespace = fds.pop().expect("counted above");
    let namespace =
        NetNs::from_fd(namespace, Path::new("(of the plugin)")).map_err(|error| bad(error.to_string()))?;
    if !same(namespace.id(), attachment.netns) {
        return Err(bad("the namespace's descriptor is not that of the attachment".to_owned()));
    }
    if namespace.is_host() {
        return Err(bad("the host's own network namespace is not attached".to_owned()));
    }
    Ok(queues)
}

fn same(id: NetNsId, recorded: NamespaceId) -> bool {
    (id.device, id.inode) == (recorded.device, recorded.inode)
}
