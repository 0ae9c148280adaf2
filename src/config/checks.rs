//! Contradictions within one group of settings, and lists that are too long.

use std::collections::BTreeMap;

use smg_routing::prefix;

use crate::cli::Args;
use crate::cli::values::ModelAlias;
use crate::config::mistakes::{Mistake, flag};

/// The most headers that may carry a session's key, or a request's id. Every request is searched for each of them.
const MOST_HEADERS: usize = 16;

/// The contradictions within groups of settings.
pub(super) fn contradictions(args: &Args) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    check_retries(args, &mut mistakes);
    check_headers(args, &mut mistakes);
    check_aliases(args, &mut mistakes);
    check_push_back(args, &mut mistakes);
    check_ignored(args, &mut mistakes);
    mistakes
}

fn check_retries(args: &Args, mistakes: &mut Vec<Mistake>) {
    let retry = &args.retry;
    if retry.retry_max_backoff_ms < retry.retry_initial_backoff_ms {
        let text = format!(
            "--retry-max-backoff-ms is {}, less than --retry-initial-backoff-ms, which is {}",
            retry.retry_max_backoff_ms.as_millis(),
            retry.retry_initial_backoff_ms.as_millis()
        );
        mistakes.push(Mistake::of_settings(
            &["retry_max_backoff_ms", "retry_initial_backoff_ms"],
            text,
        ));
    }
}

fn check_headers(args: &Args, mistakes: &mut Vec<Mistake>) {
    for (id, names) in [
        ("session_header", args.routing.session_header.len()),
        ("request_id_headers", args.listen.request_id_headers.len()),
    ] {
        if names > MOST_HEADERS {
            let text = format!("{} has {names} names, more than {MOST_HEADERS}", flag(id));
            mistakes.push(Mistake::of_settings(&[id], text));
        }
    }
}

fn check_aliases(args: &Args, mistakes: &mut Vec<Mistake>) {
    let mut models = BTreeMap::new();
    for ModelAlias { alias, model } in &args.workers.model_alias {
        if let Some(other) = models.insert(alias, model).filter(|other| *other != model) {
            let text = format!("--model-alias {alias} is both {other} and {model}");
            mistakes.push(Mistake::of_settings(&["model_alias"], text));
        }
    }
    for (alias, model) in models.iter().filter(|(_, model)| models.contains_key(*model)) {
        let text = format!("--model-alias {alias}={model}: {model} is an alias itself");
        mistakes.push(Mistake::of_settings(&["model_alias"], text));
    }
}

fn check_ignored(args: &Args, mistakes: &mut Vec<Mistake>) {
    let patterns = args.routing.prefix_ignore.len();
    if patterns > prefix::MOST_PATTERNS {
        let text = format!(
            "--prefix-ignore is given {patterns} times, more than {}: join patterns with |",
            prefix::MOST_PATTERNS
        );
        mistakes.push(Mistake::of_settings(&["prefix_ignore"], text));
    }
}

fn check_push_back(args: &Args, mistakes: &mut Vec<Mistake>) {
    let statuses = &args.breaker.push_back_statuses;
    if statuses.len() > 1 && statuses.iter().any(|status| status.0.is_none()) {
        let text = "--push-back-statuses has none beside other values".to_owned();
        mistakes.push(Mistake::of_settings(&["push_back_statuses"], text));
    }
}
