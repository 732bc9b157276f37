//! The scoreboard: what of the octets under way was sent when, reported by SACK (RFC 2018), or is taken for lost
//! (RFC 6675, RFC 8985).

use std::collections::VecDeque;

use smoltcp::time::{Duration, Instant};

use crate::tcp::seq::Seq;

/// Ranges kept for one flow: 6 KiB at most. What would make more of them is joined, or not noted.
const MAX_RANGES: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    UnderWay,
    /// Taken for lost, and not sent again since.
    Lost,
    /// Reported: the pod has it and may still drop it.
    Sacked,
}

/// A range of what was sent; it begins where the one before it ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) end: Seq,
    /// When it last went out.
    pub(super) at: Instant,
    pub(super) fate: Fate,
    /// It went out more than once.
    pub(super) again: bool,
}

/// Covers SND.UNA to SND.NXT; owns memory only while something is under way.
#[derive(Debug)]
pub(super) struct Board {
    start: Seq,
    ranges: VecDeque<Sent>,
    sacked: u32,
    lost: u32,
}

impl Board {
    pub(super) fn new(start: Seq) -> Self {
        Self { start, ranges: VecDeque::new(), sacked: 0, lost: 0 }
    }

    pub(super) fn start(&self) -> Seq {
        self.start
    }

    pub(super) fn end(&self) -> Seq {
        self.ranges.back().map_or(self.start, |last| last.end)
    }

    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Range `index`, and where it begins.
    pub(super) fn get(&self, index: usize) -> Option<(Seq, &Sent)> {
        self.ranges.get(index).map(|sent| (self.start_of(index), sent))
    }

    /// Octets that were reported.
    pub(super) fn sacked(&self) -> u32 {
        self.sacked
    }

    /// Octets taken for lost that did not go again yet.
    pub(super) fn lost(&self) -> u32 {
        self.lost
    }

    /// Octets thought to be on the path: "pipe" of RFC 6675.
    pub(super) fn pipe(&self) -> u32 {
        self.end() - self.start - self.sacked - self.lost
    }

    fn start_of(&self, index: usize) -> Seq {
        index.checked_sub(1).and_then(|before| self.ranges.get(before)).map_or(self.start, |sent| sent.end)
    }

    /// The range that `seq` lies in; behind the last one their number.
    fn index_of(&self, seq: Seq) -> usize {
        self.ranges.partition_point(|sent| sent.end.at_or_before(seq))
    }

    /// Makes a range begin at `seq` and returns which; `None`: there are too many.
    fn split(&mut self, seq: Seq) -> Option<usize> {
        let index = self.index_of(seq);
        let Some(&sent) = self.ranges.get(index) else { return Some(index) };
        if self.start_of(index).at_or_after(seq) {
            return Some(index);
        }
        if self.ranges.len() >= MAX_RANGES {
            return None;
        }
        self.ranges.insert(index, Sent { end: seq, ..sent });
        Some(index + 1)
    }

    /// Joins range `index` with the one before it, if they have become the same; `grain`: how far their times may be apart.
    fn join(&mut self, index: usize, grain: Duration) {
        let Some(before) = index.checked_sub(1) else { return };
        let (Some(&first), Some(&second)) = (self.ranges.get(before), self.ranges.get(index)) else { return };
        let apart = if first.at > second.at { first.at - second.at } else { second.at - first.at };
        let alike = match first.fate {
            Fate::UnderWay => first.again == second.again && apart <= grain,
            Fate::Lost => first.again == second.again,
            Fate::Sacked => true,
        };
        if first.fate == second.fate && alike {
            let again = first.again || second.again;
            self.ranges[before] = Sent { end: second.end, at: first.at.max(second.at), again, ..first };
            self.ranges.remove(index);
        }
    }

    /// Octets up to `end` went out for the first time. A range of whole segments of `mss` goes on for `grain`, if there is
    /// one: its time, that of its last octets, is never too early.
    pub(super) fn sent(&mut self, now: Instant, end: Seq, mss: u16, grain: Option<Duration>) {
        let before = self.start_of(self.ranges.len().saturating_sub(1));
        let full = self.ranges.len() >= MAX_RANGES;
        if let Some(last) = self.ranges.back_mut()
            && last.fate == Fate::UnderWay
            && (full
                || (!last.again
                    && grain.is_some_and(|grain| now - last.at <= grain)
                    && (last.end - before).is_multiple_of(u32::from(mss))))
        {
            (last.end, last.at) = (end, now);
            return;
        }
        self.ranges.push_back(Sent { end, at: now, fate: Fate::UnderWay, again: false });
    }

    /// Octets from `start` to `end` went out again.
    pub(super) fn sent_again(&mut self, now: Instant, start: Seq, end: Seq, grain: Duration) {
        // A full board takes the whole range for sent: what did not go is found lost once more.
        let from = self.split(start).unwrap_or_else(|| self.index_of(start));
        let to = self.split(end).unwrap_or_else(|| self.index_of(end) + 1);
        for index in from..to.min(self.ranges.len()) {
            let octets = self.ranges[index].end - self.start_of(index);
            let sent = &mut self.ranges[index];
            match sent.fate {
                Fate::UnderWay => {}
                Fate::Lost => self.lost -= octets,
                Fate::Sacked => continue,
            }
            (sent.fate, sent.at, sent.again) = (Fate::UnderWay, now, true);
        }
        self.join(from, grain);
    }

    /// Takes range `index` for lost, if it is under way.
    pub(super) fn lose(&mut self, index: usize) {
        let octets = self.start_of(index + 1) - self.start_of(index);
        if let Some(sent) = self.ranges.get_mut(index)
            && sent.fate == Fate::UnderWay
        {
            sent.fate = Fate::Lost;
            self.lost += octets;
        }
    }

    /// Takes up to `octets` at the front for lost, if they are under way.
    pub(super) fn lose_first(&mut self, octets: u32) {
        let cut = (self.start + octets).earlier_of(self.end());
        // With a full board more than asked for goes again.
        let _ = self.split(cut);
        self.lose(0);
    }

    /// The first octets taken for lost, as far as they are in one piece.
    pub(super) fn first_lost(&self) -> Option<(Seq, Seq)> {
        if self.lost == 0 {
            return None;
        }
        let first = self.ranges.iter().position(|sent| sent.fate == Fate::Lost)?;
        let last = self.ranges.iter().skip(first).take_while(|sent| sent.fate == Fate::Lost).last()?;
        Some((self.start_of(first), last.end))
    }

    /// Everything before `ack` was acknowledged. `delivered` is told of what was not reported before; returns how many
    /// octets that are.
    pub(super) fn acknowledge(&mut self, ack: Seq, mut delivered: impl FnMut(&Sent)) -> u32 {
        let mut octets = 0;
        while let Some(&sent) = self.ranges.front() {
            if self.start.at_or_after(ack) {
                break;
            }
            let end = sent.end.earlier_of(ack);
            let taken = end - self.start;
            match sent.fate {
                Fate::UnderWay => octets += taken,
                Fate::Lost => {
                    self.lost -= taken;
                    octets += taken;
                }
                Fate::Sacked => self.sacked -= taken,
            }
            if sent.fate != Fate::Sacked {
                delivered(&Sent { end, ..sent });
            }
            self.start = end;
            if end == sent.end {
                self.ranges.pop_front();
            }
        }
        if self.ranges.is_empty() {
            self.ranges = VecDeque::new();
        }
        octets
    }

    /// Octets from `start` to `end`, which lie on the board, were reported. As [`Board::acknowledge`].
    pub(super) fn report(&mut self, start: Seq, end: Seq, mut delivered: impl FnMut(&Sent)) -> u32 {
        let (Some(_), Some(_)) = (self.split(start), self.split(end)) else { return 0 };
        let (from, to) = (self.index_of(start), self.index_of(end));
        let mut octets = 0;
        for index in from..to {
            let taken = self.ranges[index].end - self.start_of(index);
            let sent = &mut self.ranges[index];
            match sent.fate {
                Fate::UnderWay => {}
                Fate::Lost => self.lost -= taken,
                Fate::Sacked => continue,
            }
            delivered(sent);
            sent.fate = Fate::Sacked;
            octets += taken;
        }
        self.sacked += octets;
        for index in (from..=to).rev() {
            self.join(index, Duration::ZERO);
        }
        octets
    }

    /// What was taken for lost is under way after all.
    pub(super) fn find_again(&mut self) {
        for sent in &mut self.ranges {
            if sent.fate == Fate::Lost {
                sent.fate = Fate::UnderWay;
            }
        }
        self.lost = 0;
    }

    /// The pod acknowledges just what lies before something it had reported: it has dropped that.
    pub(super) fn is_broken_promise(&self) -> bool {
        self.ranges.front().is_some_and(|sent| sent.fate == Fate::Sacked)
    }

    /// Reports are void (RFC 2018 8).
    pub(super) fn forget_reports(&mut self) {
        for sent in &mut self.ranges {
            if sent.fate == Fate::Sacked {
                (sent.fate, sent.again) = (Fate::UnderWay, true);
            }
        }
        self.sacked = 0;
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let (mut before, mut sacked, mut lost) = (self.start, 0, 0);
        for sent in &self.ranges {
            if !before.before(sent.end) {
                return Err(format!("scoreboard {:?} from {:?}", self.ranges, self.start));
            }
            match sent.fate {
                Fate::UnderWay => {}
                Fate::Lost => lost += sent.end - before,
                Fate::Sacked => sacked += sent.end - before,
            }
            before = sent.end;
        }
        if (sacked, lost) != (self.sacked, self.lost) {
            return Err(format!(
                "{sacked} reported and {lost} lost, counted {} and {}",
                self.sacked, self.lost
            ));
        }
        if self.ranges.len() > 2 * MAX_RANGES {
            return Err(format!("{} ranges", self.ranges.len()));
        }
        if self.ranges.is_empty() && self.ranges.capacity() > 0 {
            return Err("an empty scoreboard owns memory".to_owned());
        }
        Ok(())
    }
}
