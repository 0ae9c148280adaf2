//! The path of lines to standard error or to another file: a bounded queue in memory and one thread that owns the file.
//!
//! A caller appends its line to the queue and returns at once, whatever the state of standard error. If the reader of
//! the pipe is gone or does not read, or the disk is full, lines are lost and counted by reason. No request and no
//! thread waits, and nothing panics. As soon as a line is written again, the next line reports how many were lost.
//!
//! Not guaranteed: a line that is queued when the process is killed is lost and not counted.

use std::cell::RefCell;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use tracing_subscriber::fmt::MakeWriter;

/// The most bytes of lines that wait for the writing thread; about 5,000 lines.
pub(super) const MOST_BYTES: usize = 1 << 20;

/// The most capacity that an emptied buffer keeps, in bytes, so that one burst does not hold memory for ever.
const KEPT_BYTES: usize = 64 << 10;

/// The pause before the next attempt to write to a non-blocking file that is not ready.
const NOT_READY_PAUSE: Duration = Duration::from_millis(10);

/// Queues lines and never waits for the reader of standard error. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Sink {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// Notified when the queue is no longer empty.
    filled: Condvar,
    /// Notified when every queued line has been written or lost.
    settled: Condvar,
    lost: Lost,
}

#[derive(Debug, Default)]
struct Queue {
    /// Whole lines, one after the other.
    lines: Vec<u8>,
    /// Whether the thread is writing lines that it has taken.
    writing: bool,
}

impl Queue {
    fn is_settled(&self) -> bool {
        self.lines.is_empty() && !self.writing
    }
}

/// Why lines are lost; the label `reason` of `smg_log_dropped_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// [`MOST_BYTES`] wait already: the reader is slower than the log, or has stopped.
    QueueFull,
    /// The reader of the pipe is gone.
    Closed,
    /// The disk, or a quota on it, is full.
    NoSpace,
    /// The file reported another error.
    Error,
}

impl Reason {
    const ALL: [Self; 4] = [Self::QueueFull, Self::Closed, Self::NoSpace, Self::Error];

    const fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Closed => "closed",
            Self::NoSpace => "no_space",
            Self::Error => "error",
        }
    }

    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Error,
        }
    }
}

/// Counts lost lines by reason.
#[derive(Debug)]
struct Lost {
    family: IntCounterVec,
    by_reason: [IntCounter; Reason::ALL.len()],
}

impl Lost {
    fn new(metric: &str, help: &str) -> Self {
        let family = IntCounterVec::new(Opts::new(metric, help), &["reason"])
            .expect("the name and label are valid");
        let by_reason = Reason::ALL.map(|reason| family.with_label_values(&[reason.name()]));
        Self { family, by_reason }
    }

    fn count(&self, reason: Reason, lines: u64) {
        self.by_reason[reason as usize].inc_by(lines);
    }

    fn total(&self) -> u64 {
        self.by_reason.iter().map(IntCounter::get).sum()
    }
}

/// Logs how many lines were lost.
#[derive(Debug, Clone, Copy)]
pub(super) enum Announce {
    /// The event is one of the lines that go to the same file.
    Here(fn(u64)),
    /// The event goes elsewhere.
    Elsewhere(fn(u64)),
}

thread_local! {
    /// Set on the writing thread while it logs an event itself. That line is stored here instead of in the queue.
    static PAST_THE_QUEUE: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

impl Sink {
    /// Starts the thread that writes to `output`. Whenever lines are written after some were lost, the thread calls
    /// `announce` with their number. `metric` and `help` are the name of the counter of lost lines and its description.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub(super) fn start<W>(
        output: W,
        metric: &str,
        help: &str,
        announce: Announce,
    ) -> io::Result<Self>
    where
        W: Write + Send + 'static,
    {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            filled: Condvar::new(),
            settled: Condvar::new(),
            lost: Lost::new(metric, help),
        });
        let sink = Self { shared: Arc::clone(&shared) };
        let writer = Writer { shared, output, announce, announced: 0, torn: false };
        // The thread is never joined: it may block in a write for ever, and ends with the process.
        std::thread::Builder::new().name("smg-log".to_owned()).spawn(move || writer.run())?;
        Ok(sink)
    }

    /// Registers the counter of lost lines.
    pub(super) fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.shared.lost.family.clone()))
    }

    /// Waits until every queued line has been written or lost, but no longer than `most`.
    pub(super) fn flush(&self, most: Duration) {
        let mut queue = self.shared.queue.lock();
        let _in_time =
            self.shared.settled.wait_while_for(&mut queue, |queue| !queue.is_settled(), most);
    }

    /// Queues a line, or counts it as lost.
    pub(super) fn push(&self, line: &[u8]) {
        let mut queue = self.shared.queue.lock();
        if queue.lines.len() + line.len() > MOST_BYTES {
            drop(queue);
            self.shared.lost.count(Reason::QueueFull, 1);
            return;
        }
        let was_empty = queue.lines.is_empty();
        queue.lines.extend_from_slice(line);
        drop(queue);
        if was_empty {
            self.shared.filled.notify_one();
        }
    }
}

/// Takes one line per call, because the subscriber writes each line in one piece.
impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let taken = PAST_THE_QUEUE.with_borrow_mut(|aside| match aside {
            Some(aside) => {
                aside.extend_from_slice(line);
                true
            }
            None => false,
        });
        if !taken {
            self.push(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Sink {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// The state of the writing thread.
struct Writer<W> {
    shared: Arc<Shared>,
    output: W,
    announce: Announce,
    /// How many of the lost lines have been announced.
    announced: u64,
    /// Whether the output ends in the middle of a line.
    torn: bool,
}

impl<W: Write> Writer<W> {
    fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            self.take(&mut batch);
            if self.write(&batch) {
                self.announce_lost();
            }
            batch.clear();
            batch.shrink_to(KEPT_BYTES);
        }
    }

    /// Waits for lines and takes all that are queued.
    fn take(&self, batch: &mut Vec<u8>) {
        let mut queue = self.shared.queue.lock();
        queue.writing = false;
        if queue.is_settled() {
            self.shared.settled.notify_all();
        }
        self.shared.filled.wait_while(&mut queue, |queue| queue.lines.is_empty());
        std::mem::swap(batch, &mut queue.lines);
        queue.writing = true;
    }

    /// Writes whole lines. If that fails, counts the rest as lost and returns false.
    fn write(&mut self, lines: &[u8]) -> bool {
        if self.torn && self.write_all(b"\n").is_ok() {
            self.torn = false;
        }
        match self.write_all(lines) {
            Ok(()) => true,
            Err((written, error)) => {
                let (before, rest) = lines.split_at(written);
                self.torn |= before.last().is_some_and(|last| *last != b'\n');
                let lost = rest.iter().filter(|byte| **byte == b'\n').count() as u64;
                self.shared.lost.count(Reason::of(&error), lost);
                false
            }
        }
    }

    /// Writes all bytes. `Err` holds how many were written before the error.
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut written = 0;
        while written < bytes.len() {
            match self.output.write(&bytes[written..]) {
                Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Another process has set the file to non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::park_timeout(NOT_READY_PAUSE);
                }
                Err(error) => return Err((written, error)),
            }
        }
        Ok(())
    }

    /// Logs how many lines were lost since the last announcement.
    fn announce_lost(&mut self) {
        let total = self.shared.lost.total();
        if total == self.announced {
            return;
        }
        let announce = match self.announce {
            Announce::Here(announce) => announce,
            Announce::Elsewhere(announce) => {
                announce(total - self.announced);
                self.announced = total;
                return;
            }
        };
        PAST_THE_QUEUE.set(Some(Vec::new()));
        announce(total - self.announced);
        let line = PAST_THE_QUEUE.take().unwrap_or_default();
        if self.write(&line) {
            self.announced = total;
        }
    }
}

#[cfg(test)]
mod tests;
