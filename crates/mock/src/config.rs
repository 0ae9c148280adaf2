//! What the mock worker can be told: flags of `smg mock-worker`, and the [`Config`] that they become.
//!
//! Every time is zero unless a flag says otherwise, so that a benchmark measures the router and a test does not wait.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Flags of `smg mock-worker`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Address to listen on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub host: IpAddr,
    /// Port to listen on; 0 takes any free one, and the address is printed.
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// Workers in this process, each with its own cache and slots: on ports PORT, PORT+1, …, or on any free ones.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub count: u16,
    /// A name for answers (`x-mock-worker`) and metrics [default: mock-PORT].
    #[arg(long)]
    pub name: Option<String>,
    /// Model that is served; repeat it for several. Others get a 404.
    #[arg(long = "model", value_name = "ID", value_delimiter = ',', default_value = "mock-model")]
    pub models: Vec<String>,
    /// Prompt tokens worked off each second, cached ones excepted; 0: at once. A large GPU does some 10,000.
    #[arg(long, value_name = "RATE", default_value_t = Rate::AT_ONCE)]
    pub prefill_tokens_per_second: Rate,
    /// Tokens generated each second, per request; 0: at once. A large GPU does some 50 to 100.
    #[arg(long, value_name = "RATE", default_value_t = Rate::AT_ONCE)]
    pub decode_tokens_per_second: Rate,
    /// Share of each time that chance may add or take, 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = Share::NONE)]
    pub jitter: Share,
    /// Seed of that chance, and of faults that hit a fraction.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Requests that run at once, the others queue in order; 0: all of them.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub slots: u32,
    /// Blocks that the prefix cache holds, least recently used out first; 0: no cache.
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(0..=16_777_216))]
    pub cache_blocks: u32,
    /// Tokens in a block; a token is four bytes.
    #[arg(long, value_name = "N", default_value = "16")]
    pub block_tokens: NonZeroUsize,
    /// Tokens that are generated when the request does not limit them.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub output_tokens: u32,
    /// Key that requests must show, as `authorization: Bearer KEY` or `x-api-key: KEY`; others get a 401.
    #[arg(long, value_name = "KEY", visible_alias = "api-key")]
    pub require_api_key: Option<String>,
    /// PEM file with a certificate chain: serve TLS.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with its private key.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Threads that serve.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: u16,
}

/// Tokens that a model of a mock worker claims to hold: prompt and answer together.
pub(super) const MAX_MODEL_TOKENS: u32 = 131_072;

/// What one mock worker is. The default answers everything at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where to listen; port 0: any free one.
    pub listen: SocketAddr,
    /// Its name in answers and metrics; `None`: `mock-PORT`.
    pub name: Option<String>,
    /// Models that it serves, at least one.
    pub models: Vec<String>,
    /// Prompt tokens worked off each second.
    pub prefill: Rate,
    /// Tokens generated each second, per request.
    pub decode: Rate,
    /// Share of each time that chance may add or take.
    pub jitter: Share,
    /// Seed of all chance.
    pub seed: u64,
    /// Requests that run at once; `None`: all of them.
    pub slots: Option<NonZeroUsize>,
    /// Blocks in the prefix cache; 0: no cache.
    pub cache_blocks: usize,
    /// Tokens in a block.
    pub block_tokens: NonZeroUsize,
    /// Tokens that are generated when the request does not limit them.
    pub output_tokens: u32,
    /// Key that requests must show.
    pub api_key: Option<String>,
    /// Certificate chain and key, as PEM files; `None`: plain.
    pub tls: Option<(PathBuf, PathBuf)>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            name: None,
            models: vec!["mock-model".to_owned()],
            prefill: Rate::AT_ONCE,
            decode: Rate::AT_ONCE,
            jitter: Share::NONE,
            seed: 1,
            slots: None,
            cache_blocks: 65_536,
            block_tokens: NonZeroUsize::new(16).expect("16 is not zero"),
            output_tokens: 16,
            api_key: None,
            tls: None,
        }
    }
}

/// Why the flags make no worker.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ArgsError {
    /// The last of several workers would need a port above 65535.
    #[error("--port {port} with --count {count} needs ports above 65535")]
    NoSuchPorts {
        /// The first port.
        port: u16,
        /// How many were asked for.
        count: u16,
    },
    /// Several workers would answer to one name.
    #[error("--name {name} can't name {count} workers")]
    OneNameForMany {
        /// The name.
        name: String,
        /// How many were asked for.
        count: u16,
    },
    /// A model without a name.
    #[error("--model has an empty name")]
    EmptyModel,
}

impl Args {
    /// One [`Config`] for each worker that the flags ask for.
    ///
    /// # Errors
    /// When the flags contradict each other.
    pub fn configs(&self) -> Result<Vec<Config>, ArgsError> {
        let (port, count) = (self.port, self.count);
        if port != 0 && port.checked_add(count - 1).is_none() {
            return Err(ArgsError::NoSuchPorts { port, count });
        }
        if let (Some(name), 2..) = (&self.name, count) {
            return Err(ArgsError::OneNameForMany { name: name.clone(), count });
        }
        if self.models.iter().any(String::is_empty) {
            return Err(ArgsError::EmptyModel);
        }
        let config = |nth: u16| Config {
            listen: SocketAddr::new(self.host, if port == 0 { 0 } else { port + nth }),
            name: self.name.clone(),
            models: self.models.clone(),
            prefill: self.prefill_tokens_per_second,
            decode: self.decode_tokens_per_second,
            jitter: self.jitter,
            seed: self.seed.wrapping_add(u64::from(nth)),
            slots: NonZeroUsize::new(self.slots as usize),
            cache_blocks: self.cache_blocks as usize,
            block_tokens: self.block_tokens,
            output_tokens: self.output_tokens,
            api_key: self.require_api_key.clone(),
            tls: self.tls_cert.clone().zip(self.tls_key.clone()),
        };
        Ok((0..count).map(config).collect())
    }
}

/// Tokens each second; zero means that they take no time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate(f64);

impl Rate {
    /// Tokens take no time.
    pub const AT_ONCE: Self = Self(0.0);

    /// `tokens_per_second` tokens each second, `None` unless it is finite and at least zero.
    #[must_use]
    pub fn new(tokens_per_second: f64) -> Option<Self> {
        (tokens_per_second.is_finite() && tokens_per_second >= 0.0)
            .then_some(Self(tokens_per_second))
    }

    /// How long `tokens` take.
    #[must_use]
    pub fn time_for(self, tokens: u32) -> Duration {
        if self.0 == 0.0 { Duration::ZERO } else { bounded(f64::from(tokens) / self.0) }
    }
}

/// A share, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share(f64);

impl Share {
    /// Nothing.
    pub const NONE: Self = Self(0.0);

    /// `share` of something, `None` unless it lies in 0..=1.
    #[must_use]
    pub fn new(share: f64) -> Option<Self> {
        (0.0..=1.0).contains(&share).then_some(Self(share))
    }

    /// As a number.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }
}

/// Seconds as a duration of at most a day: no timer is set beyond what it can hold.
pub(super) fn bounded(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, 86_400.0))
}

/// Why text is no [`Rate`] or [`Share`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a number {bounds}")]
pub struct NumberError {
    text: String,
    bounds: &'static str,
}

impl FromStr for Rate {
    type Err = NumberError;

    fn from_str(text: &str) -> Result<Self, NumberError> {
        let number = text.parse().ok().and_then(Self::new);
        number.ok_or_else(|| NumberError { text: text.to_owned(), bounds: "of at least 0" })
    }
}

impl FromStr for Share {
    type Err = NumberError;

    fn from_str(text: &str) -> Result<Self, NumberError> {
        let number = text.parse().ok().and_then(Self::new);
        number.ok_or_else(|| NumberError { text: text.to_owned(), bounds: "between 0 and 1" })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn configs(line: &str) -> Result<Vec<Config>, String> {
        let words = std::iter::once("mock-worker").chain(line.split_whitespace());
        let cli = Cli::try_parse_from(words).map_err(|e| e.to_string())?;
        cli.args.configs().map_err(|e| e.to_string())
    }

    #[test]
    fn no_flags_are_the_default() {
        assert_eq!(configs("").unwrap(), [Config::default()]);
    }

    #[test]
    fn several_workers_take_ports_in_a_row() {
        let ports = configs("--port 9000 --count 3").unwrap();
        assert_eq!(ports.iter().map(|c| c.listen.port()).collect::<Vec<_>>(), [9000, 9001, 9002]);
        assert!(configs("--port 0 --count 2").unwrap().iter().all(|c| c.listen.port() == 0));
    }

    #[test]
    fn mistakes_name_their_value() {
        for (line, named) in [
            ("--prefill-tokens-per-second=-1", "\"-1\" is not a number of at least 0"),
            ("--decode-tokens-per-second=inf", "\"inf\""),
            ("--jitter 1.5", "\"1.5\" is not a number between 0 and 1"),
            ("--port 65535 --count 2", "--port 65535 with --count 2"),
            ("--name a --count 2", "--name a can't name 2 workers"),
            ("--tls-cert c.pem", "--tls-key"),
            ("--model a,,b", "empty name"),
            ("--block-tokens 0", "--block-tokens"),
        ] {
            let error = configs(line).unwrap_err();
            assert!(error.contains(named), "{line}: {error}");
        }
    }

    #[test]
    fn a_rate_is_a_time_per_token() {
        assert_eq!(Rate::AT_ONCE.time_for(1_000_000), Duration::ZERO);
        assert_eq!(Rate::new(100.0).unwrap().time_for(25), Duration::from_millis(250));
        assert_eq!(Rate::new(1e-300).unwrap().time_for(1), Duration::from_secs(86_400));
    }
}
