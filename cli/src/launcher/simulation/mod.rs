//! Thousands of seeded schedules of a whole launch: the decider, the coordinator's real core, members as small machines, a
//! network that delays, processes that die or hang, a store that fails, and signals. What must hold of each is in
//! [`checker`]; what must come of a kind of schedule stands here.

mod checker;
mod coordinator;
mod driver;
mod member;
mod process;
mod random;
mod troubles;
mod world;

use polygram_domain::Topology;
use polygram_domain::run_spec::RecoverySpec;

use coordinator::Frame;
use process::End;
use random::Random;
use world::{HORIZON, World};

const STEPS: u64 = 24;
const EVERY: u64 = 4;

/// What goes wrong at some time.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// The member of this slot ends.
    Crash(usize, End),
    /// The member of this slot stands still for good.
    Freeze(usize),
    CrashCoordinator,
    FreezeCoordinator,
    /// The launcher's watch breaks, and nothing else.
    BreakWatch,
    /// The store begins to keep the coordinator waiting, or stops doing so.
    StoreWaits(bool),
}

/// What becomes of a coordinator that is started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Opening {
    #[default]
    Listens,
    Ends(End),
    Hangs,
    NotStarted,
}

/// What may go wrong in a schedule.
#[derive(Clone, Debug, Default)]
struct Weather {
    /// The commit that the run begins from.
    resumed: Option<u64>,
    troubles: Vec<(u64, Trouble)>,
    /// When the operator asks for the end.
    signals: Vec<u64>,
    /// What becomes of the coordinators, in turn; those beyond listen.
    openings: Vec<Opening>,
    /// The member of this slot ends like this at every start.
    broken: Option<(usize, End)>,
    /// One start in so many is refused by the system; 0: none.
    not_started: u64,
    /// One stop request in so many is lost.
    lost_stops: u64,
    /// One commit in so many fails.
    bad_commit: u64,
    /// Processes are not started again.
    no_restarts: bool,
}

impl Weather {
    fn frame(&self, random: &mut Random) -> Frame {
        let topology = Topology {
            workers: 1 << random.below(2),
            expert_parallel: 1,
            shards: 1 + random.below(2) as u32,
        };
        let recovery = RecoverySpec {
            max_restarts: if self.no_restarts { 0 } else { 100 },
            max_fruitless_restarts: 8,
            backoff_seconds: 0.1,
            quarantine_after: 100,
            quarantine_seconds: 1.0,
        };
        Frame { topology, steps: STEPS, detection_seconds: 3.0, recovery }
    }
}

/// Runs `schedules` seeds through `weather` and `check`, naming the seed of a failure.
fn campaign(
    name: &str,
    schedules: u64,
    weather: impl Fn(&mut Random) -> Weather,
    mut check: impl FnMut(&World, u8),
) {
    for seed in 0..schedules {
        let mut random = Random(seed ^ 0x5a5a_0000);
        let weather = weather(&mut random);
        let frame = weather.frame(&mut random);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let world = World::new(seed, frame.clone(), weather.clone()).run();
            let status = world.checker.status.unwrap();
            truthful(&world, status);
            check(&world, status);
        }));
        if let Err(panic) = outcome {
            eprintln!("{name}: seed {seed}, {:?}, {weather:?}", frame.topology);
            std::panic::resume_unwind(panic);
        }
    }
}

/// Whether the exit status says what is so.
fn truthful(world: &World, status: u8) {
    let checker = &world.checker;
    let is_complete = world.commits.contains(&STEPS);
    let Checked { said, conclusion } = Checked::of(world);
    match status {
        0 => assert!(is_complete, "status 0 is a complete run"),
        1 => {}
        2 => assert_eq!(checker.furthest, 0, "status 2 is a refusal before anything was done"),
        3 => assert!(
            !checker.signals.is_empty() && !is_complete,
            "status 3 is a stop on request: {conclusion}\n{said}"
        ),
        other => panic!("{other} is no status"),
    }
}

fn completes(world: &World, status: u8) {
    let Checked { said, conclusion } = Checked::of(world);
    assert_eq!(status, 0, "{conclusion}\n{said}");
    assert!(world.checker.decided_at < HORIZON, "it is not told to end: {said}");
}

struct Checked {
    said: String,
    conclusion: String,
}

impl Checked {
    fn of(world: &World) -> Checked {
        let checker = &world.checker;
        Checked { said: checker.said.join("\n"), conclusion: checker.conclusion.clone() }
    }
}

fn resumed(random: &mut Random) -> Option<u64> {
    random.once_in(2).then(|| EVERY * random.below(STEPS / EVERY)).filter(|step| *step > 0)
}

/// What a run outlasts: some deaths and hangs.
fn losses(random: &mut Random) -> Vec<(u64, Trouble)> {
    let slot = |random: &mut Random| random.below(4) as usize;
    let count = 1 + random.below(4);
    let trouble = |random: &mut Random| match random.below(7) {
        0 | 1 => Trouble::Crash(slot(random), End::Signal(9)),
        2 => Trouble::Crash(slot(random), End::Code(1)),
        3 => Trouble::Freeze(slot(random)),
        4 => Trouble::CrashCoordinator,
        5 => Trouble::FreezeCoordinator,
        _ => Trouble::BreakWatch,
    };
    (0..count).map(|_| (random.below(12_000), trouble(random))).collect()
}

#[test]
fn calm_runs_complete() {
    let weather = |random: &mut Random| Weather { resumed: resumed(random), ..Weather::default() };
    campaign("calm", 500, weather, completes);
}

#[test]
fn a_run_that_is_complete_starts_nobody() {
    let weather = |_: &mut Random| Weather { resumed: Some(STEPS), ..Weather::default() };
    campaign("complete", 20, weather, |world, status| {
        completes(world, status);
        assert!(world.checker.conclusion.starts_with("AlreadyOver"));
    });
}

#[test]
fn a_run_that_can_go_on_does() {
    let weather = |random: &mut Random| Weather {
        resumed: resumed(random),
        troubles: losses(random),
        ..Weather::default()
    };
    campaign("losses", 3000, weather, completes);
}

/// A member that hangs in the middle of a run is named before it counts as lost, and nobody else is.
#[test]
fn a_stall_names_what_is_waited_for() {
    let weather = |random: &mut Random| {
        let trouble = Trouble::Freeze(random.below(2) as usize);
        Weather { troubles: vec![(2_000 + random.below(4_000), trouble)], ..Weather::default() }
    };
    let mut named = 0;
    campaign("stall", 500, weather, |world, status| {
        completes(world, status);
        let Some((_, Trouble::Freeze(slot))) = world.weather.troubles.first() else { return };
        let name = match slot.checked_sub(world.frame.topology.workers as usize) {
            Some(index) => format!("shard {index}"),
            None => format!("worker {slot}"),
        };
        for line in world.checker.said.iter().filter(|line| line.contains("silent for")) {
            assert!(line.contains("no step for") && line.contains(&name), "{line}: {name} hangs");
            named += 1;
        }
    });
    assert!(named > 200, "{named} stalls were told");
}

#[test]
fn a_coordinator_may_be_killed_while_it_opens() {
    let weather = |random: &mut Random| Weather {
        troubles: losses(random),
        openings: vec![Opening::Listens, Opening::Ends(End::Signal(9))],
        ..Weather::default()
    };
    campaign("killed again", 1000, weather, completes);
}

#[test]
fn the_first_signal_stops_with_a_commit() {
    let weather = |random: &mut Random| Weather {
        resumed: resumed(random),
        signals: vec![random.below(12_000)],
        lost_stops: random.below(3),
        ..Weather::default()
    };
    campaign("stop", 2000, weather, |world, status| {
        let Checked { said, conclusion } = Checked::of(world);
        assert!([0, 3].contains(&status), "{conclusion}\n{said}");
        let committed = world.commits.last().copied().unwrap_or(0);
        assert!(world.checker.reached <= committed, "steps are lost:\n{said}");
        // It may have been over before.
        let signal = world.checker.signals.first().copied().unwrap_or(0);
        assert!(world.checker.decided_at < signal.max(15_000) + 15_000, "{said}");
    });
}

#[test]
fn the_second_signal_ends_everything_at_once() {
    let weather = |random: &mut Random| {
        let first = random.below(12_000);
        let second = first + random.below(1_000);
        let troubles = if random.once_in(2) { losses(random) } else { Vec::new() };
        let openings = if random.once_in(8) { vec![Opening::Hangs] } else { Vec::new() };
        Weather {
            resumed: resumed(random),
            troubles,
            signals: vec![first, second],
            openings,
            ..Weather::default()
        }
    };
    campaign("second signal", 3000, weather, |world, status| {
        let committed = world.commits.last().copied().unwrap_or(0);
        let is_lost = world.checker.reached > committed;
        // A coordinator that stops the run itself speaks of what it knows: steps may have been lost before.
        if world.checker.conclusion.contains("killed on request") && is_lost {
            assert_eq!(status, 1, "{}", world.checker.conclusion);
        }
    });
}

#[test]
fn without_restarts_the_first_loss_ends_the_run() {
    let weather =
        |random: &mut Random| Weather { troubles: losses(random), no_restarts: true, ..Weather::default() };
    campaign("no restarts", 1500, weather, |world, status| {
        assert!(world.checker.decided_at < HORIZON, "{}", world.checker.said.join("\n"));
        assert!([0, 1].contains(&status));
    });
}

#[test]
fn a_coordinator_that_does_not_come_up_is_told_by_its_status() {
    for (opening, expected) in [
        (Opening::Ends(End::Code(1)), 1),
        (Opening::Ends(End::Code(2)), 2),
        (Opening::Ends(End::Code(0)), 1),
        (Opening::NotStarted, 1),
        (Opening::Hangs, 1),
    ] {
        let weather = |_: &mut Random| Weather { openings: vec![opening], ..Weather::default() };
        campaign("opening", 20, weather, |_, status| assert_eq!(status, expected, "{opening:?}"));
    }
    // One that is killed is started again, as often as its budget allows.
    let weather = |random: &mut Random| {
        let killed = 1 + random.below(12) as usize;
        Weather { openings: vec![Opening::Ends(End::Signal(9)); killed], ..Weather::default() }
    };
    campaign("killed openings", 200, weather, |world, status| {
        assert_eq!(status, u8::from(world.opened <= 9 && world.checker.furthest == 0));
    });
}

#[test]
fn a_member_that_always_ends_is_given_up() {
    for (end, expected) in [(End::Code(1), 1), (End::Code(2), 2), (End::Signal(9), 1), (End::Code(0), 1)] {
        let weather = |random: &mut Random| Weather {
            broken: Some((random.below(2) as usize, end)),
            ..Weather::default()
        };
        campaign("broken", 300, weather, |world, status| {
            let said = world.checker.said.join("\n");
            assert_eq!(status, expected, "{end:?}\n{said}");
            assert!(world.checker.decided_at < HORIZON, "{said}");
            let is_hopeless = matches!(end, End::Code(1 | 2));
            assert_eq!(said.contains("it is not started again"), is_hopeless, "{said}");
        });
    }
}

#[test]
fn hostile_schedules_keep_every_invariant() {
    let weather = |random: &mut Random| {
        let some =
            |random: &mut Random, bound: u64| if random.once_in(2) { 2 + random.below(bound) } else { 0 };
        let mut troubles = losses(random);
        troubles.extend(losses(random));
        if random.once_in(2) {
            let at = random.below(12_000);
            troubles.push((at, Trouble::StoreWaits(true)));
            troubles.push((at + random.below(8_000), Trouble::StoreWaits(false)));
        }
        let signals = (0..random.below(3)).map(|_| random.below(20_000)).collect();
        let opening = |random: &mut Random| match random.below(8) {
            0 => Opening::Ends(End::Code(1 + random.below(2) as i32)),
            1 => Opening::Ends(End::Signal(9)),
            2 => Opening::Hangs,
            3 => Opening::NotStarted,
            _ => Opening::Listens,
        };
        Weather {
            resumed: resumed(random),
            troubles,
            signals,
            openings: (0..random.below(4)).map(|_| opening(random)).collect(),
            broken: random.once_in(10).then(|| (random.below(4) as usize, End::Code(random.below(3) as i32))),
            not_started: some(random, 10),
            lost_stops: some(random, 3),
            bad_commit: some(random, 6),
            no_restarts: random.once_in(5),
        }
    };
    let mut statuses = [0; 4];
    campaign("hostile", 4000, weather, |_, status| statuses[usize::from(status)] += 1);
    assert!(statuses.iter().all(|count| *count > 20), "every status occurs: {statuses:?}");
}
