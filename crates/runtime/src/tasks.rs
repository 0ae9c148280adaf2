//! Spawns tasks with a name and a stated meaning of their end.
//!
//! All tasks beside requests are spawned here. The caller states what the end of a task means: [`OnEnd::Stop`] for a
//! task that the process needs (the process shuts down when it ends, for whatever reason), [`OnEnd::Log`] for a task
//! that the process can do without. The shutdown awaits all of them.

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
    /// The process cannot run without the task: it shuts down, with exit status 1.
    Stop,
    /// The end is only logged.
    Log,
}

/// Spawns, names and awaits tasks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tasks {
    running: Arc<Mutex<Vec<Running>>>,
    failed: mpsc::Sender<&'static str>,
    stopping: watch::Receiver<bool>,
}

/// A task that was spawned and has not been awaited.
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
    /// An owner of no tasks yet.
    #[must_use]
    pub fn new() -> Self {
        let (failed_tx, failed) = mpsc::channel(16);
        let (stop, stopping) = watch::channel(false);
        Self { tasks: Tasks { running: Arc::default(), failed: failed_tx, stopping }, failed, stop }
    }

    /// The handle with which other modules spawn tasks.
    #[must_use]
    pub fn handle(&self) -> Tasks {
        self.tasks.clone()
    }

    /// Resolves with the name of a task whose end stops the process.
    pub async fn failed(&mut self) -> &'static str {
        // `self.tasks` holds a sender, so the channel is never closed.
        self.failed.recv().await.unwrap_or("tasks")
    }

    /// Asks all tasks to end and awaits each, or aborts the remaining ones at `deadline`.
    pub async fn stop(self, deadline: tokio::time::Instant) {
        self.stop.send_replace(true);
        loop {
            let next = self.tasks.running.lock().pop();
            let Some(Running { name, mut task }) = next else { break };
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                debug!(task = name, "the task did not end in time and is aborted");
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
        // At a level that no filter turns off, so that events inside need not repeat the name.
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

    /// Changes to `true` once, when the process shuts down.
    #[must_use]
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.clone()
    }

    /// Resolves when the process shuts down.
    pub async fn stopped(&self) {
        turned_on(&mut self.stopping.clone()).await;
    }
}

/// Resolves when `flag` is true or its sender is dropped: both mean the shutdown.
pub async fn turned_on(flag: &mut watch::Receiver<bool>) {
    let _owner_gone = flag.wait_for(|on| *on).await.is_err();
}

/// Reports the end of a needed task to the owner, also after a panic.
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
            error!(
                needed = self.name,
                "a task that the router needs has ended: the router shuts down"
            );
            // The channel is full, so a shutdown has been requested already.
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
    async fn stop_asks_the_tasks_to_end_and_awaits_them() {
        let owner = TasksOwner::new();
        let tasks = owner.handle();
        let (done, mut ended) = mpsc::channel(1);
        let inner = tasks.clone();
        tasks.spawn("waits", OnEnd::Stop, async move {
            inner.stopped().await;
            done.send(()).await?;
            Ok(())
        });
        owner.stop(tokio::time::Instant::now() + Duration::from_secs(5)).await;
        assert_eq!(ended.try_recv(), Ok(()));
    }
}
