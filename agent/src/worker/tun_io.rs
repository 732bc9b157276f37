//! Reading and writing packets of a TUN.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, read, writev};
use tunproxy_datapath::{PacketBuf, vnet};

/// One queue of a pod's TUN.
#[derive(Debug)]
pub(super) struct Queue {
    fd: OwnedFd,
    vnet_header: bool,
    /// The last read did not find it empty.
    pub(super) readable: bool,
}

impl Queue {
    pub(super) fn new(fd: OwnedFd, vnet_header: bool) -> Self {
        Self { fd, vnet_header, readable: true }
    }

    /// One that somebody else reads.
    pub(super) fn for_writing(fd: OwnedFd, vnet_header: bool) -> Self {
        Self { readable: false, ..Self::new(fd, vnet_header) }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Reads one packet behind a virtio header; `false`: there is none.
    pub(super) fn read(&mut self, buffer: &mut PacketBuf) -> bool {
        loop {
            let space = buffer.space();
            let (offset, space) = if self.vnet_header {
                (0, space)
            } else {
                space[..vnet::LEN].fill(0);
                (vnet::LEN, &mut space[vnet::LEN..])
            };
            match read(&self.fd, space) {
                Ok(len) => {
                    buffer.len = offset + len;
                    return true;
                }
                Err(Errno::INTR) => {}
                // The device is gone (EBADFD) or down (EIO): detach or a link event says what follows.
                Err(_) => {
                    self.readable = false;
                    return false;
                }
            }
        }
    }

    /// Writes one packet. `false`: the device refuses it (it is down, say), and it is lost on the way; TCP sends it again.
    #[must_use]
    pub(super) fn write(&self, head: &[u8], payload: &[u8]) -> bool {
        let head = if self.vnet_header { head } else { &head[vnet::LEN..] };
        let slices = [IoSlice::new(head), IoSlice::new(payload)];
        let slices = if payload.is_empty() { &slices[..1] } else { &slices };
        loop {
            match writev(&self.fd, slices) {
                Ok(_) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}
