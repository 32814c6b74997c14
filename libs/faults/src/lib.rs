//! Faults on order, for tests: a process of a run dies or freezes at a named point of its life.
//!
//! Fault injection is off unless a program was started with `--fault-injection`: then `POLYGRAM_FAULT` orders faults,
//! separated by semicolons. Without the flag the variable is ignored, with one warning.
//! * `worker.before_push 3 kill FOLDER`: the process that passes this crash point for the third time is killed (or
//!   `freeze`d, until somebody lets it go on). In front of the number may stand the slot, `1:3`: only worker 1 counts.
//!   `terminate` sends SIGTERM to whoever started the process, the launcher, and the process goes on. `panic` panics on
//!   the thread that passes.
//! * `1 25 exchanging freeze`: worker 1 freezes in this phase of step 25, after it has stayed there for a moment.
//! * `sample 400 1e6`: whoever computes sample 400 multiplies the loss and the row gradients of its cell, so that the run
//!   has a spike there, in any topology and again after every restart; `nan` is a factor too.
//!
//! The folder, which either form may have, makes a fault strike once whatever starts again: who strikes leaves a file
//! there first. Where no faults are ordered, passing a point costs the look at one pointer.

mod order;
mod point;

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Once, OnceLock};
use std::time::Duration;

pub use order::{FaultError, VARIABLE};
use order::{Kind, Order, Place, Poison};
pub use point::Point;

/// Time in a phase before its fault, so that others learn of the phase.
const STAY: Duration = Duration::from_millis(1500);

/// The flag that switches fault injection on.
pub const FLAG: &str = "--fault-injection";

/// Whether a program injects the faults that the variable orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FaultInjection {
    /// The variable is ignored.
    #[default]
    Disabled,
    /// The program was started with [`FLAG`].
    Enabled,
}

/// From whether [`FLAG`] was given.
impl From<bool> for FaultInjection {
    fn from(is_given: bool) -> FaultInjection {
        if is_given { FaultInjection::Enabled } else { FaultInjection::Disabled }
    }
}

impl FaultInjection {
    /// Reads the orders for the process of this slot, if faults are injected; to be called once, when it starts. A
    /// coordinator has index 0.
    ///
    /// # Errors
    /// Where faults are injected and the variable is set to something else than faults.
    pub fn expect(self, role: &str, index: u32) -> Result<(), FaultError> {
        match self {
            FaultInjection::Enabled => expect(role, index),
            FaultInjection::Disabled => {
                static WARNED: Once = Once::new();
                if std::env::var_os(VARIABLE).is_some() {
                    WARNED.call_once(|| {
                        tracing::warn!(
                            "{VARIABLE} is set but ignored: fault injection is disabled without {FLAG}"
                        );
                    });
                }
                Ok(())
            }
        }
    }
}

/// Orders for this process, and how often their places were passed.
#[derive(Debug)]
struct Plan {
    orders: Vec<(Order, AtomicU64)>,
    poisons: Vec<Poison>,
}

static PLAN: OnceLock<Plan> = OnceLock::new();

fn expect(role: &str, index: u32) -> Result<(), FaultError> {
    let Ok(text) = std::env::var(VARIABLE) else { return Ok(()) };
    let orders = order::parse(&text, role, index)?;
    let orders = orders.into_iter().map(|order| (order, AtomicU64::new(0))).collect();
    let plan = Plan { orders, poisons: order::poisons(&text) };
    // A second call finds the same variable.
    PLAN.get_or_init(|| plan);
    Ok(())
}

/// Passes a crash point.
#[inline]
#[track_caller]
pub fn pass(point: Point) {
    if let Some(plan) = PLAN.get() {
        plan.pass(|place| matches!(place, Place::Point { point: at, .. } if *at == point));
    }
}

/// Passes a phase of a step.
#[inline]
#[track_caller]
pub fn enter(step: u64, phase: &str) {
    if let Some(plan) = PLAN.get() {
        plan.pass(|place| matches!(place, Place::Phase { step: at, phase: in_phase } if *at == step && in_phase == phase));
    }
}

/// What the losses and row gradients of a cell of these samples are to be multiplied by.
#[inline]
pub fn poison(samples: Range<u64>) -> Option<f64> {
    let mut here = PLAN.get()?.poisons.iter().filter(|poison| samples.contains(&poison.sample)).peekable();
    here.peek()?;
    Some(here.map(|poison| poison.factor).product())
}

impl Plan {
    #[track_caller]
    fn pass(&self, is_here: impl Fn(&Place) -> bool) {
        for (order, passed) in self.orders.iter().filter(|(order, _)| is_here(&order.place)) {
            let number = passed.fetch_add(1, Ordering::Relaxed) + 1;
            let (nth, stay) = match order.place {
                Place::Point { nth, .. } => (nth, Duration::ZERO),
                Place::Phase { .. } => (1, STAY),
            };
            if number == nth && order.once.as_deref().is_none_or(|folder| is_first(folder, order)) {
                strike(order, stay);
            }
        }
    }
}

/// Whether no process has carried out this order yet.
fn is_first(folder: &Path, order: &Order) -> bool {
    match File::create_new(folder.join(order.name())) {
        Ok(_mark) => true,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::AlreadyExists {
                tracing::error!(%error, folder = %folder.display(), "an ordered fault cannot leave its mark");
            }
            false
        }
    }
}

#[track_caller]
fn strike(order: &Order, stay: Duration) {
    tracing::warn!(order = order.name(), "a fault is ordered here");
    std::thread::sleep(stay);
    // SAFETY: these calls take no memory.
    let (itself, parent) = unsafe { (libc::getpid(), libc::getppid()) };
    let (process, signal) = match order.kind {
        Kind::Kill => (itself, libc::SIGKILL),
        Kind::Freeze => (itself, libc::SIGSTOP),
        Kind::Terminate => (parent, libc::SIGTERM),
        Kind::Panic => panic!("a panic is ordered here: {}", order.name()),
    };
    // SAFETY: as above.
    unsafe { libc::kill(process, signal) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_carried_out_once_whoever_passes() {
        let folder = tempfile::tempdir().unwrap();
        let text = format!("worker.joined 1 kill {}", folder.path().display());
        let orders = order::parse(&text, "worker", 0).unwrap();
        assert!(is_first(folder.path(), &orders[0]));
        assert!(!is_first(folder.path(), &orders[0]));
        assert!(!is_first(Path::new("/no/such/folder"), &orders[0]), "better no fault than one without end");
    }

    #[test]
    fn other_places_are_passed_unharmed() {
        let orders = order::parse("worker.joined 2 kill; 0 7 reducing kill", "worker", 0).unwrap();
        let orders = orders.into_iter().map(|order| (order, AtomicU64::new(0))).collect();
        let plan = Plan { orders, poisons: Vec::new() };
        let at = |point: Point| move |place: &Place| matches!(place, Place::Point { point: at, .. } if *at == point);
        plan.pass(at(Point::WorkerJoined));
        plan.pass(at(Point::WorkerReady));
        assert_eq!(plan.orders[0].1.load(Ordering::Relaxed), 1);
        // Nothing is ordered for this very process.
        pass(Point::WorkerJoined);
        enter(7, "reducing");
    }
}
