//! The trait: what a group of ranks can do together.

use polygram_domain::Rank;

use crate::abort::AbortHandle;
use crate::error::CollectiveError;
use crate::progress::Progress;

/// A rank's seat in a group of W ranks.
///
/// Ranks in arguments and answers are seats: 0 to W - 1. In a group that is only a part of the run ([`crate::Split`])
/// they differ from the ranks of the run, which [`Collective::members`] lists; errors and progress tables name ranks
/// of the run.
///
/// Every method that communicates blocks until its part of the call is done, and must be called by all ranks in
/// the same order. After an error the contents of `&mut` buffers are unspecified and every later call fails with
/// [`CollectiveError::Failed`].
///
/// Sums follow the binary tree over ranks (see the crate's documentation) and need W to be a power of two:
/// anything else is [`CollectiveError::WorldSize`], on every rank and before anything is sent.
pub trait Collective: Send {
    /// This rank's seat in the group.
    fn rank(&self) -> Rank;

    /// Ranks in the group (W).
    fn world_size(&self) -> u32;

    /// The ranks of the run that sit in the group, by seat: W of them. Of a group that was not split off another one,
    /// 0, 1, … W - 1.
    fn members(&self) -> &[Rank];

    /// Replaces `values` by its sum over all ranks. All ranks bring the same length.
    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), CollectiveError>;

    /// [`Collective::all_reduce`] of f64.
    fn all_reduce_f64(&mut self, values: &mut [f64]) -> Result<(), CollectiveError>;

    /// [`Collective::all_reduce`] of u64; a sum beyond 64 bits is [`CollectiveError::Overflow`].
    fn all_reduce_u64(&mut self, values: &mut [u64]) -> Result<(), CollectiveError>;

    /// Sums `values` over all ranks and leaves this rank's chunk of the sum, with the bits that
    /// [`Collective::all_reduce`] gives, in `values[edges[rank]..edges[rank + 1]]`. The rest of `values` is unspecified.
    ///
    /// `edges` are W + 1 ascending numbers, the first 0, the last `values.len()`, equal on all ranks; chunks may be of
    /// any lengths, also 0 ([`crate::even_edges`] gives equal ones). Other edges are [`CollectiveError::Argument`],
    /// before anything is sent; ranks that bring different ones get [`CollectiveError::Mismatch`].
    fn reduce_scatter(&mut self, values: &mut [f32], edges: &[usize]) -> Result<(), CollectiveError>;

    /// The way back of [`Collective::reduce_scatter`], with the same `edges`: rank r brings
    /// `values[edges[r]..edges[r + 1]]`, and afterwards every rank has all of `values`. Sums nothing, so W may be any
    /// number.
    fn all_gather_chunks(&mut self, values: &mut [f32], edges: &[usize]) -> Result<(), CollectiveError>;

    /// Every rank's bytes, by rank. Lengths may differ.
    fn all_gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        let mut received = Vec::new();
        self.all_gather_into(bytes, &mut received)?;
        Ok(received)
    }

    /// [`Collective::all_gather`] into buffers that are used again: `received` becomes W of them. What the system
    /// needs to give memory for the first time is often more than what the exchange needs.
    fn all_gather_into(&mut self, bytes: &[u8], received: &mut Vec<Vec<u8>>) -> Result<(), CollectiveError>;

    /// Sends `sends[r]` to each rank r and answers what each rank sent to this one, by rank. Lengths may differ,
    /// and may be 0. `sends` has W entries.
    fn all_to_all_v(&mut self, sends: &[&[u8]]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        let mut received = Vec::new();
        self.all_to_all_v_into(sends, &mut received)?;
        Ok(received)
    }

    /// [`Collective::all_to_all_v`] into buffers that are used again: `received` becomes W of them.
    fn all_to_all_v_into(
        &mut self,
        sends: &[&[u8]],
        received: &mut Vec<Vec<u8>>,
    ) -> Result<(), CollectiveError>;

    /// Replaces `bytes` on every rank by those of `root`.
    fn broadcast(&mut self, root: Rank, bytes: &mut Vec<u8>) -> Result<(), CollectiveError>;

    /// Returns when all ranks have called it.
    fn barrier(&mut self) -> Result<(), CollectiveError>;

    /// A handle with which another thread ends the call in progress and all later ones.
    fn abort_handle(&self) -> AbortHandle;

    /// The table of what each rank is known to have entered and left, readable from other threads at any time.
    fn progress(&self) -> Progress;
}
