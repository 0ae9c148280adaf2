//! What a probe that got no answer says of the worker: the verdict, the cause that is shown, and the error in full.

use std::io;

use smg_routing::fleet::{Cause, ProbeResult};

use crate::upstream::SendError;

/// The verdict of a failed probe; `None`: the probe does not judge the worker.
pub(super) fn judge(error: &SendError) -> Option<ProbeResult> {
    if !error.is_about_the_worker() {
        None
    } else if error.is_gone() {
        Some(ProbeResult::Gone)
    } else if error.is_unreachable() {
        Some(ProbeResult::Unreachable)
    } else {
        Some(ProbeResult::Bad)
    }
}

/// The cause that is shown for an error; `None`: the error does not judge the worker.
pub(super) fn cause_of(error: &SendError) -> Option<Cause> {
    Some(match error {
        SendError::NoSuchName(_) => Cause::Resolve,
        SendError::Connect(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Cause::Refused
        }
        SendError::Connect(_) => Cause::Unreachable,
        SendError::ConnectTimeout(_) => Cause::ConnectTimeout,
        SendError::Tls(_) => Cause::Tls,
        SendError::Lost { .. } => Cause::Closed,
        SendError::HeadTimeout(_) => Cause::Timeout,
        SendError::Protocol(_) => Cause::NotHttp,
        SendError::Shortage { .. } | SendError::Removed => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use smg_runtime::shortage::{Kind, Shortage};

    use super::*;
    use crate::upstream::Delivery;

    #[test]
    fn what_the_router_lacks_itself_is_no_verdict() {
        for kind in Kind::ALL {
            for delivery in [Delivery::Nothing, Delivery::Part, Delivery::PerhapsAll] {
                let shortage = Shortage { kind, source: io::ErrorKind::Other.into() };
                let error = SendError::Shortage { shortage, delivery };
                assert_eq!(judge(&error), None, "{kind:?}");
            }
        }
        let refused = SendError::Connect(io::ErrorKind::ConnectionRefused.into());
        assert_eq!(judge(&refused), Some(ProbeResult::Gone));
        let silent = SendError::ConnectTimeout(Duration::from_secs(1));
        assert_eq!(judge(&silent), Some(ProbeResult::Unreachable));
        let handshake = |kind: io::ErrorKind| judge(&SendError::Tls(kind.into()));
        assert_eq!(handshake(io::ErrorKind::TimedOut), Some(ProbeResult::Unreachable));
        assert_eq!(handshake(io::ErrorKind::InvalidData), Some(ProbeResult::Bad));
        assert_eq!(judge(&SendError::HeadTimeout(Duration::from_secs(1))), Some(ProbeResult::Bad));
    }
}
