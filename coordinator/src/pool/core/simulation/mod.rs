//! Thousands of seeded schedules of a whole pool: members that come, die, freeze and come back, jobs of all priorities that
//! are submitted and cancelled, runs that need work done by all their members at once, coordinators that are killed and
//! started again from what was kept. After every event the invariants of [`super`] are checked from outside.

mod checker;
mod world;

use world::World;

use crate::random::Random;

/// Its schedules are not those of a run with the same seed.
const SEED: u64 = 0x5eed;

/// What may go wrong in a schedule. After [`world::CALM`] nothing does.
#[derive(Clone, Debug, Default)]
pub(super) struct Weather {
    /// Members that die, and are started again after a while.
    pub(super) deaths: u64,
    /// Members that are silent for a while, and go on as if nothing had happened.
    pub(super) freezes: u64,
    /// Members that say that they live and do nothing else for a while.
    pub(super) hangs: u64,
    /// Streams that break although both ends live.
    pub(super) broken_streams: u64,
    /// Coordinators that are killed.
    pub(super) coordinator_kills: u64,
    /// Jobs that somebody cancels.
    pub(super) cancels: u64,
    /// Members that are told to end, so that their runs stop.
    pub(super) terminations: u64,
    /// Runs that fail: one session in so many.
    pub(super) bad_runs: u64,
}

/// Runs `schedules` seeds, naming the seed of a failure. Says how often jobs shrank, grew and made way, and how many
/// seats were taken back.
fn campaign(
    name: &str,
    schedules: u64,
    weather: impl Fn(&mut Random) -> Weather,
    check: impl Fn(&World),
) -> [u64; 4] {
    let mut seen = [0; 4];
    for seed in 0..schedules {
        let weather = weather(&mut Random(seed ^ SEED ^ 0xa5a5));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut world = World::new(seed, weather.clone());
            world.run();
            check(&world);
            world.checker
        }));
        match outcome {
            Ok(checker) => {
                let more = [checker.shrunk, checker.grown, checker.preempted, checker.taken_back];
                seen.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
            }
            Err(panic) => {
                eprintln!("{name}: seed {seed}, {weather:?}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{name}: {schedules} schedules; jobs shrank, grew, made way, seats taken back: {seen:?}");
    seen
}

#[test]
fn calm_pools_finish_every_job_in_order() {
    campaign("calm", 1000, |_| Weather::default(), World::assert_all_done);
}

#[test]
fn members_that_die_freeze_and_return_stop_no_job() {
    let weather = |random: &mut Random| Weather {
        deaths: random.below(12),
        freezes: random.below(6),
        broken_streams: random.below(6),
        terminations: random.below(3),
        ..Weather::default()
    };
    let seen = campaign("members", 2000, weather, World::assert_all_done);
    assert!(seen[..3].iter().all(|times| *times > 50), "the schedules are too tame: {seen:?}");
}

/// Members that hang before they join, at work, and on their way out: whoever waits for them finds others, or goes on
/// without them.
#[test]
fn members_that_hang_lose_their_seats() {
    let weather = |random: &mut Random| Weather {
        hangs: 1 + random.below(12),
        deaths: random.below(4),
        broken_streams: random.below(6),
        coordinator_kills: random.below(2),
        ..Weather::default()
    };
    let seen = campaign("hanging members", 2000, weather, World::assert_all_done);
    assert!(seen[3] > 500, "the schedules are too tame: {seen:?}");
}

#[test]
fn killed_coordinators_forget_nothing() {
    let weather = |random: &mut Random| Weather {
        coordinator_kills: 1 + random.below(5),
        deaths: random.below(5),
        cancels: random.below(4),
        ..Weather::default()
    };
    campaign("coordinators", 2000, weather, World::assert_all_over);
}

#[test]
fn everything_at_once() {
    let weather = |random: &mut Random| Weather {
        deaths: random.below(10),
        freezes: random.below(5),
        hangs: random.below(5),
        broken_streams: random.below(8),
        coordinator_kills: random.below(4),
        cancels: random.below(5),
        terminations: random.below(4),
        bad_runs: random.below(2) * 10,
    };
    campaign("everything", 2000, weather, World::assert_all_over);
}
