//! Variables that begin with `SMG_` and are no settings.
//!
//! Kubernetes sets variables in every container that describe the Services of its namespace. One for a Service named
//! `smg` (or `smg-mesh`, …) begins with `SMG_` and may even have the name of a setting: `SMG_PORT=tcp://10.0.0.7:80`.
//! This module recognises them by their form and ignores them.

use crate::cli;
use crate::config::mistakes::did_you_mean;
use crate::config::peers::{self, VARIABLES};
use crate::config::process::Process;

/// Variables of this project that are not settings of the router.
const OTHERS: &[&str] = &["SMG_REVISION", "SMG_UPDATE_GOLDEN"];

/// Whether Kubernetes set this variable for a Service whose name begins with `smg`.
pub(super) fn is_from_kubernetes(name: &str, value: &str) -> bool {
    let Some(rest) = name.strip_prefix("SMG_") else { return false };
    // The rest of the Service's name, if it has one, precedes these words.
    let after = |word: &str| {
        rest.strip_prefix(word).or_else(|| {
            let at = rest.find(&format!("_{word}"))?;
            Some(&rest[at + 1 + word.len()..])
        })
    };
    let is_url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let is_whole_port = rest == "PORT" || rest.ends_with("_PORT");
    let is_numbered_port = after("PORT_").is_some_and(|port| {
        let mut parts = port.split('_');
        parts.next().is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
            && matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"))
            && matches!(parts.next(), None | Some("PROTO" | "PORT" | "ADDR"))
            && parts.next().is_none()
    });
    let is_service = after("SERVICE_HOST").is_some_and(str::is_empty)
        || after("SERVICE_PORT").is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
    (is_whole_port && is_url) || is_numbered_port || is_service
}

/// Warnings about variables that begin with `SMG_` and have no effect.
pub(super) fn warnings(process: &Process<'_>) -> Vec<String> {
    let known: Vec<String> =
        cli::settings_command().get_arguments().filter_map(cli::variable_of).collect();
    let mut from_kubernetes = Vec::new();
    let mut empty = Vec::new();
    let mut warnings = Vec::new();
    for (name, value) in process.variables.iter().filter(|(name, _)| name.starts_with("SMG_")) {
        if is_from_kubernetes(name, &value.to_string_lossy()) {
            from_kubernetes.push(name.as_str());
        } else if known.contains(name) {
            if process.is_empty(name) {
                empty.push(name.as_str());
            }
        } else if OTHERS.contains(&name.as_str())
            || VARIABLES.iter().any(|variable| variable.name == name)
        {
            // No setting of the router, or reported with the variables of other routers.
        } else if let Some(warning) = peers::unread_variable(name) {
            warnings.push(warning);
        } else {
            let hint = did_you_mean(name, known.iter().map(String::as_str));
            let hint = hint.map_or_else(String::new, |hint| format!("; {hint}"));
            warnings.push(format!("variable {name} is unknown and ignored{hint}"));
        }
    }
    if !empty.is_empty() {
        warnings.push(format!("empty variables count as not set: {}", empty.join(", ")));
    }
    if !from_kubernetes.is_empty() {
        warnings.push(format!(
            "variables that Kubernetes set for a Service whose name begins with smg are ignored: {}; \
             enableServiceLinks: false in the pod's spec keeps them away",
            from_kubernetes.join(", ")
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_kubernetes_are_recognised() {
        for (name, value) in [
            ("SMG_PORT", "tcp://10.0.0.7:80"),
            ("SMG_PORT_8000_TCP", "tcp://10.0.0.7:8000"),
            ("SMG_PORT_8000_TCP_PROTO", "tcp"),
            ("SMG_PORT_8000_TCP_PORT", "8000"),
            ("SMG_PORT_8000_UDP_ADDR", "10.0.0.7"),
            ("SMG_SERVICE_HOST", "10.0.0.7"),
            ("SMG_SERVICE_PORT", "80"),
            ("SMG_SERVICE_PORT_HTTP", "80"),
            ("SMG_MESH_SERVICE_HOST", "10.0.0.7"),
            ("SMG_MESH_PORT", "tcp://10.0.0.7:9000"),
            ("SMG_MESH_PORT_9000_TCP_ADDR", "10.0.0.7"),
            ("SMG_PROMETHEUS_PORT", "udp://10.0.0.7:80"),
        ] {
            assert!(is_from_kubernetes(name, value), "{name}={value}");
        }
    }

    #[test]
    fn other_variables_are_not_taken_for_those_of_kubernetes() {
        for (name, value) in [
            ("SMG_PORT", "8000"),
            ("SMG_PORT", "tpc://10.0.0.7"),
            ("SMG_PROMETHEUS_PORT", "0"),
            ("SMG_PORTS_8000_TCP", "x"),
            ("SMG_PORT_HTTP_TCP", "x"),
            ("SMG_PORT_8000_TCP_X", "x"),
            ("SMG_WORKER_URLS", "tcp://10.0.0.7:80"),
            ("SMG_SERVICES_HOST", "x"),
            ("OTHER_SERVICE_HOST", "x"),
        ] {
            assert!(!is_from_kubernetes(name, value), "{name}={value}");
        }
    }
}
