//! How the router checks the certificate of a worker behind `https://`.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Most pins of one worker: the present certificate, its successor, and some to spare.
const MAX_PINS: usize = 8;

/// How the router checks the certificate of a worker behind `https://`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum WorkerTls {
    /// The certificate is for the host in the URL, has not expired, and comes from an authority of `--worker-tls-ca` (or, if
    /// that is not set, of the system).
    #[default]
    Authorities,
    /// The certificate matches one of these pins. Its authority, names and dates are not checked.
    Pins(Vec<Pin>),
    /// Nothing is checked: whoever can intercept connections can read and change what they carry.
    Unchecked,
}

impl WorkerTls {
    /// The settings from their two fields. `pins`: one or more pins, separated by semicolons.
    ///
    /// # Errors
    /// If a pin can't be read, there are too many, or both fields are set.
    pub fn of(pins: Option<&str>, skip_verify: bool) -> Result<Self, String> {
        match (pins, skip_verify) {
            (None, false) => Ok(Self::Authorities),
            (None, true) => Ok(Self::Unchecked),
            (Some(_), true) => {
                Err("pin_sha256 and insecure_skip_verify exclude each other".to_owned())
            }
            (Some(text), false) => {
                let pins: Vec<Pin> = text.split(';').map(str::parse).collect::<Result<_, _>>()?;
                match pins.len() {
                    0..=MAX_PINS => Ok(Self::Pins(pins)),
                    many => Err(format!("pin_sha256 has {many} pins, the limit is {MAX_PINS}")),
                }
            }
        }
    }

    /// The field `pin_sha256`.
    #[must_use]
    pub fn pins(&self) -> Option<String> {
        let Self::Pins(pins) = self else { return None };
        Some(pins.iter().map(ToString::to_string).collect::<Vec<_>>().join(";"))
    }

    /// The field `insecure_skip_verify`.
    #[must_use]
    pub fn is_unchecked(&self) -> bool {
        *self == Self::Unchecked
    }
}

/// The SHA-256 of a certificate or of its public key (SPKI, as in RFC 7469).
///
/// It is written as curl's `--pinnedpubkey` has it (`sha256//` and base64). Base64 alone, and hexadecimal digits with or
/// without colons, as `openssl x509 -fingerprint` prints them, are read too.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin(pub [u8; 32]);

impl FromStr for Pin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits: String = text.chars().filter(|c| *c != ':').collect();
        let hex = || {
            let is_hex = digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit());
            let byte = |at: usize| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).ok();
            is_hex.then(|| (0..32).filter_map(byte).collect::<Vec<u8>>())
        };
        let bytes =
            hex().or_else(|| STANDARD.decode(text.strip_prefix("sha256//").unwrap_or(text)).ok());
        let pin = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        pin.map(Self).ok_or_else(|| {
            let shown: String = text.chars().take(80).collect();
            format!("pin_sha256 {shown:?} is not a SHA-256 in base64 or hexadecimal digits")
        })
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256//{}", STANDARD.encode(self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_read_as_other_tools_print_them() {
        let base64 = STANDARD.encode([0xab; 32]);
        let hex = ["AB"; 32];
        for text in [
            format!("sha256//{base64}"),
            base64.clone(),
            hex.concat(),
            hex.join(":"),
            hex.concat().to_lowercase(),
            format!(" sha256//{base64} "),
        ] {
            assert_eq!(text.parse(), Ok(Pin([0xab; 32])), "{text}");
        }
        for wrong in ["", "sha256//", "sha256//AAAA", "AB:AB", "sha1//x"] {
            assert!(wrong.parse::<Pin>().unwrap_err().contains(&format!("{wrong:?}")));
        }
    }

    #[test]
    fn pins_and_no_check_exclude_each_other() {
        let text = format!("{};{}", Pin([1; 32]), Pin([2; 32]));
        let both = WorkerTls::of(Some(&text), false).unwrap();
        assert_eq!(both, WorkerTls::Pins(vec![Pin([1; 32]), Pin([2; 32])]));
        assert_eq!(both.pins(), Some(text.clone()));
        assert!(WorkerTls::of(Some(&text), true).is_err());
        assert!(WorkerTls::of(Some(&[text.as_str(); 5].join(";")), false).is_err());
        assert_eq!(WorkerTls::of(None, true), Ok(WorkerTls::Unchecked));
    }
}
