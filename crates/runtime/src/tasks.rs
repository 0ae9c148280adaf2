//! Tasks with names and stated ends.
//!
//! Everything that runs beside a request is spawned here. The caller says what the end of a task means: [`OnEnd::Stop`]
//! for a task that the process needs (its end, for whatever reason, begins the shutdown), [`OnEnd::Log`] for one that the
//! process can do without. All of them are awaited at the end.

#![expect(clippy::disallowed_methods, reason = "this is where tasks are spawned")]

use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{Instrument, debug, error};

/// What the end of a task means to the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnEnd {
    /// The process can't go on without it: shut down, exit status 1.
    Stop,
    /// Worth a line in the log.
    Log,
}

/// Spawns, names and awaits tasks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tasks {
    running: Arc<Mutex<Vec<Running>>>,
    failed: mpsc::Sender<&'static str>,
    stopping: watch::Receiver<bool>,
}

/// A task that was spawned and not yet awaited.
#[derive(Debug)]
struct Running {
    name: &'static str,
    task: JoinHandle<()>,
}

/// The owner's end of [`Tasks`], held by `app`.
#[derive(Debug)]
pub struct TasksOwner {
    tasks: Tasks,
    failed: mpsc::Receiver<&'static str>,
    stop: watch::Sender<bool>,
}

impl TasksOwner {
    /// No tasks yet.
    #[must_use]
    pub fn new() -> Self {
        let (failed_tx, failed) = mpsc::channel(16);
        let (stop, stopping) = watch::channel(false);
        Self { tasks: Tasks { running: Arc::default(), failed: failed_tx, stopping }, failed, stop }
    }

    /// The handle that others spawn with.
    #[must_use]
    pub fn handle(&self) -> Tasks {
        self.tasks.clone()
    }

    /// Resolves with the name of a task whose end stops the process.
    pub async fn failed(&mut self) -> &'static str {
        // A sender lives in `self.tasks`, so the channel is never closed.
        self.failed.recv().await.unwrap_or("tasks")
    }

    /// Asks all tasks to end and waits for each, or aborts what is left at `deadline`.
    pub async fn stop(self, deadline: tokio::time::Instant) {
        self.stop.send_replace(true);
        loop {
            let next = self.tasks.running.lock().pop();
            let Some(Running { name, mut task }) = next else { break };
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                debug!(task = name, "did not end in time, aborted");
                task.abort();
            }
        }
    }
}

impl Default for TasksOwner {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    /// Runs `future` until it ends. [`Tasks::stopping`] asks it to end.
    pub fn spawn<F>(&self, name: &'static str, on_end: OnEnd, future: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let failed = self.failed.clone();
        let stopping = self.stopping.clone();
        // At the level that no filter turns off: events inside need not repeat the name.
        let span = tracing::error_span!("task", task = name);
        let guard = EndGuard { name, on_end, failed, stopping };
        let body = async move {
            let mut guard = guard;
            match future.await {
                Ok(()) => guard.disarm_if_stopping(),
                Err(e) => error!(error = format!("{e:#}"), "task failed"),
            }
        };
        let task = tokio::spawn(body.instrument(span));
        let mut running = self.running.lock();
        running.retain(|running| !running.task.is_finished());
        running.push(Running { name, task });
    }

    /// Changes to `true` once, when the process ends.
    #[must_use]
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.clone()
    }

    /// Resolves when the process ends.
    pub async fn stopped(&self) {
        turned_on(&mut self.stopping.clone()).await;
    }
}

/// Resolves when `flag` is true, or when its sender is gone: both mean the end.
pub async fn turned_on(flag: &mut watch::Receiver<bool>) {
    let _owner_gone = flag.wait_for(|on| *on).await.is_err();
}

/// Tells the owner when a task that must not end has ended, also by a panic.
struct EndGuard {
    name: &'static str,
    on_end: OnEnd,
    failed: mpsc::Sender<&'static str>,
    stopping: watch::Receiver<bool>,
}

impl EndGuard {
    fn disarm_if_stopping(&mut self) {
        if *self.stopping.borrow() {
            self.on_end = OnEnd::Log;
        }
    }
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        if self.on_end == OnEnd::Stop && !*self.stopping.borrow() {
            error!(needed = self.name, "a task that the router can't do without has ended");
            // Full: a stop is on its way already.
            let _already_stopping = self.failed.try_send(self.name).is_err();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_panicking_task_stops_the_process() {
        let mut owner = TasksOwner::new();
        owner.handle().spawn("breaks", OnEnd::Stop, async { panic!("on purpose") });
        assert_eq!(owner.failed().await, "breaks");
    }

    #[tokio::test]
    async fn tasks_are_told_and_awaited() {
        let owner = TasksOwner::new();
        let tasks = owner.handle();
        let (done, mut seen) = mpsc::channel(1);
        let inner = tasks.clone();
        tasks.spawn("waits", OnEnd::Stop, async move {
            inner.stopped().await;
            done.send(()).await?;
            Ok(())
        });
        owner.stop(tokio::time::Instant::now() + Duration::from_secs(5)).await;
        assert_eq!(seen.try_recv(), Ok(()));
    }
}
