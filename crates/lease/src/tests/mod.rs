//! Each rule of `docs/lease.md` in the history that goes wrong without it. Safety is in `safety`, progress in `progress`.

#![allow(clippy::unwrap_used, reason = "a test")]

mod progress;
mod safety;

use std::collections::BTreeMap;
use std::time::Duration;

use smg_types::ids::{Generation, NodeId};

use crate::{
    Content, EventKind, LeaseName, Leases, Member, Message, NotStored, Outgoing, Quorum,
    Remembered, StoredVote, Term, Times, Voters, Votes,
};

/// A memory of votes that a test decides.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Memory {
    loaded: Option<Remembered>,
    fails: bool,
}

impl Memory {
    const EMPTY: Self =
        Self { loaded: Some(Remembered { votes: BTreeMap::new(), ended: None }), fails: false };
    const LOST: Self = Self { loaded: None, fails: false };
}

impl Votes for Memory {
    fn load(&mut self) -> Option<Remembered> {
        self.loaded.clone()
    }

    fn store(&mut self, lease: &LeaseName, vote: &StoredVote) -> Result<(), NotStored> {
        // As on a real disk, what has failed may be there all the same.
        self.loaded.get_or_insert_default().votes.insert(lease.clone(), vote.clone());
        if self.fails { Err(NotStored("the disk is full".to_owned())) } else { Ok(()) }
    }
}

const fn ms(time: u64) -> Duration {
    Duration::from_millis(time)
}

fn lease() -> LeaseName {
    "leader".parse().unwrap()
}

fn node(router: usize, generation: u64) -> NodeId {
    NodeId { name: format!("r{router}").parse().unwrap(), generation: Generation(generation) }
}

fn voters(size: u32, routers: std::ops::Range<usize>) -> Voters {
    Voters { size, names: routers.map(|router| node(router, 1).name).collect() }
}

/// Routers whose messages arrive when the test says so. Nothing is due unless the test runs it.
struct Cluster {
    at: Duration,
    ids: Vec<NodeId>,
    routers: Vec<Leases<Memory>>,
}

impl Cluster {
    fn new(routers: usize) -> Self {
        let ids: Vec<NodeId> = (0..routers).map(|router| node(router, 1)).collect();
        let routers = ids.iter().map(|me| Self::start(ms(0), me, Term(0), Memory::EMPTY)).collect();
        let mut cluster = Self { at: ms(0), ids, routers };
        cluster.introduce();
        cluster
    }

    fn start(at: Duration, me: &NodeId, floor: Term, memory: Memory) -> Leases<Memory> {
        Leases::new(at, me.clone(), [lease()], Times::DEFAULT, floor, memory)
    }

    /// Lets all routers know of each other and of the voters.
    fn introduce(&mut self) {
        let size = u32::try_from(self.ids.len()).unwrap();
        let quorum = Quorum(vec![voters(size, 0..self.ids.len())]);
        let present =
            |node: &NodeId| Member { node: node.clone(), is_present: true, is_leaving: false };
        let members: Vec<Member> = self.ids.iter().map(present).collect();
        for router in &mut self.routers {
            router.set_quorum(self.at, quorum.clone());
            router.set_members(self.at, members.clone());
        }
    }

    /// Restarts a router with this memory.
    fn restart(&mut self, router: usize, floor: u64, memory: Memory) {
        self.ids[router].generation.0 += 1;
        self.routers[router] = Self::start(self.at, &self.ids[router], Term(floor), memory);
        self.introduce();
    }

    /// What a router sends now.
    fn take(&mut self, router: usize) -> Vec<Outgoing> {
        std::iter::from_fn(|| self.routers[router].poll_transmit()).collect()
    }

    /// Lets one message arrive; returns what is sent because of it.
    fn arrive(&mut self, from: usize, out: &Outgoing) -> Vec<Outgoing> {
        let to = self.ids.iter().position(|id| *id == out.to).unwrap();
        let from = self.ids[from].clone();
        self.routers[to].handle_message(self.at, &from, out.message.clone());
        self.take(to)
    }

    /// Lets all messages arrive until there are none.
    fn settle(&mut self) {
        loop {
            let mut is_quiet = true;
            for router in 0..self.routers.len() {
                for out in self.take(router) {
                    is_quiet = false;
                    let Some(to) = self.ids.iter().position(|id| *id == out.to) else { continue };
                    let from = self.ids[router].clone();
                    self.routers[to].handle_message(self.at, &from, out.message);
                }
            }
            if is_quiet {
                return;
            }
        }
    }

    /// Runs one router until `at`, as if no message arrived but those of `settle` after each step.
    fn run(&mut self, router: usize, at: u64) {
        while let Some(due) = self.routers[router].next_deadline(self.at).filter(|d| *d <= ms(at)) {
            self.at = self.at.max(due);
            self.routers[router].handle_timeout(self.at);
            self.settle();
        }
        self.at = ms(at);
    }

    /// Runs all routers until `at`.
    fn run_all(&mut self, at: u64) {
        loop {
            let due = |router: &Leases<Memory>| router.next_deadline(self.at);
            let next = self.routers.iter().filter_map(due).min().filter(|due| *due <= ms(at));
            let Some(next) = next else { break };
            self.at = self.at.max(next);
            for router in &mut self.routers {
                router.handle_timeout(self.at);
            }
            self.settle();
        }
        self.at = ms(at);
    }

    fn held(&self, router: usize) -> Option<Term> {
        self.routers[router].still_held(self.at, &lease()).map(|(term, _)| term)
    }

    fn holders(&self) -> Vec<usize> {
        (0..self.routers.len()).filter(|router| self.held(*router).is_some()).collect()
    }

    fn events(&mut self, router: usize) -> Vec<EventKind> {
        let events = std::iter::from_fn(|| self.routers[router].poll_event());
        events.map(|event| event.kind).collect()
    }

    /// Sends a message in a router's name to another one; returns the answer.
    fn ask(&mut self, from: &NodeId, to: usize, term: u64, content: Content) -> Option<Content> {
        let message = Message { lease: lease(), term: Term(term), content };
        self.routers[to].handle_message(self.at, from, message);
        let answers = self.take(to).into_iter().filter(|out| out.to == *from);
        answers.map(|out| out.message.content).next()
    }
}

const PREPARE: Content = Content::Prepare { released: None };

fn propose(request: u64) -> Content {
    Content::Propose { request, is_held: false }
}

/// Whether an answer is a promise or vote.
#[expect(clippy::needless_pass_by_value, reason = "so that a call fits a line")]
fn is_granted(answer: Option<Content>) -> bool {
    matches!(answer, Some(Content::Promised | Content::Voted { .. }))
}
