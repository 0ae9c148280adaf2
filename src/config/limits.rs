//! The limits: `[[rate_limits]]` tables, and the flags for the most common ones.

use smg_limits::engine;
use smg_limits::explain::{Promise, explain};
use smg_limits::rule::{MatchDocument, Rule, RuleDocument};
use smg_limits::standing::Mode;
use toml::Value;

use crate::config::layers::Settings;
use crate::config::mistakes::{Mistake, key_in};

/// The limits of a router.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    /// How the routers divide the limits.
    pub engine: engine::Config,
    /// The rules, each id once.
    pub rules: Vec<Rule>,
}

/// The limits of the settings.
pub(super) fn limits_config(settings: &Settings, mistakes: &mut Vec<Mistake>) -> Config {
    let mut rules: Vec<Rule> = Vec::new();
    let args = &settings.args.admission;
    let short = [
        ("requests_per_minute", args.rate_limit_requests_per_minute, None),
        ("tokens_per_minute", None, args.rate_limit_tokens_per_minute),
    ];
    let short = short.into_iter().filter(|(_, requests, tokens)| requests.or(*tokens).is_some());
    rules.extend(
        short.filter_map(|(id, requests, tokens)| Rule::new(per_minute(id, requests, tokens)).ok()),
    );
    for (index, table) in settings.rate_limits.iter().enumerate() {
        let place = |field: &str| key_in(&settings.file, &format!("rate_limits[{index}]{field}"));
        let document = match Value::Table(table.clone()).try_into::<RuleDocument>() {
            Ok(document) => document,
            Err(error) => {
                mistakes.push(Mistake::new(format!("{}: {}", place(""), error.message().trim())));
                continue;
            }
        };
        match Rule::new(document) {
            Ok(rule) if rules.iter().any(|known| known.id == rule.id) => {
                let text = format!("{}: there is another rule {:?} already", place(".id"), rule.id);
                mistakes.push(Mistake::new(text));
            }
            Ok(rule) => rules.push(rule),
            Err(error) => {
                let field = format!(".{}", error.field);
                mistakes.push(Mistake::new(format!("{}: {}", place(&field), error.reason)));
            }
        }
    }
    let expected = settings.args.mesh.mesh_expected_replicas;
    Config { engine: engine::Config { expected, ..engine::Config::default() }, rules }
}

/// A rule for all requests together.
fn per_minute(id: &str, requests: Option<u64>, tokens: Option<u64>) -> RuleDocument {
    RuleDocument {
        id: id.to_owned(),
        matches: MatchDocument::default(),
        requests,
        tokens,
        cost: None,
        window: Some("1m".to_owned()),
        rate: None,
        burst: None,
        mode: Mode::Bounded,
        shadow: false,
    }
}

/// What a rule in JSON promises among `replicas` routers, as text.
pub(super) fn explanation(rule: &str, replicas: u32) -> Result<String, Mistake> {
    let mut document: RuleDocument = serde_json::from_str(rule)
        .map_err(|error| Mistake::new(format!("the rule is not valid JSON of a rule: {error}")))?;
    if document.id.is_empty() {
        document.id = "rule".to_owned();
    }
    let rule = Rule::new(document).map_err(|error| Mistake::new(format!("the rule's {error}")))?;
    let mut text = String::new();
    for promise in explain(&rule, replicas) {
        let Promise { kind, limit, window_ms, bound, shares: (least, most), explanation } = promise;
        let bound =
            bound.map_or_else(|| "depends on the demand".to_owned(), |bound| bound.to_string());
        let seconds = f64::from(window_ms) / 1_000.0;
        let head = format!("{limit} {} in {seconds} s among {replicas} routers", kind.as_str());
        text.push_str(&format!(
            "{head}\n  bound: {bound}\n  share of a router: {least} to {most}\n"
        ));
        for line in explanation {
            text.push_str(&format!("  - {line}\n"));
        }
    }
    Ok(text)
}
