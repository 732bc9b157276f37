//! Packet buffers: a LIFO pool of large buffers, and the chunks that flows keep of them.
//!
//! A buffer is read into once and then handed on, never copied, unless what it holds is so small that keeping the
//! whole buffer for it would waste memory. An idle flow owns no buffer.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::memory::{Account, Memory, Part};
use crate::vnet;

/// Octets of a pooled buffer: the largest IP packet behind its virtio header, rounded up to a cache line.
pub const CAPACITY: usize = (vnet::LEN + 40 + 65_535 + 64) & !63;

/// Below this a payload is copied rather than pinning a whole buffer (a quarter of one wasted at most four times).
const COPY_BELOW: usize = 16 * 1024;

/// Small payloads are gathered in tails of this size.
const TAIL: usize = 4 * 1024;

/// Free buffers that even an idle worker keeps.
const KEEP_IDLE: usize = 4;

/// Free buffers kept for reuse while there is work; an idle worker lets go of them ([`Pool::trim`]). Eight streams at
/// full speed have a few hundred under way, and a fresh buffer costs the zeroing of its pages.
const KEEP_FREE: usize = 512;

/// A buffer of [`CAPACITY`] octets of which the first `len` hold a packet, virtio header included.
#[derive(Debug)]
pub struct PacketBuf {
    data: Box<[u8]>,
    pub len: usize,
}

impl PacketBuf {
    /// The whole buffer, to read into.
    pub fn space(&mut self) -> &mut [u8] {
        &mut self.data
    }

    /// Holds `ip` behind an empty virtio header.
    pub(crate) fn fill(&mut self, ip: &[u8]) {
        self.data[..vnet::LEN].fill(0);
        self.data[vnet::LEN..vnet::LEN + ip.len()].copy_from_slice(ip);
        self.len = vnet::LEN + ip.len();
    }

    pub fn bytes(&self) -> &[u8] {
        &self.data[..self.len]
    }
}

/// A worker's buffers. It knows how many octets flows hold, of all pods and of the one that is served now.
#[derive(Debug)]
pub struct Pool {
    free: Vec<Box<[u8]>>,
    part: Part,
    account: Account,
}

impl Pool {
    /// A pool with a budget of its own, in octets.
    pub fn new(budget: usize) -> Self {
        Self::of(&Memory::new(budget, 1))
    }

    /// One of several pools that share a budget.
    pub fn of(memory: &Arc<Memory>) -> Self {
        Self { free: Vec::new(), part: Part::of(memory), account: Account::default() }
    }

    pub fn take(&mut self) -> PacketBuf {
        let data = self.free.pop().unwrap_or_else(|| vec![0; CAPACITY].into_boxed_slice());
        PacketBuf { data, len: 0 }
    }

    pub fn give(&mut self, buffer: PacketBuf) {
        self.give_data(buffer.data);
    }

    /// Octets that flows hold of this pool now, whole buffers counted whole.
    pub fn held(&self) -> usize {
        self.part.held()
    }

    /// Whether the pod holds its share: as much as is still free (dynamic threshold), so alone it gets half of the budget
    /// and there is always something left for the next.
    pub fn is_exhausted(&self) -> bool {
        self.part.is_exhausted(&self.account)
    }

    /// Exchanges `account` with the one that is charged now. Called before a pod is served, and again after.
    pub fn switch(&mut self, account: &mut Account) {
        self.account.rest();
        std::mem::swap(&mut self.account, account);
    }

    fn charge(&mut self, octets: usize) {
        self.part.charge(&mut self.account, octets);
    }

    fn credit(&mut self, octets: usize) {
        self.part.credit(&mut self.account, octets);
    }

    /// Lets go of free buffers down to a handful, and of what is drawn of the budget and not used, for a worker that has
    /// become idle.
    pub fn trim(&mut self) {
        self.free.truncate(KEEP_IDLE);
        self.free.shrink_to_fit();
        self.part.settle();
    }

    /// Whether [`Pool::trim`] would let go of anything.
    pub fn has_spare(&self) -> bool {
        self.free.len() > KEEP_IDLE || !self.part.is_settled()
    }

    /// A chunk of `buffer[start..end]`: the buffer itself when the payload is large (a new one takes its place), else
    /// a copy of exactly the payload.
    fn chunk(&mut self, buffer: &mut PacketBuf, start: usize, end: usize) -> Chunk {
        if end - start < COPY_BELOW {
            return self.copied(&buffer.data[start..end]);
        }
        let fresh = self.take();
        let data = std::mem::replace(buffer, fresh).data;
        self.charge(CAPACITY);
        Chunk { storage: Storage::Pooled(data), start: start as u32, end: end as u32 }
    }

    fn copied(&mut self, payload: &[u8]) -> Chunk {
        self.charge(payload.len());
        Chunk { storage: Storage::Copied(payload.into()), start: 0, end: payload.len() as u32 }
    }

    fn release(&mut self, chunk: Chunk) {
        self.credit(chunk.held());
        match chunk.storage {
            Storage::Pooled(data) => self.give_data(data),
            Storage::Copied(_) => {}
        }
    }

    fn give_data(&mut self, data: Box<[u8]>) {
        if self.free.len() < KEEP_FREE {
            self.free.push(data);
        }
    }
}

/// Payload octets, and who owns them.
#[derive(Debug)]
pub(crate) struct Chunk {
    storage: Storage,
    start: u32,
    end: u32,
}

#[derive(Debug)]
enum Storage {
    Pooled(Box<[u8]>),
    Copied(Vec<u8>),
}

impl Chunk {
    pub(crate) fn new(pool: &mut Pool, buffer: &mut PacketBuf, start: usize, end: usize) -> Self {
        pool.chunk(buffer, start, end)
    }

    /// A copy of exactly `payload`.
    pub(crate) fn copied(pool: &mut Pool, payload: &[u8]) -> Self {
        pool.copied(payload)
    }

    pub(crate) fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        let range = self.start as usize..self.end as usize;
        match &self.storage {
            Storage::Pooled(data) => &data[range],
            Storage::Copied(data) => &data[range],
        }
    }

    /// Octets of memory, as [`Pool::held`] counts them.
    pub(crate) fn held(&self) -> usize {
        match &self.storage {
            Storage::Pooled(_) => CAPACITY,
            Storage::Copied(data) => data.capacity(),
        }
    }

    /// Drops octets from the front.
    pub(crate) fn advance(&mut self, octets: usize) {
        debug_assert!(octets <= self.len());
        self.start += octets as u32;
    }

    /// Appends `payload` where there is room behind a copied tail; `false`: there is none.
    fn append(&mut self, pool: &mut Pool, payload: &[u8]) -> bool {
        let Storage::Copied(data) = &mut self.storage else { return false };
        if self.end as usize != data.len() || data.len() + payload.len() > TAIL {
            return false;
        }
        let before = data.capacity();
        data.extend_from_slice(payload);
        pool.charge(data.capacity() - before);
        self.end += payload.len() as u32;
        true
    }
}

/// A byte stream in chunks: octets go in at the back and leave at the front.
#[derive(Debug, Default)]
pub(crate) struct ByteQueue {
    chunks: VecDeque<Chunk>,
    len: usize,
}

impl ByteQueue {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn held(&self) -> usize {
        self.chunks.iter().map(Chunk::held).sum()
    }

    pub(crate) fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        self.chunks.iter().map(Chunk::bytes)
    }

    /// The octets of chunk `index` from `offset` on; `None` behind the last chunk.
    pub(crate) fn chunk_from(&self, index: usize, offset: usize) -> Option<&[u8]> {
        self.chunks.get(index).map(|chunk| &chunk.bytes()[offset..])
    }

    /// Takes `buffer[start..end]` to the back.
    pub(crate) fn push(&mut self, pool: &mut Pool, buffer: &mut PacketBuf, start: usize, end: usize) {
        if start == end {
            return;
        }
        self.len += end - start;
        if end - start < TAIL
            && let Some(last) = self.chunks.back_mut()
            && last.append(pool, &buffer.data[start..end])
        {
            return;
        }
        let chunk = pool.chunk(buffer, start, end);
        self.chunks.push_back(chunk);
    }

    /// Takes `chunk` to the back. A small one joins the tail: thousands of single octets would cost more than they hold.
    pub(crate) fn push_chunk(&mut self, pool: &mut Pool, chunk: Chunk) {
        self.len += chunk.len();
        if let Some(last) = self.chunks.back_mut()
            && last.append(pool, chunk.bytes())
        {
            pool.release(chunk);
            return;
        }
        self.chunks.push_back(chunk);
    }

    /// Lets `octets` leave at the front; returns how many whole chunks left with them.
    pub(crate) fn consume(&mut self, pool: &mut Pool, mut octets: usize) -> usize {
        debug_assert!(octets <= self.len);
        self.len -= octets;
        let mut whole = 0;
        while let Some(front) = self.chunks.front_mut() {
            if front.len() > octets {
                front.advance(octets);
                break;
            }
            octets -= front.len();
            if let Some(chunk) = self.chunks.pop_front() {
                pool.release(chunk);
                whole += 1;
            }
        }
        // Room for four chunks is an eighth of what an idle flow takes in all.
        if self.chunks.is_empty() {
            self.chunks = VecDeque::new();
        }
        whole
    }

    pub(crate) fn clear(&mut self, pool: &mut Pool) {
        self.consume(pool, self.len);
    }
}

/// Returns a chunk's storage.
pub(crate) fn release(pool: &mut Pool, chunk: Chunk) {
    pool.release(chunk);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(pool: &mut Pool, payload: &[u8]) -> PacketBuf {
        let mut buffer = pool.take();
        buffer.space()[..payload.len()].copy_from_slice(payload);
        buffer.len = payload.len();
        buffer
    }

    fn content(queue: &ByteQueue) -> Vec<u8> {
        queue.chunks().flatten().copied().collect()
    }

    #[test]
    fn small_payloads_share_a_tail_and_large_ones_keep_their_buffer() {
        let mut pool = Pool::new(1 << 20);
        let mut queue = ByteQueue::default();
        let mut buffer = filled(&mut pool, &vec![7; 40_000]);
        for _ in 0..100 {
            queue.push(&mut pool, &mut buffer, 0, 1);
        }
        assert_eq!(queue.chunks.len(), 1);
        assert!(pool.held() < 4096, "{}", pool.held());
        queue.push(&mut pool, &mut buffer, 0, 40_000);
        assert_eq!(queue.chunks.len(), 2);
        assert_eq!(queue.len(), 40_100);
        queue.clear(&mut pool);
        assert_eq!(pool.held(), 0);
    }

    proptest::proptest! {
        #[test]
        fn a_queue_is_a_byte_stream(operations in proptest::collection::vec((0usize..3, 0usize..30_000), 0..60)) {
            let mut pool = Pool::new(1 << 30);
            let mut queue = ByteQueue::default();
            let mut model: Vec<u8> = Vec::new();
            let mut next = 0u8;
            for (operation, amount) in operations {
                if operation == 0 {
                    let amount = amount.min(model.len());
                    queue.consume(&mut pool, amount);
                    model.drain(..amount);
                } else {
                    let amount = if operation == 1 { amount % 50 } else { amount };
                    let payload: Vec<u8> = (0..amount).map(|_| { next = next.wrapping_add(1); next }).collect();
                    let mut buffer = filled(&mut pool, &payload);
                    queue.push(&mut pool, &mut buffer, 0, amount);
                    pool.give(buffer);
                    model.extend(payload);
                }
                proptest::prop_assert_eq!(queue.len(), model.len());
            }
            proptest::prop_assert_eq!(content(&queue), model);
            queue.clear(&mut pool);
            proptest::prop_assert_eq!(pool.held(), 0);
        }
    }
}
