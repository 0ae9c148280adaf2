//! Waiting for a worker: in the queue while workers have no room, and otherwise as long as the configuration says.

use std::time::Duration;

use rand::Rng as _;
use smg_routing::limit::{Place, Priority};
use smg_types::now::Now;

use super::choice::{self, Chosen, NoChoice};
use super::dispatcher::{Dispatcher, Progress, Shared};
use super::rediscovery::Rediscovery;
use super::request::{DispatchError, Request};

/// How often a request that waits for a worker tries to choose one.
const CHOOSE_EVERY: Duration = Duration::from_millis(20);

impl Dispatcher {
    /// Chooses a worker. Waits in the queue until one has room; where the configuration says so, waits until there is one to choose.
    pub(super) async fn choose_or_wait(
        &self,
        request: &Request<'_>,
        progress: &mut Progress,
    ) -> Result<Chosen, DispatchError> {
        let Shared { fleet, config, admission, .. } = &*self.shared;
        let deadline = self.clock.mono() + config.no_worker_wait;
        let queue_deadline = progress.started + config.queue_timeout;
        let model = request.criteria.model;
        let mut rediscovery = None;
        let mut place = None;
        if admission.waiting_for_worker() > 0 && progress.tried.is_empty() {
            let line = choice::line(fleet, model);
            // Requests of the same line that came before go first.
            if admission.has_line(line) {
                place = Some(self.join_line(line, request.priority)?);
            }
        }
        loop {
            let now = self.clock.now();
            let is_turn = place.as_ref().is_none_or(Place::is_first);
            let chosen =
                if is_turn { self.choose(request, progress, now) } else { Err(NoChoice::NoRoom) };
            let error = match chosen {
                Ok(chosen) => return Ok(Chosen { place, ..chosen }),
                Err(NoChoice::NoRoom) if now.mono >= queue_deadline => {
                    place.into_iter().for_each(Place::time_out);
                    return Err(DispatchError::QueueTimeout(config.queue_timeout));
                }
                Err(NoChoice::NoRoom) => {
                    match &mut place {
                        Some(place) => wait_for_call(place, queue_deadline - now.mono).await,
                        None => {
                            // A retry can't use every worker of its model, so that it waits in a line of its own.
                            let line = match progress.tried.is_empty() {
                                true => choice::line(fleet, model),
                                false => self.rng.lock().next_u64(),
                            };
                            place = Some(self.join_line(line, request.priority)?);
                        }
                    }
                    continue;
                }
                Err(NoChoice::Error(error)) => error,
            };
            let may_wait = match &error {
                DispatchError::NoneAvailable => now.mono < deadline,
                DispatchError::NoSuchModel | DispatchError::ModelDeparted => {
                    let reading =
                        rediscovery.get_or_insert_with(|| Rediscovery::request(fleet, now));
                    let departed = matches!(error, DispatchError::ModelDeparted);
                    !reading.is_over(fleet, now) || (departed && now.mono < deadline)
                }
                DispatchError::Rejected(_)
                | DispatchError::QueueTimeout(_)
                | DispatchError::Failed { .. } => false,
            };
            if !may_wait {
                place.into_iter().for_each(Place::leave);
                return Err(error);
            }
            tokio::time::sleep(CHOOSE_EVERY).await;
        }
    }

    /// Chooses a worker now.
    fn choose(
        &self,
        request: &Request<'_>,
        progress: &mut Progress,
        now: Now,
    ) -> Result<Chosen, NoChoice> {
        let Shared { fleet, policies, config, .. } = &*self.shared;
        let (tried, blocks) = (&progress.tried, &mut progress.blocks);
        let rng = &mut *self.rng.lock();
        let among = (&**fleet, &**policies, config.max_expected_wait);
        choice::choose(among, &request.criteria, tried, blocks, now, rng)
    }

    fn join_line(&self, line: u64, priority: Priority) -> Result<Place, DispatchError> {
        self.shared.admission.join_line(line, priority).map_err(DispatchError::Rejected)
    }
}

/// Waits until a request in a line should try to find a worker, for `most` at the longest.
async fn wait_for_call(place: &mut Place, most: Duration) {
    // The first one of a line also tries without a call: a worker may get room without the end of a request of this router.
    let most = if place.is_first() { most.min(CHOOSE_EVERY) } else { most };
    let called = std::future::poll_fn(|context| place.poll_called(context));
    let _timed_out = tokio::time::timeout(most, called).await.is_err();
}
