//! Parsers of single values: one per kind, each with its bounds in its error.
//!
//! Each of these functions returns a plain function from text to value. An error states which values are valid. It
//! leaves out the value itself, because only the caller knows whether that may be shown. Both the flags and the
//! workers' tables in the file use these parsers.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use http::StatusCode;
use smg_mesh::{JoinAddress, ParseJoinAddressError};
use smg_routing::prefix::Ignored;
use smg_types::bounds;
use smg_types::ids::{ModelId, NodeName};
use smg_types::spec::{Secret, WorkerUrl};

/// A tenant's key, as `id:key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantKey {
    /// The tenant's name: 1 to 64 letters, digits, `-`, `_` or `.`.
    pub id: String,
    /// The tenant's key.
    pub key: Secret,
}

/// A whole number from `low` to `high`, both included.
pub(crate) fn whole<T: TryFrom<u64>>(
    low: u64,
    high: u64,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let digits_only = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = digits_only.then(|| text.parse::<u64>().ok()).flatten();
        number
            .filter(|n| (low..=high).contains(n))
            .and_then(|n| T::try_from(n).ok())
            .ok_or_else(|| format!("is not a whole number from {low} to {high}"))
    }
}

/// A whole number from `low` to `high`, or 0 for a value that depends on the machine.
pub(crate) fn whole_or_zero<T: TryFrom<u64>>(
    low: u64,
    high: u64,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    let (zero, parse) = (whole::<T>(0, 0), whole::<T>(low, high));
    move |text| zero(text).or_else(|_| parse(text).map_err(|error| format!("{error}, nor 0")))
}

/// A whole number from 1 to `high`, both included.
pub(crate) fn positive(
    high: u32,
) -> impl Fn(&str) -> Result<NonZeroU32, String> + Clone + Send + Sync + 'static {
    let parse = whole::<u32>(1, u64::from(high));
    move |text| parse(text).map(|n| NonZeroU32::new(n).expect("the bounds begin at 1"))
}

/// A limit: a whole number from 1 to `high`, or 0 or -1 for no limit.
pub(crate) fn limit(
    high: u32,
) -> impl Fn(&str) -> Result<Limit, String> + Clone + Send + Sync + 'static {
    let parse = whole::<u32>(0, u64::from(high));
    move |text| match text {
        "-1" => Ok(Limit(None)),
        text => parse(text).map(|n| Limit(NonZeroU32::new(n))),
    }
}

/// A limit that may be absent. It needs a type of its own, because clap reads `Option` as "may be left out".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub Option<NonZeroU32>);

/// A number from `low` to `high`, fractions allowed.
pub(crate) fn between(
    low: f32,
    high: f32,
) -> impl Fn(&str) -> Result<f32, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = is_decimal(text).then(|| text.parse::<f32>().ok()).flatten();
        number
            .filter(|n| (low..=high).contains(n))
            .ok_or_else(|| format!("is not a number from {low} to {high}"))
    }
}

/// A time in seconds from `low` to `high`, with up to three decimals; more are an error.
pub(crate) fn seconds(
    low: f64,
    high: f64,
) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    move |text| {
        let fraction = text.split_once('.').map_or("", |(_, fraction)| fraction);
        let number = is_decimal(text).then(|| text.parse::<f64>().ok()).flatten();
        number
            .filter(|n| (low..=high).contains(n) && fraction.len() <= 3)
            .map(|n| Duration::from_millis((n * 1000.0).round() as u64))
            .ok_or_else(|| format!("is not a number of seconds from {low} to {high}"))
    }
}

/// A time in whole milliseconds from `low` to `high`.
pub(crate) fn millis(
    low: u64,
    high: u64,
) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    let parse = whole::<u64>(low, high);
    move |text| {
        parse(text)
            .map(Duration::from_millis)
            .map_err(|_| format!("is not a whole number of milliseconds from {low} to {high}"))
    }
}

/// A time with its unit (`800ms`, `1s`, `5m`, `24h`, `1h 30m`), from `low` to `high` milliseconds.
pub(crate) fn span(
    low: u64,
    high: u64,
) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    let bounds = Duration::from_millis(low)..=Duration::from_millis(high);
    move |text| {
        humantime::parse_duration(text).ok().filter(|time| bounds.contains(time)).ok_or_else(|| {
            let [low, high] =
                [bounds.start(), bounds.end()].map(|b| humantime::format_duration(*b));
            format!("is not a time with a unit (ms, s, m, h, d) from {low} to {high}")
        })
    }
}

/// `documented`, or a prefix of paths, without a slash at its end.
pub(crate) fn passed_path(text: &str) -> Result<String, String> {
    let is_prefix = text.starts_with('/')
        && !text.contains("//")
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#%\\".contains(&byte))
        && text.split('/').all(|segment| !matches!(segment, "." | ".."));
    if text == DOCUMENTED || is_prefix {
        return Ok(text.trim_end_matches('/').to_owned());
    }
    Err(format!("is neither {DOCUMENTED} nor a path that begins with a slash"))
}

/// A regular expression for text of prompts that is ignored.
pub(crate) fn prefix_pattern(text: &str) -> Result<String, String> {
    Ignored::new([text]).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// The paths that engines document, as a value of `--pass-through`.
pub(crate) const DOCUMENTED: &str = "documented";

/// A network as `address/length`; an address alone is the network of that address.
pub(crate) fn network(text: &str) -> Result<ipnet::IpNet, String> {
    let address = || text.parse::<IpAddr>().map(ipnet::IpNet::from);
    let net = text.parse::<ipnet::IpNet>().or_else(|_| address());
    net.map_err(|_| "is not a network such as 169.254.7.0/24".to_owned())
}

/// The name of a router or of a cluster.
pub(crate) fn node_name(text: &str) -> Result<NodeName, String> {
    text.parse().map_err(|_| {
        format!("is not a name of 1 to {} visible ASCII characters", NodeName::MAX_BYTES)
    })
}

/// The name of a region or a zone.
pub(crate) fn place(text: &str) -> Result<String, String> {
    bounds::place(text).map(|()| text.to_owned())
}

/// The address of another router to join.
pub(crate) fn peer_url(text: &str) -> Result<JoinAddress, String> {
    text.parse().map_err(|error: ParseJoinAddressError| error.to_string())
}

/// Whether a text is digits with at most one decimal point, such as `1` and `0.5`, and unlike `inf` and `1e9`.
fn is_decimal(text: &str) -> bool {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    [whole, fraction]
        .iter()
        .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

/// A yes or no, in one of the usual spellings.
pub(crate) fn yes_or_no(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("is none of true, false, yes, no, on, off, 1, 0".to_owned()),
    }
}

/// An address to listen on: IPv4, IPv6 with or without brackets, or `localhost`.
pub(crate) fn address(text: &str) -> Result<IpAddr, String> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    match bare {
        "localhost" => Ok(IpAddr::from([127, 0, 0, 1])),
        bare => bare.parse().map_err(|_| {
            "is not an IP address (0.0.0.0 or :: listens on all, 127.0.0.1 on loopback only)"
                .to_owned()
        }),
    }
}

/// A secret that can be sent in a header: 1 to 4096 visible ASCII characters. The mask that `check-config` prints is
/// refused, so that a printed file can't silently become a configuration with a known key.
pub(crate) fn secret(text: &str) -> Result<Secret, String> {
    if text == MASK {
        Err(format!("is {MASK:?}, which check-config prints in place of a secret"))
    } else if text.is_empty() || text.len() > 4096 {
        Err("is empty or longer than 4096 characters".to_owned())
    } else if !text.bytes().all(|b| b.is_ascii_graphic()) {
        Err("has a character that is not visible ASCII".to_owned())
    } else {
        Ok(Secret::new(text))
    }
}

/// The text that is shown in place of a secret.
pub const MASK: &str = "***";

/// A tenant's id and key, as `id:key`.
pub(crate) fn tenant_key(text: &str) -> Result<TenantKey, String> {
    if text == MASK {
        return Err(format!("is {MASK:?}, which check-config prints in place of a secret"));
    }
    let (id, key) = text.split_once(':').ok_or_else(|| "is not of the form id:key".to_owned())?;
    let is_name = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    if id.is_empty() || id.len() > 64 || !id.bytes().all(is_name) {
        return Err(
            "has a tenant id that is not 1 to 64 letters, digits, dashes, underscores or dots"
                .to_owned(),
        );
    }
    let key = secret(key).map_err(|why| format!("has a key that {why}"))?;
    Ok(TenantKey { id: id.to_owned(), key })
}

/// An alias of a model, as `alias=model`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelAlias {
    /// The name that clients may use.
    pub alias: ModelId,
    /// The name under which workers serve the model.
    pub model: ModelId,
}

/// An alias of a model, as `alias=model`.
pub(crate) fn model_alias(text: &str) -> Result<ModelAlias, String> {
    let (alias, model) =
        text.split_once('=').ok_or_else(|| "is not of the form alias=model".to_owned())?;
    if alias == model {
        return Err("names a model as its own alias".to_owned());
    }
    Ok(ModelAlias { alias: model_name(alias)?, model: model_name(model)? })
}

/// A model's name.
pub(crate) fn model_name(text: &str) -> Result<ModelId, String> {
    bounds::model_name(text).map(|()| ModelId::from(text))
}

/// A worker's URL, without the `/v1` that ends a client's base URL.
pub(crate) fn worker_url(text: &str) -> Result<WorkerUrl, String> {
    let url: WorkerUrl = text.parse().map_err(|error| format!("{error}"))?;
    url.check_path().map_err(|error| format!("{error}"))?;
    Ok(url)
}

/// An administrator's key, as `key` or `id:name:role:key`.
#[derive(Debug, Clone, PartialEq)]
pub struct AdminKey {
    /// The id of the administrator, `admin` for a plain key.
    pub id: String,
    /// Whether the key allows writes.
    pub writes: bool,
    /// The administrator's key.
    pub key: Secret,
}

/// An administrator's key. A text with a role in its third part is read as `id:name:role:key`, any other as a key.
pub(crate) fn admin_key(text: &str) -> Result<AdminKey, String> {
    let parts: Vec<&str> = text.splitn(4, ':').collect();
    if let [id, _name, role, key] = parts[..] {
        let writes = match role {
            "admin" => Some(true),
            "user" => Some(false),
            _ => None,
        };
        if let Some(writes) = writes {
            let key = secret(key).map_err(|why| format!("has a key that {why}"))?;
            if id.is_empty() {
                return Err("has an empty id".to_owned());
            }
            return Ok(AdminKey { id: id.to_owned(), writes, key });
        }
    }
    Ok(AdminKey { id: "admin".to_owned(), writes: true, key: secret(text)? })
}

/// A path on a worker: it begins with a slash and has at most 1024 visible ASCII characters.
pub(crate) fn path(text: &str) -> Result<String, String> {
    let is_path = text.starts_with('/')
        && bounds::PROBE_PATH_BYTES.contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_graphic());
    if is_path { Ok(text.to_owned()) } else { Err("is not a path that begins with /".to_owned()) }
}

/// An origin in the form that browsers send, or `*`.
pub(crate) fn origin(text: &str) -> Result<String, String> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let is_origin = host.is_some_and(|host| {
        !host.is_empty()
            && host.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b'?' | b'#' | b'@'))
    });
    if is_origin && text.len() <= 256 {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("is neither * nor scheme://host[:port] without a path".to_owned())
    }
}

/// A status code, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorStatus(pub Option<StatusCode>);

/// A status from 400 to 599, or `none`.
pub(crate) fn error_status(text: &str) -> Result<ErrorStatus, String> {
    if text == "none" {
        return Ok(ErrorStatus(None));
    }
    whole::<u16>(400, 599)(text)
        .ok()
        .and_then(|status| StatusCode::from_u16(status).ok())
        .map(|status| ErrorStatus(Some(status)))
        .ok_or_else(|| "is neither a status from 400 to 599 nor none".to_owned())
}

/// A request header's name.
pub(crate) fn header_name(text: &str) -> Result<http::HeaderName, String> {
    text.parse().map_err(|_| "is not the name of a header".to_owned())
}

/// A file's path: not empty.
pub(crate) fn file(text: &str) -> Result<std::path::PathBuf, String> {
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_of_errors() {
        let status = |code| Ok(ErrorStatus(StatusCode::from_u16(code).ok()));
        assert_eq!(error_status("400"), status(400));
        assert_eq!(error_status("599"), status(599));
        assert_eq!(error_status("none"), Ok(ErrorStatus(None)));
        for wrong in ["399", "600", "", "5xx", "-1", "None"] {
            assert!(error_status(wrong).unwrap_err().contains("400 to 599"), "{wrong:?}");
        }
    }

    #[test]
    fn numbers_stay_inside_their_bounds() {
        let parse = whole::<u16>(1, 100);
        assert_eq!(parse("100"), Ok(100));
        for wrong in ["0", "101", "-1", "+1", "", " 1", "1.0", "0x1", "99999999999999999999999"] {
            assert_eq!(
                parse(wrong),
                Err("is not a whole number from 1 to 100".to_owned()),
                "{wrong:?}"
            );
        }
        let parse = between(0.0, 1.0);
        assert_eq!(parse("0.25"), Ok(0.25));
        for wrong in ["1.01", "-0.1", "nan", "inf", "1e-3", ".", "1.", ".5", ""] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!((limit(9)("-1"), limit(9)("0")), (Ok(Limit(None)), Ok(Limit(None))));
        assert_eq!(limit(9)("9"), Ok(Limit(NonZeroU32::new(9))));
        assert!(limit(9)("10").is_err());
    }

    #[test]
    fn seconds_may_have_thousandths() {
        let parse = seconds(0.001, 10.0);
        assert_eq!(parse("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("10"), Ok(Duration::from_secs(10)));
        for wrong in ["0", "0.0001", "1.0001", "10.001", "1s", "-1", "inf"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_span_has_a_unit() {
        let parse = span(100, 60_000);
        assert_eq!(parse("800ms"), Ok(Duration::from_millis(800)));
        assert_eq!(parse("1m"), Ok(Duration::from_secs(60)));
        for wrong in ["1", "99ms", "61s", "-1s", "", "1 fortnight"] {
            let error = parse(wrong).unwrap_err();
            assert!(error.ends_with("from 100ms to 1m"), "{wrong:?}: {error}");
        }
    }

    #[test]
    fn an_error_about_a_secret_does_not_show_it() {
        for wrong in ["hunter two", "hunter\u{e9}", ""] {
            assert!(!secret(wrong).unwrap_err().contains("hunter"));
        }
        for wrong in ["hunter2", ":hunter2", "a b:hunter2", "id:", "id:hunter two"] {
            assert!(!tenant_key(wrong).unwrap_err().contains("hunter"), "{wrong:?}");
        }
        assert!(secret(MASK).is_err() && tenant_key(MASK).is_err() && tenant_key("a:***").is_err());
        let tenant = tenant_key("team-a:k:with:colons").unwrap();
        assert_eq!((tenant.id.as_str(), tenant.key.expose()), ("team-a", "k:with:colons"));
    }

    #[test]
    fn addresses_have_the_usual_spellings() {
        assert_eq!(address("[::1]"), address("::1"));
        assert_eq!(address("localhost").unwrap().to_string(), "127.0.0.1");
        for wrong in ["example.org", "0.0.0.0:80", "", "[::1"] {
            assert!(address(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_origin_has_no_path() {
        assert_eq!(origin("https://A.example:8443"), Ok("https://a.example:8443".to_owned()));
        for wrong in ["a.example", "https://", "https://a/", "ftp://a", "https://u@a"] {
            assert!(origin(wrong).is_err(), "{wrong:?}");
        }
    }
}
