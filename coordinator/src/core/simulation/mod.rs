//! Thousands of seeded schedules of a whole run: members as small machines, a network that delays, and in hostile
//! schedules loses, doubles and reorders, processes that die. After every event the invariants of [`super`] are checked
//! from outside, by what was delivered and what was ordered.

use polygram_domain::{Step, Topology};
use polygram_proto::control::{RunState, StopMode};

mod checker;
mod member;
mod world;

use world::World;

/// SplitMix64 (Steele, Lea and Flood 2014): one seed, one schedule.
struct Random(u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.word() % bound
    }

    /// True once in `times`; never for 0.
    fn once_in(&mut self, times: u64) -> bool {
        times > 0 && self.below(times) == 0
    }
}

/// What may go wrong in a schedule.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    /// One event in so many is lost; 0: none.
    lost: u64,
    /// One event in so many arrives twice.
    doubled: u64,
    /// One event in so many arrives seconds late.
    late: u64,
    /// One commit in so many fails.
    bad_commit: u64,
    /// A member dies at this time, and its stream ends.
    crash: Option<(usize, u64)>,
    /// A member freezes at this time: its stream stays open.
    freeze: Option<(usize, u64)>,
    /// The operator stops the run at this time.
    stop: Option<(u64, StopMode)>,
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
    check: impl Fn(RunState, &World),
) {
    for seed in 0..schedules {
        let mut random = Random(seed ^ 0xa5a5);
        let topology = topology(&mut random);
        let members = (topology.workers + topology.shards) as usize;
        let weather = weather(&mut random, members);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let (state, world) = World::new(seed, topology, weather).run();
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
        crash: Some((random.below(members as u64) as usize, random.below(12_000))),
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
        let frozen = world.agents.iter().find(|a| a.frozen).map(|a| a.who);
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
        let resumed = world.state.settings().resume_step().0;
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
        Weather { lost, doubled, late, bad_commit, crash, freeze, stop }
    };
    campaign("hostile", 6000, weather, |state, world| {
        assert!(state.is_over(), "seed {} ended while {state}", world.seed);
    });
}
