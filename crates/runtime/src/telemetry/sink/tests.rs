//! Tests with files that block, break, or are full: no caller waits, and lost lines are counted and announced.

use std::sync::mpsc;

use super::*;

/// The result of the next call of `write` on the file under test.
#[derive(Debug)]
enum Step {
    /// Writes at most this many bytes.
    Write(usize),
    /// Fails with this error.
    Fail(io::ErrorKind),
}

/// A file whose every `write` waits for the next step of the test's script.
struct Scripted {
    script: mpsc::Receiver<Step>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Write for Scripted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.script.recv() {
            Ok(Step::Write(most)) => {
                let taken = bytes.len().min(most);
                self.written.lock().extend_from_slice(&bytes[..taken]);
                Ok(taken)
            }
            Ok(Step::Fail(kind)) => Err(kind.into()),
            // The test has ended. The thread stays here, as it does with a pipe that is not read.
            Err(_) => loop {
                std::thread::park();
            },
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const ALL: usize = usize::MAX;
const LONG: Duration = Duration::from_secs(10);

struct Setup {
    sink: Sink,
    steps: mpsc::Sender<Step>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Setup {
    fn new() -> Self {
        let (steps, script) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let file = Scripted { script, written: Arc::clone(&written) };
        Self {
            sink: Sink::start(file, "lost_total", "Lost.", Announce::Here(|_lost| {})).unwrap(),
            steps,
            written,
        }
    }

    fn script(&self, steps: impl IntoIterator<Item = Step>) {
        for step in steps {
            self.steps.send(step).unwrap();
        }
    }

    fn log(&self, line: &str) {
        self.sink.clone().write_all(line.as_bytes()).unwrap();
    }

    fn written(&self) -> String {
        self.sink.flush(LONG);
        String::from_utf8(self.written.lock().clone()).unwrap()
    }

    fn lost(&self) -> Vec<(&'static str, u64)> {
        let lost = &self.sink.shared.lost.by_reason;
        let all = Reason::ALL.into_iter().zip(lost);
        all.map(|(reason, count)| (reason.name(), count.get())).filter(|(_, n)| *n > 0).collect()
    }
}

#[test]
fn lines_arrive_whole_and_in_order_whatever_the_pieces() {
    let setup = Setup::new();
    setup.script([Step::Write(3), Step::Fail(io::ErrorKind::Interrupted), Step::Write(1)]);
    setup.script([Step::Fail(io::ErrorKind::WouldBlock), Step::Write(ALL), Step::Write(ALL)]);
    setup.log("first\n");
    setup.log("second\n");
    assert_eq!(setup.written(), "first\nsecond\n");
    assert_eq!(setup.lost(), []);
}

#[test]
fn each_error_has_its_reason_and_a_torn_line_is_ended() {
    let setup = Setup::new();
    for (kind, reason) in [
        (io::ErrorKind::BrokenPipe, "closed"),
        (io::ErrorKind::StorageFull, "no_space"),
        (io::ErrorKind::Other, "error"),
    ] {
        let before = setup.lost().len();
        setup.script([Step::Fail(kind)]);
        setup.log("lost\n");
        setup.sink.flush(LONG);
        assert_eq!(setup.lost().len(), before + 1);
        assert!(setup.lost().contains(&(reason, 1)), "{:?}", setup.lost());
    }
    setup.script([Step::Write(2), Step::Fail(io::ErrorKind::StorageFull)]);
    setup.log("torn\n");
    setup.sink.flush(LONG);
    setup.script([Step::Write(ALL), Step::Write(ALL)]);
    setup.log("whole\n");
    assert_eq!(setup.written(), "to\nwhole\n");
    assert!(setup.lost().contains(&("no_space", 2)), "{:?}", setup.lost());
}

#[test]
fn a_blocked_file_makes_no_caller_wait_and_the_queue_is_bounded() {
    let setup = Setup::new();
    let line = format!("{}\n", "x".repeat(1023));
    // The thread may have taken one batch before it blocked, so at most two batches are kept.
    for _ in 0..3 * MOST_BYTES / line.len() {
        setup.log(&line);
    }
    let [("queue_full", lost)] = setup.lost()[..] else { panic!("{:?}", setup.lost()) };
    let sent = (3 * MOST_BYTES / line.len()) as u64;
    assert!((sent / 3..=sent * 2 / 3).contains(&lost), "{lost} of {sent}");
    assert!(setup.sink.shared.queue.lock().lines.len() <= MOST_BYTES);
    // The end of the process waits no longer than its limit.
    let clock = crate::clock::Clock::start();
    setup.sink.flush(Duration::from_millis(50));
    assert!((50..5000).contains(&clock.mono().as_millis()), "{:?}", clock.mono());
    setup.script([Step::Write(ALL), Step::Write(ALL)]);
    assert_eq!(setup.written().lines().count() as u64, sent - lost);
}
