//! All ranks agree before state changes.
//!
//! After the reductions every rank must hold the same loss and the same norm, bit for bit. A rank that does not has
//! computed another model; going on would commit it. The exchange also carries the wish to stop, so that all ranks
//! stop at the same boundary, and whether a checkpoint is on its way, so that all begin a recovery point or none does.

use polygram_collective::Collective;
use polygram_domain::{Rank, Step};

use crate::error::WorkerError;

/// What one rank brings to the exchange.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Opinion {
    /// The step about to be committed.
    pub step: Step,
    /// Its loss.
    pub loss: f64,
    /// Its gradient norm.
    pub grad_norm: f64,
    /// Whether this rank was asked to stop.
    pub stop: bool,
    /// Whether a checkpoint is on its way that this rank has a part in.
    pub busy: bool,
}

/// What holds for all ranks if it does for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// The run stops after this step.
    pub stop: bool,
    /// A checkpoint is on its way.
    pub busy: bool,
}

impl Opinion {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(26);
        bytes.extend_from_slice(&self.step.0.to_le_bytes());
        bytes.extend_from_slice(&self.loss.to_bits().to_le_bytes());
        bytes.extend_from_slice(&self.grad_norm.to_bits().to_le_bytes());
        bytes.extend([self.stop, self.busy].map(u8::from));
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Opinion> {
        let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let [stop, busy] = <[u8; 2]>::try_from(bytes.get(24..)?).ok()?;
        Some(Opinion {
            step: Step(word(0)?),
            loss: f64::from_bits(word(8)?),
            grad_norm: f64::from_bits(word(16)?),
            stop: stop != 0,
            busy: busy != 0,
        })
    }
}

/// Exchanges opinions; an error names the first rank of another one.
pub fn agree(collective: &mut dyn Collective, mine: &Opinion) -> Result<Agreed, WorkerError> {
    let all = collective.all_gather(&mine.encode())?;
    let mut agreed = Agreed::default();
    for (rank, bytes) in all.iter().enumerate() {
        let rank = Rank(rank as u32);
        let theirs = Opinion::decode(bytes).ok_or(WorkerError::Disagreement {
            rank,
            step: mine.step,
            what: "its opinion has another format".into(),
        })?;
        let differs = |what: &str, theirs: String, mine: String| {
            format!("{what} {theirs} instead of {mine} on rank {}", collective.rank())
        };
        let what = if theirs.step != mine.step {
            Some(differs("step", theirs.step.to_string(), mine.step.to_string()))
        } else if !is_same(theirs.loss, mine.loss) {
            Some(differs("loss", theirs.loss.to_string(), mine.loss.to_string()))
        } else if !is_same(theirs.grad_norm, mine.grad_norm) {
            Some(differs("gradient norm", theirs.grad_norm.to_string(), mine.grad_norm.to_string()))
        } else {
            None
        };
        if let Some(what) = what {
            return Err(WorkerError::Disagreement { rank, step: mine.step, what });
        }
        agreed.stop |= theirs.stop;
        agreed.busy |= theirs.busy;
    }
    Ok(agreed)
}

/// The sum of every rank's number modulo 2^64.
pub fn wrapping_sum(collective: &mut dyn Collective, mine: u64) -> Result<u64, WorkerError> {
    let all = collective.all_gather(&mine.to_le_bytes())?;
    let words = all.iter().flat_map(|bytes| bytes.as_chunks::<8>().0).map(|word| u64::from_le_bytes(*word));
    Ok(words.fold(0, u64::wrapping_add))
}

/// Bit for bit; NaN is NaN, whatever its payload, since sums do not promise that.
fn is_same(a: f64, b: f64) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(opinions: [Opinion; 2]) -> Vec<Result<Agreed, WorkerError>> {
        let options = polygram_collective::Options::new("test", std::time::Duration::from_secs(10));
        let ranks = polygram_collective::Local::ranks(2, &options);
        let threads: Vec<_> = ranks
            .into_iter()
            .zip(opinions)
            .map(|(mut rank, opinion)| std::thread::spawn(move || agree(&mut rank, &opinion)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }

    const OPINION: Opinion = Opinion { step: Step(4), loss: 0.25, grad_norm: 2.0, stop: false, busy: false };

    #[test]
    fn what_holds_for_one_rank_holds_for_all() {
        for (stop, busy) in [(false, false), (true, false), (false, true), (true, true)] {
            for answer in exchange([OPINION, Opinion { stop, busy, ..OPINION }]) {
                assert_eq!(answer.unwrap(), Agreed { stop, busy });
            }
        }
    }

    #[test]
    fn nan_is_nan() {
        let other = f64::from_bits(f64::NAN.to_bits() | 1);
        for answer in exchange([Opinion { loss: f64::NAN, ..OPINION }, Opinion { loss: other, ..OPINION }]) {
            assert_eq!(answer.unwrap(), Agreed::default());
        }
    }

    #[test]
    fn a_single_bit_is_a_disagreement_on_every_rank() {
        let loss = f64::from_bits(OPINION.loss.to_bits() + 1);
        for other in [Opinion { loss, ..OPINION }, Opinion { step: Step(5), ..OPINION }] {
            for answer in exchange([OPINION, other]) {
                assert!(matches!(answer, Err(WorkerError::Disagreement { .. })), "{answer:?}");
            }
        }
    }

    #[test]
    fn opinions_survive_the_wire() {
        let opinion =
            Opinion { step: Step(1 << 40), loss: 0.1, grad_norm: f64::NAN, stop: true, busy: false };
        let again = Opinion::decode(&opinion.encode()).unwrap();
        assert_eq!(again.encode(), opinion.encode());
        assert!(Opinion::decode(&[]).is_none());
        assert!(Opinion::decode(&[0; 27]).is_none());
    }
}
