//! Reads the usage in a stream of server-sent events, and counts what an estimate needs if there is none.
//!
//! Most events carry a token and no usage. For these the cost is one search for `"usage"` in the piece that arrived, and one
//! for each end of a line. Only an event with the marker, or one that arrives in pieces, goes through the [`Scanner`].

use std::sync::LazyLock;

use memchr::memchr;
use memchr::memmem::Finder;
use smallvec::SmallVec;

use super::report::Report;
use super::scan::{Place, Scanner};
use super::tokens::tokens_in;

/// The longest name of an event that is read, in bytes.
const MAX_NAME: usize = 64;

/// Reads one stream.
#[derive(Debug)]
pub(super) struct Events {
    marker: &'static Finder<'static>,
    line: Line,
    /// Whether the event in progress has a name, and whether that is the name of an event with content.
    name: Option<bool>,
    scanner: Scanner,
    place: Place,
    report: Option<Report>,
    unreadable: u32,
    content: Content,
}

/// The line in progress, of which some bytes have arrived.
#[derive(Debug)]
enum Line {
    /// Too few bytes to know what it is.
    Head(SmallVec<[u8; 8]>),
    /// The name of the event.
    Name(SmallVec<[u8; MAX_NAME]>),
    Data(Data),
    /// A comment, or a field without meaning here.
    Other,
}

/// The data of an event, of which some bytes have arrived.
#[derive(Debug, Clone, Copy, Default)]
struct Data {
    bytes: u64,
    /// The first byte that is not a blank.
    first: Option<u8>,
    /// Whether the scanner has read of it.
    scanned: bool,
}

/// The events with generated content, as far as they can be told from others without parsing them.
///
/// Engines send an event per token unless they fall behind or decode speculatively; then an event carries several. So the
/// estimate is the number of events, unless the events carry more than twice as much text: four bytes are a token, and the
/// first event, which is like the others in all but its text, is taken for one token.
#[derive(Debug, Clone, Copy, Default)]
struct Content {
    /// Events without a name that are still taken for the stream's opening, such as the one with the role.
    opening: u32,
    events: u64,
    bytes: u64,
    /// The size of the first event, in bytes.
    first: u64,
    /// Whether `[DONE]` has ended a stream without names: then the last event had the reason for the end.
    done: bool,
}

impl Events {
    /// `opening`: the number of events without content at the begin of a stream whose events have no names.
    pub(super) fn new(place: Place, opening: u32) -> Self {
        static USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"usage\""));
        static META_INFO: LazyLock<Finder<'static>> =
            LazyLock::new(|| Finder::new("\"meta_info\""));
        Self {
            marker: match place {
                Place::Usage => &USAGE,
                Place::MetaInfo => &META_INFO,
            },
            line: Line::Head(SmallVec::new()),
            name: None,
            scanner: Scanner::new(place),
            place,
            report: None,
            unreadable: 0,
            content: Content { opening, ..Content::default() },
        }
    }

    /// The joined counts of the events so far, and the number of usage objects that could not be read.
    pub(super) fn found(&self) -> (Option<Report>, u32) {
        (self.report, self.unreadable)
    }

    /// The estimated number of tokens that have passed.
    pub(super) fn estimate(&self) -> u64 {
        self.content.estimate()
    }

    /// Reads the next piece of the stream.
    pub(super) fn feed(&mut self, piece: &[u8]) {
        let marked = self.marker.find(piece).is_some();
        let mut rest = piece;
        while let Some(end) = memchr(b'\n', rest) {
            let line = &rest[..end];
            rest = &rest[end + 1..];
            let is_whole = matches!(&self.line, Line::Head(head) if head.is_empty());
            match line.strip_prefix(b"data:").filter(|_| is_whole) {
                Some(data) => self.data(data, marked && self.has_counts(data)),
                None => self.part_of_line(line),
            }
            self.end_line();
        }
        if !rest.is_empty() {
            self.part_of_line(rest);
        }
    }

    /// Whether the marker is followed by anything but `null`.
    fn has_counts(&self, data: &[u8]) -> bool {
        self.marker.find_iter(data).any(|at| {
            let after = data[at + self.marker.needle().len()..].trim_ascii_start();
            let value = after.strip_prefix(b":").map(<[u8]>::trim_ascii_start);
            value.is_some_and(|value| value.first() != Some(&b'n'))
        })
    }

    /// Reads a part of a line, which may be the rest of it.
    fn part_of_line(&mut self, mut part: &[u8]) {
        if let Line::Head(head) = &mut self.line {
            let missing = b"event:".len() - head.len();
            let (more, rest) = part.split_at(missing.min(part.len()));
            head.extend_from_slice(more);
            part = rest;
            if let Some(data) = head.strip_prefix(b"data:") {
                let data: SmallVec<[u8; 8]> = data.into();
                self.line = Line::Data(Data::default());
                self.data(&data, true);
            } else if **head == *b"event:" {
                self.line = Line::Name(SmallVec::new());
            } else if head.len() == b"event:".len() {
                self.line = Line::Other;
            }
        }
        match &mut self.line {
            Line::Data(_) => self.data(part, true),
            Line::Name(name) => {
                let room = MAX_NAME - name.len();
                name.extend_from_slice(&part[..part.len().min(room)]);
            }
            Line::Head(_) | Line::Other => {}
        }
    }

    /// Reads a part of an event's data.
    fn data(&mut self, part: &[u8], scan: bool) {
        let mut data = match self.line {
            Line::Data(data) => data,
            Line::Head(_) | Line::Name(_) | Line::Other => Data::default(),
        };
        data.bytes += part.len() as u64;
        data.first =
            data.first.or_else(|| part.iter().copied().find(|byte| !byte.is_ascii_whitespace()));
        data.scanned |= scan;
        self.line = Line::Data(data);
        if scan {
            self.scanner.feed(part);
        }
    }

    fn end_line(&mut self) {
        match std::mem::replace(&mut self.line, Line::Head(SmallVec::new())) {
            Line::Head(head) if head.is_empty() || *head == *b"\r" => self.name = None,
            Line::Name(name) => {
                let name = name.trim_ascii();
                let has_delta = name.windows(5).any(|part| part == b"delta");
                self.name = Some(has_delta && name != b"message_delta");
            }
            Line::Data(data) => self.end_data(data),
            Line::Head(_) | Line::Other => {}
        }
    }

    fn end_data(&mut self, data: Data) {
        if data.scanned {
            let (report, unreadable) = self.scanner.found();
            self.scanner = Scanner::new(self.place);
            self.unreadable = self.unreadable.saturating_add(unreadable);
            self.report = match (self.report, report) {
                (Some(own), Some(new)) => Some(own.joined(&new)),
                (own, new) => own.or(new),
            };
        }
        match (self.name, data.first) {
            (Some(true), _) => self.content.count(data.bytes),
            (None, Some(b'{')) => self.content.count_unnamed(data.bytes),
            // `[DONE]`
            (None, Some(b'[')) => self.content.done = true,
            (Some(false) | None, _) => {}
        }
    }
}

impl Content {
    fn count_unnamed(&mut self, bytes: u64) {
        match self.opening.checked_sub(1) {
            Some(left) => self.opening = left,
            None => self.count(bytes),
        }
    }

    fn count(&mut self, bytes: u64) {
        if self.events == 0 {
            self.first = bytes;
        }
        self.events += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn estimate(&self) -> u64 {
        let events = self.events - u64::from(self.done && self.events > 0);
        let frames = self.events.saturating_mul(self.first.saturating_sub(4));
        let by_text = tokens_in(self.bytes.saturating_sub(frames));
        if by_text > events.saturating_mul(2) { by_text } else { events }
    }
}
