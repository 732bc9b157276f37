//! What holds between calls. Tests and fuzz targets ask after every step; nothing in the data's way does.

use super::{Body, Open, Slot, State, Tcp, Upstream};

impl Tcp {
    /// Returns the octets of buffers that the flows hold.
    pub(crate) fn check(&self) -> Result<usize, String> {
        let mut counted = Counted::default();
        for (index, slot) in &self.slots {
            if slot.id.slot as usize != index {
                return Err(format!("{:?} lies in slot {index}", slot.id));
            }
            self.check_slot(slot, &mut counted).map_err(|fault| format!("{:?}: {fault}", slot.id))?;
        }
        let expected = Counted { pending: self.pending.own(), half_open: self.half_open.own(), ..counted };
        if counted != expected {
            return Err(format!("the counts say {expected:?}, the flows {counted:?}"));
        }
        if self.flows.own() != self.slots.len() {
            return Err(format!("{} flows are counted and {} are there", self.flows.own(), self.slots.len()));
        }
        if self.by_ends.len() != counted.linked || self.timers.len() != counted.armed {
            return Err(format!(
                "{} ends and {} timers for {counted:?}",
                self.by_ends.len(),
                self.timers.len()
            ));
        }
        self.time_wait.check()?;
        Ok(counted.held)
    }

    fn check_slot(&self, slot: &Slot, counted: &mut Counted) -> Result<(), String> {
        counted.armed += usize::from(slot.armed.at().is_some());
        counted.linked += usize::from(slot.linked);
        if slot.linked && self.by_ends.get(&slot.ends) != Some(&slot.id.slot) {
            return Err("its ends lead elsewhere".to_owned());
        }
        if slot.dirty != self.dirty.contains(&slot.id) {
            return Err(format!("dirty {}, and the queue says otherwise", slot.dirty));
        }
        if slot.uplink_queued != self.uplinks.contains(&slot.id) {
            return Err(format!("uplink queued {}, and the queue says otherwise", slot.uplink_queued));
        }
        // A flow that is about to transmit arms its timer as it does.
        let due = slot.poll_at();
        if due.is_none() && !slot.open().is_some_and(|open| open.flow.may_sleep()) {
            return Err("it has no deadline".to_owned());
        }
        let armed =
            |due| slot.armed.at().is_some_and(|at| at <= due) && self.timers.holds(slot.armed, slot.id);
        if !slot.dirty && !due.is_none_or(armed) {
            return Err(format!("armed for {:?}, due at {due:?}", slot.armed.at()));
        }
        match &slot.body {
            Body::Held(_) => counted.pending += 1,
            Body::Open(open) => {
                counted.half_open += usize::from(open.awaits_ack);
                counted.held += open.flow.held();
                check_open(slot, open)?;
            }
        }
        Ok(())
    }
}

fn check_open(slot: &Slot, open: &Open) -> Result<(), String> {
    open.flow.check(slot.dirty)?;
    let state = open.flow.state();
    if open.awaits_ack != (state == State::SynReceived) && slot.linked {
        return Err(format!("half open: {}, state {state:?}", open.awaits_ack));
    }
    if slot.linked && matches!(state, State::TimeWait | State::Closed) && !slot.dirty {
        return Err(format!("linked in {state:?}"));
    }
    if open.shut && !open.flow.receiver.uplink().is_empty() {
        return Err("the upstream was shut before it had everything".to_owned());
    }
    let waits = open.flow.receiver.is_closed() && open.flow.receiver.uplink().is_empty();
    let free = open.sniffing.is_none() && open.upstream == Upstream::Connected;
    if waits && free && !open.shut {
        return Err("the pod's FIN was not passed on".to_owned());
    }
    Ok(())
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Counted {
    pending: usize,
    half_open: usize,
    linked: usize,
    armed: usize,
    held: usize,
}
