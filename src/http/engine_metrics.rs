//! `GET /engine_metrics`: the metrics of all workers as one page, each sample with the label `worker_addr`.
//!
//! The format demands that all samples of a family stand together, so the pages of all workers must be here before the
//! first line goes out. Nothing is copied from them: an index notes which lines of which page belong to a family, and the
//! merged page is written while it is sent. The pages count as buffered bytes. A page that finds no room is left out, and a
//! comment says so.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{Method, header};
use memchr::memchr;
use smg_proxy::upstream::Question;
use smg_routing::fleet::Worker;

use super::Surface;
use super::buffered::Held;
use super::fanout::{TIMEOUT, each_worker};

/// The page of a worker has at most this many bytes.
const MAX_PAGE_BYTES: usize = 16 << 20;

/// Bytes of the merged page that are written at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// Runs of lines in an index. A page has one per family; a page that interleaves its families has more, and is left out
/// beyond this.
const MAX_RUNS: usize = 100_000;

/// The page of one worker.
#[derive(Debug)]
struct Page {
    /// The value of `worker_addr`, escaped.
    label: String,
    text: Bytes,
    /// Gives the place of the page back.
    _held: Held,
}

/// Lines of one page that stand together and belong to one family.
#[derive(Debug, Clone)]
struct Run {
    page: usize,
    lines: Range<usize>,
}

/// Where the lines of a family lie.
#[derive(Debug, Default)]
struct Family {
    /// Its `# HELP` and `# TYPE`, each from the first page that has it.
    head: Vec<Run>,
    samples: Vec<Run>,
}

/// Answers with the metrics of all workers.
pub(super) async fn engine_metrics(State(surface): State<Arc<Surface>>) -> Response {
    let (mut pages, mut left_out) = (Vec::new(), Vec::new());
    for (worker, page) in each_worker(&surface, page_of).await {
        let address = worker.spec.url.authority();
        match page {
            Ok((text, held)) => {
                let label = address.replace('\\', "\\\\").replace('"', "\\\"");
                pages.push(Page { label, text, _held: held });
            }
            Err(cause) => left_out.push((address.to_owned(), cause)),
        }
    }
    let merged = tokio::task::spawn_blocking(move || Merged::new(pages, &left_out)).await;
    let Ok(merged) = merged else {
        // The runtime is ending.
        return http::StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let chunks = merged.map(Ok::<_, std::convert::Infallible>);
    let body = Body::from_stream(tokio_stream::iter(chunks));
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], body).into_response()
}

/// The metrics of one worker, and the place that they take of the buffered bytes.
async fn page_of(
    surface: Arc<Surface>,
    worker: Arc<Worker>,
) -> (Arc<Worker>, Result<(Bytes, Held), String>) {
    let mut held = Held::new(&surface.metrics, surface.config.max_buffered_bytes);
    let mut refusal = None;
    let mut grow = |bytes| {
        if held.bytes() + bytes > MAX_PAGE_BYTES {
            refusal = Some(format!("its page has more than {MAX_PAGE_BYTES} bytes"));
        } else if held.grow(bytes).is_err() {
            refusal = Some("there is no room for its page (--max-buffered-bytes)".to_owned());
        }
        refusal.is_none()
    };
    let (key, body) = (worker.spec.api_key.as_ref(), Bytes::new());
    let question = Question { method: Method::GET, path: "/metrics", key, body };
    let answer = surface.control.ask_within(&*worker.spec, question, TIMEOUT, &mut grow).await;
    let page = match (answer, refusal) {
        (_, Some(refusal)) => Err(refusal),
        (Ok((status, text)), None) if status.is_success() => Ok((text, held)),
        (Ok((status, _)), None) => Err(format!("status {}", status.as_u16())),
        (Err(error), None) => Err(error.to_string()),
    };
    (worker, page)
}

/// The merged page, in chunks.
#[derive(Debug)]
struct Merged {
    pages: Vec<Page>,
    /// What is still to be written, the next run last. `true`: samples, which get the label.
    runs: Vec<(Run, bool)>,
    /// What goes before everything else.
    comments: Option<Bytes>,
}

impl Merged {
    /// Merges `pages`. `left_out`: workers whose page is not here, each with the reason.
    fn new(pages: Vec<Page>, left_out: &[(String, String)]) -> Self {
        let mut families: BTreeMap<&[u8], Family> = BTreeMap::new();
        let mut comments = String::new();
        let mut comment = |address: &str, cause: &str| {
            let cause = cause.replace(['\n', '\r'], " ");
            comments
                .push_str(&format!("# The metrics of worker {address} are left out: {cause}\n"));
        };
        for (address, cause) in left_out {
            comment(address, cause);
        }
        let mut room = MAX_RUNS;
        for (at, page) in pages.iter().enumerate() {
            let mut index = Index { page: at, families: &mut families, room: &mut room };
            if !index.read(&page.text) {
                comment(&page.label, "it has too many families, the rest of its page is missing");
            }
        }
        let mut runs: Vec<(Run, bool)> = families
            .into_values()
            .flat_map(|family| {
                let head = family.head.into_iter().map(|run| (run, false));
                head.chain(family.samples.into_iter().map(|run| (run, true)))
            })
            .collect();
        runs.reverse();
        let comments = (!comments.is_empty()).then(|| comments.into());
        Self { pages, runs, comments }
    }
}

impl Iterator for Merged {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if let Some(comments) = self.comments.take() {
            return Some(comments);
        }
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        while chunk.len() < CHUNK_BYTES {
            let Some((run, is_sample)) = self.runs.last_mut() else { break };
            let page = &self.pages[run.page];
            let rest = &page.text[run.lines.clone()];
            let end = memchr(b'\n', rest).unwrap_or(rest.len());
            let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
            if *is_sample {
                write_sample(&mut chunk, line, &page.label);
            } else {
                chunk.extend_from_slice(line);
                chunk.push(b'\n');
            }
            run.lines.start = (run.lines.start + end + 1).min(run.lines.end);
            if run.lines.is_empty() {
                self.runs.pop();
            }
        }
        (!chunk.is_empty()).then(|| chunk.into())
    }
}

/// Writes a sample with the label `worker_addr`; what is no sample is left out.
fn write_sample(chunk: &mut Vec<u8>, line: &[u8], label: &str) {
    let Some(end) = end_of_name(line) else { return };
    let (name, rest) = line.split_at(end);
    chunk.extend_from_slice(name);
    chunk.extend_from_slice(b"{worker_addr=\"");
    chunk.extend_from_slice(label.as_bytes());
    match rest.strip_prefix(b"{") {
        Some(labels) if labels.trim_ascii_start().starts_with(b"}") => {
            chunk.push(b'"');
            chunk.extend_from_slice(labels);
        }
        Some(labels) => {
            chunk.extend_from_slice(b"\",");
            chunk.extend_from_slice(labels);
        }
        None => {
            chunk.extend_from_slice(b"\"}");
            chunk.extend_from_slice(rest);
        }
    }
    chunk.push(b'\n');
}

/// Where the name of the sample in `line` ends; `None`: it is a comment, or no sample.
fn end_of_name(line: &[u8]) -> Option<usize> {
    line.iter().position(|byte| matches!(byte, b'{' | b' ')).filter(|_| !line.starts_with(b"#"))
}

/// Notes where the families of one page lie.
struct Index<'p, 'i> {
    page: usize,
    families: &'i mut BTreeMap<&'p [u8], Family>,
    /// How many more runs fit.
    room: &'i mut usize,
}

impl<'p> Index<'p, '_> {
    /// Reads a page. Returns whether all of it fitted.
    fn read(&mut self, text: &'p [u8]) -> bool {
        // The family of the last `# HELP` or `# TYPE`.
        let mut current: &[u8] = b"";
        let mut start = 0;
        while start < text.len() {
            let end = memchr(b'\n', &text[start..]).map_or(text.len(), |at| start + at + 1);
            let line = text[start..end].trim_ascii_end();
            let run = Run { page: self.page, lines: start..end };
            start = end;
            if let Some((kind, name)) = head_of(line) {
                current = name;
                if !self.add_head(text, kind, name, run) {
                    return false;
                }
            } else if let Some(end) = end_of_name(line) {
                let name = &line[..end];
                // Samples of a histogram have the family's name and a suffix.
                let suffix = name.strip_prefix(current).filter(|_| !current.is_empty());
                let is_part = suffix.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"_"));
                if !self.add_sample(if is_part { current } else { name }, run) {
                    return false;
                }
            }
        }
        true
    }

    fn add_head(&mut self, text: &'p [u8], kind: &[u8], name: &'p [u8], run: Run) -> bool {
        let family = self.families.entry(name).or_default();
        // Of earlier pages only the kind of a line matters, and each page that has a head has both lines.
        let is_known = family.head.iter().any(|known| {
            known.page != run.page
                || head_of(text[known.lines.clone()].trim_ascii_end())
                    .is_some_and(|(known, _)| known == kind)
        });
        if is_known {
            return true;
        }
        let fits = *self.room > 0;
        if fits {
            *self.room -= 1;
            family.head.push(run);
        }
        fits
    }

    fn add_sample(&mut self, name: &'p [u8], run: Run) -> bool {
        let family = self.families.entry(name).or_default();
        if let Some(last) = family.samples.last_mut()
            && last.page == run.page
            && last.lines.end == run.lines.start
        {
            last.lines.end = run.lines.end;
            return true;
        }
        let fits = *self.room > 0;
        if fits {
            *self.room -= 1;
            family.samples.push(run);
        }
        fits
    }
}

/// The kind and the family of a line `# HELP` or `# TYPE`.
fn head_of(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut words = line.strip_prefix(b"# ")?.splitn(3, |byte| *byte == b' ');
    let (kind, name) = (words.next()?, words.next()?);
    (matches!(kind, b"HELP" | b"TYPE") && !name.is_empty()).then_some((kind, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::metrics::Metrics;

    fn page(label: &str, text: &str) -> Page {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let text = Bytes::from(text.to_owned());
        Page { label: label.to_owned(), text, _held: Held::new(&metrics, usize::MAX) }
    }

    fn merge(pages: &[(&str, &str)]) -> String {
        let pages = pages.iter().map(|(label, text)| page(label, text)).collect();
        let chunks: Vec<Bytes> = Merged::new(pages, &[]).collect();
        String::from_utf8(chunks.concat()).unwrap()
    }

    #[test]
    fn families_stay_together_and_samples_name_their_worker() {
        let page = "# HELP x Help.\n# TYPE x histogram\nx_bucket{le=\"1\"} 1\nx_sum 2\n# TYPE y gauge\ny{} 3\n";
        let expected = "# HELP x Help.\n# TYPE x histogram\n\
                        x_bucket{worker_addr=\"a:1\",le=\"1\"} 1\nx_sum{worker_addr=\"a:1\"} 2\n\
                        x_bucket{worker_addr=\"b:2\",le=\"1\"} 1\nx_sum{worker_addr=\"b:2\"} 2\n\
                        # TYPE y gauge\ny{worker_addr=\"a:1\"} 3\ny{worker_addr=\"b:2\"} 3\n";
        assert_eq!(merge(&[("a:1", page), ("b:2", page)]), expected);
    }

    #[test]
    fn a_family_that_a_page_interleaves_with_others_is_put_together() {
        let merged = merge(&[("a", "x 1\r\ny 2\n\n# a comment\nx{l=\"v\"} 3")]);
        let expected =
            "x{worker_addr=\"a\"} 1\nx{worker_addr=\"a\",l=\"v\"} 3\ny{worker_addr=\"a\"} 2\n";
        assert_eq!(merged, expected);
    }

    #[test]
    fn a_large_page_is_written_in_chunks_with_no_line_broken() {
        let page: String = (0..20_000).map(|n| format!("x{{n=\"{n}\"}} {n}\n")).collect();
        let chunks: Vec<Bytes> = Merged::new(vec![self::page("a", &page)], &[]).collect();
        assert!(chunks.len() > 5, "{} chunks", chunks.len());
        assert!(
            chunks.iter().all(|chunk| chunk.len() < CHUNK_BYTES + 100 && chunk.ends_with(b"\n"))
        );
        assert_eq!(chunks.concat().iter().filter(|byte| **byte == b'\n').count(), 20_000);
    }

    #[test]
    fn a_page_of_nothing_but_short_families_is_cut_and_named() {
        let page: String = (0..MAX_RUNS + 10).map(|n| format!("x{n} 1\n")).collect();
        let merged = merge(&[("hostile", &page), ("late", "z 1\n")]);
        let comments: Vec<&str> = merged.lines().filter(|line| line.starts_with('#')).collect();
        assert_eq!(comments.len(), 2, "{comments:?}");
        assert!(comments[0].contains("hostile") && comments[0].contains("too many families"));
    }
}
