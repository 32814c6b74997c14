//! Two ways of the same work, in turns, on one or more threads: what disturbs the machine disturbs both.

use std::sync::Barrier;
use std::time::Instant;

use super::error::BenchError;

/// Repetitions before those that count.
const WARM_UP: usize = 2;

/// One thread's part of both ways. `round` counts repetitions: both ways of a round do the same work.
pub(super) trait Contest: Send {
    /// Our way.
    fn ours(&mut self, round: usize) -> Result<(), BenchError>;
    /// The machine's limit.
    fn limit(&mut self, round: usize) -> Result<(), BenchError>;
}

/// Seconds of each round, from the first thread's start to the last one's end.
#[derive(Debug, Default)]
pub(super) struct Times {
    pub(super) ours: Vec<f64>,
    pub(super) limit: Vec<f64>,
}

type Span = (Instant, Instant);

/// Runs all threads' parts `rounds` times after a warm-up; who goes first changes from round to round. The rounds of
/// the warm-up are those before 0, counted from the end: round `r` of `rounds` again.
pub(super) fn race<C: Contest>(parts: &mut [C], rounds: usize) -> Result<Times, BenchError> {
    let barrier = Barrier::new(parts.len());
    let results: Vec<Result<Vec<[Span; 2]>, BenchError>> = std::thread::scope(|scope| {
        let run = |part| scope.spawn(|| run_part(part, rounds, &barrier));
        let threads: Vec<_> = parts.iter_mut().map(run).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| BenchError::Thread)?).collect()
    });
    let spans = results.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut times = Times::default();
    for round in 0..rounds {
        for (way, seconds) in [(0, &mut times.ours), (1, &mut times.limit)] {
            let start = spans.iter().map(|part| part[round][way].0).min();
            let end = spans.iter().map(|part| part[round][way].1).max();
            if let (Some(start), Some(end)) = (start, end) {
                seconds.push((end - start).as_secs_f64());
            }
        }
    }
    Ok(times)
}

/// A part that failed keeps meeting the others, so that none of them waits for ever.
fn run_part<C: Contest>(
    part: &mut C,
    rounds: usize,
    barrier: &Barrier,
) -> Result<Vec<[Span; 2]>, BenchError> {
    let mut failure = None;
    let mut spans = Vec::with_capacity(rounds);
    for turn in 0..WARM_UP + rounds {
        let round = (turn + rounds * WARM_UP - WARM_UP) % rounds.max(1);
        let now = Instant::now();
        let mut pair = [(now, now); 2];
        let order = if turn % 2 == 0 { [0, 1] } else { [1, 0] };
        for way in order {
            barrier.wait();
            let start = Instant::now();
            if failure.is_none() {
                let done = if way == 0 { part.ours(round) } else { part.limit(round) };
                failure = done.err();
            }
            pair[way] = (start, Instant::now());
        }
        if turn >= WARM_UP {
            spans.push(pair);
        }
    }
    failure.map_or(Ok(spans), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counted {
        ours: Vec<usize>,
        limit: Vec<usize>,
        fails_at: Option<usize>,
    }

    impl Contest for Counted {
        fn ours(&mut self, round: usize) -> Result<(), BenchError> {
            self.ours.push(round);
            match self.fails_at == Some(round) {
                true => Err(BenchError::Usage("told to fail".into())),
                false => Ok(()),
            }
        }

        fn limit(&mut self, round: usize) -> Result<(), BenchError> {
            self.limit.push(round);
            Ok(())
        }
    }

    #[test]
    fn both_ways_do_the_same_rounds() {
        let part = || Counted { ours: Vec::new(), limit: Vec::new(), fails_at: None };
        let mut parts = [part(), part()];
        let times = race(&mut parts, 5).unwrap();
        assert_eq!((times.ours.len(), times.limit.len()), (5, 5));
        for part in parts {
            assert_eq!(part.ours, [3, 4, 0, 1, 2, 3, 4]);
            assert_eq!(part.ours, part.limit);
        }
    }

    #[test]
    fn one_failure_ends_all() {
        let part = |fails_at| Counted { ours: Vec::new(), limit: Vec::new(), fails_at };
        let error = race(&mut [part(None), part(Some(1))], 3).unwrap_err();
        assert!(error.to_string().contains("told to fail"));
    }
}
