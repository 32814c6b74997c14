//! What a run's coordinator knows before anybody joins.

use std::time::Duration;

use polygram_checkpoint::keys;
use polygram_domain::control::{Evaluation, RunStatus, StepMetrics};
use polygram_domain::run_spec::RecoverySpec;
use polygram_domain::spikes::PolicyState;
use polygram_domain::{CheckpointKind, RunSpec, Step, TableSpec, Topology};

/// Every timeout of the control plane, derived from the one knob `run.failure_detection_seconds`.
///
/// Their order, checked by [`Timeouts::of`]: heartbeat < suspicion ≤ explanation < detection ≤ leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Members report where they are this often.
    pub heartbeat_ms: u64,
    /// Failures that blame a peer are collected for so long, and the peer's own end is waited for.
    pub suspicion_timeout_ms: u64,
    /// A member that is blamed for a broken connection has so long to report why it broke.
    pub explanation_timeout_ms: u64,
    /// A member silent for so long is lost.
    pub detection_ms: u64,
    /// Members have this long to leave once the run is over.
    pub leave_ms: u64,
}

impl Timeouts {
    /// Derives the timeouts: a heartbeat every tenth of the detection time, but at least once a second; a suspicion is judged
    /// after three heartbeats; leaving may take as long as detection.
    pub fn of(failure_detection_seconds: f64) -> Timeouts {
        let detection_ms = (failure_detection_seconds.clamp(0.1, 86_400.0) * 1000.0) as u64;
        let heartbeat_ms = (detection_ms / 10).clamp(10, 1000);
        Timeouts {
            heartbeat_ms,
            suspicion_timeout_ms: (heartbeat_ms * 3).min(detection_ms / 2).min(1500),
            explanation_timeout_ms: (detection_ms / 2).min(5000),
            detection_ms,
            leave_ms: detection_ms,
        }
    }

    /// [`Timeouts::heartbeat_ms`] as a duration.
    pub fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms)
    }

    /// [`Timeouts::detection_ms`] as a duration.
    pub fn detection(&self) -> Duration {
        Duration::from_millis(self.detection_ms)
    }
}

/// What the run continues from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    /// Updates applied in the manifest.
    pub step: Step,
    /// What it is of, and so in which root.
    pub kind: CheckpointKind,
    /// Object key of the manifest.
    pub manifest: String,
}

impl Resume {
    /// The commit of `step`.
    pub fn at(step: Step) -> Resume {
        Resume { step, kind: CheckpointKind::Commit, manifest: keys::manifest(step) }
    }

    /// The recovery point of `step`.
    pub fn at_point(step: Step) -> Resume {
        Resume { kind: CheckpointKind::Point, ..Resume::at(step) }
    }
}

/// What an attempt shows of the attempts before it until it has figures of its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Earlier {
    /// The newest update.
    pub metrics: Option<StepMetrics>,
    /// The newest evaluation of every held-out set.
    pub evaluations: Vec<Evaluation>,
}

impl Earlier {
    /// What the `status` of an earlier attempt says of state version `resumed` and those before it.
    pub fn of(status: RunStatus, resumed: Step) -> Earlier {
        let RunStatus { last_metrics, mut evaluations, .. } = status;
        evaluations.retain(|evaluation| evaluation.step <= resumed);
        Earlier { metrics: last_metrics.filter(|metrics| metrics.step.next() <= resumed), evaluations }
    }
}

/// The frame of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Name of the run.
    pub run: String,
    /// Numbers of members.
    pub topology: Topology,
    /// Updates of the whole run.
    pub total_steps: u64,
    /// The update after which this session ends: `training.stop_at_step`, or the last.
    pub last_step: u64,
    /// What the attempt begins from; `None` for a fresh run.
    pub resume: Option<Resume>,
    /// The newest commit, where what is resumed from is a recovery point.
    pub committed: Option<Step>,
    /// Which start of the run this is, from 1.
    pub attempt: u32,
    /// Derived timeouts.
    pub timeouts: Timeouts,
    /// How long a stop may wait for its commit, milliseconds.
    pub stop_grace_ms: Option<u64>,
    /// The n-gram tables, in order.
    pub tables: Vec<TableSpec>,
    /// Names of the held-out sets.
    pub held_out_sets: Vec<String>,
    /// What earlier attempts have reported of the state that is resumed.
    pub earlier: Earlier,
    /// What is done about a lost member.
    pub recovery: RecoverySpec,
    /// What the run remembers and leaves out when the attempt begins.
    pub policy: PolicyState,
}

impl Settings {
    /// The frame of `spec`, continued from `resume` with what it remembers, as start number `attempt`.
    pub fn of(spec: &RunSpec, (resume, policy): (Option<Resume>, PolicyState), attempt: u32) -> Settings {
        Settings {
            run: spec.name.as_str().to_owned(),
            topology: spec.topology,
            total_steps: spec.training.steps,
            last_step: spec.last_step(),
            committed: None,
            resume,
            attempt,
            timeouts: Timeouts::of(spec.failure_detection_seconds),
            stop_grace_ms: spec.stop_grace_seconds.map(|seconds| (seconds * 1000.0) as u64),
            tables: spec.tables().iter().cloned().collect(),
            held_out_sets: spec.data.held_out_names().into_iter().map(str::to_owned).collect(),
            earlier: Earlier::default(),
            recovery: spec.recovery.clone(),
            policy,
        }
    }

    /// All members.
    pub fn member_count(&self) -> usize {
        self.topology.workers as usize + self.topology.shards as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_ordered_for_every_knob() {
        for knob in [1.0, 1.5, 2.0, 10.0, 30.0, 600.0] {
            let t = Timeouts::of(knob);
            assert!(t.heartbeat_ms < t.suspicion_timeout_ms, "{knob}: {t:?}");
            assert!(t.suspicion_timeout_ms <= t.explanation_timeout_ms, "{knob}: {t:?}");
            assert!(
                t.explanation_timeout_ms < t.detection_ms && t.detection_ms <= t.leave_ms,
                "{knob}: {t:?}"
            );
            assert!(t.heartbeat_ms * 5 <= t.detection_ms, "{knob}: several heartbeats fit: {t:?}");
        }
    }
}
