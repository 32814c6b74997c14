//! The two exchanges of all ranks in a step: a summary before COMMIT, and what the step became after it.
//!
//! The summary of a rank holds its part of every small sum of the step: losses, squares of the dense gradient, routing
//! counts. Every rank adds the parts of all ranks in canonical order, so that all have the same bits. What the shards
//! answered to PREPARE must be the same on every rank: a rank that differs is named, and nobody commits. The summary
//! also carries what holds for all ranks if it holds for one: the request to stop, and a checkpoint that is being
//! written.
//!
//! The second exchange adds up the fingerprints of the dense weights, and compares loss and norm bit for bit: a rank that
//! decided from other numbers is found before anything of the step is reported or written.

use polygram_collective::Collective;
use polygram_domain::sum_tree::tree_sum;
use polygram_domain::{Rank, Step};
use polygram_faults::{Point, pass};

use crate::error::WorkerError;
use crate::norm::{RowSummary, SquareSums};

/// Words before the sums of a summary: step, loss, row square sum, flags, number of square sums.
const HEADER_WORDS: usize = 5;
const STOP: u64 = 1;
const WRITING: u64 = 2;
const ROWS_FINITE: u64 = 4;

/// What one rank brings to a step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepSummary {
    /// The step.
    pub step: Step,
    /// Sum of the losses of this rank's micro-batches, a subtree of the sum over all.
    pub loss_sum: f64,
    /// What the shards answered to PREPARE; the same on every rank.
    pub rows: RowSummary,
    /// Sums of squares of this rank's blocks of the dense gradient.
    pub square_sums: Vec<f64>,
    /// Times each expert was chosen by this rank's micro-batches.
    pub routing_counts: Vec<u64>,
    /// Whether this rank was asked to stop.
    pub stop: bool,
    /// Whether this rank's share of a checkpoint is being written.
    pub is_writing: bool,
}

/// What all ranks agree on before they commit a step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepConsensus {
    /// Sum of the losses of all micro-batches, along the fixed tree.
    pub loss_sum: f64,
    /// The row gradients.
    pub rows: RowSummary,
    /// Sum of squares of the whole dense gradient.
    pub dense_square_sum: f64,
    /// Times each expert was chosen.
    pub routing_counts: Vec<u64>,
    /// Whether the run stops after this step.
    pub stop: bool,
    /// Whether a checkpoint is being written.
    pub is_writing: bool,
}

impl StepSummary {
    /// Exchanges summaries with all ranks, one round trip. An error names the first rank that differs.
    pub fn exchange(
        self,
        ranks: &mut dyn Collective,
        square_sums: &SquareSums,
    ) -> Result<StepConsensus, WorkerError> {
        pass(Point::WorkerAfterPrepare);
        let all = ranks.all_gather(&self.encode())?;
        let consensus = self.check_consensus(ranks.rank(), &all, square_sums)?;
        pass(Point::WorkerAgreed);
        Ok(consensus)
    }

    /// Combines the summaries of all ranks, by rank; `own` is the rank of `self`.
    fn check_consensus(
        &self,
        own: Rank,
        all: &[Vec<u8>],
        square_sums: &SquareSums,
    ) -> Result<StepConsensus, WorkerError> {
        let mut summaries = Vec::with_capacity(all.len());
        for (rank, bytes) in (0..).map(Rank).zip(all) {
            let checked = StepSummary::decode(bytes).and_then(|theirs| {
                self.check(&theirs, own)?;
                square_sums.check(rank, &theirs.square_sums)?;
                Ok(theirs)
            });
            summaries.push(checked.map_err(|difference| self.differs(rank, difference))?);
        }
        let mut routing_counts = vec![0u64; self.routing_counts.len()];
        for (rank, theirs) in (0..).map(Rank).zip(&summaries) {
            for (sum, count) in routing_counts.iter_mut().zip(&theirs.routing_counts) {
                let overflow = || self.differs(rank, "routing counts whose sum is beyond 64 bits".into());
                *sum = sum.checked_add(*count).ok_or_else(overflow)?;
            }
        }
        Ok(StepConsensus {
            loss_sum: tree_sum(summaries.iter().map(|summary| summary.loss_sum)),
            rows: self.rows,
            dense_square_sum: square_sums.total(summaries.iter().map(|summary| &summary.square_sums[..])),
            routing_counts,
            stop: summaries.iter().any(|summary| summary.stop),
            is_writing: summaries.iter().any(|summary| summary.is_writing),
        })
    }

    /// What all ranks must have in common.
    fn check(&self, theirs: &StepSummary, own: Rank) -> Result<(), String> {
        if theirs.step != self.step {
            return Err(format!("step {} instead of {} on rank {own}", theirs.step, self.step));
        }
        let (sums, our_sums) = (theirs.rows.square_sum, self.rows.square_sum);
        if theirs.rows.finite != self.rows.finite || !is_same(sums, our_sums) {
            return Err(format!("row square sum {sums} instead of {our_sums} on rank {own}"));
        }
        let (counts, our_counts) = (theirs.routing_counts.len(), self.routing_counts.len());
        if counts != our_counts {
            return Err(format!("{counts} routing counts instead of {our_counts} on rank {own}"));
        }
        Ok(())
    }

    fn differs(&self, rank: Rank, difference: String) -> WorkerError {
        let what = format!("{difference}; nothing of this step was applied");
        WorkerError::Disagreement { rank, step: self.step, what }
    }

    fn encode(&self) -> Vec<u8> {
        let flag = |is_set: bool, flag: u64| if is_set { flag } else { 0 };
        let flags =
            flag(self.stop, STOP) | flag(self.is_writing, WRITING) | flag(self.rows.finite, ROWS_FINITE);
        let header: [u64; HEADER_WORDS] = [
            self.step.0,
            self.loss_sum.to_bits(),
            self.rows.square_sum.to_bits(),
            flags,
            self.square_sums.len() as u64,
        ];
        let squares = self.square_sums.iter().map(|sum| sum.to_bits());
        let words = header.into_iter().chain(squares).chain(self.routing_counts.iter().copied());
        words.flat_map(u64::to_le_bytes).collect()
    }

    /// The error says what is wrong with the bytes.
    fn decode(bytes: &[u8]) -> Result<StepSummary, String> {
        let malformed = || format!("a malformed summary of {} bytes", bytes.len());
        let (words, rest) = bytes.as_chunks::<8>();
        let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let (header, sums) = words.split_first_chunk::<HEADER_WORDS>().ok_or_else(malformed)?;
        let [step, loss_sum, row_square_sum, flags, squares] = *header;
        let squares = usize::try_from(squares).ok().filter(|&squares| squares <= sums.len());
        let (Some(squares), true, 0..8) = (squares, rest.is_empty(), flags) else { return Err(malformed()) };
        let (squares, counts) = sums.split_at(squares);
        Ok(StepSummary {
            step: Step(step),
            loss_sum: f64::from_bits(loss_sum),
            rows: RowSummary { finite: flags & ROWS_FINITE != 0, square_sum: f64::from_bits(row_square_sum) },
            square_sums: squares.iter().map(|bits| f64::from_bits(*bits)).collect(),
            routing_counts: counts.to_vec(),
            stop: flags & STOP != 0,
            is_writing: flags & WRITING != 0,
        })
    }
}

/// What a step became on one rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepResult {
    /// The step.
    pub step: Step,
    /// Its loss.
    pub loss: f64,
    /// Its gradient norm.
    pub norm: f64,
    /// Fingerprint of this rank's part of the dense weights after it.
    pub fingerprint: u64,
}

impl StepResult {
    /// Exchanges results with all ranks, one round trip. Returns the fingerprint of all dense weights: the sum of the
    /// ranks' modulo 2^64.
    pub fn exchange(&self, ranks: &mut dyn Collective) -> Result<u64, WorkerError> {
        let words = [self.step.0, self.loss.to_bits(), self.norm.to_bits(), self.fingerprint];
        let own = ranks.rank();
        let mut sum = 0u64;
        for (rank, bytes) in (0..).map(Rank).zip(ranks.all_gather(&words.map(u64::to_le_bytes).concat())?) {
            let differs = |difference: String| WorkerError::Disagreement {
                rank,
                step: self.step,
                what: format!("{difference}; this step was committed, and the run must resume before it"),
            };
            let (words, rest) = bytes.as_chunks::<8>();
            let (&[step, loss, norm, fingerprint], []) = (words, rest) else {
                return Err(differs(format!("a malformed result of {} bytes", bytes.len())));
            };
            let [step, loss, norm, fingerprint] = [step, loss, norm, fingerprint].map(u64::from_le_bytes);
            let (loss, norm) = (f64::from_bits(loss), f64::from_bits(norm));
            if step != self.step.0 || !is_same(loss, self.loss) || !is_same(norm, self.norm) {
                let (our_loss, our_norm) = (self.loss, self.norm);
                return Err(differs(format!(
                    "step {step}, loss {loss}, gradient norm {norm} instead of {}, {our_loss}, {our_norm} on rank {own}",
                    self.step
                )));
            }
            sum = sum.wrapping_add(fingerprint);
        }
        Ok(sum)
    }
}

/// Bit for bit; NaN is NaN, whatever its payload, since sums do not promise that.
fn is_same(a: f64, b: f64) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use polygram_collective::{Local, Options, Stage};

    use super::*;

    /// Runs `act` on each of `inputs`, a rank each. Each exchange is one call of the group.
    fn on_ranks<T: Send, R: Send>(
        inputs: Vec<T>,
        act: impl Fn(T, &mut dyn Collective) -> R + Sync,
    ) -> Vec<R> {
        let options = Options::new("test", Duration::from_secs(20));
        let ranks = Local::ranks(inputs.len() as u32, &options);
        std::thread::scope(|scope| {
            let act = &act;
            let on_rank = |(mut rank, input): (Local, T)| {
                scope.spawn(move || {
                    let result = act(input, &mut rank);
                    let (call, stage) = rank.progress().own().latest.unwrap();
                    assert_eq!((call.sequence, stage), (0, Stage::Left), "one round trip: {call}");
                    result
                })
            };
            let threads: Vec<_> = ranks.into_iter().zip(inputs).map(on_rank).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// Two tensors of 2 and 3 blocks over two ranks.
    fn square_sums() -> SquareSums {
        SquareSums::of_blocks(vec![vec![(0, 0..2), (1, 2..3)], vec![(1, 0..2)]], vec![2, 3])
    }

    fn summaries() -> [StepSummary; 2] {
        let first = StepSummary {
            step: Step(4),
            loss_sum: 0.1,
            rows: RowSummary { finite: true, square_sum: 0.3 },
            square_sums: vec![1e-3, 1e9, 0.7],
            routing_counts: vec![3, 0, 1 << 40],
            stop: false,
            is_writing: false,
        };
        let second = StepSummary {
            loss_sum: 0.2,
            square_sums: vec![1e-9, 5.0],
            routing_counts: vec![1, 2, 3],
            ..first.clone()
        };
        [first, second]
    }

    fn exchange(summaries: [StepSummary; 2]) -> Vec<Result<StepConsensus, WorkerError>> {
        on_ranks(summaries.into(), |summary, ranks| summary.exchange(ranks, &square_sums()))
    }

    #[test]
    fn sums_have_the_canonical_bits_on_every_rank() {
        for consensus in exchange(summaries()) {
            let consensus = consensus.unwrap();
            assert_eq!(consensus.loss_sum.to_bits(), (0.1f64 + 0.2).to_bits());
            let tensors: [f64; 2] = [1e-3 + 1e9, 1e-9 + 5.0 + 0.7];
            assert_eq!(consensus.dense_square_sum.to_bits(), (tensors[0] + tensors[1]).to_bits());
            assert_eq!(consensus.routing_counts, [4, 2, (1 << 40) + 3]);
            assert!(!consensus.stop && !consensus.is_writing);
        }
    }

    #[test]
    fn what_holds_for_one_rank_holds_for_all() {
        for (stop, is_writing) in [(true, false), (false, true), (true, true)] {
            let [first, second] = summaries();
            for consensus in exchange([first, StepSummary { stop, is_writing, ..second }]) {
                let consensus = consensus.unwrap();
                assert_eq!((consensus.stop, consensus.is_writing), (stop, is_writing));
            }
        }
    }

    #[test]
    fn a_difference_is_an_error_on_every_rank() {
        let [_, good] = summaries();
        let row_bit = f64::from_bits(good.rows.square_sum.to_bits() + 1);
        let rows = |finite, square_sum| RowSummary { finite, square_sum };
        for (bad, words) in [
            (StepSummary { step: Step(5), ..good.clone() }, "step"),
            (StepSummary { rows: rows(true, row_bit), ..good.clone() }, "row square sum"),
            (StepSummary { rows: rows(false, 0.3), ..good.clone() }, "row square sum"),
            (StepSummary { routing_counts: vec![1, 2], ..good.clone() }, "routing counts"),
            (StepSummary { square_sums: vec![1.0; 3], ..good.clone() }, "square sums"),
            (StepSummary { routing_counts: vec![u64::MAX; 3], ..good.clone() }, "beyond 64 bits"),
        ] {
            let [first, _] = summaries();
            for error in exchange([first, bad.clone()]).into_iter().map(Result::unwrap_err) {
                assert!(matches!(error, WorkerError::Disagreement { .. }), "{error}");
                assert!(error.to_string().contains(words), "{error} does not contain {words:?}");
            }
        }
    }

    #[test]
    fn nan_is_nan() {
        let [first, second] = summaries().map(|summary| StepSummary { loss_sum: f64::NAN, ..summary });
        let rows = |bit| RowSummary { finite: false, square_sum: f64::from_bits(f64::NAN.to_bits() | bit) };
        for consensus in
            exchange([StepSummary { rows: rows(0), ..first }, StepSummary { rows: rows(1), ..second }])
        {
            let consensus = consensus.unwrap();
            assert!(consensus.loss_sum.is_nan() && consensus.rows.square_sum.is_nan());
        }
    }

    #[test]
    fn summaries_survive_the_wire_and_cut_ones_are_refused() {
        for summary in summaries() {
            let bytes = summary.encode();
            assert_eq!(StepSummary::decode(&bytes).unwrap(), summary);
            for end in (0..bytes.len()).filter(|end| end % 8 != 0 || *end < 8 * HEADER_WORDS) {
                assert!(StepSummary::decode(&bytes[..end]).is_err(), "{end} bytes");
            }
            let mut flags = bytes.clone();
            flags[24] = 8;
            assert!(StepSummary::decode(&flags).is_err());
            let mut squares = bytes;
            squares[39] = 1;
            assert!(StepSummary::decode(&squares).is_err());
        }
    }

    #[test]
    fn results_are_compared_and_fingerprints_added() {
        let result = StepResult { step: Step(4), loss: 0.25, norm: f64::NAN, fingerprint: u64::MAX };
        let exchange =
            |other| on_ranks(vec![result, other], |result: StepResult, ranks| result.exchange(ranks));
        for sum in exchange(StepResult { fingerprint: 8, ..result }) {
            assert_eq!(sum.unwrap(), 7);
        }
        let loss = f64::from_bits(0.25f64.to_bits() + 1);
        for other in [
            StepResult { step: Step(5), ..result },
            StepResult { loss, ..result },
            StepResult { norm: 2.0, ..result },
        ] {
            for error in exchange(other) {
                assert!(matches!(error, Err(WorkerError::Disagreement { .. })), "{error:?}");
            }
        }
    }
}
