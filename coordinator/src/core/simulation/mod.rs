//! Thousands of seeded schedules of a whole run: members as small machines, a network that delays, and in hostile
//! schedules loses, doubles and reorders, processes that die. After every event the invariants of [`super`] are checked
//! from outside, by what was delivered and what was ordered.

use polygram_domain::control::{RunState, StopMode};
use polygram_domain::run_spec::RecoverySpec;
use polygram_domain::{Step, Topology};

mod checker;
mod member;
mod world;

use member::Frozen;
use world::World;

use crate::random::Random;

/// What may go wrong in a schedule.
#[derive(Clone, Debug, Default)]
struct Weather {
    /// One event in so many is lost; 0: none.
    lost: u64,
    /// One event in so many arrives twice.
    doubled: u64,
    /// One event in so many arrives seconds late.
    late: u64,
    /// One commit in so many fails.
    bad_commit: u64,
    /// One boundary in so many between commits has a recovery point; 0: none.
    points: u64,
    /// One recovery point in so many cannot be kept, and one part in so many cannot be written.
    bad_points: u64,
    /// The run goes back after a loss, and what died is started again.
    restarts: bool,
    /// Members die at these times, and their streams end.
    crashes: Vec<(usize, u64)>,
    /// A member freezes at this time for good: its stream stays open.
    freeze: Option<(usize, u64)>,
    /// A member stands still from a time on for so long, and then goes on as if nothing had happened.
    nap: Option<(usize, u64, u64)>,
    /// Nothing passes between a member and the coordinator from a time on for so long.
    partition: Option<(usize, u64, u64)>,
    /// The coordinator dies at these times, and another one takes over.
    successors: Vec<u64>,
    /// The step after so many is a spike until its samples are left out.
    spike: Option<u64>,
    /// One commit in so many is damaged from then on; 0: none.
    damage: u64,
    /// At most so many are.
    damages: u64,
    /// Once, a member that restores a sound checkpoint cannot believe it, one time in so many; 0: never.
    doubt: u64,
    /// The operator stops the run at this time.
    stop: Option<(u64, StopMode)>,
    /// And does not wait longer than so many milliseconds for its commit.
    grace: Option<u64>,
}

impl Weather {
    fn recovery(&self) -> RecoverySpec {
        RecoverySpec {
            max_restarts: if self.restarts { 1000 } else { 0 },
            max_fruitless_restarts: 50,
            backoff_seconds: 0.1,
            quarantine_after: 3,
            quarantine_seconds: 5.0,
        }
    }
}

const STEPS: u64 = 9;
const EVERY: u64 = 3;
/// No schedule may take longer than this.
const HORIZON: u64 = 60_000;

fn topology(random: &mut Random) -> Topology {
    Topology { workers: 1 << random.below(3), expert_parallel: 1, shards: 1 + random.below(3) as u32 }
}

/// Runs `schedules` seeds through `weather` and `check`, naming the seed of a failure.
fn campaign(
    name: &str,
    schedules: u64,
    weather: impl Fn(&mut Random, usize) -> Weather,
    mut check: impl FnMut(RunState, &World),
) {
    for seed in 0..schedules {
        let mut random = Random(seed ^ 0xa5a5);
        let topology = topology(&mut random);
        let members = (topology.workers + topology.shards) as usize;
        let weather = weather(&mut random, members);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let (state, world) = World::new(seed, topology, weather.clone()).run();
            check(state, &world);
        }));
        if let Err(panic) = outcome {
            eprintln!("{name}: seed {seed}, {topology:?}, {weather:?}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn calm_runs_complete() {
    campaign(
        "calm",
        2000,
        |_, _| Weather::default(),
        |state, world| {
            assert_eq!(state, RunState::Completed, "seed {}: {}", world.seed, world.state.message());
            assert_eq!(world.state.last_commit(), Some(Step(STEPS)));
            assert_eq!(world.checker.started.len(), world.agents.len());
        },
    );
}

#[test]
fn a_dead_process_is_the_culprit_whoever_noticed_first() {
    let weather = |random: &mut Random, members: usize| Weather {
        crashes: vec![(random.below(members as u64) as usize, random.below(12_000))],
        ..Weather::default()
    };
    campaign("crash", 4000, weather, |state, world| {
        let Some(crashed) = world.crashed else {
            return assert_eq!(state, RunState::Completed);
        };
        let status = world.state.status(world.now);
        match (state, status.culprit) {
            // It died after its last word.
            (RunState::Completed, None) => {}
            (RunState::Failed, Some(culprit)) => assert_eq!(culprit.member, world.agents[crashed].who),
            // It died before it had joined: nobody knows it, and the operator gave up.
            (RunState::Stopped, None) => assert_eq!(world.agents[crashed].id, None),
            (state, culprit) => panic!("{state} with culprit {culprit:?}"),
        }
    });
}

#[test]
fn a_frozen_process_is_found_silent() {
    let weather = |random: &mut Random, members: usize| Weather {
        freeze: Some((random.below(members as u64) as usize, random.below(9_000))),
        ..Weather::default()
    };
    campaign("freeze", 2000, weather, |state, world| {
        let frozen = world.agents.iter().find(|a| a.frozen == Frozen::ForGood).map(|a| a.who);
        let culprit = world.state.status(world.now).culprit.map(|c| c.member);
        match state {
            RunState::Completed => assert_eq!(culprit, None),
            RunState::Failed => assert_eq!(culprit, frozen),
            state => assert_eq!((state, culprit), (RunState::Stopped, None)),
        }
    });
}

#[test]
fn a_stop_ends_every_run_committed_or_untouched() {
    let weather = |random: &mut Random, _| {
        let mode = if random.once_in(4) { StopMode::Abort } else { StopMode::Commit };
        Weather { stop: Some((random.below(12_000), mode)), ..Weather::default() }
    };
    campaign("stop", 3000, weather, |state, world| {
        let finished = world.workers().map(|a| a.step).max().unwrap_or(0);
        let resumed = world.state.resume_step().0;
        match state {
            RunState::Completed => assert_eq!(world.state.last_commit(), Some(Step(STEPS))),
            RunState::Stopped if finished > resumed => {
                assert_eq!(world.state.last_commit(), Some(Step(finished)));
            }
            RunState::Stopped => {}
            RunState::Failed => assert!(world.state.message().contains("aborted")),
            state => panic!("{state} is not an end"),
        }
    });
}

#[test]
fn hostile_schedules_keep_every_invariant() {
    let weather = |random: &mut Random, members: usize| {
        let mut some = |bound: u64| if random.once_in(2) { 2 + random.below(bound) } else { 0 };
        let (lost, doubled, late, bad_commit) = (some(30), some(10), some(15), some(6));
        let mut victim = |chance| {
            random.once_in(chance).then(|| (random.below(members as u64) as usize, random.below(15_000)))
        };
        let (crash, freeze) = (victim(3), victim(4));
        let stop = random.once_in(3).then(|| (random.below(15_000), StopMode::Commit));
        let grace = random.once_in(2).then(|| random.below(5_000));
        let crashes = crash.into_iter().collect();
        Weather { lost, doubled, late, bad_commit, crashes, freeze, stop, grace, ..Weather::default() }
    };
    campaign("hostile", 6000, weather, |state, world| {
        assert!(state.is_over(), "seed {} ended while {state}", world.seed);
    });
}

/// The run is complete, and every step is recorded once, of whatever generation.
fn completes_with_every_step(state: RunState, world: &World) {
    assert_eq!(state, RunState::Completed, "seed {}: {}", world.seed, world.state.message());
    assert_eq!(world.state.last_commit(), Some(Step(STEPS)));
    let first = world.first_step;
    let steps: Vec<u64> = world.checker.recorded.keys().map(|step| step.0).collect();
    assert_eq!(steps, (first..STEPS).collect::<Vec<_>>(), "seed {}", world.seed);
}

fn some_crashes(random: &mut Random, members: usize) -> Vec<(usize, u64)> {
    let count = 1 + random.below(4);
    (0..count).map(|_| (random.below(members as u64) as usize, random.below(15_000))).collect()
}

#[test]
fn a_run_that_loses_members_completes_all_the_same() {
    let weather = |random: &mut Random, members: usize| Weather {
        restarts: true,
        crashes: some_crashes(random, members),
        doubled: if random.once_in(2) { 2 + random.below(10) } else { 0 },
        ..Weather::default()
    };
    campaign("losses", 4000, weather, completes_with_every_step);
}

/// Recovery points between the commits: kept, given up, lost with a coordinator, distrusted; and no step is lost or told twice.
#[test]
fn a_run_goes_on_from_its_newest_recovery_point() {
    let weather = |random: &mut Random, members: usize| Weather {
        restarts: true,
        points: 1 + random.below(2),
        bad_points: if random.once_in(2) { 2 + random.below(10) } else { 0 },
        crashes: some_crashes(random, members),
        successors: (0..random.below(3)).map(|_| random.below(12_000)).collect(),
        doubled: if random.once_in(2) { 2 + random.below(10) } else { 0 },
        spike: random.once_in(4).then(|| 1 + random.below(STEPS - 1)),
        ..Weather::default()
    };
    let resumed = std::cell::Cell::new(0);
    campaign("points", 4000, weather, |state, world| {
        resumed.set(resumed.get() + world.checker.resumed_from_points);
        assert_eq!(state, RunState::Completed, "seed {}: {}", world.seed, world.state.message());
        assert_eq!(world.state.last_commit(), Some(Step(STEPS)));
        if world.policy.ways_back.is_empty() {
            completes_with_every_step(state, world);
        }
    });
    assert!(resumed.get() > 500, "only {} generations began from a recovery point", resumed.get());
}

/// The stopped and the cut off come back as zombies: what they still say is of another generation.
#[test]
fn zombies_do_no_harm() {
    let weather = |random: &mut Random, members: usize| {
        let mut spell = || {
            let member = random.below(members as u64) as usize;
            (member, random.below(12_000), 1_000 + random.below(20_000))
        };
        let (one, other) = (spell(), spell());
        let both = random.below(3);
        Weather {
            restarts: true,
            nap: (both != 1).then_some(one),
            partition: (both != 0).then_some(other),
            doubled: if random.once_in(2) { 2 + random.below(10) } else { 0 },
            crashes: if random.once_in(3) { some_crashes(random, members) } else { Vec::new() },
            ..Weather::default()
        }
    };
    campaign("zombies", 3000, weather, completes_with_every_step);
}

#[test]
fn coordinators_follow_one_another_without_a_step_lost() {
    let weather = |random: &mut Random, members: usize| Weather {
        restarts: true,
        successors: (0..1 + random.below(3)).map(|_| random.below(12_000)).collect(),
        doubled: if random.once_in(2) { 2 + random.below(10) } else { 0 },
        crashes: if random.once_in(2) { some_crashes(random, members) } else { Vec::new() },
        ..Weather::default()
    };
    campaign("successors", 3000, weather, completes_with_every_step);
}

#[test]
fn hostile_schedules_with_restarts_keep_every_invariant() {
    let weather = |random: &mut Random, members: usize| {
        let mut some = |bound: u64| if random.once_in(2) { 2 + random.below(bound) } else { 0 };
        let (lost, doubled, late, bad_commit) = (some(30), some(10), some(15), some(20));
        let (points, bad_points) = (some(2), some(10));
        let stop = random.once_in(3).then(|| (random.below(15_000), StopMode::Commit));
        let crashes = some_crashes(random, members);
        let successors = (0..random.below(3)).map(|_| random.below(15_000)).collect();
        let nap =
            random.once_in(3).then(|| (random.below(members as u64) as usize, random.below(9_000), 12_000));
        Weather {
            lost,
            doubled,
            late,
            bad_commit,
            points,
            bad_points,
            restarts: true,
            crashes,
            nap,
            successors,
            stop,
            ..Weather::default()
        }
    };
    campaign("hostile restarts", 4000, weather, |state, world| {
        assert!(state.is_over(), "seed {} ended while {state}", world.seed);
    });
}

/// A spike in the middle: decided on once, whoever dies, and every step behind it is there once.
#[test]
fn a_way_back_is_taken_once_whoever_dies() {
    let weather = |random: &mut Random, members: usize| Weather {
        restarts: true,
        spike: Some(1 + random.below(STEPS - 1)),
        successors: (0..random.below(3)).map(|_| random.below(15_000)).collect(),
        doubled: if random.once_in(2) { 2 + random.below(10) } else { 0 },
        crashes: if random.once_in(2) { some_crashes(random, members) } else { Vec::new() },
        ..Weather::default()
    };
    campaign("spikes", 3000, weather, |state, world| {
        let resumed = world.first_step;
        let spike = world.weather.spike.unwrap_or_default();
        let first = if world.policy.ways_back.is_empty() { resumed } else { 0 };
        assert_eq!(state, RunState::Completed, "seed {}: {}", world.seed, world.state.message());
        assert_eq!(world.state.last_commit(), Some(Step(STEPS)));
        let expected: &[u64] = if spike < resumed { &[] } else { &[spike] };
        assert_eq!(world.policy.ways_back, expected, "seed {}", world.seed);
        let last = world.checker.recorded.last_key_value().map(|(step, _)| step.0 + 1);
        assert!(last == Some(STEPS) && world.checker.recorded.len() as u64 <= STEPS - first);
    });
}

/// Checkpoints whose bits flip: the run goes past them by itself, whoever dies, and where none is left it says so. A member
/// that is wrong about one is lost like any other.
#[test]
fn damaged_checkpoints_are_gone_past() {
    let weather = |random: &mut Random, members: usize| {
        let restarts = !random.once_in(4);
        let successors = (0..random.below(3)).map(|_| random.below(12_000)).collect();
        Weather {
            restarts,
            damage: 1 + random.below(3),
            damages: 1 + random.below(3),
            doubt: if random.once_in(2) { 1 + random.below(4) } else { 0 },
            crashes: if restarts { some_crashes(random, members) } else { Vec::new() },
            successors: if restarts { successors } else { Vec::new() },
            // A call that is made twice may be a join of the generation before: one more loss.
            doubled: if restarts && random.once_in(2) { 2 + random.below(10) } else { 0 },
            ..Weather::default()
        }
    };
    let (mut fallen, mut failed) = (0, 0);
    campaign("damage", 4000, weather, |state, world| {
        fallen += world.checker.quarantined;
        if state == RunState::Failed {
            let message = world.state.message();
            if message.contains("none of them verifies") {
                failed += 1;
                assert!(!world.commits.is_empty(), "what is left is kept: {message}");
                assert!(world.commits.iter().all(|step| world.damaged.contains_key(step)), "{message}");
                return;
            }
            // Where losses end the run, a doubt does too.
            assert!(!world.weather.restarts && message.contains("read here, it is sound"), "{message}");
            return;
        }
        assert_eq!(state, RunState::Completed, "seed {}: {}", world.seed, world.state.message());
        assert_eq!(world.state.last_commit(), Some(Step(STEPS)));
        let steps: Vec<u64> = world.checker.recorded.keys().map(|step| step.0).collect();
        let first = steps.first().copied().unwrap_or(STEPS);
        assert!(first <= world.first_step, "seed {}: {steps:?}", world.seed);
        assert_eq!(steps, (first..STEPS).collect::<Vec<_>>(), "seed {}", world.seed);
    });
    assert!(fallen > 500 && failed > 50, "{fallen} quarantined, {failed} runs without any left: too calm");
}

/// The same in weather that loses and reorders words, with a rollback from a spike now and then.
#[test]
fn hostile_schedules_with_damage_keep_every_invariant() {
    let weather = |random: &mut Random, members: usize| {
        let mut some = |bound: u64| if random.once_in(2) { 2 + random.below(bound) } else { 0 };
        let (lost, doubled, late) = (some(30), some(10), some(15));
        let stop = random.once_in(3).then(|| (random.below(15_000), StopMode::Commit));
        let damage = 1 + random.below(3);
        Weather {
            lost,
            doubled,
            late,
            damage,
            damages: 3,
            doubt: 2,
            spike: random.once_in(2).then(|| 1 + random.below(STEPS - 1)),
            restarts: true,
            crashes: some_crashes(random, members),
            successors: (0..random.below(3)).map(|_| random.below(15_000)).collect(),
            stop,
            ..Weather::default()
        }
    };
    campaign("hostile damage", 3000, weather, |state, world| {
        assert!(state.is_over(), "seed {} ended while {state}", world.seed);
    });
}
