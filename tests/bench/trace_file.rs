//! Trace files, for the benchmarks that play them: one JSON object per line, in the format of the Mooncake traces.

use std::error::Error;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use serde::Deserialize;

/// One request of a trace.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Request {
    /// Milliseconds since the start of the trace.
    pub(crate) timestamp: f64,
    /// Tokens of the prompt.
    pub(crate) input_length: u32,
    /// Tokens of the answer.
    pub(crate) output_length: u32,
    /// One id per 512 tokens of the prompt, each naming a block together with all blocks before it.
    pub(crate) hash_ids: Vec<u64>,
}

/// The first `most` requests of a trace file.
///
/// # Errors
/// The file can't be read, or a line is no request.
pub(crate) fn read(path: &Path, most: usize) -> Result<Vec<Request>, Box<dyn Error + Send + Sync>> {
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut trace = Vec::new();
    for (at, line) in BufReader::new(file).lines().take(most).enumerate() {
        let request = serde_json::from_str(&line?)
            .map_err(|error| format!("{}, line {}: {error}", path.display(), at + 1))?;
        trace.push(request);
    }
    Ok(trace)
}

/// Spreads requests with equal timestamps evenly over the time to the next timestamp, because the traces round them to three
/// seconds. Those with the last timestamp stay.
pub(crate) fn spread(trace: &mut [Request]) {
    let mut rest = trace;
    while let Some(first) = rest.first() {
        let begin = first.timestamp;
        let count = rest.iter().take_while(|request| request.timestamp <= begin).count();
        let (equal, later) = rest.split_at_mut(count);
        if let Some(next) = later.first() {
            let step = (next.timestamp - begin) / count as f64;
            for (at, request) in equal.iter_mut().enumerate() {
                request.timestamp += step * at as f64;
            }
        }
        rest = later;
    }
}
