//! The flow log: one JSON line for each flow that ended (and, if asked, for each that began), written by a thread of its
//! own.
//!
//! Workers hand over records and never wait: a full queue drops the record and counts it.

mod line;
mod recorder;
mod rotate;

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use tunproxy_datapath::{FlowBegin, FlowRecord};
use tunproxy_policy::Workload;

pub use line::FlowLine;
pub(crate) use line::{is_failure, verdict_label};
pub use recorder::Recorder;
pub use rotate::RotatingFile;

/// Records waiting for the writer, some 2 MiB at worst; a burst beyond it is dropped and counted.
const QUEUE: usize = 8192;
/// After what it has written the writer lets more gather for so long: waking it for each record would cost a worker more than
/// the record, and each would be a write of its own. The queue has room for 800,000 records a second meanwhile.
const GATHER: Duration = Duration::from_millis(10);
/// How often a failing disk is complained about.
const COMPLAIN_EVERY: Duration = Duration::from_mins(1);

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Stdout,
    /// A new file is begun when this one would grow beyond `rotate` bytes; `keep` old ones stay as `PATH.1` (the latest)
    /// to `PATH.keep`.
    File {
        path: PathBuf,
        rotate: u64,
        keep: usize,
    },
}

/// What happened to the records so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    pub written: u64,
    /// The queue was full.
    pub dropped: u64,
    /// The output refused the line.
    pub failed: u64,
}

/// The running flow log. Dropping it writes what is queued and ends the thread.
#[derive(Debug)]
pub struct FlowLog {
    queue: Option<SyncSender<Message>>,
    counters: Arc<Counters>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Message {
    Begin(Box<Happened<FlowBegin>>),
    Record(Box<Happened<FlowRecord>>),
    /// Close and open the file again: somebody moved it away.
    Reopen,
}

/// What the datapath tells, with what only the time and place of the event know.
#[derive(Debug)]
struct Happened<T> {
    at: SystemTime,
    workload: Arc<Workload>,
    what: T,
}

impl<T> Happened<T> {
    fn now(workload: Arc<Workload>, what: T) -> Self {
        Self { at: SystemTime::now(), workload, what }
    }
}

#[derive(Debug, Default)]
struct Counters {
    written: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

impl FlowLog {
    /// Opens the output and starts the writer.
    pub fn start(output: &Output) -> io::Result<Self> {
        let sink = Sink::open(output)?;
        let (queue, records) = sync_channel(QUEUE);
        let counters = Arc::new(Counters::default());
        let writer = Writer { sink, counters: counters.clone(), complained: None };
        let writer = thread::Builder::new().name("flow-log".into()).spawn(move || writer.run(&records))?;
        Ok(Self { queue: Some(queue), counters, writer: Some(writer) })
    }

    /// Queues a record of a flow that ended now. Never blocks.
    pub fn record(&self, workload: Arc<Workload>, record: FlowRecord) {
        self.send(Message::Record(Box::new(Happened::now(workload, record))));
    }

    /// Queues word of a flow that begins now. Never blocks.
    pub fn begin(&self, workload: Arc<Workload>, begin: FlowBegin) {
        self.send(Message::Begin(Box::new(Happened::now(workload, begin))));
    }

    /// Has the file opened anew, after an outside tool renamed it.
    pub fn reopen(&self) {
        self.send(Message::Reopen);
    }

    pub fn totals(&self) -> Totals {
        Totals {
            written: self.counters.written.load(Ordering::Relaxed),
            dropped: self.counters.dropped.load(Ordering::Relaxed),
            failed: self.counters.failed.load(Ordering::Relaxed),
        }
    }

    fn send(&self, message: Message) {
        let Some(queue) = &self.queue else { return };
        match queue.try_send(message) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.counters.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for FlowLog {
    fn drop(&mut self) {
        // The writer ends when the queue is empty and has no sender.
        self.queue = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the flow log's writer panicked");
        }
    }
}

enum Sink {
    Stdout(BufWriter<io::Stdout>),
    File(RotatingFile),
}

impl Sink {
    fn open(output: &Output) -> io::Result<Self> {
        Ok(match output {
            Output::Stdout => Self::Stdout(BufWriter::new(io::stdout())),
            Output::File { path, rotate, keep } => Self::File(RotatingFile::open(path, *rotate, *keep)?),
        })
    }

    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout(stdout) => stdout.write_all(line),
            Self::File(file) => file.write_line(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(stdout) => stdout.flush(),
            Self::File(file) => file.flush(),
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(stdout) => stdout.flush(),
            Self::File(file) => file.reopen(),
        }
    }
}

struct Writer {
    sink: Sink,
    counters: Arc<Counters>,
    complained: Option<Instant>,
}

impl Writer {
    fn run(mut self, records: &Receiver<Message>) {
        while let Ok(message) = records.recv() {
            let mut next = Some(message);
            while let Some(message) = next.take() {
                self.handle(message);
                while let Ok(message) = records.try_recv() {
                    self.handle(message);
                }
                // Nothing waits: what was written becomes visible.
                let flushed = self.sink.flush();
                self.note(flushed);
                thread::sleep(GATHER);
                next = records.try_recv().ok();
            }
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Begin(begun) => {
                self.write(&FlowLine::of_begin(begun.at, &begun.workload, &begun.what));
            }
            Message::Record(ended) => {
                self.write(&FlowLine::new(ended.at, &ended.workload, &ended.what));
            }
            Message::Reopen => {
                let reopened = self.sink.reopen();
                self.note(reopened);
            }
        }
    }

    fn write(&mut self, line: &FlowLine<'_>) {
        let written = self.sink.write_line(&line.to_json_line());
        let counter = if written.is_ok() { &self.counters.written } else { &self.counters.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        self.note(written);
    }

    fn note(&mut self, result: io::Result<()>) {
        let Err(error) = result else { return };
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            tracing::warn!(%error, "flows cannot be recorded; free the disk or set flowLog.path");
            self.complained = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests;
