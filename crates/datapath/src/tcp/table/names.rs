//! What policy says once the first octets show a name, and what it says later.

use tunproxy_policy::{Decision, Protocol};

use super::{Leave, Tcp};
use crate::key::FlowId;
use crate::record::CloseReason;
use crate::stack::{Action, Cx, Shared};
use crate::tcp::slot::{Open, Settled, Slot, Upstream};

impl Tcp {
    pub(super) fn try_sniff(&mut self, sh: &mut Shared, cx: &mut Cx<'_>, id: FlowId) {
        let Some(slot) = self.slot_mut(id) else { return };
        let remote = slot.ends.remote();
        let Some(open) = slot.open_mut() else { return };
        let Some(outcome) = open.sniff(sh, cx.now, remote) else { return };
        self.settle_name(sh, cx, id, outcome);
    }

    pub(super) fn settle_name(&mut self, sh: &mut Shared, cx: &mut Cx<'_>, id: FlowId, outcome: Settled) {
        let Some(slot) = self.slot_mut(id) else { return };
        let remote = slot.ends.remote();
        slot.meta.name_source = outcome.source.or(slot.meta.name_source);
        let permit = match outcome.decision {
            Ok(permit) => permit,
            Err(refusal) => {
                slot.meta.refused(refusal);
                self.reset_pod(sh, cx, id, CloseReason::Denied, Leave::Abort);
                return;
            }
        };
        let same_upstream = permit.upstream() == slot.meta.permit.upstream()
            && (permit.upstream().is_direct() || permit.name() == slot.meta.permit.name());
        slot.meta.permit = permit.clone();
        let dscp = slot.dscp;
        if let Some(open) = slot.open_mut() {
            open.sniffing = None;
            if !same_upstream {
                open.upstream = Upstream::Redialing;
                let target = sh.target(&permit, remote, dscp);
                sh.actions.push_back(Action::Close { flow: id, abort: true });
                sh.actions.push_back(Action::Connect { flow: id, permit, target });
            }
        }
        self.announce(sh, cx, id);
        self.resume(cx, id);
        self.advance_uplink(sh, cx, id);
    }

    /// Tells of a flow that has its name and its upstream now.
    pub(super) fn announce(&self, sh: &mut Shared, cx: &Cx<'_>, id: FlowId) {
        let begun = |slot: &&Slot| slot.open().is_some_and(Open::may_send_up);
        if let Some(slot) = self.slot(id).filter(begun) {
            sh.announce(|| slot.meta.begin(cx.now, slot.ends));
        }
    }

    /// Asks anew about the flows in the next `count` slots; `false` when there are none left.
    pub(crate) fn reevaluate(&mut self, sh: &mut Shared, cx: &mut Cx<'_>, count: usize) -> bool {
        let Some(from) = self.unjudged else { return false };
        // Of no slot beyond: the ends of what is there, and flows that came since have been judged by what holds now.
        let to = (from + count).min(self.slots.capacity());
        for index in from..to {
            let Some(slot) = self.slots.get_mut(index) else { continue };
            let id = slot.id;
            if slot.fallback_mut().is_some() {
                self.reevaluate_unnamed(sh, cx, id);
            } else {
                self.reevaluate_settled(sh, cx, id);
            }
        }
        self.unjudged = (to < self.slots.capacity()).then_some(to);
        self.unjudged.is_some()
    }

    /// Policy has changed: every flow is to be asked about anew.
    pub(crate) fn forget_judgements(&mut self) {
        self.unjudged = Some(0);
    }

    pub(super) fn reevaluate_settled(&mut self, sh: &mut Shared, cx: &mut Cx<'_>, id: FlowId) {
        let Some(slot) = self.slot_mut(id) else { return };
        match sh.still_allowed(&slot.meta.permit, Protocol::Tcp, slot.ends.remote()) {
            // The upstream a flow runs over stays; rule and verdict are those of today.
            Ok(permit) if permit.upstream() == slot.meta.permit.upstream() => slot.meta.permit = permit,
            Ok(_) => {}
            Err(refusal) => {
                slot.meta.refused(refusal);
                self.reset_pod(sh, cx, id, CloseReason::PolicyChanged, Leave::Abort);
            }
        }
    }

    /// The flow has shown no name yet, and what held without one was yesterday's policy: the question is asked anew.
    pub(super) fn reevaluate_unnamed(&mut self, sh: &mut Shared, cx: &mut Cx<'_>, id: FlowId) {
        let Some(slot) = self.slot_mut(id) else { return };
        let decision = sh.decide(cx.now, Protocol::Tcp, slot.ends.remote());
        match decision {
            Decision::ByName { fallback, .. } => slot.set_fallback(fallback),
            Decision::Allow(permit) if slot.open().is_some() => {
                self.settle_name(sh, cx, id, Settled { decision: Ok(permit), source: None });
            }
            Decision::Allow(_) => slot.set_fallback(Box::new(decision)),
            Decision::Deny(refusal) => {
                slot.meta.refused(refusal);
                self.reset_pod(sh, cx, id, CloseReason::PolicyChanged, Leave::Abort);
            }
        }
    }
}
