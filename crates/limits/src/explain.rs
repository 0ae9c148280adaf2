//! What a rule promises in a cluster, in sentences.

use serde::Serialize;

use crate::rule::{Kind, Meter, Rule};
use crate::share::share;
use crate::standing::Mode;
use crate::votes::kept;

/// What one limit of a rule promises.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Promise {
    /// What is limited.
    pub kind: Kind,
    /// Most units that one subject uses in a window, in the whole cluster.
    pub limit: u64,
    /// The length of the window, in milliseconds.
    pub window_ms: u32,
    /// Most units that the cluster ever admits for one subject in a window. Absent for mode soft, whose bound depends on the
    /// demand.
    pub bound: Option<u64>,
    /// The smallest and the largest share of a router.
    pub shares: (u64, u64),
    /// What this means, in sentences.
    pub explanation: Vec<String>,
}

/// What a rule promises among `size` routers.
#[must_use]
pub fn explain(rule: &Rule, size: u32) -> Vec<Promise> {
    rule.meters.iter().map(|meter| promise(meter, size.max(1))).collect()
}

fn promise(meter: &Meter, size: u32) -> Promise {
    let shares = (0..size).map(|place| share(meter.limit, 0, place, size));
    let shares = (shares.clone().min().unwrap_or(0), shares.max().unwrap_or(0));
    let explanation = sentences(meter, size, shares);
    let bound = (meter.mode != Mode::Soft).then_some(meter.limit);
    let Meter { kind, limit, window_ms, .. } = *meter;
    Promise { kind, limit, window_ms, bound, shares, explanation }
}

fn sentences(meter: &Meter, size: u32, (least, most): (u64, u64)) -> Vec<String> {
    let (limit, unit) = (meter.limit, meter.kind.as_str());
    let seconds = f64::from(meter.window_ms) / 1_000.0;
    let mut lines = Vec::new();
    match meter.mode {
        Mode::Strict | Mode::Bounded => lines.push(format!(
            "All routers together admit at most {limit} {unit} per window of {seconds} s and subject, whatever routers crash, \
             restart or lose contact, as long as a majority of them remembers the window."
        )),
        Mode::Soft => lines.push(format!(
            "Each router counts for itself and adds what the others have reported, about a tenth of a second ago. All \
             {size} routers together admit at most {limit} {unit} and what arrives in that time; routers that have lost \
             contact admit up to {limit} in each part of the cluster."
        )),
    }
    if meter.kind == Kind::Tokens {
        lines.push(
            "A request reserves its prompt and the most that it may answer, and returns what it did not use. It exceeds \
             its reservation only if the estimate of its prompt was too low."
                .to_owned(),
        );
    }
    if size == 1 || meter.mode == Mode::Soft {
        return lines;
    }
    let shares = if least == most { least.to_string() } else { format!("{least} or {most}") };
    lines.push(format!(
        "Each of the {size} routers has a share of {shares}, and lends what it does not need to those that need more."
    ));
    if limit < u64::from(size) {
        lines.push(format!(
            "The limit is smaller than the number of routers. So {limit} of them hold it, different ones for each subject; the \
             others ask for each request. A subject whose holder has crashed is refused until it is back."
        ));
    }
    match meter.mode {
        Mode::Bounded if size > 2 => lines.push(format!(
            "A router that a majority does not hear keeps {} of its share; after about 16 s the majority lets another one use \
             the rest, in windows that start later.",
            kept(most)
        )),
        Mode::Bounded => lines.push(
            "With fewer than three routers there is no majority to take over the share of one that has crashed: it is \
             unused until the router is back."
                .to_owned(),
        ),
        Mode::Strict => lines.push(
            "The share of a router that has crashed is unused until it is back.".to_owned(),
        ),
        Mode::Soft => {}
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::RuleDocument;

    fn rule(json: &str) -> Rule {
        Rule::new(serde_json::from_str::<RuleDocument>(json).unwrap()).unwrap()
    }

    #[test]
    fn a_limit_below_the_number_of_routers_is_explained() {
        let rule = rule(r#"{"id":"a","requests":1,"window":"1m","mode":"strict"}"#);
        let promise = &explain(&rule, 5)[0];
        assert_eq!((promise.bound, promise.shares), (Some(1), (0, 1)));
        assert!(promise.explanation.iter().any(|line| line.contains("smaller than the number")));
    }

    #[test]
    fn a_soft_limit_promises_no_bound() {
        let rule = rule(r#"{"id":"a","tokens":1000,"window":"1m","mode":"soft"}"#);
        assert_eq!(explain(&rule, 3)[0].bound, None);
    }
}
