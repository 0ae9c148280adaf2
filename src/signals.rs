//! The signals of the router: which ones shut it down, which one makes it read its files again, and which ones it
//! ignores.
//!
//! `docs/signals.md` has the table for users. The handlers are installed before anything else is set up, so that a
//! signal that arrives during the start is handled after it.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::info;

use crate::reload::{Cause, Reload};

/// The installed handlers of all signals.
#[derive(Debug)]
pub struct Signals {
    ending: Vec<Signal>,
    hangup: Signal,
    ignored: Vec<(&'static str, Signal)>,
}

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// If the system refuses a handler.
    pub fn listen() -> io::Result<Self> {
        let ending = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()];
        let ignored =
            [("SIGUSR1", SignalKind::user_defined1()), ("SIGUSR2", SignalKind::user_defined2())];
        Ok(Self {
            ending: ending.into_iter().map(signal).collect::<Result<_, _>>()?,
            hangup: signal(SignalKind::hangup())?,
            ignored: ignored
                .into_iter()
                .map(|(name, kind)| Ok((name, signal(kind)?)))
                .collect::<io::Result<_>>()?,
        })
    }

    /// Handles signals until the process exits: returns the number of requests to shut down, and reloads on each
    /// SIGHUP and each `POST /ha/reload`.
    #[expect(clippy::disallowed_methods, reason = "these tasks run as long as the process")]
    pub fn handle(self, mut reload: Reload) -> watch::Receiver<u32> {
        let (count, counted) = watch::channel(0);
        for mut signal in self.ending {
            let count = count.clone();
            tokio::spawn(async move {
                while signal.recv().await.is_some() {
                    count.send_modify(|count| *count += 1);
                }
            });
        }
        let mut hangup = self.hangup;
        let mut requests = reload.requests();
        tokio::spawn(async move {
            loop {
                let request = async {
                    match &mut requests {
                        Some(requests) => requests.recv().await,
                        None => None,
                    }
                };
                tokio::select! {
                    received = hangup.recv() => match received {
                        // The log has the result.
                        Some(()) => drop(reload.run(Cause::Signal).await),
                        None => return,
                    },
                    Some(answer) = request => {
                        let reloaded = reload.run(Cause::Request).await;
                        // The client may have left.
                        let _unread = answer.send(reloaded).is_err();
                    }
                }
            }
        });
        for (name, mut signal) in self.ignored {
            tokio::spawn(async move {
                while signal.recv().await.is_some() {
                    info!(
                        signal = name,
                        "the signal is ignored: SIGHUP reads the files again; SIGTERM, SIGINT and SIGQUIT shut down"
                    );
                }
            });
        }
        counted
    }
}
