//! Ending a group from another thread.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a transport does when its group is aborted. Neither method may wait.
pub trait AbortTarget: Send + Sync {
    /// The rank is inside a call: wake its wait. It sees the abort by itself and tells its peers.
    fn interrupt(&self);

    /// The rank is outside any call, and none can begin meanwhile: tell the peers, so that they do not wait for it.
    /// `reason` names the rank.
    fn announce(&self, reason: &str);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Outside,
    InCall,
}

struct State {
    phase: Phase,
    reason: Option<String>,
}

struct Shared {
    /// True once `State::reason` is set: what waits look at.
    requested: AtomicBool,
    state: Mutex<State>,
    target: Arc<dyn AbortTarget>,
}

/// Ends the group's call in progress and all later ones, at once and from any thread.
#[derive(Clone)]
pub struct AbortHandle {
    shared: Arc<Shared>,
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortHandle").field("reason", &self.reason()).finish()
    }
}

impl AbortHandle {
    /// A handle that acts on `target`.
    pub fn new(target: Arc<dyn AbortTarget>) -> AbortHandle {
        let state = Mutex::new(State { phase: Phase::Outside, reason: None });
        AbortHandle { shared: Arc::new(Shared { requested: AtomicBool::new(false), state, target }) }
    }

    /// Aborts for `reason`, which this rank's error and its peers' errors carry. The first reason stays.
    pub fn abort(&self, reason: impl Into<String>) {
        let mut state = self.state();
        if state.reason.is_some() {
            return;
        }
        let reason = reason.into();
        state.reason = Some(reason.clone());
        self.shared.requested.store(true, Ordering::Release);
        match state.phase {
            Phase::InCall => self.shared.target.interrupt(),
            Phase::Outside => self.shared.target.announce(&reason),
        }
    }

    /// The reason, once aborted.
    pub fn reason(&self) -> Option<String> {
        self.state().reason.clone()
    }

    /// Whether the group has been aborted; cheap enough to ask in a loop.
    pub fn is_aborted(&self) -> bool {
        self.shared.requested.load(Ordering::Acquire)
    }

    /// The rank enters a call; the error is the reason of an abort that came first.
    pub(crate) fn enter(&self) -> Result<(), String> {
        let mut state = self.state();
        match &state.reason {
            Some(reason) => Err(reason.clone()),
            None => {
                state.phase = Phase::InCall;
                Ok(())
            }
        }
    }

    /// The rank has left its call. An abort that came too late to end it is told to the peers now.
    pub(crate) fn leave(&self) {
        let mut state = self.state();
        state.phase = Phase::Outside;
        if let Some(reason) = &state.reason {
            self.shared.target.announce(reason);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
