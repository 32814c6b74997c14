//! A group of ranks whose calls are counted by the bytes that this rank brings to them.

use polygram_collective::{AbortHandle, Collective, CollectiveError, Progress};
use polygram_domain::Rank;

use crate::observe::{Group, WorkerView};

/// A group, and where its bytes are counted.
pub struct Counted<C: ?Sized> {
    view: WorkerView,
    group: Group,
    ranks: Box<C>,
}

impl<C: Collective + ?Sized> Counted<C> {
    /// Counts what is brought to calls of `ranks` as `group`'s.
    pub fn new(ranks: Box<C>, group: Group, view: &WorkerView) -> Counted<C> {
        Counted { view: view.clone(), group, ranks }
    }

    fn count<T>(&self, values: &[T]) {
        // Alone, nothing leaves this rank.
        if self.ranks.world_size() > 1 {
            self.view.brought(self.group, size_of_val(values));
        }
    }
}

impl<C: Collective + ?Sized> Collective for Counted<C> {
    fn rank(&self) -> Rank {
        self.ranks.rank()
    }

    fn world_size(&self) -> u32 {
        self.ranks.world_size()
    }

    fn members(&self) -> &[Rank] {
        self.ranks.members()
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        self.count(values);
        self.ranks.all_reduce(values)
    }

    fn all_reduce_f64(&mut self, values: &mut [f64]) -> Result<(), CollectiveError> {
        self.count(values);
        self.ranks.all_reduce_f64(values)
    }

    fn all_reduce_u64(&mut self, values: &mut [u64]) -> Result<(), CollectiveError> {
        self.count(values);
        self.ranks.all_reduce_u64(values)
    }

    fn reduce_scatter(&mut self, values: &mut [f32], edges: &[usize]) -> Result<(), CollectiveError> {
        self.count(values);
        self.ranks.reduce_scatter(values, edges)
    }

    fn all_gather_chunks(&mut self, values: &mut [f32], edges: &[usize]) -> Result<(), CollectiveError> {
        let own = self.rank().index();
        if let (Some(&start), Some(&end)) = (edges.get(own), edges.get(own + 1)) {
            self.count(values.get(start..end).unwrap_or_default());
        }
        self.ranks.all_gather_chunks(values, edges)
    }

    fn all_gather_into(&mut self, bytes: &[u8], received: &mut Vec<Vec<u8>>) -> Result<(), CollectiveError> {
        self.count(bytes);
        self.ranks.all_gather_into(bytes, received)
    }

    fn all_to_all_v_into(
        &mut self,
        sends: &[&[u8]],
        received: &mut Vec<Vec<u8>>,
    ) -> Result<(), CollectiveError> {
        let own = self.rank().index();
        let others = sends.iter().enumerate().filter(|(rank, _)| *rank != own);
        others.for_each(|(_, bytes)| self.count(bytes));
        self.ranks.all_to_all_v_into(sends, received)
    }

    fn broadcast(&mut self, root: Rank, bytes: &mut Vec<u8>) -> Result<(), CollectiveError> {
        if root == self.rank() {
            self.count(bytes);
        }
        self.ranks.broadcast(root, bytes)
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.ranks.barrier()
    }

    fn abort_handle(&self) -> AbortHandle {
        self.ranks.abort_handle()
    }

    fn progress(&self) -> Progress {
        self.ranks.progress()
    }
}
