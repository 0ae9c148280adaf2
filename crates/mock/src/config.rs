//! The flags of `smg mock-worker`, and the [`Config`] that they become.
//!
//! Every time is zero by default, so that a benchmark measures the router and a test does not wait.

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
    /// Port to listen on; 0: a free port. The address is printed.
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// Workers in this process, each with its own cache and slots: on ports PORT, PORT+1, …, or on free ones if PORT is
    /// 0.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub count: u16,
    /// Name of the worker in answers (`x-mock-worker`) and metrics [default: mock-PORT].
    #[arg(long)]
    pub name: Option<String>,
    /// Model that is served; repeat the flag for several. Requests for others are answered 404.
    #[arg(long = "model", value_name = "ID", value_delimiter = ',', default_value = "mock-model")]
    pub models: Vec<String>,
    /// Prompt tokens that are prefilled per second, without cached ones; 0: at once. A large GPU prefills about 10,000.
    #[arg(long, value_name = "RATE", default_value_t = Rate::AT_ONCE)]
    pub prefill_tokens_per_second: Rate,
    /// Prompts that are prefilled at the same time, while others wait in order, as in an engine without chunked prefill; 0: no
    /// limit.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub prefill_slots: u32,
    /// Tokens that are generated per second and request; 0: at once. A large GPU generates about 50 to 100.
    #[arg(long, value_name = "RATE", default_value_t = Rate::AT_ONCE)]
    pub decode_tokens_per_second: Rate,
    /// Share of each time by which it varies at random, 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = Share::NONE)]
    pub jitter: Share,
    /// Seed of that variation, and of faults that hit a fraction of the requests.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Requests that run at the same time, while others queue in order; 0: no limit.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub slots: u32,
    /// The most blocks in the prefix cache; the least recently used ones are evicted. 0: no cache.
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(0..=16_777_216))]
    pub cache_blocks: u32,
    /// Tokens per block; a token is four bytes.
    #[arg(long, value_name = "N", default_value = "16")]
    pub block_tokens: NonZeroUsize,
    /// Tokens that are generated if the request does not limit them.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub output_tokens: u32,
    /// Key that requests must send, as `authorization: Bearer KEY` or `x-api-key: KEY`; others are answered 401.
    #[arg(long, value_name = "KEY", visible_alias = "api-key")]
    pub require_api_key: Option<String>,
    /// PEM file with a certificate chain, which turns TLS on.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the private key of --tls-cert.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Threads that serve requests.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: u16,
}

/// The context length in tokens, prompt and answer together, that a mock worker reports for its models.
pub(super) const MAX_MODEL_TOKENS: u32 = 131_072;

/// The configuration of one mock worker. By default it answers at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The address to listen on; port 0 means a free port.
    pub listen: SocketAddr,
    /// The name in answers and metrics; `None` means `mock-PORT`.
    pub name: Option<String>,
    /// The models that the worker serves, at least one.
    pub models: Vec<String>,
    /// The prompt tokens that are prefilled per second.
    pub prefill: Rate,
    /// The number of prompts that are prefilled at the same time; `None` means no limit.
    pub prefill_slots: Option<NonZeroUsize>,
    /// The tokens that are generated per second and request.
    pub decode: Rate,
    /// The share of each time by which it varies at random.
    pub jitter: Share,
    /// The seed of everything random.
    pub seed: u64,
    /// The number of requests that run at the same time; `None` means no limit.
    pub slots: Option<NonZeroUsize>,
    /// The most blocks in the prefix cache; 0 means no cache.
    pub cache_blocks: usize,
    /// The number of tokens per block.
    pub block_tokens: NonZeroUsize,
    /// The number of tokens that are generated if the request does not limit them.
    pub output_tokens: u32,
    /// The key that requests must send.
    pub api_key: Option<String>,
    /// The PEM files of certificate chain and key; `None` means no TLS.
    pub tls: Option<(PathBuf, PathBuf)>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            name: None,
            models: vec!["mock-model".to_owned()],
            prefill: Rate::AT_ONCE,
            prefill_slots: None,
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

/// Why the flags are not valid.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ArgsError {
    /// The last of several workers would need a port above 65535.
    #[error("--port {port} with --count {count} needs ports above 65535")]
    NoSuchPorts {
        /// The first port.
        port: u16,
        /// The number of workers.
        count: u16,
    },
    /// Several workers would have the same name.
    #[error("--name {name} can't name {count} workers")]
    OneNameForMany {
        /// The name that was given for all workers.
        name: String,
        /// The number of workers.
        count: u16,
    },
    /// A model without a name.
    #[error("--model has an empty name")]
    EmptyModel,
}

impl Args {
    /// Returns one [`Config`] for each worker.
    ///
    /// # Errors
    /// If the flags contradict each other.
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
            prefill_slots: NonZeroUsize::new(self.prefill_slots as usize),
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

/// Tokens per second; zero means that tokens take no time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate(f64);

impl Rate {
    /// The rate at which tokens take no time.
    pub const AT_ONCE: Self = Self(0.0);

    /// A rate of `tokens_per_second`; `None` unless that is finite and at least zero.
    #[must_use]
    pub fn new(tokens_per_second: f64) -> Option<Self> {
        (tokens_per_second.is_finite() && tokens_per_second >= 0.0)
            .then_some(Self(tokens_per_second))
    }

    /// The time that `tokens` take.
    #[must_use]
    pub fn time_for(self, tokens: u32) -> Duration {
        if self.0 == 0.0 { Duration::ZERO } else { bounded(f64::from(tokens) / self.0) }
    }
}

/// A share, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share(f64);

impl Share {
    /// A share of zero.
    pub const NONE: Self = Self(0.0);

    /// A share; `None` unless it is from 0 to 1.
    #[must_use]
    pub fn new(share: f64) -> Option<Self> {
        (0.0..=1.0).contains(&share).then_some(Self(share))
    }

    /// The share as a number from 0 to 1.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }
}

/// Seconds as a duration of at most a day, because a timer can't hold arbitrarily large values.
pub(super) fn bounded(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, 86_400.0))
}

/// The text is not a valid [`Rate`] or [`Share`].
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
    fn without_flags_the_default_results() {
        assert_eq!(configs("").unwrap(), [Config::default()]);
    }

    #[test]
    fn several_workers_get_consecutive_ports() {
        let ports = configs("--port 9000 --count 3").unwrap();
        assert_eq!(ports.iter().map(|c| c.listen.port()).collect::<Vec<_>>(), [9000, 9001, 9002]);
        assert!(configs("--port 0 --count 2").unwrap().iter().all(|c| c.listen.port() == 0));
    }

    #[test]
    fn errors_contain_the_value() {
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
