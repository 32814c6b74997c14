//! Dense gradients, summed over ranks bucket by bucket on a thread of its own, while backward goes on; and the way back
//! of what the sums have changed.
//!
//! Of every bucket a rank gets the sum of the part that it updates, nothing else. The groups of ranks are lent to the
//! thread for the time between [`GradientSums::begin`] and [`GradientSums::finish`].

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use polygram_collective::{Collective, CollectiveError};
use polygram_domain::RankLayout;
use polygram_domain::topology::SumGroup;
use polygram_faults::{Point, pass};
use polygram_process::{JoinedThread, Panicked};

/// The ranks that gradients are summed over.
pub struct SumRanks {
    /// All workers.
    pub workers: Box<dyn Collective>,
    /// Those with the same experts; `None` where they are all workers.
    pub same_experts: Option<Box<dyn Collective>>,
}

impl SumRanks {
    fn of(&mut self, group: SumGroup) -> &mut dyn Collective {
        match (group, &mut self.same_experts) {
            (SumGroup::SameExperts, Some(ranks)) => ranks.as_mut(),
            _ => self.workers.as_mut(),
        }
    }
}

/// The sums of one step: of every bucket this rank's own part, the rest unspecified.
pub struct SummedGradient {
    layout: Arc<RankLayout>,
    buckets: Vec<Vec<f32>>,
    /// Sums of squares of this rank's own blocks, in the order of [`RankLayout::own_blocks`].
    pub square_sums: Vec<f64>,
}

impl SummedGradient {
    /// The values of elements `range` of the flat gradient, which lie in one bucket.
    pub fn values(&self, range: Range<usize>) -> &[f32] {
        let buckets = self.layout.buckets();
        let index = buckets.partition_point(|bucket| bucket.range.end <= range.start);
        let start = buckets[index].range.start;
        &self.buckets[index][range.start - start..range.end - start]
    }

    /// The buffers, by bucket, to be used again.
    pub fn into_buckets(self) -> impl Iterator<Item = (usize, Vec<f32>)> {
        self.buckets.into_iter().enumerate()
    }
}

enum Order {
    Begin(SumRanks),
    Sum(usize, Vec<f32>),
    End,
}

type Answer = Result<(SumRanks, SummedGradient), CollectiveError>;

/// The compute thread's handle.
pub struct GradientSums {
    layout: Arc<RankLayout>,
    orders: Sender<Order>,
    answers: Receiver<Answer>,
    /// Here between steps.
    ranks: Option<SumRanks>,
    /// Joined last, when `orders` are closed.
    thread: JoinedThread,
}

/// Why gradients are not summed.
#[derive(Debug, thiserror::Error)]
pub enum GradientError {
    /// Another rank failed or left.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// The thread panicked.
    #[error(transparent)]
    Panicked(Panicked),
    /// An earlier failure has ended the thread.
    #[error("the gradients' thread has ended")]
    Ended,
    /// The system refused the thread.
    #[error("cannot start the gradients' thread: {0}")]
    Thread(std::io::Error),
}

impl GradientSums {
    /// Starts the thread.
    pub fn start(layout: Arc<RankLayout>, ranks: SumRanks) -> Result<GradientSums, GradientError> {
        let (orders, queue) = channel();
        let (answer, answers) = channel();
        let of_thread = Arc::clone(&layout);
        let thread = JoinedThread::spawn("gradients", move || carry_out(&of_thread, &queue, &answer))
            .map_err(GradientError::Thread)?;
        Ok(GradientSums { layout, orders, answers, ranks: Some(ranks), thread })
    }

    /// Begins the sums of a step.
    pub fn begin(&mut self) -> Result<(), GradientError> {
        let ranks = self.ranks.take().ok_or(GradientError::Ended)?;
        self.orders.send(Order::Begin(ranks)).map_err(|_| self.end())
    }

    /// Sums bucket `index` over ranks; `values` are this rank's. All ranks give buckets in the same order.
    pub fn sum(&self, index: usize, values: Vec<f32>) {
        // A thread that has ended has failed, and says why at the end of the step.
        self.orders.send(Order::Sum(index, values)).ok();
    }

    /// Waits for the sums of all buckets.
    pub fn finish(&mut self) -> Result<SummedGradient, GradientError> {
        self.orders.send(Order::End).ok();
        let (ranks, summed) = self.answers.recv().map_err(|_| self.end())??;
        self.ranks = Some(ranks);
        Ok(summed)
    }

    /// Every rank's own part of `weights` comes to all ranks that hold it.
    pub fn spread(&mut self, weights: &mut [f32]) -> Result<(), GradientError> {
        pass(Point::WorkerApplied);
        let ranks = self.ranks.as_mut().ok_or(GradientError::Ended)?;
        for bucket in self.layout.buckets() {
            ranks.of(bucket.group).all_gather_chunks(&mut weights[bucket.range.clone()], &bucket.edges)?;
        }
        Ok(())
    }

    /// Why the thread has closed its channels.
    fn end(&mut self) -> GradientError {
        self.thread.join().map_or_else(GradientError::Panicked, |()| GradientError::Ended)
    }
}

/// Carries out orders until the handle is dropped or a sum fails.
fn carry_out(layout: &Arc<RankLayout>, queue: &Receiver<Order>, answers: &Sender<Answer>) {
    while let Ok(Order::Begin(mut ranks)) = queue.recv() {
        let outcome = sum_buckets(layout, queue, &mut ranks);
        let failed = outcome.is_err();
        if answers.send(outcome.map(|summed| (ranks, summed))).is_err() || failed {
            return;
        }
    }
}

fn sum_buckets(
    layout: &Arc<RankLayout>,
    queue: &Receiver<Order>,
    ranks: &mut SumRanks,
) -> Result<SummedGradient, CollectiveError> {
    let count = layout.buckets().len();
    let mut buckets = vec![Vec::new(); count];
    let mut square_sums = vec![Vec::new(); count];
    while let Ok(Order::Sum(index, mut values)) = queue.recv() {
        let bucket = &layout.buckets()[index];
        ranks.of(bucket.group).reduce_scatter(&mut values, &bucket.edges)?;
        square_sums[index] = layout.own_square_sums(index, &values);
        buckets[index] = values;
    }
    Ok(SummedGradient { layout: Arc::clone(layout), buckets, square_sums: square_sums.concat() })
}

#[cfg(test)]
mod tests {
    use polygram_collective::Solo;
    use polygram_domain::{Rank, RunFile};

    use super::*;

    #[test]
    fn a_panic_of_the_thread_keeps_its_text_and_place() {
        let text = include_str!("../../configs/tiny.toml");
        let spec = RunFile::parse(text, "tiny", &[]).and_then(|file| file.resolve()).unwrap();
        let layout = Arc::new(RankLayout::of(&spec.model, &spec.topology, Rank(0)).unwrap());
        let ranks = SumRanks { workers: Box::new(Solo::new("test")), same_experts: None };
        let buckets = layout.buckets().len();
        let mut sums = GradientSums::start(layout, ranks).unwrap();
        sums.begin().unwrap();
        sums.sum(buckets, Vec::new());
        let Err(GradientError::Panicked(panic)) = sums.finish() else { panic!("a panic was expected") };
        let text = panic.to_string();
        assert!(text.contains("index out of bounds") && text.contains("gradients.rs:"), "{text}");
        assert!(matches!(sums.begin(), Err(GradientError::Ended)));
    }
}
