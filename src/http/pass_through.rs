//! Which paths clients may send to workers (`--pass-through`): the engines' documented ones, and prefixes that an operator
//! adds. No prefix opens a path that changes an engine, or one of the router's own.

use http::Method;

use super::routes::{self, Access, Found, ROUTES};

/// Paths that change an engine or bind a caller to one engine process. They are in no table, for no request to them is
/// passed or sent to all workers.
const NEVER: &[&str] = &[
    "/collective_rpc",
    "/scale_elastic_ep",
    "/is_scaling_elastic_ep",
    "/open_session",
    "/close_session",
    "/init_weights_update_group",
    "/init_weights_send_group_for_remote_instance",
    "/send_weights_to_remote_instance",
    "/destroy_weights_update_group",
    "/update_weights_from_tensor",
    "/update_weights_from_distributed",
    "/update_weights_from_ipc",
    "/update_weights",
    "/init_weight_transfer_engine",
    "/get_weights_by_name",
    "/get_internal_state",
    "/set_internal_state",
    "/set_trace_level",
    "/start_expert_distribution_record",
    "/stop_expert_distribution_record",
    "/dump_expert_distribution_record",
    "/hicache",
    "/server_env",
    "/ha",
];

/// The paths that pass to a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassThrough {
    /// Those that engines document.
    pub documented: bool,
    /// Those that begin with one of these, which end without a slash.
    pub prefixes: Vec<String>,
}

impl PassThrough {
    /// Whether clients may send a path of the table of routes to a worker.
    pub(super) fn admits_documented(&self, path: &str) -> bool {
        self.documented || self.has(path)
    }

    /// Whether clients may send a path that is not in the table of routes to a worker.
    pub(super) fn admits_other(&self, path: &str) -> bool {
        !self.prefixes.is_empty() && self.has(path) && !is_reserved(path)
    }

    fn has(&self, path: &str) -> bool {
        self.prefixes.iter().any(|prefix| begins_with(path, prefix))
    }
}

/// Looks up a request as [`routes::find`] does, and applies `pass`, which closes documented paths and opens others.
pub(super) fn find_open(method: &Method, path: &str, pass: &PassThrough) -> Found {
    match routes::find(method, path) {
        Found::At(at)
            if ROUTES[at].access == Access::Client
                && ROUTES[at].serves.is_worker()
                && !pass.admits_documented(path) =>
        {
            Found::Nothing
        }
        Found::OtherMethod | Found::Nothing if pass.admits_other(path) => Found::Passed,
        found => found,
    }
}

/// Whether `path` is `prefix` or lies below it.
fn begins_with(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether a path is the router's own, or one that is not open to clients, however it is spelled: engines decode paths, and
/// a server in front of one may resolve dots and doubled slashes.
fn is_reserved(path: &str) -> bool {
    let Some(plain) = plain(path) else { return true };
    let closed =
        ROUTES.iter().filter(|route| route.access != Access::Client || !route.serves.is_worker());
    closed.map(|route| route.path).chain(NEVER.iter().copied()).any(|closed| {
        // What stands before a part in braces: everything below it is closed.
        let closed = closed.split("/{").next().unwrap_or(closed);
        begins_with(without_version(&plain), without_version(closed))
    })
}

fn without_version(path: &str) -> &str {
    path.strip_prefix("/v1").filter(|rest| rest.starts_with('/')).unwrap_or(path)
}

/// A path as an engine may read it: decoded, in lower case, without empty segments. `None`: it has dots for segments, or
/// bytes that no path has.
fn plain(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    let text = String::from_utf8(bytes).ok()?.to_ascii_lowercase().replace('\\', "/");
    if text.contains('%') || text.chars().any(char::is_control) {
        return None;
    }
    let segments: Vec<&str> = text
        .split('/')
        .map(|segment| segment.split(';').next().unwrap_or(segment))
        .filter(|segment| !segment.is_empty())
        .collect();
    if segments.iter().any(|segment| matches!(*segment, "." | "..")) {
        return None;
    }
    Some(segments.iter().fold(String::new(), |path, segment| path + "/" + segment))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(prefixes: &[&str], path: &str) -> bool {
        let prefixes = prefixes.iter().map(|prefix| (*prefix).to_owned()).collect();
        PassThrough { documented: true, prefixes }.admits_other(path)
    }

    #[test]
    fn a_prefix_opens_what_lies_below_it() {
        for (prefix, path, open) in [
            ("/custom", "/custom", true),
            ("/custom", "/custom/a/b", true),
            ("/custom", "/customers", false),
            ("/v1", "/v1/realtime/sessions", true),
            ("", "/anything", true),
        ] {
            assert_eq!(passes(&[prefix], path), open, "{prefix} {path}");
        }
        assert!(!passes(&[], "/custom"));
    }

    #[test]
    fn no_prefix_opens_what_is_closed_however_it_is_spelled() {
        for path in [
            "/v1/load_lora_adapter",
            "/v1/load_lora_adapter/",
            "/V1//Load_Lora_Adapter",
            "/v1/%6Coad_lora_adapter",
            "/v1/load_lora_adapter;a=b",
            "/v1/%2525sleep",
            "/sleep",
            "/v1/sleep",
            "/x/../sleep",
            "/x/%2e%2e/sleep",
            "/slots/0",
            "/collective_rpc",
            "/update_weights_from_tensor",
            "/workers",
            "/workers/w-1",
            "/ha/keys",
            "/ha/unknown",
            "/metrics",
            "/%00",
        ] {
            assert!(!passes(&["", "/v1"], path), "{path}");
        }
    }
}
