//! What holds between calls.

use super::{Fin, Sender, Timer};

impl Sender {
    /// `polled`: everything that could be transmitted was.
    pub(crate) fn check(&self, polled: bool) -> Result<(), String> {
        let ordered = self.una.at_or_before(self.max) && self.max.at_or_before(self.end());
        if !ordered {
            return Err(format!("una {:?}, max {:?}, end {:?}", self.una, self.max, self.end()));
        }
        self.check_scoreboard()?;
        self.check_cursor()?;
        if self.fin == Fin::Acked && !self.queue.is_empty() {
            return Err("the FIN is acknowledged and octets are left".to_owned());
        }
        let under_way = self.una != self.max;
        let waiting = self.una != self.end();
        match self.timer {
            Timer::Off if under_way => Err("octets are under way without a timer".to_owned()),
            Timer::Off if waiting && polled => Err("octets wait without a timer".to_owned()),
            Timer::Off | Timer::Retransmit(_) | Timer::Persist(_) => Ok(()),
        }
    }

    fn check_scoreboard(&self) -> Result<(), String> {
        self.board.check()?;
        if (self.board.start(), self.board.end()) != (self.una, self.max) {
            return Err(format!("{:?} is not {:?}..{:?}", self.board, self.una, self.max));
        }
        if self.board.lost() > 0 && self.recovery.is_none() {
            return Err("a loss is not being repaired".to_owned());
        }
        if self.repair().is_some_and(|recovery| self.una.at_or_after(recovery.point)) {
            return Err("a repair goes on behind its end".to_owned());
        }
        if self.early.is_some() && self.una == self.max {
            return Err("a timer runs for nothing".to_owned());
        }
        Ok(())
    }

    /// The cursor and `max` name the same octet.
    fn check_cursor(&self) -> Result<(), String> {
        let distance = ((self.max - self.una) as usize).min(self.queue.len());
        let (index, offset) = self.cursor;
        let before: usize = self.queue.chunks().take(index).map(<[u8]>::len).sum();
        if before + offset.min(self.queue.chunks().nth(index).map_or(0, <[u8]>::len)) != distance {
            return Err(format!("cursor {:?} is not {distance} octets on", self.cursor));
        }
        Ok(())
    }

    pub(crate) fn held(&self) -> usize {
        self.queue.held()
    }
}
