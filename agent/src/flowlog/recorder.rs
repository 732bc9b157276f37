//! Where the datapath's records go: counted, and written down if there is a flow log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tunproxy_datapath::record::Outcome;
use tunproxy_datapath::{CloseReason, FlowBegin, FlowRecord};
use tunproxy_policy::{Verdict, Workload};

use super::{FlowLog, Totals};
use crate::worker::FlowSink;

const VERDICTS: [&str; 3] = ["allowed", "audited", "denied"];

/// Counts ended flows and hands them to the flow log.
#[derive(Debug, Default)]
pub struct Recorder {
    log: Option<FlowLog>,
    counts: [[AtomicU64; CloseReason::ALL.len()]; VERDICTS.len()],
}

impl Recorder {
    pub fn new(log: Option<FlowLog>) -> Self {
        Self { log, ..Self::default() }
    }

    /// Every verdict and close reason that occurred, with its count.
    pub fn flows(&self) -> impl Iterator<Item = (&'static str, CloseReason, u64)> + '_ {
        VERDICTS.into_iter().zip(&self.counts).flat_map(|(verdict, counts)| {
            CloseReason::ALL
                .into_iter()
                .map(move |close| (verdict, close, counts[close as usize].load(Ordering::Relaxed)))
                .filter(|&(_, _, count)| count > 0)
        })
    }

    pub fn log_totals(&self) -> Totals {
        self.log.as_ref().map(FlowLog::totals).unwrap_or_default()
    }

    /// See [`FlowLog::reopen`].
    pub fn reopen_log(&self) {
        if let Some(log) = &self.log {
            log.reopen();
        }
    }
}

impl FlowSink for Recorder {
    fn begin(&self, workload: &Arc<Workload>, begin: FlowBegin) {
        if let Some(log) = &self.log {
            log.begin(workload.clone(), begin);
        }
    }

    fn record(&self, workload: &Arc<Workload>, record: FlowRecord) {
        let verdict = match record.outcome {
            Outcome::Allowed(Verdict::Allowed) => 0,
            Outcome::Allowed(Verdict::Audited) => 1,
            Outcome::Denied(_) => 2,
        };
        self.counts[verdict][record.close as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(log) = &self.log {
            log.record(workload.clone(), record);
        }
    }
}
