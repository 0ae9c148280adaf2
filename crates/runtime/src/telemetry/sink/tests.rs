//! Files that take nothing, break, or are full: nobody waits, and what was lost is counted and announced.

use std::sync::mpsc;

use super::*;

/// What the file under test does with the next bytes.
#[derive(Debug)]
enum Does {
    /// Takes up to so many bytes.
    Takes(usize),
    /// Fails.
    Fails(io::ErrorKind),
}

/// A file that asks the test what to do, and waits until it is told.
struct Scripted {
    script: mpsc::Receiver<Does>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Write for Scripted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.script.recv() {
            Ok(Does::Takes(most)) => {
                let taken = bytes.len().min(most);
                self.written.lock().extend_from_slice(&bytes[..taken]);
                Ok(taken)
            }
            Ok(Does::Fails(kind)) => Err(kind.into()),
            // The test has ended: the thread stays here, as with a pipe that nobody reads.
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
    tell: mpsc::Sender<Does>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Setup {
    fn new() -> Self {
        let (tell, script) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let file = Scripted { script, written: Arc::clone(&written) };
        Self { sink: Sink::start(file, |_lost| {}).unwrap(), tell, written }
    }

    fn says(&self, does: impl IntoIterator<Item = Does>) {
        for does in does {
            self.tell.send(does).unwrap();
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
    setup.says([Does::Takes(3), Does::Fails(io::ErrorKind::Interrupted), Does::Takes(1)]);
    setup.says([Does::Fails(io::ErrorKind::WouldBlock), Does::Takes(ALL), Does::Takes(ALL)]);
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
        setup.says([Does::Fails(kind)]);
        setup.log("lost\n");
        setup.sink.flush(LONG);
        assert_eq!(setup.lost().len(), before + 1);
        assert!(setup.lost().contains(&(reason, 1)), "{:?}", setup.lost());
    }
    setup.says([Does::Takes(2), Does::Fails(io::ErrorKind::StorageFull)]);
    setup.log("torn\n");
    setup.sink.flush(LONG);
    setup.says([Does::Takes(ALL), Does::Takes(ALL)]);
    setup.log("whole\n");
    assert_eq!(setup.written(), "to\nwhole\n");
    assert!(setup.lost().contains(&("no_space", 2)), "{:?}", setup.lost());
}

#[test]
fn nobody_waits_for_a_file_that_takes_nothing_and_the_queue_is_bounded() {
    let setup = Setup::new();
    let line = format!("{}\n", "x".repeat(1023));
    // The thread may have taken one batch before it got stuck; more than two can't be on their way.
    for _ in 0..3 * MOST_BYTES / line.len() {
        setup.log(&line);
    }
    let [("queue_full", lost)] = setup.lost()[..] else { panic!("{:?}", setup.lost()) };
    let sent = (3 * MOST_BYTES / line.len()) as u64;
    assert!((sent / 3..=sent * 2 / 3).contains(&lost), "{lost} of {sent}");
    assert!(setup.sink.shared.queue.lock().lines.len() <= MOST_BYTES);
    // The end of the process waits no longer than it is told.
    let clock = crate::clock::Clock::start();
    setup.sink.flush(Duration::from_millis(50));
    assert!((50..5000).contains(&clock.mono().as_millis()), "{:?}", clock.mono());
    setup.says([Does::Takes(ALL), Does::Takes(ALL)]);
    assert_eq!(setup.written().lines().count() as u64, sent - lost);
}
