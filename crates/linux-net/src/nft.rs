//! nftables over netlink: whole tables as values, put in place in one transaction and read back.
//!
//! A [`Table`] says what there is to be: sets, chains, rules. [`Nft::apply`] makes it so, all of it or nothing;
//! [`Nft::table`] reads what the kernel has, as a value that can be compared. Only what this product uses is known here;
//! a table in which somebody put more reads as [`Found::Strange`].
//!
//! The kernel does a batch while it takes it: when `sendmsg` returns, every answer waits in the socket. So nothing here
//! waits for anything.

#![allow(clippy::wildcard_imports, reason = "the kernel's numbers keep their names everywhere")]

mod attribute;
mod change;
mod error;
mod expression;
mod field;
mod read;
mod rule;
mod table;
mod uapi;
mod userdata;
mod wire;

use std::io;

use rtnetlink::sys::{Socket, SocketAddr};
use rustix::net::{RecvFlags, SendFlags, sockopt};

use crate::netns::{NetNs, NetNsError};

pub use change::Change;
pub use error::NftError;
pub use expression::{Expression, Reject, Verdict};
pub use field::{Base, Ct, Field, KeyType, Meta, Payload, ct_state, ct_status};
pub use read::Found;
pub use rule::Rule;
pub use table::{Chain, Family, Hook, HookPoint, Networks, Set, SetContent, Table};
pub use wire::Malformed;

use change::{Part, Parts};
use uapi::*;
use wire::{Answer, Messages, Outcome, acknowledge, bracket};

/// A handle to one namespace's nftables. Tables made as owned belong to it until it is dropped.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// A datagram of a dump is at most this long (`NLMSG_GOODSIZE` and what a reader's buffer lets the kernel use).
const LONGEST: usize = 64 * 1024;

/// Octets of a batch at most; the kernel charges for them while it works, and only then.
const LARGEST_BATCH: usize = 8 * 1024 * 1024;

impl Nft {
    /// Opens a handle to the calling thread's namespace.
    pub fn open() -> Result<Self, NftError> {
        let socket = || -> io::Result<Socket> {
            let mut socket = Socket::new(libc::NETLINK_NETFILTER as isize)?;
            socket.bind_auto()?;
            // Without the request echoed, the text of an error stands at a fixed place.
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            // Nobody but the kernel is heard.
            socket.connect(&SocketAddr::new(0, 0))?;
            // A batch is one datagram. Whoever may not go beyond the system's limit has that limit.
            let _ = sockopt::set_socket_send_buffer_size_force(&socket, LARGEST_BATCH);
            Ok(socket)
        };
        let socket = socket().map_err(|error| NftError::new("open a netlink socket", error))?;
        Ok(Self { socket, sequence: 1, buffer: vec![0; LONGEST] })
    }

    /// Opens a handle to another namespace; usable from any thread.
    pub fn open_in(namespace: &NetNs) -> Result<Result<Self, NftError>, NetNsError> {
        namespace.run(Self::open)
    }

    /// Makes all changes, or none.
    pub fn apply(&mut self, changes: &[Change<'_>]) -> Result<(), NftError> {
        let begin = self.take_sequence();
        let mut parts = Parts::new(begin.wrapping_add(1));
        for &change in changes {
            let exists = match change {
                Change::Replace(table) => self.table_flags(table.family, &table.name)?.is_some(),
                Change::Remove { family, table } => self.table_flags(family, table)?.is_some(),
                Change::Adopt { .. } | Change::AddAddresses { .. } | Change::RemoveAddresses { .. } => true,
            };
            parts.change(change, exists);
        }
        self.commit(begin, parts.parts)
    }

    fn commit(&mut self, begin: u32, mut parts: Vec<Part>) -> Result<(), NftError> {
        let end = begin.wrapping_add(parts.len() as u32 + 1);
        self.sequence = end.wrapping_add(1);
        let Some(last) = parts.last_mut() else { return Ok(()) };
        // The last one's acknowledgement says that all is done.
        if let Some(message) = &mut last.message {
            acknowledge(message);
        }
        let mut batch = bracket(NFNL_MSG_BATCH_BEGIN, begin);
        for part in &parts {
            batch.extend(part.message.as_ref().ok_or_else(|| NftError::overlong(&part.subject))?);
        }
        batch.extend(bracket(NFNL_MSG_BATCH_END, end));
        self.send(&batch).map_err(|error| NftError::new("send a transaction", error))?;
        self.confirm(begin, end, &parts)
    }

    /// Comes back when the transaction that the kernel is at, anybody's, is done: an empty one has to wait for it, and
    /// changes nothing (`nf_tables_valid_genid`, `nf_tables_commit`).
    fn barrier(&mut self) -> Result<(), NftError> {
        const SUBJECT: &str = "wait for a transaction";
        let (begin, end) = (self.take_sequence(), self.take_sequence());
        let batch = [bracket(NFNL_MSG_BATCH_BEGIN, begin), bracket(NFNL_MSG_BATCH_END, end)].concat();
        self.send(&batch).map_err(|error| NftError::new(SUBJECT, error))
    }

    /// Reads all that waits. A refusal stands under its message's number; one of the whole under the first or last.
    fn confirm(&mut self, begin: u32, end: u32, parts: &[Part]) -> Result<(), NftError> {
        let (mut refusal, mut confirmed) = (None, false);
        let last = end.wrapping_sub(1);
        while let Some(datagram) =
            self.receive().map_err(|error| NftError::new("read a transaction's answer", error))?
        {
            for received in Messages(datagram) {
                let received = received.map_err(|error| NftError::malformed("a transaction", error))?;
                let Answer::Outcome(outcome) = received.answer else { continue };
                // Of the batch's own messages, counted from its beginning.
                let place = received.sequence.wrapping_sub(begin) as usize;
                if place > parts.len() + 1 {
                    continue;
                }
                if outcome.errno == 0 {
                    confirmed |= received.sequence == last;
                } else if refusal.is_none() {
                    refusal = Some((place, outcome));
                }
            }
        }
        match refusal {
            Some((place, outcome)) => Err(refused(parts, place, outcome)),
            None if confirmed => Ok(()),
            None => Err(NftError::new("make a transaction", io::ErrorKind::UnexpectedEof.into())),
        }
    }

    fn send(&self, octets: &[u8]) -> io::Result<()> {
        let sent = rustix::io::retry_on_intr(|| rustix::net::send(&self.socket, octets, SendFlags::empty()))?;
        debug_assert_eq!(sent, octets.len(), "netlink takes a datagram whole");
        Ok(())
    }

    /// The next datagram that waits.
    fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        use rustix::io::Errno;
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        match rustix::io::retry_on_intr(|| rustix::net::recv(&self.socket, &mut self.buffer[..], flags)) {
            Ok((_, length)) if length > self.buffer.len() => Err(Errno::MSGSIZE.into()),
            Ok((_, length)) => Ok(Some(&self.buffer[..length])),
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn take_sequence(&mut self) -> u32 {
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        sequence
    }
}

fn refused(parts: &[Part], place: usize, outcome: Outcome) -> NftError {
    match place.checked_sub(1).and_then(|index| parts.get(index)) {
        Some(part) => {
            let expression = outcome.offset.and_then(|offset| part.expression_at(offset));
            NftError::refused(&part.subject, expression, outcome)
        }
        None => NftError::refused("the transaction", None, outcome),
    }
}

#[cfg(test)]
mod tests;
