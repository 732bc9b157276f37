//! What holds between calls.

use super::Receiver;

impl Receiver {
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.nxt.after(self.edge) {
            return Err(format!("nxt {:?} is beyond the window's edge {:?}", self.nxt, self.edge));
        }
        let mut before = self.nxt;
        for (seq, chunk) in &self.ranges {
            let end = *seq + chunk.len() as u32;
            let first = before == self.nxt;
            if seq.before(before) || (first && *seq == self.nxt) || chunk.len() == 0 || end.after(self.edge) {
                return Err(format!("range {seq:?}..{end:?} behind {before:?}, edge {:?}", self.edge));
            }
            before = end;
        }
        if self.fin.is_some_and(|fin| !self.fin_taken && before.after(fin)) {
            return Err("octets lie behind the FIN".to_owned());
        }
        let most = (self.max_capacity + self.max_capacity / super::ROUNDING) as usize + (1 << self.scale);
        if self.uplink.len() > most {
            return Err(format!("{} octets wait, more than the window ever was", self.uplink.len()));
        }
        Ok(())
    }

    pub(crate) fn held(&self) -> usize {
        self.uplink.held() + self.ranges.iter().map(|(_, chunk)| chunk.held()).sum::<usize>()
    }
}
